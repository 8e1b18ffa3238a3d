import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from lightning_poison.attacks.objectives import AvailabilityObjective
from lightning_poison.attacks.poison import Poison
from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.views import SanitizedDataset
from lightning_poison.errors import (
    DataChangedError,
    InconclusiveError,
    NothingKeptError,
    PluginError,
    UnreadableSampleError,
    UnsupportedDataError,
)
from lightning_poison.manifest.manifest import Manifest
from lightning_poison.models.fitting import FitSettings
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization.pipeline import check_removal, sanitize
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.likelihood import LikelihoodScorer
from lightning_poison.scorers.protocol import SetScorer
from lightning_poison.scorers.union import UnionScorer

FEW = "ignore:The false-positive rate is calibrated on:UserWarning"
ALL_KEPT = {"max_removed": 1}


def runtime(workers=0):
    return LocalRuntime(precision="32", threads=1, num_workers=workers)


def flipped(data, every=20):
    """Flip the label of every so many samples, as poison."""
    indices = torch.arange(0, len(data), every)
    labels = torch.tensor([(int(data[int(index)][1]) + 1 + int(index) % 9) % 10 for index in indices])
    return PoisonedDataset(data, Poison(indices, labels, AvailabilityObjective(), attack="label-flip"))


@pytest.fixture(scope="module")
def network():
    """The likelihood scorer, trained long enough for the digits."""
    return LikelihoodScorer(fit_settings=FitSettings(epochs=4, batch_size=64, min_steps=90))


@pytest.mark.slow
def test_flipped_digits_without_trusted_data(digits, network):
    data = flipped(digits)
    verdict = sanitize(data, network, runtime=runtime())
    poison = data.is_poison
    assert verdict.evidence.present
    assert verdict.evidence.low < 0.05 < verdict.evidence.high
    assert float((~verdict.keep)[poison].double().mean()) > 0.8
    assert float((~verdict.keep)[~poison].double().mean()) < 0.015
    assert verdict.calibration == "wrong-label null"
    assert not network.is_fitted
    caught = poison & ~verdict.keep
    truth = digits.tensors[1]
    assert float((verdict.suggested_labels == truth)[caught].double().mean()) > 0.9
    assert not poison[SanitizedDataset(data, verdict.keep).indices].all()


@pytest.mark.slow
@pytest.mark.filterwarnings(FEW)
def test_flipped_digits_with_trusted_data(digits, network):
    # The digits are ordered by writer.
    order = torch.randperm(len(digits), generator=torch.Generator().manual_seed(0)).tolist()
    data = flipped(Subset(digits, order[:800]), every=16)
    trusted = Subset(digits, order[800:])
    verdict = sanitize(data, network, trusted=trusted, false_positive_rate=0.05, runtime=runtime())
    poison = data.is_poison
    assert verdict.evidence.present
    assert float((~verdict.keep)[poison].double().mean()) > 0.8
    assert float((~verdict.keep)[~poison].double().mean()) < 0.1
    assert verdict.calibration == "trusted"
    assert verdict.thresholds.isfinite().all()
    assert not network.is_fitted


@pytest.mark.slow
def test_keeps_clean_digits(digits, network):
    verdict = sanitize(digits, network, runtime=runtime())
    assert not verdict.evidence.present
    assert verdict.keep.all()
    assert len(verdict.removed) == 0


@pytest.mark.parametrize("trusted", [False, True])
def test_blobs(blobs, centroid_scorer, trusted):
    data = blobs(600, flipped=30)
    verdict = sanitize(data, centroid_scorer(), trusted=blobs(1500, seed=1) if trusted else None)
    assert verdict.evidence.present
    assert not verdict.keep[570:].any()
    assert float(verdict.keep[:570].double().mean()) > 0.97
    assert torch.equal(verdict.labels, data.tensors[1])
    assert verdict.suggested_labels.tolist() == (torch.arange(600) % 3).tolist()
    assert verdict.scores.dtype == verdict.p_values.dtype == torch.float64
    assert verdict.p_values[570:].max() < verdict.p_values[:570].median()
    assert sum(index >= 570 for index in verdict.removed[:30].tolist()) >= 29


def test_keeps_clean_blobs(blobs, centroid_scorer):
    verdict = sanitize(blobs(600), centroid_scorer())
    assert verdict.keep.all()
    assert not verdict.evidence.present
    assert "no evidence of wrong labels" in str(verdict)


@pytest.mark.slow
def test_removes_few_wrong_labels_only_on_request(blobs, centroid_scorer):
    data = blobs(900, flipped=2)
    assert sanitize(data, centroid_scorer()).keep.all()
    verdict = sanitize(data, centroid_scorer(), remove_without_evidence=True)
    assert (~verdict.keep).nonzero().flatten().tolist() == [898, 899]
    assert sanitize(data, centroid_scorer(), natural_error_rate=0.0).settings["natural_error_rate"] == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("classes", [[3, 7], [0, 9]])
def test_labels_with_gaps(blobs, centroid_scorer, classes):
    points, labels = blobs(600, classes=2, flipped=30).tensors
    data = TensorDataset(points, torch.tensor(classes)[labels])
    points, labels = blobs(1000, classes=2, seed=1).tensors
    for trusted in (None, TensorDataset(points, torch.tensor(classes)[labels])):
        verdict = sanitize(data, centroid_scorer(), trusted=trusted)
        assert not verdict.keep[570:].any()
        assert set(verdict.suggested_labels.tolist()) == set(classes)


def test_accepts_loader(blobs, centroid_scorer):
    data, trusted = blobs(300, flipped=15), blobs(1500, seed=1)
    one = sanitize(data, centroid_scorer(), trusted=trusted)
    two = sanitize(
        DataLoader(data, shuffle=True, batch_size=7), centroid_scorer(), trusted=DataLoader(trusted, batch_size=9)
    )
    assert torch.equal(one.keep, two.keep)
    assert one.fingerprint == two.fingerprint


def test_accepts_list(blobs, centroid_scorer):
    data = blobs(300, flipped=15)
    assert torch.equal(sanitize(list(data), centroid_scorer()).keep, sanitize(data, centroid_scorer()).keep)


@pytest.mark.filterwarnings(FEW)
def test_sample_spec_applies_to_trusted_data(blobs, centroid_scorer):
    def dicts(data):
        return [{"left": x, "right": 0 * x, "y": int(y)} for x, y in zip(*data.tensors, strict=True)]

    with pytest.raises(ValueError, match="Name the two by their paths"):
        sanitize(dicts(blobs(60)), centroid_scorer())
    verdict = sanitize(
        dicts(blobs(60)), centroid_scorer(), trusted=dicts(blobs(300, seed=1)), sample=SampleSpec("left", "y")
    )
    plain = sanitize(blobs(60), centroid_scorer(), trusted=blobs(300, seed=1))
    assert torch.equal(verdict.scores, plain.scores)


class Noisy(Dataset):
    """Blobs behind a random transform of three sources."""

    def __init__(self, data, sigma=0.1):
        self.data, self.sigma = data, sigma

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        point, label = self.data[index]
        shift = random.random() + np.random.rand()  # noqa: NPY002, S311
        return point + self.sigma * (torch.randn(point.shape) + shift), label


def states():
    return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()  # noqa: NPY002


SMALL = LikelihoodScorer(feature_size=4, fit_settings=FitSettings(epochs=1, batch_size=32, min_steps=20))


@pytest.mark.slow
@pytest.mark.filterwarnings(FEW)
@pytest.mark.parametrize("by_trusted", [False, True])
def test_same_seed_gives_same_verdict_for_any_number_of_workers(blobs, by_trusted):
    trusted = Noisy(blobs(300, seed=1)) if by_trusted else None
    found = states()
    one, two = (
        sanitize(Noisy(blobs(300, flipped=30)), SMALL, trusted=trusted, runtime=runtime(workers), **ALL_KEPT)
        for workers in (0, 2)
    )
    assert states() == found
    for name, tensor in one.tensors().items():
        assert torch.equal(tensor, two.tensors()[name])
    assert one.meta() == two.meta()


@pytest.mark.slow
def test_other_seed_gives_other_verdict(blobs):
    one, two = (sanitize(blobs(150), SMALL, seed=seed, runtime=runtime()) for seed in (0, 1))
    assert not torch.equal(one.scores, two.scores)
    assert one.fingerprint != two.fingerprint


@pytest.mark.slow
def test_ignores_global_random_state(blobs):
    scores = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            scores.append(sanitize(Noisy(blobs(150)), SMALL, runtime=runtime()).scores)
    assert torch.equal(*scores)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize("fails", [False, True])
def test_restores_threads_and_random_states(blobs, centroid_scorer, fails):
    data, found, threads = Noisy(blobs(60)), states(), torch.get_num_threads()
    if fails:
        data.data.tensors[0][33] = torch.nan
        with pytest.raises(UnreadableSampleError, match="sample 33"):
            sanitize(data, centroid_scorer())
    else:
        sanitize(data, centroid_scorer())
    assert states() == found
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_fingerprint_depends_on_data_and_settings(blobs, centroid_scorer):
    def taken(data, **settings):
        return sanitize(data, centroid_scorer(), **settings).fingerprint

    data = blobs(90)
    points, labels = data.tensors
    other = labels.clone()
    other[41] = (other[41] + 1) % 3
    found = [
        taken(data),
        taken(TensorDataset(points, other)),
        taken(TensorDataset(points.flip(0), labels.flip(0))),
        taken(blobs(87)),
        taken(TensorDataset(points * 1.01, labels)),
        taken(Noisy(data)),
        taken(Noisy(data, sigma=0.2)),
        taken(data, folds=4),
        taken(data, seed=1),
        taken(data, false_positive_rate=0.02),
        taken(data, natural_error_rate=0.01),
        taken(data, remove_without_evidence=True),
    ]
    assert len(set(found)) == len(found)
    assert taken(blobs(90)) == found[0]


def test_saves_and_loads_verdict(blobs, centroid_scorer, tmp_path):
    old = sanitize(blobs(300, flipped=30), centroid_scorer())
    old.save(tmp_path / "v")
    new = Verdict.load(tmp_path / "v")
    assert new.meta() == old.meta()
    for name, tensor in old.tensors().items():
        assert torch.equal(new.tensors()[name], tensor)


def test_returns_known_verdict_without_scoring(blobs, centroid_scorer, tmp_path):
    sanitize(blobs(300, flipped=30), centroid_scorer()).with_kept(torch.tensor([290])).save(tmp_path / "v")
    known, scorer = Verdict.load(tmp_path / "v"), centroid_scorer()
    assert sanitize(blobs(300, flipped=30), scorer, known=known) is known
    assert not scorer.fits
    for arguments in ({"dataset": blobs(300, flipped=29)}, {"dataset": blobs(300, flipped=30), "folds": 5}):
        with pytest.raises(DataChangedError, match=r"stored decision about 300 samples[\s\S]*leave out `known`"):
            sanitize(scorer=scorer, known=known, **arguments)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_every_rank_gets_verdict_of_single_rank(blobs, centroid_scorer, several_ranks, size):
    data, trusted = blobs(700, flipped=40), blobs(1500, seed=1)
    for more in ({}, {"trusted": trusted}):
        alone = sanitize(data, centroid_scorer(), **more)

        def work(runtime, more=more):
            return sanitize(data, centroid_scorer(), runtime=runtime, **more)

        for found in several_ranks(size, work):
            assert {**found.meta(), "made_with": ""} == {**alone.meta(), "made_with": ""}  # other threads
            for name, tensor in alone.tensors().items():
                assert torch.equal(found.tensors()[name], tensor)


@pytest.mark.slow
def test_refusal_carries_a_ranking():
    generator = torch.Generator().manual_seed(0)
    points, labels = torch.randn(120, 4, generator=generator), torch.arange(120) % 3
    labels[7] = -1
    for scorer in (SMALL, UnionScorer({"one": SMALL, "two": SMALL})):
        with pytest.raises(InconclusiveError) as caught:
            sanitize(TensorDataset(points, labels), scorer, runtime=runtime())
        scores = caught.value.scores
        assert scores.shape == (120,)
        assert scores[7] == 0
        assert bool((scores[torch.arange(120) != 7] != 0).all())


def test_refuses_ranks_with_different_data(blobs, centroid_scorer, several_ranks):
    found = several_ranks(3, lambda rank: sanitize(blobs(60, seed=rank.rank // 2), centroid_scorer(), runtime=rank))
    assert all(isinstance(error, DataChangedError) for error in found)


def test_unreadable_sample_on_one_rank_raises_on_all(blobs, centroid_scorer, several_ranks):
    def work(rank):
        data = blobs(60)
        if rank.rank == 1:
            data.tensors[0][33] = torch.nan
        return sanitize(data, centroid_scorer(), runtime=rank)

    found = several_ranks(2, work)
    assert isinstance(found[1], UnreadableSampleError)
    assert isinstance(found[0], RuntimeError)


class Stream(IterableDataset):
    def __iter__(self):
        return iter([(torch.zeros(4), 0)])


@pytest.mark.parametrize("data", [Stream(), DataLoader(Stream()), iter([1]), 5, {1, 2}])
def test_refuses_iterable_data(data, blobs, centroid_scorer):
    with pytest.raises(UnsupportedDataError, match=r"`dataset` to be a map-style data set[\s\S]*Write the stream"):
        sanitize(data, centroid_scorer())
    with pytest.raises(UnsupportedDataError, match="`trusted` to be a map-style data set"):
        sanitize(blobs(60), centroid_scorer(), trusted=data)


def test_refuses_empty_data(blobs, centroid_scorer):
    empty = TensorDataset(torch.zeros(0, 4), torch.zeros(0).long())
    with pytest.raises(ValueError, match="`dataset` to have at least one sample"):
        sanitize(empty, centroid_scorer())
    with pytest.raises(ValueError, match="`trusted` to have at least one sample"):
        sanitize(blobs(60), centroid_scorer(), trusted=empty)


def test_refuses_single_class(centroid_scorer):
    data = TensorDataset(torch.randn(9, 4), torch.full((9,), 4))
    with pytest.raises(ValueError, match="data of at least two classes, but got class 4 alone"):
        sanitize(data, centroid_scorer())


def test_refuses_class_without_trusted_samples(blobs, centroid_scorer):
    with pytest.raises(ValueError, match="there is none of class 2"):
        sanitize(blobs(60), centroid_scorer(), trusted=blobs(60, classes=2))


def test_class_with_fewer_samples_than_folds_is_kept_and_named(blobs, centroid_scorer):
    points, labels = blobs(300, classes=2, flipped=30).tensors
    plain = sanitize(TensorDataset(points[2:], labels[2:]), centroid_scorer())
    labels[:2] = 2
    verdict = sanitize(TensorDataset(points, labels), centroid_scorer())
    assert verdict.judged.logical_not().nonzero().flatten().tolist() == [0, 1]
    assert torch.equal(verdict.keep[2:], plain.keep)
    assert "The 2 samples of class 2 are kept and not judged: too few of a class." in str(verdict)
    assert "298 samples scored" in str(verdict)


def test_carried_labels_are_judged(blobs, centroid_scorer):
    class Listing(TensorDataset):
        def __getitem__(self, index):
            point, label = super().__getitem__(index)
            return (point, (label + 1) % 3) if index >= 270 else (point, label)

    with pytest.warns(UserWarning, match="30 of 300 differ, the first at sample 270"):
        verdict = sanitize(Listing(*blobs(300).tensors), centroid_scorer())
    assert (~verdict.keep)[270:].double().mean() > 0.9


def test_refuses_control(blobs, centroid_scorer):
    scorer = centroid_scorer()
    scorer.is_control = True
    with pytest.raises(ValueError, match="centroid is a control, which may use the ground truth"):
        sanitize(blobs(60), scorer)


def test_set_scorer(blobs):
    class Length(SetScorer):
        name = "length"
        feature_model = FeatureModel(nn.Flatten())

        def score_features(self, features, labels):
            return (features - 6 * torch.eye(4)[labels]).square().sum(1)

    data, trusted = blobs(300, flipped=15), blobs(900, seed=1)
    verdict = sanitize(data, Length(), trusted=trusted)
    assert float((~verdict.keep)[285:].double().mean()) > 0.9
    assert verdict.settings["scorer"]["feature_model"]["layer"] == ""
    assert sanitize(data, Length(), trusted=trusted, known=verdict) is verdict
    other = Length()
    other.feature_model = FeatureModel(nn.Sequential(nn.Flatten()))
    with pytest.raises(DataChangedError, match="the settings scorer"):
        sanitize(data, other, trusted=trusted, known=verdict)
    with pytest.raises(ValueError, match="`trusted=` data, since the length scorer"):
        sanitize(data, Length())


def test_combination_keeps_votes(blobs, centroid_scorer, tmp_path):
    class Last(SetScorer):
        name = "last"
        feature_model = FeatureModel(nn.Flatten())

        def score_features(self, features, labels):
            return features[:, -1].abs()

    points, labels = blobs(300, flipped=15).tensors
    points[:10, -1] = 9
    data, trusted = TensorDataset(points, labels), blobs(1500, seed=1)
    verdict = sanitize(data, CombinedScorer([centroid_scorer(), Last()]), trusted=trusted)
    assert set(verdict.removed_by_scorer) == {"centroid", "last"}
    assert verdict.removed_by_scorer["last"] <= 12
    assert "\nsmallest p-value by centroid " in str(verdict)
    verdict.save(tmp_path / "verdict.safetensors")
    again = Verdict.load(tmp_path / "verdict.safetensors")
    assert torch.equal(again.votes["last"], verdict.votes["last"])
    rows = {row.sample_id: row for row in Manifest.from_verdict(verdict, data).rows}
    assert rows[3].votes["last"] < rows[3].votes["centroid"]
    assert "lowest vote from last" in str(rows[3])
    assert "lowest vote from centroid" in str(rows[290])


def test_refuses_scorer_without_name(blobs):
    class Nameless(SetScorer):
        def score_features(self, features, labels):
            return features[:, 0]

    with pytest.raises(TypeError, match="a scorer with a `name`, but got a Nameless without one"):
        sanitize(blobs(60), Nameless())


@pytest.mark.parametrize("name", ["name", "is_control", "settings"])
def test_scorer_that_cannot_say_what_it_is_is_named(blobs, centroid_scorer, name):
    def fails(scorer):
        raise ZeroDivisionError

    failing = type("Failing", (type(centroid_scorer()),), {name: fails if name == "settings" else property(fails)})
    with pytest.raises(PluginError, match=f"Expected `{name}` of .* to succeed, but it raised ZeroDivisionError"):
        sanitize(blobs(60), failing())


def test_missing_columns_are_those_of_a_scorer(blobs, centroid_scorer):
    kind = type(centroid_scorer())
    narrow = type("Narrow", (kind,), {"score_labels": lambda scorer, inputs: kind.score_labels(scorer, inputs)[:, :2]})
    with pytest.raises(ValueError, match=r"below 2, .*but got 2\.\n`score_labels` of the scorer `centroid` has 2 col"):
        sanitize(blobs(60), narrow(), runtime=runtime())


def test_refuses_other_objects_as_scorer(blobs):
    with pytest.raises(TypeError, match=r"but got the class LikelihoodScorer\.\n"):
        sanitize(blobs(60), LikelihoodScorer)
    with pytest.raises(ValueError, match=r"fast, balanced, thorough, but got 'likelihood'\.\n`get_scorer\(name\)`"):
        sanitize(blobs(60), "likelihood")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"false_positive_rate": 0}, "For 1 % write `false_positive_rate=0.01`"),
        ({"false_positive_rate": 1.0}, "`false_positive_rate` to be a number"),
        ({"false_positive_rate": 5}, "`false_positive_rate` to be a number"),
        ({"natural_error_rate": -0.1}, "`natural_error_rate`"),
        ({"max_removed": 0}, "Use 1 for no limit"),
        ({"seed": -1}, "`seed`"),
        ({"folds": 1}, "`folds` to be an integer of at least 2"),
    ],
)
def test_refuses(blobs, centroid_scorer, arguments, message):
    with pytest.raises(ValueError, match=message):
        sanitize(blobs(60), centroid_scorer(), **arguments)


@pytest.mark.parametrize("limit", [0.02, 0.5])
def test_refuses_to_remove_too_many(blobs, centroid_scorer, limit):
    trusted = blobs(1500, seed=1)
    points, labels = blobs(300).tensors
    data = TensorDataset(points + (40 if limit == 0.5 else 0), labels)
    if limit == 0.02:
        data = blobs(300, flipped=15)
    with pytest.raises(NothingKeptError, match=rf"at most {100 * limit:g} % of the samples, but [\d.]+ % are suspic"):
        sanitize(data, centroid_scorer(), trusted=trusted, max_removed=limit)


def test_refuses_to_remove_everything(blobs, centroid_scorer):
    points, labels = blobs(300).tensors
    data = TensorDataset(points + 40, labels)
    with pytest.raises(NothingKeptError, match=r"but 100\.0 % are"):
        sanitize(data, centroid_scorer(), trusted=blobs(1500, seed=1), max_removed=1)


@pytest.mark.parametrize("limit", [0.5, 0.9, 1])
def test_refuses_to_remove_a_class(blobs, centroid_scorer, limit):
    points, labels = blobs(300).tensors
    points[labels == 1] += 40
    with pytest.raises(NothingKeptError, match=r"but all 100 of class 1 are suspicious\.\nRemove the class"):
        sanitize(TensorDataset(points, labels), centroid_scorer(), trusted=blobs(1500, seed=1), max_removed=limit)


def test_limits_are_about_suspicion_and_not_about_what_the_user_removes(blobs, centroid_scorer):
    data = blobs(300, flipped=30)
    labels, verdict = data.tensors[1], sanitize(data, centroid_scorer())
    members = (labels == 1).nonzero().flatten()
    for gone in (members[:55], members, torch.arange(200), torch.arange(1, 300)):
        edited = verdict.with_removed(gone)
        check_removal(edited, 0.5)
        assert sanitize(data, centroid_scorer(), known=edited) is edited
    with pytest.raises(NothingKeptError, match=r"keep at least one sample, but .* removed by hand"):
        check_removal(verdict.with_removed(torch.arange(300)), 0.5)
    with pytest.raises(NothingKeptError, match=r"Expected to remove at most 1 % of the samples, but [\d.]+ % are"):
        check_removal(verdict.with_removed(members), 0.01)


def test_what_is_removed_may_be_as_much_as_the_limit(blobs, centroid_scorer):
    verdict = sanitize(blobs(300), centroid_scorer(), trusted=blobs(1500, seed=1), **ALL_KEPT)

    def without_first(count, labels):
        keep = torch.arange(300) >= count
        return replace(verdict, keep=keep, scores=torch.where(keep, -1e9, 1e9).double(), labels=labels)

    of_all = without_first(90, torch.arange(300) % 3)
    check_removal(of_all, 0.3)
    with pytest.raises(NothingKeptError, match=r"at most 29.9 % of the samples, but 30.0 % are suspicious"):
        check_removal(of_all, 0.299)
    of_class = without_first(70, (torch.arange(300) >= 100).long())
    check_removal(of_class, 0.7)
    with pytest.raises(NothingKeptError, match=r"at most 69.9 % of each class, but 70.0 % of class 0"):
        check_removal(of_class, 0.699)


def test_max_removed_applies_to_classes(blobs, centroid_scorer):
    points, labels = blobs(300).tensors
    points[(labels == 1) & (torch.arange(300) >= 60)] += 40
    verdict = sanitize(TensorDataset(points, labels), centroid_scorer(), trusted=blobs(1500, seed=1), max_removed=0.9)
    assert float(verdict.keep[labels == 1].double().mean()) == pytest.approx(0.2, abs=0.03)


@pytest.mark.slow
def test_names_difference_from_stored_decision(blobs, centroid_scorer):
    data, trusted = blobs(300, flipped=30), blobs(1200, seed=1)
    known = sanitize(data, centroid_scorer(), trusted=trusted)
    assert sanitize(data, centroid_scorer(), trusted=blobs(1200, seed=1), known=known) is known
    with pytest.raises(DataChangedError, match="settings trusted"):
        sanitize(data, centroid_scorer(), trusted=blobs(1200, seed=2), known=known)
    with pytest.raises(DataChangedError, match=r"settings folds 3, but got 4"):
        sanitize(data, centroid_scorer(), trusted=trusted, folds=4, known=known)
    with pytest.raises(DataChangedError, match="settings fitted None"):
        sanitize(data, centroid_scorer().fit(blobs(600, seed=3)), trusted=trusted, known=known)
    other = centroid_scorer()
    other.name = "another"
    with pytest.raises(DataChangedError, match=r"'centroid'.*'another'"):
        sanitize(data, other, trusted=trusted, known=known)
    with pytest.raises(DataChangedError, match="other labels: 1 differ, the first at sample 270, which had 1 and now"):
        sanitize(blobs(300, flipped=29), centroid_scorer(), trusted=trusted, known=known)


def test_single_odd_label_does_not_stop_the_others(blobs, centroid_scorer):
    points, labels = blobs(300, flipped=30).tensors
    labels[7] = 2**31
    verdict = sanitize(TensorDataset(points, labels), centroid_scorer())
    assert "The only sample of class 2147483648 is kept" in str(verdict)
    assert (~verdict.keep)[270:].double().mean() > 0.9


def test_tuples_in_settings_are_not_changes(blobs, centroid_scorer):
    class Ranged(centroid_scorer):
        def settings(self):
            return {"range": (0.0, 1.0)}

    known = sanitize(blobs(300, flipped=30), Ranged())
    with pytest.raises(DataChangedError, match="made for other labels: 1 differ"):
        sanitize(blobs(300, flipped=29), Ranged(), known=known)


class Streamed(Dataset):
    """Samples under a random transform, with their labels listed or not; counts how often each is read."""

    def __init__(self, data, listed):
        self.data, self.reads = data, torch.zeros(len(data), dtype=torch.int64)
        if listed:
            self.targets = data.tensors[1]

    def __len__(self):
        return len(self.reads)

    def __getitem__(self, index):
        self.reads[index] += 1
        point, label = self.data[index]
        return point + 0.1 * torch.randn(point.shape), int(label)


@pytest.mark.slow
@pytest.mark.filterwarnings(FEW)
@pytest.mark.parametrize("trusting", [False, True])
def test_reads_unlisted_labels_once(blobs, centroid_scorer, trusting):
    found = {}
    for listed in (True, False):
        data, trusted = Streamed(blobs(900, flipped=90), listed), Streamed(blobs(600, seed=1), listed)
        found[listed] = sanitize(data, centroid_scorer(), trusted=trusted if trusting else None, runtime=runtime())
        assert data.reads.min() >= 2  # once, and again to test whether samples repeat
        # The first block shows that reading is random, and one block is read for labels under another seed.
        assert data.reads.sum() <= 2 * len(data) + 4 * 256 + 2
        if trusting:
            assert trusted.reads.sum() <= 2 * len(trusted) + 4 * 256 + 2
    assert torch.equal(found[True].scores, found[False].scores)
    assert torch.equal(found[True].keep, found[False].keep)
    assert found[True].fingerprint == found[False].fingerprint


@pytest.mark.parametrize("labels", [np.zeros(3), torch.zeros(3), [0, 1]])
def test_arrays_as_two_arguments(labels):
    with pytest.raises(TypeError, match=r"Pass inputs and labels as a pair, then a scorer: `sanitize\(\(X, y\), Like"):
        sanitize(torch.zeros(3, 2), labels)


def test_cache_that_is_a_file_is_refused(blobs, centroid_scorer, tmp_path):
    (tmp_path / "file").write_text("mine")
    scorer = centroid_scorer()
    with pytest.raises(ValueError, match=r"`cache` to be a folder, but got .*file, which is a file\.\nPass another"):
        sanitize(blobs(30), scorer, cache=tmp_path / "file")
    assert not scorer.fits


@pytest.mark.parametrize(("cache", "kind"), [("", ValueError), ("s3://bucket/x", ValueError), (5, TypeError)])
def test_cache_is_a_folder(blobs, centroid_scorer, cache, kind):
    with pytest.raises(kind, match=r"`cache` to be a .*\nPass a folder of this machine"):
        sanitize(blobs(30), centroid_scorer(), cache=cache)


def test_too_much_removed_with_trusted_data_is_about_trusted_data(blobs, centroid_scorer):
    shifted = blobs(600)
    data = TensorDataset(shifted.tensors[0] + 9 * torch.eye(4)[3], shifted.tensors[1])
    with pytest.warns(UserWarning, match="calibrated"), pytest.raises(NothingKeptError) as caught:
        sanitize(data, centroid_scorer(), trusted=blobs(600, seed=1))
    assert "Compare the samples of `trusted` with those of the training data" in str(caught.value)
    assert "max_removed" not in str(caught.value)


@pytest.mark.parametrize("runtime", ["cuda", torch.device("cpu"), LocalRuntime], ids=["text", "device", "class"])
def test_a_runtime_that_is_none_names_the_way_out(runtime, blobs):
    with pytest.raises(TypeError, match=r'`runtime` to be a `LocalRuntime`, but got .*\n.*LocalRuntime\("cuda"'):
        sanitize(blobs(30), SMALL, runtime=runtime)
