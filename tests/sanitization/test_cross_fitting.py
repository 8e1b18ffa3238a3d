import copy
import logging

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.data import in_memory
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization.cross_fitting import cross_fitted_label_scores

RUNTIME = LocalRuntime(precision="32", threads=1)


def cross_fit(data, scorer, *, folds=3, runtime=RUNTIME, seed=0, sample=None, labels=None):
    labels = data.tensors[1] if labels is None else labels
    return cross_fitted_label_scores(
        data, labels, scorer, folds=folds, sample=sample or SampleSpec(), runtime=runtime, seed=seed
    )


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_every_sample_is_judged_by_a_model_that_has_not_seen_it(centroid_scorer, folds, blobs):
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


def test_data_that_do_not_fit_into_memory_give_the_same(centroid_scorer, blobs, monkeypatch):
    data = blobs(60)
    held = cross_fit(data, centroid_scorer())
    monkeypatch.setattr(in_memory, "MEMORY_LIMIT", 0)
    assert torch.equal(cross_fit(data, centroid_scorer()), held)
    points, labels = data.tensors
    odd = [{"left": x, "right": 0 * x, "y": int(y)} for x, y in zip(points, labels, strict=True)]
    assert torch.equal(cross_fit(odd, centroid_scorer(), sample=SampleSpec("left", "y"), labels=labels), held)


class TwoRanks(LocalRuntime):
    """One of two ranks, alone: what it would add to the sum."""

    world_size = 2

    def __init__(self, rank):
        super().__init__(precision="32", threads=1)
        self.rank = rank


def test_folds_are_shared_out_and_the_sum_is_that_of_one_rank(centroid_scorer, blobs):
    data, scorers = blobs(60), [centroid_scorer(), centroid_scorer()]
    parts = [cross_fit(data, scorer, runtime=TwoRanks(rank)) for rank, scorer in enumerate(scorers)]
    assert [len(scorer.fits) for scorer in scorers] == [2, 1]
    assert torch.equal(parts[0] + parts[1], cross_fit(data, centroid_scorer()))
    assert ((parts[0] == 0) | (parts[1] == 0)).all()


def test_each_fold_has_its_own_seed(centroid_scorer, blobs):
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


def test_what_takes_long_is_said_before_it_starts(centroid_scorer, blobs, caplog):
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
    assert caplog.messages[0].endswith("fitting the centroid scorer 3 times to judge 60 samples out of fold.")
    assert "fitting the slow\\x1b[2J scorer 3 times" in caplog.messages[1]
    assert ", about " in caplog.messages[1]


def test_a_wrong_list_of_labels_is_found(centroid_scorer, blobs):
    data = blobs(60)
    labels = data.tensors[1].clone()
    labels[31] = (labels[31] + 1) % 3
    with pytest.raises(ValueError, match="sample 31 to carry the label"):
        cross_fit(data, centroid_scorer(), labels=labels)
