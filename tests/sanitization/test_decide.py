import logging
import re
from dataclasses import replace

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, SubsetRandomSampler, TensorDataset
from torchvision.transforms import RandomCrop

from lightning_poison.data.labels import UNLABELED
from lightning_poison.data.source import readable
from lightning_poison.errors import DataChangedError, RankFailedError, UnreadableSampleError
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization.decide import decide
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.sanitization.settings import DecisionSettings
from lightning_poison.sanitization.stored_decision import StoredDecision

SETTINGS = DecisionSettings()


def runtime():
    return LocalRuntime(precision="32", threads=1)


def changed(data, index):
    points = data.tensors[0].clone()
    points[index] += 1
    return TensorDataset(points, data.tensors[1])


@pytest.fixture
def data(blobs):
    return blobs(300, flipped=30)


class Counting:
    """Counts the fits of a scorer class."""

    def __init__(self, scorer):
        self.fits = 0
        outer, fit = self, scorer.fit

        def counted(self, trusted, **parts):
            outer.fits += 1
            return fit(self, trusted, **parts)

        scorer.fit = counted


@pytest.mark.parametrize("index", [0, 17, 299])
def test_one_exchanged_sample_is_found_and_named(data, centroid_scorer, index):
    known = sanitize(data, centroid_scorer(), runtime=runtime())
    assert sanitize(data, centroid_scorer(), known=known, runtime=runtime()) is known
    with pytest.raises(DataChangedError, match=f"1 of 300 samples differ, the first at sample {index}"):
        sanitize(changed(data, index), centroid_scorer(), known=known, runtime=runtime())
    stored = StoredDecision.from_state(StoredDecision.of(known).state())
    assert decide(data, centroid_scorer(), settings=SETTINGS, known=stored, runtime=runtime()) is stored
    with pytest.raises(DataChangedError, match=f"the first at sample {index}"):
        decide(changed(data, index), centroid_scorer(), settings=SETTINGS, known=stored, runtime=runtime())


def test_finished_decision_is_not_repeated_and_says_so(tmp_path, data, centroid_scorer, caplog):
    count = Counting(centroid_scorer)
    with caplog.at_level(logging.INFO, logger="lightning_poison"):
        first = sanitize(data, centroid_scorer(), cache=tmp_path, runtime=runtime())
        assert not [each for each in caplog.messages if "Nothing was scored" in each]
        caplog.clear()
        again = sanitize(data, centroid_scorer(), cache=tmp_path, runtime=runtime())
    assert count.fits == 3
    assert caplog.messages == [f"Nothing was scored: data and settings are those of the verdict in {tmp_path}."]
    assert torch.equal(first.scores, again.scores)
    assert str(first) == str(again)


def test_stored_decision_gets_its_verdict_back_with_decisions_by_hand(tmp_path, data, centroid_scorer):
    options = {"settings": SETTINGS, "cache": tmp_path, "runtime": runtime()}
    made = decide(data, centroid_scorer(), **options)
    kept, gone = made.removed[:2], made.keep.nonzero().flatten()[:3]
    for edited in (made.with_kept(kept), made.with_removed(gone), made.with_kept(kept).with_removed(gone)):
        stored = StoredDecision.from_state(StoredDecision.of(edited).state())
        found = decide(data, centroid_scorer(), known=stored, **options)
        assert torch.equal(found.keep, edited.keep)
        assert torch.equal(found.scores, made.scores)
        assert torch.equal(found.removed_by_rule, edited.removed_by_rule)
        assert str(found) == str(edited)
    state = StoredDecision.of(made.with_kept(kept).with_removed(gone)).state()
    del state["kept_by_hand"]  # as earlier releases wrote it
    found = decide(data, centroid_scorer(), known=StoredDecision.from_state(state), **options)
    assert str(found) == str(made.with_kept(kept).with_removed(gone))
    other = replace(StoredDecision.of(made), keep=made.with_removed(gone).keep)  # not by hand, but by another decision
    assert decide(data, centroid_scorer(), known=other, **options) is other


class Noisy(Dataset):
    def __init__(self, data, strength):
        self.data, self.strength, self.train_transform = data, strength, RandomCrop(8)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        point, label = self.data[index]
        return (point + self.strength * torch.rand(()) if self.strength else point), label


def test_only_transforms_that_are_applied_are_named(data, centroid_scorer):
    notes = [
        decide(Noisy(data, strength), centroid_scorer(), settings=SETTINGS, runtime=runtime()).notes
        for strength in (0, 0.01)
    ]
    assert not any("RandomCrop" in note for note in notes[0])
    assert any(note.startswith("Samples were scored as RandomCrop drew them.") for note in notes[1])


@pytest.mark.parametrize("what", ["data", "settings", "weights"])
def test_decision_about_something_else_is_not_taken(tmp_path, data, centroid_scorer, what):
    sanitize(data, centroid_scorer(), cache=tmp_path, runtime=runtime())
    count = Counting(centroid_scorer)
    if what == "data":
        sanitize(changed(data, 17), centroid_scorer(), cache=tmp_path, runtime=runtime())
    elif what == "settings":
        sanitize(data, centroid_scorer(), seed=1, cache=tmp_path, runtime=runtime())
    else:
        sanitize(data, centroid_scorer().fit(data), cache=tmp_path, runtime=runtime())
    assert count.fits == (1 if what == "weights" else 3)


def test_interrupted_decision_continues(tmp_path, data, centroid_scorer):
    plain = sanitize(data, centroid_scorer(), runtime=runtime())
    fit = centroid_scorer.fit
    calls = []

    def fail_at_third(self, trusted, **parts):
        calls.append(len(trusted))
        if len(calls) == 3:
            raise ValueError("interrupted")
        return fit(self, trusted, **parts)

    centroid_scorer.fit = fail_at_third
    with pytest.raises(ValueError, match="interrupted"):
        sanitize(data, centroid_scorer(), cache=tmp_path, runtime=runtime())
    continued = sanitize(data, centroid_scorer(), cache=tmp_path, runtime=runtime())
    assert len(calls) == 4  # the first two folds are not fitted again
    assert torch.equal(continued.scores, plain.scores)
    assert torch.equal(continued.keep, plain.keep)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (2, 3), (1, 3), (3, 2)])
def test_finished_folds_are_taken_at_another_world_size(tmp_path, data, centroid_scorer, several_ranks, before, after):
    plain = sanitize(data, centroid_scorer(), runtime=runtime())
    fit, calls, fails = centroid_scorer.fit, [], [2]

    def fail_at_second(self, trusted, **parts):
        calls.append(len(trusted))
        if len(calls) in fails:
            raise ValueError("interrupted")
        return fit(self, trusted, **parts)

    centroid_scorer.fit = fail_at_second

    def decide_on(rank):
        return sanitize(data, centroid_scorer(), cache=tmp_path, runtime=rank)

    assert any(isinstance(each, Exception) for each in several_ranks(before, decide_on))
    done = len(calls) - 1  # all but the one that failed
    verdicts = several_ranks(after, decide_on)
    assert len(calls) == done + 1 + (3 - done)
    assert all(torch.equal(each.scores, plain.scores) and torch.equal(each.keep, plain.keep) for each in verdicts)
    again = several_ranks(before, decide_on)
    assert len(calls) == 4
    assert all(torch.equal(each.keep, plain.keep) for each in again)


def test_cache_that_cannot_be_written_costs_nothing(tmp_path, data, centroid_scorer):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="Unfinished work is not saved") as caught:
        verdict = sanitize(data, centroid_scorer(), cache=tmp_path / "file" / "cache", runtime=runtime())
    assert len(caught) == 1
    assert torch.equal(verdict.keep, sanitize(data, centroid_scorer(), runtime=runtime()).keep)


def test_samples_that_are_never_drawn_are_not_judged(data, centroid_scorer):
    drawn = torch.arange(0, 300, 2)
    loader = DataLoader(data, batch_size=32, sampler=SubsetRandomSampler(drawn.tolist()))
    verdict = sanitize(loader, centroid_scorer(), runtime=runtime())
    assert verdict.judged.nonzero().flatten().tolist() == drawn.tolist()
    assert verdict.keep[1::2].all()
    alone = sanitize(TensorDataset(*(each[::2] for each in data.tensors)), centroid_scorer(), runtime=runtime())
    assert torch.equal(verdict.keep[::2], alone.keep)
    assert "150 samples that the sampler never draws are not judged." in str(verdict)
    assert (verdict.labels[1::2] == UNLABELED).all()


def test_evidence_has_the_class_numbers_of_the_data(blobs, centroid_scorer):
    points, labels = blobs(600, flipped=60).tensors
    numbers = torch.tensor([11, 500, 70])
    plain = sanitize(TensorDataset(points, labels), centroid_scorer(), runtime=runtime())
    verdict = sanitize(TensorDataset(points, numbers[labels]), centroid_scorer(), runtime=runtime())
    order = numbers.sort().values  # classes are judged in this order
    assert {pair.labeled for pair in verdict.evidence.pairs} <= set(numbers.tolist())
    assert set(verdict.suggested_labels.tolist()) == set(numbers.tolist())
    assert len(verdict.thresholds) == int(order[-1]) + 1
    assert abs(float(plain.keep.double().mean()) - float(verdict.keep.double().mean())) < 0.01


class Jittered(Dataset):
    """Augments with a generator of its own."""

    def __init__(self, data):
        self.data, self.generator = data, torch.Generator().manual_seed(0)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        point, label = self.data[index]
        return point + 0.01 * torch.rand(point.shape, generator=self.generator), int(label)


UNCHECKED = "transforms draw from a generator of their own. A stored decision .* is checked by labels and number alone"


def test_own_generator_does_not_look_like_other_data(data, centroid_scorer):
    with pytest.warns(UserWarning, match=UNCHECKED):
        known = sanitize(Jittered(data), centroid_scorer(), runtime=runtime())
    assert known.sample_digests is None
    assert re.search(UNCHECKED, known.notes[-1])
    assert "exchanged inputs are not noticed" in known.summary()
    exchanged = Jittered(TensorDataset(-data.tensors[0], data.tensors[1]))
    for again in (Jittered(data), exchanged):
        with pytest.warns(UserWarning, match=UNCHECKED):
            assert sanitize(again, centroid_scorer(), known=known, runtime=LocalRuntime(quiet=True)) is known
    labels = data.tensors[1].clone()
    labels[5] = (labels[5] + 1) % 3
    with (
        pytest.warns(UserWarning, match=UNCHECKED),
        pytest.raises(DataChangedError, match="other labels: 1 differ, the first at sample 5"),
    ):
        sanitize(Jittered(TensorDataset(data.tensors[0], labels)), centroid_scorer(), known=known, runtime=runtime())


class Lazy(TensorDataset):
    """Opens a file on first access."""

    file = None

    def __getitem__(self, index):
        self.file = self.file or "open"
        return super().__getitem__(index)


def test_no_handle_is_left_open(data, centroid_scorer):
    lazy = Lazy(*data.tensors)
    sanitize(lazy, centroid_scorer(), runtime=runtime())
    assert lazy.file is None


def test_nothing_is_read_here_if_the_loader_has_workers(data, centroid_scorer):
    class Guarded(TensorDataset):
        def __getitem__(self, index):
            assert torch.utils.data.get_worker_info() is not None
            return super().__getitem__(index)

    loader = DataLoader(Guarded(*data.tensors), batch_size=32, num_workers=1)
    known = sanitize(loader, centroid_scorer(), runtime=runtime())
    assert torch.equal(known.keep, sanitize(data, centroid_scorer(), runtime=runtime()).keep)
    with pytest.raises(RuntimeError, match="AssertionError"):
        sanitize(Guarded(*data.tensors), centroid_scorer(), runtime=runtime())


def test_ranks_with_other_settings_are_told_so(data, centroid_scorer, several_ranks):
    def run(one):
        rate = 0.01 if one.rank == 0 else 0.02
        return decide(data, centroid_scorer(), settings=DecisionSettings(false_positive_rate=rate), runtime=one)

    found = several_ranks(2, run)
    assert all(isinstance(each, ValueError) for each in found)
    assert "rank 0 has `false_positive_rate=0.01` and this one, rank 1, `false_positive_rate=0.02`" in str(found[1])


def test_ranks_with_other_data_are_told_so(blobs, centroid_scorer, several_ranks):
    found = several_ranks(
        2, lambda one: decide(blobs(90, seed=one.rank), centroid_scorer(), settings=SETTINGS, runtime=one)
    )
    assert all(isinstance(each, DataChangedError) for each in found)
    assert "generator=torch.Generator().manual_seed(0)" in str(found[0])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_interrupted_on_two_ranks_and_resumed_on_any_number(data, centroid_scorer, several_ranks, tmp_path, size):
    settings, fits = DecisionSettings(folds=5), []

    class Interrupted(centroid_scorer):
        last = None

        def fit(self, trusted, **parts):
            if len(fits) == self.last:
                raise KeyboardInterrupt
            fits.append(len(trusted))
            return super().fit(trusted, **parts)

    def run(one, cache=tmp_path):
        return decide(data, Interrupted(), settings=settings, runtime=one, cache=cache)

    whole = run(runtime(), None)
    fits.clear()
    Interrupted.last = 4
    assert any(isinstance(each, RankFailedError) for each in several_ranks(2, run))
    assert len(fits) == 4
    Interrupted.last = None
    resumed = several_ranks(size, run)
    assert len(fits) == 5, "finished folds are not fitted again"
    for verdict in resumed:
        assert verdict.meta() == whole.meta()
        assert all(torch.equal(tensor, whole.tensors()[name]) for name, tensor in verdict.tensors().items())


def test_there_may_be_more_ranks_than_samples(blobs, centroid_scorer, several_ranks):
    data = blobs(12)
    alone = decide(data, centroid_scorer(), settings=SETTINGS, runtime=runtime())
    found = several_ranks(13, lambda one: decide(data, centroid_scorer(), settings=SETTINGS, runtime=one))
    assert all(torch.equal(each.scores, alone.scores) for each in found)
    assert all(torch.equal(each.keep, alone.keep) for each in found)


@pytest.mark.filterwarnings("ignore:The false-positive rate is calibrated:UserWarning")
def test_a_few_trusted_samples_that_are_judged_are_a_warning(blobs, centroid_scorer):
    data, trusted = blobs(300, flipped=30), blobs(900, seed=1)
    trusted.tensors[0][5:7] = data.tensors[0][5:7]
    with pytest.warns(
        UserWarning, match=r"^2 of 900 `trusted` samples are in the training data too\. Their labels would"
    ):
        sanitize(data, centroid_scorer(), trusted=trusted, runtime=runtime())
    trusted.tensors[0][5:12] = data.tensors[0][5:12]
    with pytest.raises(ValueError, match="but 7 of 900 are in the training data too"):
        sanitize(data, centroid_scorer(), trusted=trusted, runtime=runtime())


def test_trusted_samples_that_are_judged_are_refused(blobs, centroid_scorer):
    data = blobs(300, flipped=30)
    for trusted, count in ((data, 300), (TensorDataset(*(each[:150] for each in data.tensors)), 150)):
        with pytest.raises(ValueError, match=f"but {count} of {count} are in the training data too"):
            sanitize(data, centroid_scorer(), trusted=trusted, runtime=runtime())


IMAGES = torch.rand(400, 1, 8, 8, generator=torch.Generator().manual_seed(0)).square()


@pytest.mark.parametrize(
    ("change", "came"),
    [(lambda x: 255 * x, "0.* to 25.*"), (lambda x: 2 * x - 1, "-1 to"), (lambda x: 1 - x, "mean 0.6")],
)
def test_trusted_samples_of_another_scale_are_named(centroid_scorer, change, came):
    data = TensorDataset(IMAGES[:300], torch.arange(300) % 2)
    trusted = TensorDataset(change(IMAGES[300:]), torch.arange(100) % 2)
    with pytest.raises(ValueError, match=f"on the scale of the training data, .* but got .*{came}"):
        sanitize(data, centroid_scorer(), trusted=trusted, runtime=runtime())


def test_readable_is_accepted(data, centroid_scorer):
    made = decide(readable(data, "dataset"), centroid_scorer(), settings=SETTINGS, runtime=runtime())
    assert torch.equal(made.keep, sanitize(data, centroid_scorer(), runtime=runtime()).keep)


class Broken(TensorDataset):
    """One sample is `None`."""

    def __getitem__(self, index):
        return None if index == 5 else super().__getitem__(index)


def test_errors_in_trusted_data_say_so(blobs, centroid_scorer):
    broken = Broken(*blobs(60).tensors)
    with pytest.raises(UnreadableSampleError, match=r"^In `trusted`: Expected sample 5 with an input and a label"):
        sanitize(blobs(60), centroid_scorer(), trusted=broken)
    with pytest.raises(UnreadableSampleError, match=r"^Expected sample 5 with an input and a label"):
        sanitize(broken, centroid_scorer(), trusted=blobs(60))


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        (20, "The 15 samples of class 2 are .* in each of the 20 folds: use fewer `folds`, or pass `trusted=` data."),
        (2, None),
    ],
)
def test_folds_above_the_size_of_a_class(blobs, centroid_scorer, folds, message):
    data = blobs(150)
    rare = (data.tensors[1] != 2) | (torch.arange(150) < 45)
    verdict = sanitize(TensorDataset(*(each[rare] for each in data.tensors)), centroid_scorer(), folds=folds)
    assert re.match(message, verdict.notes[0]) if message else not verdict.notes


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(
    ("now", "message"),
    [
        (range(100, 300), "100 are no longer drawn, the first of them sample 0; 50 were not drawn then, the first of"),
        (range(200), "50 are no longer drawn, the first of them sample 200"),
        (range(300), "50 were not drawn then, the first of them sample 250"),
    ],
)
def test_other_positions_of_the_sampler_are_named(data, centroid_scorer, stored, now, message):
    def drawn(positions):
        return readable(DataLoader(data, sampler=SubsetRandomSampler(positions)), "dataset")

    known = sanitize(drawn(range(250)), centroid_scorer(), runtime=runtime())
    known = StoredDecision.of(known) if stored else known
    with pytest.raises(DataChangedError, match=f"made for other positions of the sampler: {message}"):
        decide(drawn(now), centroid_scorer(), settings=SETTINGS, known=known, runtime=runtime())


@pytest.mark.filterwarnings("ignore:The inputs differ whenever:UserWarning")
def test_samples_without_a_label_are_not_taken_for_others(data, centroid_scorer):
    points, labels = data.tensors
    some = TensorDataset(points, torch.where(torch.arange(300) % 4 == 0, UNLABELED, labels))
    known = sanitize(Jittered(some), centroid_scorer(), runtime=runtime())
    labels = some.tensors[1].clone()
    labels[250] = (labels[250] + 1) % 3
    with pytest.raises(DataChangedError, match="other labels: 1 differ, the first at sample 250"):
        sanitize(Jittered(TensorDataset(points, labels)), centroid_scorer(), known=known, runtime=runtime())
