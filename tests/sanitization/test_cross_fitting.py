import copy
import logging
import re
import time
from dataclasses import replace

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.data import inference, labeled_data, large_matrices
from lightning_poison.data.copies import Copies
from lightning_poison.data.labeled_data import read_labeled
from lightning_poison.data.sample_digests import SampleDigests
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.source import open_source
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization.copies import with_copies
from lightning_poison.sanitization.job import Job
from lightning_poison.sanitization.sample_scores import out_of_fold_label_scores
from lightning_poison.sanitization.settings import DecisionSettings
from lightning_poison.sanitization.units import FileUnits

RUNTIME = LocalRuntime(precision="32", threads=1)


def cross_fit(data, scorer, *, folds=3, runtime=RUNTIME, seed=0, sample=None):
    labeled = read_labeled(open_source(data, sample=sample), runtime=RUNTIME, name="data")
    settings = DecisionSettings(folds=folds, seed=seed)
    return out_of_fold_label_scores(Job(labeled, scorer, runtime, settings), scorer, number=0).scores


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_scores_are_out_of_fold(centroid_scorer, folds, blobs):
    data, scorer = blobs(90), centroid_scorer()
    found = cross_fit(data, scorer, folds=folds)
    assert found.shape == (90, 3)
    assert not scorer.is_fitted
    assert len(scorer.fits) == folds
    points, labels = data.tensors
    times = torch.zeros(90, dtype=torch.int64)
    for inputs in scorer.fits:
        seen = (points[:, None] == inputs).all(2).any(1)
        times += seen
        means = torch.stack([points[seen & (labels == number)].mean(0) for number in range(3)])
        expected = 0.5 * (points[~seen, None] - means).square().sum(2)
        torch.testing.assert_close(found[~seen].float(), expected)
    assert times.unique().tolist() == [folds - 1]


def test_labels_with_gaps(centroid_scorer, blobs):
    points, labels = blobs(60, classes=2).tensors
    found = cross_fit(TensorDataset(points, torch.where(labels == 0, 3, 7)), centroid_scorer())
    plain = cross_fit(TensorDataset(points, labels), centroid_scorer())
    assert found.shape == (60, 8)
    assert torch.equal(found[:, [3, 7]], plain)
    assert set(found.argmin(1).tolist()) == {3, 7}


def test_result_does_not_depend_on_memory_limit(centroid_scorer, blobs, monkeypatch):
    data = blobs(60)
    in_memory = cross_fit(data, centroid_scorer())
    monkeypatch.setattr(labeled_data, "MEMORY_LIMIT", 0)
    assert torch.equal(cross_fit(data, centroid_scorer()), in_memory)
    points, labels = data.tensors
    odd = [{"left": x, "right": 0 * x, "y": int(y)} for x, y in zip(points, labels, strict=True)]
    assert torch.equal(cross_fit(odd, centroid_scorer(), sample=SampleSpec("left", "y")), in_memory)


@pytest.mark.parametrize(("size", "owner"), [(2, None), (5, None), (3, lambda unit: 2), (2, lambda unit: 1 - unit % 2)])
def test_scores_do_not_depend_on_who_takes_which_fold(centroid_scorer, blobs, several_ranks, size, owner):
    data, scorer = blobs(60), centroid_scorer()
    found = several_ranks(size, lambda runtime: cross_fit(data, scorer, runtime=runtime), owner=owner)
    assert len(scorer.fits) == 3, "each fold is fitted once, also if there are more ranks than folds"
    alone = cross_fit(data, centroid_scorer())
    assert all(torch.equal(each, alone) for each in found)


def test_each_fold_has_own_seed(centroid_scorer, blobs):
    drawn = []

    class Drawing(centroid_scorer):
        def fit(self, trusted, *, runtime=None, generator=None):
            drawn.append(int(torch.randint(10**9, (1,), generator=generator)))
            assert runtime.world_size == 1
            return super().fit(trusted)

    for seed in (0, 0, 7):
        cross_fit(blobs(30), Drawing(), seed=seed)
    assert drawn[:3] == drawn[3:6]
    assert len(set(drawn)) == 6


def test_announces_estimated_time(centroid_scorer, blobs, caplog):
    rehearsed = []

    class Slow(centroid_scorer):
        name = "slow\x1b[2J"

        def rehearse(self, trusted, *, steps, runtime=None):
            assert 36 <= len(trusted) < 60
            rehearsed.append(steps)
            return 1000

        def __deepcopy__(self, memo):
            return copy.copy(self)

    with caplog.at_level(logging.INFO, logger="lightning_poison"):
        cross_fit(blobs(60), centroid_scorer())
        cross_fit(blobs(60), Slow())
    assert rehearsed == [1, 5, 25]
    assert caplog.messages[0].endswith("cross-fitting the centroid scorer over 3 folds of 60 samples.")
    assert "cross-fitting the slow\\x1b[2J scorer over 3 folds" in caplog.messages[1]
    assert ", about " in caplog.messages[1]


@pytest.mark.slow
def test_estimate_does_not_count_what_a_fit_does_once(centroid_scorer, blobs, caplog):
    class SlowToBegin(centroid_scorer):
        def rehearse(self, trusted, *, steps, runtime=None):
            time.sleep(0.5 + 0.02 * steps)
            return 100

    with caplog.at_level(logging.INFO, logger="lightning_poison"):
        cross_fit(blobs(60), SlowToBegin())
    high = int(re.search(r"(\d+) s\.$", caplog.messages[0])[1])
    assert 6 <= high <= 30  # 3 fits of 100 steps of .02 s; with the half second it would be a minute and more


def test_estimate_of_resumed_run_counts_the_missing_folds(centroid_scorer, blobs, caplog, tmp_path):
    runtime = LocalRuntime(precision="32", threads=1)
    runtime.units = FileUnits(tmp_path, SampleDigests(0))
    whole = cross_fit(blobs(60), centroid_scorer(), runtime=runtime)
    next(tmp_path.glob("*fold-1.safetensors")).unlink()
    counts = []

    class Counting(centroid_scorer):
        def fit(self, trusted, *, runtime=None, generator=None):
            counts.append(len(trusted))
            return super().fit(trusted)

    with caplog.at_level(logging.INFO, logger="lightning_poison"):
        assert torch.equal(cross_fit(blobs(60), Counting(), runtime=runtime), whole)
    assert len(counts) == 1
    assert len(caplog.messages) == 1


def test_estimate_of_resumed_run_is_not_measured_again(centroid_scorer, blobs, caplog, tmp_path):
    runtime = LocalRuntime(precision="32", threads=1)
    runtime.units = FileUnits(tmp_path, SampleDigests(0))
    rehearsed = []

    class Slow(centroid_scorer):
        def rehearse(self, trusted, *, steps, runtime=None):
            rehearsed.append(steps)
            time.sleep(0.02 * steps)
            return 3000  # a minute

    with caplog.at_level(logging.INFO, logger="lightning_poison"):
        cross_fit(blobs(60), Slow(), runtime=runtime)
        for fold in (0, 2):
            next(tmp_path.glob(f"*fold-{fold}.safetensors")).unlink()
        count = len(rehearsed)
        cross_fit(blobs(60), Slow(), runtime=runtime)
    assert len(rehearsed) == count
    whole, rest = (int(re.search(r"to (\d+) min\.$", each)[1]) for each in caplog.messages)
    assert abs(rest - 2 / 3 * whole) <= 1


def with_copies_of(data, places, groups=None):
    labeled = read_labeled(open_source(data, sample=None), runtime=RUNTIME, name="data")
    found = with_copies(labeled, groups, RUNTIME)
    assert places is None or torch.equal(found.copies.first, places)
    return found


def test_copies_and_groups_are_in_one_fold(centroid_scorer, blobs):
    points, labels = blobs(60).tensors
    inputs, labels = points.repeat(3, 1), labels.repeat(3)
    labels[70] = (labels[70] + 1) % 3  # a copy of sample 10 with another label
    first = torch.arange(60).repeat(3)
    first[70] = 70
    data = with_copies_of(TensorDataset(inputs, labels), first)
    scorer = centroid_scorer()
    found = out_of_fold_label_scores(Job(data, scorer, RUNTIME, DecisionSettings()), scorer, number=0).scores
    assert torch.equal(found[:60], found[60:120].where(torch.arange(60)[:, None] != 10, found[:60]))
    for fitted in scorer.fits:
        seen = (inputs[:, None] == fitted).all(2).any(1)
        assert torch.equal(seen[:60], seen[60:120])
        assert torch.equal(seen[:60], seen[120:])


def test_without_copies_folds_are_those_of_the_labels_alone(centroid_scorer, blobs):
    data, plain, aware = blobs(60), centroid_scorer(), centroid_scorer()
    before = cross_fit(data, plain)
    found = with_copies_of(data, torch.arange(60))
    assert torch.equal(out_of_fold_label_scores(Job(found, aware, RUNTIME), aware, number=0).scores, before)
    assert all(torch.equal(one, other) for one, other in zip(plain.fits, aware.fits, strict=True))


def test_many_scores_are_held_in_single_precision(centroid_scorer, blobs, monkeypatch, several_ranks):
    data = blobs(90)
    exact = cross_fit(data, centroid_scorer())
    monkeypatch.setattr(large_matrices, "_EXACT", 0)
    monkeypatch.setattr(large_matrices, "_IN_MEMORY", 0)
    monkeypatch.setattr(inference, "_REDUCED_AT_ONCE", 30)
    found = cross_fit(data, centroid_scorer())
    assert (exact.dtype, found.dtype) == (torch.float64, torch.float32)
    assert torch.equal(found, exact.float())
    for of_rank in several_ranks(2, lambda runtime: cross_fit(data, centroid_scorer(), runtime=runtime)):
        assert torch.equal(of_rank, found)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_training_margins_are_averaged_over_the_fits_that_saw_a_sample(centroid_scorer, blobs, several_ranks, size):
    class Recording(centroid_scorer):
        def fit(self, trusted, *, runtime=None, generator=None):
            super().fit(trusted)
            self.training_margins = self.fits[-1].double().sum(1) * int(torch.randint(99, (1,), generator=generator))
            return self

    data, settings = blobs(60), DecisionSettings()
    labeled = read_labeled(open_source(data, sample=None), runtime=RUNTIME, name="data")

    def margins(runtime):
        return out_of_fold_label_scores(Job(labeled, Recording(), runtime, settings), Recording(), number=0).margins

    alone = margins(RUNTIME)
    factors = alone / data.tensors[0].double().sum(1)
    assert len(factors.mul(1000).round().unique()) == 3, "one mean of two factors for each fold"
    assert all(torch.equal(each, alone) for each in several_ranks(size, margins))


def test_margins_of_stored_folds_are_read_again(centroid_scorer, blobs, tmp_path):
    class Recording(centroid_scorer):
        def fit(self, trusted, *, runtime=None, generator=None):
            super().fit(trusted)
            self.training_margins = self.fits[-1].double().sum(1)
            return self

    data, scorer = blobs(60), Recording()
    runtime = LocalRuntime(precision="32", threads=1)
    runtime.units = FileUnits(tmp_path, SampleDigests(0))
    labeled = read_labeled(open_source(data, sample=None), runtime=RUNTIME, name="data")
    job = Job(labeled, scorer, runtime, DecisionSettings())
    first, again = (out_of_fold_label_scores(job, scorer, number=0).margins for _ in range(2))
    assert len(scorer.fits) == 3
    assert torch.equal(first, again)
    assert torch.allclose(first, data.tensors[0].double().sum(1))


def test_folds_that_were_stored_for_another_split_are_not_used(centroid_scorer, blobs, tmp_path):
    data, runtime = blobs(60), LocalRuntime(precision="32", threads=1)
    runtime.units = FileUnits(tmp_path, SampleDigests(0))
    labeled = read_labeled(open_source(data, sample=None), runtime=RUNTIME, name="data")
    scorer = centroid_scorer()
    out_of_fold_label_scores(Job(labeled, scorer, runtime, DecisionSettings()), scorer, number=0)
    copied = replace(labeled, copies=Copies(torch.arange(60), torch.arange(60) // 6 * 6))
    found = out_of_fold_label_scores(Job(copied, scorer, runtime, DecisionSettings()), scorer, number=0)
    assert len(scorer.fits) == 6
    alone = centroid_scorer()
    expected = out_of_fold_label_scores(Job(copied, alone, RUNTIME, DecisionSettings()), alone, number=0)
    assert torch.equal(found.scores, expected.scores)
