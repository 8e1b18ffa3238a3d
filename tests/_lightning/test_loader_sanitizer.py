"""The loader sanitizer without a Trainer: scoring, filtering, checks and state."""

from dataclasses import fields, replace
from inspect import signature

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_poison._lightning.loader_sanitizer import LoaderSanitizer
from lightning_poison._lightning.records import decisions_from_state
from lightning_poison._lightning.sanitizer_settings import SanitizerSettings
from lightning_poison.callbacks.sanitizer import Sanitizer
from lightning_poison.datamodules import SanitizedDataModule
from lightning_poison.errors import DataChangedError, ManifestError
from lightning_poison.manifest.manifest import keep_by_hand, read_manifest, write_manifest
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.sanitization.settings import DecisionSettings


@pytest.fixture
def data(blobs):
    return blobs(flipped=60)


@pytest.fixture
def scorer(centroid_scorer):
    return centroid_scorer()


@pytest.fixture
def sanitizer(scorer):
    return LoaderSanitizer(SanitizerSettings(scorer=scorer))


def reversed_data(data):
    points, labels = data.tensors
    return TensorDataset(points.flip(0), labels.flip(0))


def test_filters_loaders_and_scores_once(sanitizer, scorer, data):
    loader = DataLoader(data, 32)
    rebuilt = [sanitizer.filter(loader) for _ in range(3)]
    assert len(scorer.fits) == 3
    verdict = sanitizer.single_verdict()
    assert all(len(each.dataset) == int(verdict.keep.sum()) for each in rebuilt)
    assert loader.dataset is data
    assert not verdict.keep[-60:].any()
    sanitizer.check(rebuilt[0])


def test_recognizes_the_same_data_in_another_object(sanitizer, scorer, data):
    sanitizer.filter(DataLoader(data))
    again = TensorDataset(*data.tensors)
    rebuilt = sanitizer.filter(DataLoader(again))
    assert rebuilt.dataset.dataset is again
    assert len(scorer.fits) == 3


def test_judges_other_data_under_the_same_path_anew(sanitizer, scorer, data):
    """As of a data set that grows from epoch to epoch, or of the folds of a cross-validation."""
    sanitizer.filter(DataLoader(data))
    kept = sanitizer.single_verdict().keep
    rebuilt = sanitizer.filter(DataLoader(reversed_data(data)))
    assert torch.equal(sanitizer.single_verdict().keep, kept.flip(0))
    assert len(rebuilt.dataset) == int(kept.sum())
    sanitizer.start_run()
    sanitizer.filter(DataLoader(data))
    assert torch.equal(sanitizer.single_verdict().keep, kept)
    assert len(scorer.fits) == 9


class Growing(torch.utils.data.Dataset):
    """Samples of which the first `count` are there, in an order that can change."""

    def __init__(self, data):
        self.data, self.count, self.order = data, 400, torch.arange(len(data))

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return self.data[self.order[index]]


@pytest.mark.slow
def test_judges_data_that_change_in_place_anew(sanitizer, scorer, data, caplog):
    """As of a data set that grows, or is resampled, from epoch to epoch."""
    caplog.set_level("INFO", "lightning_poison")
    growing, wrong = Growing(blobs_mixed(data)), blobs_mixed(data).wrong
    for fits, change in enumerate([{}, {"count": 500}, {"count": 600}, {"order": torch.randperm(600)}], start=1):
        vars(growing).update(change)
        for _ in range(2):
            rebuilt = sanitizer.filter(DataLoader(growing))
        sanitizer.check(rebuilt)
        assert torch.equal(~sanitizer.single_verdict().keep, wrong[growing.order[: growing.count]])
        assert len(scorer.fits) == 3 * fits
    said = [each.getMessage() for each in caplog.records if "judged again" in each.getMessage()]
    assert said == ["sanitizer: the data have changed and were judged again"] * 3


def blobs_mixed(data):
    """Return data in mixed order, with the mask of the 60 that are mislabeled."""
    order = torch.randperm(600, generator=torch.Generator().manual_seed(0))
    mixed = TensorDataset(*(each[order] for each in data.tensors))
    mixed.wrong = order >= 540
    return mixed


def test_judges_labels_that_change_in_place_anew(sanitizer, scorer, data):
    data = TensorDataset(*(each.clone() for each in data.tensors))
    sanitizer.filter(DataLoader(data))
    data.tensors[1][:30] = (data.tensors[1][:30] + 1) % 3
    sanitizer.filter(DataLoader(data))
    assert not sanitizer.single_verdict().keep[:30].any()
    assert len(scorer.fits) == 6


def test_judges_samples_that_are_drawn_later(sanitizer, data):
    def draw(positions):
        sanitizer.filter(DataLoader(data, sampler=torch.utils.data.SubsetRandomSampler(positions)))
        return (~sanitizer.single_verdict().keep).nonzero().flatten().tolist()

    assert draw(range(100, 560)) == list(range(540, 560))
    assert draw(range(200, 550)) == list(range(540, 560))  # they have been judged
    assert draw(range(100, 600)) == list(range(540, 600))


def test_a_change_in_memory_that_changes_no_sample_keeps_the_verdict(sanitizer, scorer, data):
    data.cache = {}
    sanitizer.filter(DataLoader(data))
    verdict = sanitizer.single_verdict()
    data.cache[0] = data[0]
    sanitizer.filter(DataLoader(data))
    assert len(scorer.fits) == 3
    assert sanitizer.single_verdict().fingerprint == verdict.fingerprint


def test_all_ranks_judge_anew_if_one_has_to(sanitizer, scorer, data, monkeypatch):
    sanitizer.filter(DataLoader(data))
    answers = iter([False])  # of another rank, about the data
    monkeypatch.setattr(LocalRuntime, "all_true", lambda _, flag: flag and next(answers, True))
    monkeypatch.setattr(LoaderSanitizer, "_select", lambda *_: {""})
    judged = []
    monkeypatch.setattr(LoaderSanitizer, "_decide", lambda *_: judged.append(True))
    sanitizer.filter(DataLoader(data))
    assert judged == [True]


@pytest.mark.slow
def test_changes_beside_score_dataset(scorer, data):
    data, view = (TensorDataset(*(each.clone() for each in data.tensors)) for _ in range(2))
    sanitizer = LoaderSanitizer(SanitizerSettings(scorer=scorer, score_dataset=view))
    sanitizer.filter(DataLoader(data))
    data.tensors[0].add_(1)  # another augmentation
    sanitizer.filter(DataLoader(data))
    assert len(scorer.fits) == 3
    for each in (data, view):
        each.tensors[1][:30] = (each.tensors[1][:30] + 1) % 3
    sanitizer.filter(DataLoader(data))
    assert not sanitizer.single_verdict().keep[:30].any()
    data.tensors[1][0] = (data.tensors[1][0] + 1) % 3
    with pytest.raises(ValueError, match="or other labels"):
        sanitizer.filter(DataLoader(data))


def test_score_dataset_is_compared_where_the_sampler_draws(scorer, data):
    class Partly(torch.utils.data.Dataset):
        def __len__(self):
            return 600

        def __getitem__(self, index):
            if index < 100:
                raise OSError("not a training sample")
            return data[index]

    sanitizer = LoaderSanitizer(SanitizerSettings(scorer=scorer, score_dataset=Partly()))
    sanitizer.filter(DataLoader(Partly(), sampler=torch.utils.data.SubsetRandomSampler(range(100, 600))))
    assert not sanitizer.single_verdict().keep[540:].any()


def test_a_pool_that_is_labeled_in_place_is_judged(sanitizer, data):
    pool = TensorDataset(data.tensors[0].clone(), torch.full((600,), -1))
    loaders = {"l": DataLoader(data), "u": DataLoader(pool)}
    for _ in range(2):
        assert sanitizer.filter(loaders)["u"] is loaders["u"]
    pool.tensors[1].copy_(data.tensors[1])
    sanitizer.check(sanitizer.filter(loaders))
    assert list(sanitizer.verdicts) == ["['l']", "['u']"]


def test_refuses_other_data_than_those_of_a_checkpoint(sanitizer, scorer, data):
    sanitizer.filter(DataLoader(data))
    other = LoaderSanitizer(SanitizerSettings(scorer=scorer))
    other.start_run()
    other.restore(sanitizer.state())
    with pytest.raises(DataChangedError):
        other.filter(DataLoader(reversed_data(data)))


def test_data_that_change_after_a_resume_are_judged_anew(sanitizer, scorer, data):
    sanitizer.filter(DataLoader(data))
    other = LoaderSanitizer(SanitizerSettings(scorer=scorer))
    other.restore(sanitizer.state())
    other.filter(DataLoader(data))
    other.filter(DataLoader(reversed_data(data)))
    assert not other.single_verdict().keep[:60].any()


def test_state_of_a_new_run_does_not_contain_earlier_verdicts(sanitizer, data):
    """A tuner would restore them, and refuse the other data of this run."""
    sanitizer.filter(DataLoader(data))
    sanitizer.start_run()
    assert not decisions_from_state(sanitizer.state())


def test_check_refuses_a_loader_of_all_data(sanitizer, data):
    sanitizer.filter(DataLoader(data))
    with pytest.raises(RuntimeError, match="but got one that reads TensorDataset with SequentialSampler"):
        sanitizer.check(DataLoader(data))


def test_each_loader_has_its_own_verdict(sanitizer, data):
    rebuilt = sanitizer.filter({"a": DataLoader(data), "b": [DataLoader(reversed_data(data))]})
    sanitizer.check(rebuilt)
    assert torch.equal(
        sanitizer.available_verdicts["['a']"].keep, sanitizer.available_verdicts["['b'][0]"].keep.flip(0)
    )
    swapped = {"a": rebuilt["b"][0], "b": [rebuilt["a"]]}
    with pytest.raises(RuntimeError, match=r"the training loader \['a'\]"):
        sanitizer.check(swapped)


def test_loaders_without_labels_are_left_unchanged(sanitizer, data, caplog):
    loaders = {"l": DataLoader(data), "u": [DataLoader(TensorDataset(data.tensors[0]))]}
    caplog.set_level("INFO", "lightning_poison")
    for _ in range(2):
        filtered = sanitizer.filter(loaders)
        assert filtered["u"][0] is loaders["u"][0]
        assert len(filtered["l"].dataset) == 540
        sanitizer.check(filtered)
    said = [each.getMessage() for each in caplog.records if "not judged" in each.getMessage()]
    assert said == ["sanitizer['u'][0]: not judged and trained on as it is, since its samples consist of inputs alone"]
    assert list(sanitizer.verdicts) == ["['l']"]


@pytest.mark.parametrize("wanted", [["l"], ["['l']"], ("l",)])
def test_user_chooses_the_loaders_to_judge(scorer, data, wanted):
    stream = iter(())
    loaders = {"l": DataLoader(data), "u": DataLoader(reversed_data(data)), "s": stream}
    sanitizer = LoaderSanitizer(SanitizerSettings(scorer=scorer, loaders=wanted))
    filtered = sanitizer.filter(loaders)
    assert list(sanitizer.verdicts) == ["['l']"]
    assert filtered["u"] is loaders["u"]
    assert filtered["s"] is stream
    sanitizer.check(filtered)
    with pytest.raises(RuntimeError, match=r"the training loader \['l'\]"):
        sanitizer.check(loaders)


def test_names_a_loader_of_one_class_before_scoring(sanitizer, scorer, data):
    loaders = {"l": DataLoader(data), "u": DataLoader(TensorDataset(data.tensors[0], torch.zeros(600).long()))}
    wanted = r"loader \['u'\] to have .* several classes, or none, but all of its 600 samples have the label 0\.\n.*"
    with pytest.raises(ValueError, match=wanted + r"`loaders=\['l'\]`"):
        sanitizer.filter(loaders)
    assert not scorer.fits


def test_refuses_a_collection_without_labels(sanitizer, data):
    loaders = [DataLoader(TensorDataset(data.tensors[0])) for _ in range(2)]
    with pytest.raises(ValueError, match=r"a training loader with labels, but none has any: their samples"):
        sanitizer.filter(loaders)


@pytest.mark.parametrize(
    ("wanted", "match"),
    [
        ("l", r"`loaders` to be a list of keys or positions of training loaders, but got 'l'\.\nWrite"),
        ([], r"but got \[\]"),
        ([0.5], r"but got \[0.5\]"),
    ],
)
def test_refuses_invalid_choices(scorer, wanted, match):
    with pytest.raises(ValueError, match=match):
        SanitizerSettings(scorer=scorer, loaders=wanted)


def test_errors_name_the_loader(sanitizer, data):
    few = TensorDataset(torch.zeros(2, 4), torch.arange(2))
    with pytest.raises(Exception) as caught:  # noqa: PT011 (any error of scoring)
        sanitizer.filter({"l": DataLoader(data), "few": DataLoader(few)})
    assert "In the training loader ['few']" in caught.value.__notes__[0]


def test_score_dataset_with_one_judged_loader(scorer, data):
    loaders = {"l": DataLoader(data), "u": DataLoader(TensorDataset(data.tensors[0]))}
    sanitizer = LoaderSanitizer(SanitizerSettings(scorer=scorer, score_dataset=TensorDataset(*data.tensors)))
    sanitizer.filter(loaders)
    assert list(sanitizer.verdicts) == ["['l']"]


def test_warns_if_no_batch_is_left(sanitizer, data):
    with pytest.warns(UserWarning, match=r"the 540 samples that are kept do not fill a batch of 600.*\nUse a smaller"):
        sanitizer.filter(DataLoader(data, 600, drop_last=True))


def test_state_restores_the_mask_in_another_sanitizer(sanitizer, scorer, data):
    sanitizer.filter(DataLoader(data))
    fits = len(scorer.fits)
    other = LoaderSanitizer(SanitizerSettings(scorer=scorer))
    other.restore(sanitizer.state())
    rebuilt = other.filter(DataLoader(data))
    assert torch.equal(rebuilt.dataset.indices, sanitizer.single_verdict().keep.nonzero().flatten())
    assert len(scorer.fits) == fits
    with pytest.raises(RuntimeError, match="there are 0 verdicts"):
        other.single_verdict()
    assert other.state()["decisions"].keys() == {""}


def test_state_restores_the_verdict_from_its_file(scorer, data, tmp_path):
    sanitizer = LoaderSanitizer(SanitizerSettings(scorer=scorer, dirpath=tmp_path, cache=False))
    sanitizer.filter(DataLoader(data))
    other = LoaderSanitizer(SanitizerSettings(scorer=scorer))
    other.restore(sanitizer.state())
    assert torch.equal(other.single_verdict().scores, sanitizer.single_verdict().scores)
    other.filter(DataLoader(data))
    assert torch.equal(other.single_verdict().scores, sanitizer.single_verdict().scores)
    assert len(scorer.fits) == 3


def test_cache_is_used_by_another_sanitizer(scorer, data, tmp_path):
    for _ in range(2):
        LoaderSanitizer(SanitizerSettings(scorer=scorer, dirpath=tmp_path)).filter(DataLoader(data))
    assert len(scorer.fits) == 3


def test_empty_state_has_no_effect(sanitizer, data):
    sanitizer.filter(DataLoader(data))
    sanitizer.restore({"version": 2, "decisions": {}})
    sanitizer.restore({})
    assert len(sanitizer.single_verdict()) == len(data)
    assert sanitizer.verdicts


def test_refuses_a_state_of_another_version(sanitizer, data):
    sanitizer.filter(DataLoader(data))
    stored = sanitizer.state()
    assert decisions_from_state(stored).keys() == {""}
    for version, found in ((1, "1"), (None, "None"), ("\x1b[2J", r"'\\x1b\[2J'")):
        with pytest.raises(ValueError, match=rf"`version` to be 2, the format .*, but got {found}\.\nResume with"):
            sanitizer.restore({**stored, "version": version})
    del stored["version"]
    with pytest.raises(ValueError, match="but got None"):
        sanitizer.restore(stored)


@pytest.mark.slow
def test_keeps_by_hand_after_samples_moved(sanitizer, scorer, data, tmp_path):
    path = tmp_path / "manifest.csv"
    sanitizer.filter(DataLoader(data))
    write_manifest(path, sanitizer.single_verdict(), data)
    row = read_manifest(path).rows[0]
    keep_by_hand(path, [row.sample_id])
    other = LoaderSanitizer(SanitizerSettings(scorer=scorer, manifest=str(path)))
    other.filter(DataLoader(reversed_data(data)))
    assert other.single_verdict().keep[len(data) - 1 - row.sample_id]
    with pytest.raises(ManifestError, match="Delete their rows") as caught:
        LoaderSanitizer(SanitizerSettings(scorer=scorer, manifest=str(path))).filter(
            DataLoader(TensorDataset(*data[: row.sample_id]))
        )
    assert "search=True" not in str(caught.value)


def test_restored_verdict_replaces_a_new_one(sanitizer, scorer, data):
    sanitizer.filter(DataLoader(data))
    stored = sanitizer.state()
    other = LoaderSanitizer(SanitizerSettings(scorer=scorer))
    changed = replace(decisions_from_state(stored)[""], keep=torch.arange(len(data)) > 5)
    stored["decisions"][""] = changed.state()
    other.filter(DataLoader(data))
    other.restore(stored)
    rebuilt = other.filter(DataLoader(data))
    assert len(rebuilt.dataset) == len(data) - 6
    assert len(scorer.fits) == 6


def test_new_run_reuses_the_verdict_after_a_check(sanitizer, scorer, data):
    sanitizer.filter(DataLoader(data))
    sanitizer.start_run()
    assert not sanitizer.verdicts
    assert len(sanitizer.single_verdict()) == len(data)
    sanitizer.filter(DataLoader(data))
    assert len(scorer.fits) == 3


def test_run_with_other_loaders_drops_earlier_verdicts(sanitizer, data):
    sanitizer.filter([DataLoader(data)])
    sanitizer.start_run()
    sanitizer.filter(DataLoader(data))
    assert list(sanitizer.available_verdicts) == [""]


def test_writes_files_only_to_the_given_directory(scorer, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    LoaderSanitizer(SanitizerSettings(scorer=scorer)).filter(DataLoader(data))
    assert not list(tmp_path.iterdir())
    LoaderSanitizer(SanitizerSettings(scorer=scorer, dirpath=str(tmp_path / "here"))).filter(DataLoader(data))
    assert {path.name for path in (tmp_path / "here").iterdir()} == {"cache", "manifest.csv", "verdict.safetensors"}


def test_settings_are_the_same_everywhere():
    """In `sanitize`, `Sanitizer`, `SanitizedDataModule` and the data classes: names, annotations and defaults."""
    callback, wrapper, function = (signature(each).parameters for each in (Sanitizer, SanitizedDataModule, sanitize))
    for decision in fields(DecisionSettings):
        for arguments in (callback, wrapper, function):
            assert arguments[decision.name].default == decision.default
            assert arguments[decision.name].annotation == decision.type
    own = {each.name: each.default for each in fields(SanitizerSettings) if each.name not in ("scorer", "decision")}
    assert {name: callback[name].default for name in own} == own
    assert set(callback) == {"scorer", *own, *(each.name for each in fields(DecisionSettings))}
    assert {name: each for name, each in wrapper.items() if name != "data"} == dict(callback)
