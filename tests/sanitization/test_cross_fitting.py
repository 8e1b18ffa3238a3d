import copy
import logging

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.data import labeled_data
from lightning_poison.data.labeled_data import read_labeled
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.source import open_source
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization.job import Job
from lightning_poison.sanitization.sample_scores import out_of_fold_label_scores
from lightning_poison.sanitization.settings import DecisionSettings

RUNTIME = LocalRuntime(precision="32", threads=1)


def cross_fit(data, scorer, *, folds=3, runtime=RUNTIME, seed=0, sample=None):
    labeled = read_labeled(open_source(data, sample=sample), runtime=RUNTIME, name="data")
    settings = DecisionSettings(folds=folds, seed=seed)
    return out_of_fold_label_scores(Job(labeled, scorer, runtime, settings), scorer, number=0)


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


class TwoRanks(LocalRuntime):
    """One of two ranks; returns its partial sum."""

    world_size = 2

    def __init__(self, rank):
        super().__init__(precision="32", threads=1)
        self.rank = rank


def test_sum_over_ranks_equals_single_rank(centroid_scorer, blobs):
    data, scorers = blobs(60), [centroid_scorer(), centroid_scorer()]
    parts = [cross_fit(data, scorer, runtime=TwoRanks(rank)) for rank, scorer in enumerate(scorers)]
    assert [len(scorer.fits) for scorer in scorers] == [2, 1]
    assert torch.equal(parts[0] + parts[1], cross_fit(data, centroid_scorer()))
    assert ((parts[0] == 0) | (parts[1] == 0)).all()


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
    assert rehearsed == [1, 4]
    assert caplog.messages[0].endswith("cross-fitting the centroid scorer over 3 folds of 60 samples.")
    assert "cross-fitting the slow\\x1b[2J scorer over 3 folds" in caplog.messages[1]
    assert ", about " in caplog.messages[1]
