import warnings
from dataclasses import replace

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.data import in_memory, inference
from lightning_poison.data.in_memory import Held
from lightning_poison.data.labels import labels_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.errors import UnreadableSampleError
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization import with_trusted
from lightning_poison.sanitization.job import Job
from lightning_poison.sanitization.with_trusted import judge_by_trusted
from lightning_poison.sanitization.without_trusted import judge_untrusted

RUNTIME = LocalRuntime(precision="32", threads=1)
FEW = "ignore:The false-positive rate is calibrated on:UserWarning"


def job(data, scorer, *, sample=None, **parts):
    sample = sample or SampleSpec()
    return replace(Job(data, labels_of(data, sample), scorer, sample, RUNTIME, 0, 0.01, 0.003), **parts)


def trusting(job, trusted, sample=None):
    sample = sample or SampleSpec()
    return judge_by_trusted(job, Held(trusted, sample, labels_of(trusted, sample)))


def untrusted(data, scorer, **parts):
    return judge_untrusted(job(data, scorer, **parts), folds=3, remove_without_evidence=False)


class WithoutLabels:
    """A scorer that cannot be asked for another label."""

    name = "plain"
    is_control = False

    def __init__(self, inner):
        self.inner = inner

    @property
    def is_fitted(self):
        return self.inner.is_fitted

    def fit(self, trusted, *, runtime=None, generator=None):
        self.inner.fit(trusted)
        return self

    def score_batch(self, inputs, labels):
        return self.inner.score_batch(inputs, labels)

    def settings(self):
        return {}

    def state(self):
        return self.inner.state()

    def load(self, state):
        self.inner.load(state)
        return self


def test_untrusted_scores_are_out_of_fold(blobs, centroid_scorer):
    scorer = centroid_scorer()
    found = untrusted(blobs(600, flipped=30), scorer)
    assert len(scorer.fits) == 3
    assert not scorer.is_fitted
    assert (~found.decision.keep).nonzero().flatten().tolist() == list(range(570, 600))
    assert found.suggested_labels.tolist() == (torch.arange(600) % 3).tolist()
    assert found.decision.evidence.present


def test_a_fitted_scorer_judges_untrusted_data_as_it_is(blobs, centroid_scorer):
    scorer = centroid_scorer().fit(blobs(300, seed=1))
    found = untrusted(blobs(600, flipped=30), scorer)
    assert len(scorer.fits) == 1
    points, labels = blobs(600, flipped=30).tensors
    torch.testing.assert_close(found.scores.float(), scorer.score_batch(points, labels))
    assert (~found.decision.keep).nonzero().flatten().tolist() == list(range(570, 600))


@pytest.mark.filterwarnings(FEW)
def test_most_of_the_trusted_samples_are_fitted_on_and_the_rest_calibrated_on(blobs, centroid_scorer):
    scorer, trusted = centroid_scorer(), blobs(1000, seed=1)
    found = trusting(job(blobs(600, flipped=30), scorer), trusted)
    assert not scorer.is_fitted
    (fitted_on,) = scorer.fits
    assert len(fitted_on) == 700
    assert len({tuple(point) for point in fitted_on.tolist()} & {tuple(p) for p in trusted.tensors[0].tolist()}) == 700
    assert not found.decision.keep[570:].any()
    assert float(found.decision.keep[:570].double().mean()) > 0.97
    assert found.suggested_labels.tolist() == (torch.arange(600) % 3).tolist()


@pytest.mark.filterwarnings(FEW)
def test_a_fitted_scorer_is_calibrated_on_all_of_them(blobs, centroid_scorer):
    scorer = centroid_scorer().fit(blobs(300, seed=2))
    trusted = blobs(99, seed=1)
    found = trusting(job(blobs(60), scorer, false_positive_rate=0.5), trusted)
    assert len(scorer.fits) == 1
    scores = scorer.score_batch(*trusted.tensors)
    for number in range(3):
        own = scores[trusted.tensors[1] == number].double()
        assert float(found.decision.thresholds[number]) == pytest.approx(float(own.sort().values[-17]))


def test_each_class_has_its_own_cut(blobs, centroid_scorer):
    def stretched(count, seed):
        points, labels = blobs(count, seed=seed).tensors
        return TensorDataset(torch.where(labels[:, None] == 1, 10 * points, points), labels)

    data = stretched(3000, 0)
    decision = trusting(job(data, centroid_scorer(), false_positive_rate=0.05), stretched(3000, 1)).decision
    for number in range(3):
        assert 0.025 < float((~decision.keep)[data.tensors[1] == number].double().mean()) < 0.075


def test_judging_twice_is_judging_once(blobs, centroid_scorer):
    scorer, data, trusted = centroid_scorer(), blobs(600, flipped=30), blobs(1500, seed=1)
    one, two = (trusting(job(data, scorer), trusted) for _ in range(2))
    assert torch.equal(one.scores, two.scores)
    assert torch.equal(one.decision.keep, two.decision.keep)


def test_a_scorer_without_other_labels(blobs, centroid_scorer):
    data = blobs(600, flipped=30)
    found = trusting(job(data, WithoutLabels(centroid_scorer())), blobs(1500, seed=1))
    plain = trusting(job(data, centroid_scorer()), blobs(1500, seed=1))
    assert torch.equal(found.scores, plain.scores)
    assert found.suggested_labels.unique().tolist() == [-1]
    with pytest.raises(ValueError, match=r"`trusted=` data, since the plain scorer[\s\S]*a scorer with `score_labels`"):
        untrusted(data, WithoutLabels(centroid_scorer()))


def test_few_samples_to_calibrate_on_are_warned_about(blobs, centroid_scorer):
    with pytest.warns(UserWarning, match="calibrated on 30 held-out trusted samples in the smallest class"):
        trusting(job(blobs(60), centroid_scorer()), blobs(300, seed=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trusting(job(blobs(60), centroid_scorer()), blobs(1002, seed=1))


def test_a_class_that_the_trusted_data_lack(blobs, centroid_scorer):
    with pytest.raises(ValueError, match=r"there is none of class 2\.\nAdd some, or leave `trusted` out"):
        trusting(job(blobs(60), centroid_scorer()), blobs(300, classes=2))


def test_one_trusted_sample_of_a_class(blobs, centroid_scorer):
    points, labels = blobs(300, classes=2).tensors
    labels[7] = 2
    with pytest.raises(ValueError, match="at least two samples of class 2, but got 1"):
        trusting(job(blobs(60), centroid_scorer()), TensorDataset(points, labels))


@pytest.mark.filterwarnings(FEW)
def test_one_trusted_sample_of_a_class_that_is_not_judged(blobs, centroid_scorer):
    points, labels = blobs(300, classes=2).tensors
    labels[7] = 2
    found = trusting(job(blobs(60, classes=2), centroid_scorer()), TensorDataset(points, labels))
    assert float(found.decision.keep.double().mean()) > 0.9


def test_labels_that_the_fitted_scorer_does_not_know(blobs, centroid_scorer):
    scorer = centroid_scorer().fit(blobs(300, classes=2))
    with pytest.raises(ValueError, match="labels below 2, the scorer's classes, but got 2"):
        untrusted(blobs(60), scorer)
    with pytest.warns(UserWarning, match="33"), pytest.raises(ValueError, match="labels below 2, the scorer's classes"):
        trusting(job(blobs(60), scorer), blobs(99))


@pytest.mark.filterwarnings(FEW)
@pytest.mark.parametrize("limit", [0, 2**30])
def test_samples_of_any_structure_and_data_of_any_size(blobs, centroid_scorer, monkeypatch, limit):
    def dicts(data):
        return [{"left": x, "right": 0 * x, "y": int(y)} for x, y in zip(*data.tensors, strict=True)]

    monkeypatch.setattr(in_memory, "MEMORY_LIMIT", limit)
    spec, data, trusted = SampleSpec("left", "y"), blobs(60), blobs(300, seed=1)
    plain = trusting(job(data, centroid_scorer()), trusted)
    found = trusting(job(dicts(data), centroid_scorer(), sample=spec), dicts(trusted), spec)
    assert torch.equal(found.scores, plain.scores)
    assert torch.equal(found.decision.keep, plain.decision.keep)


@pytest.mark.filterwarnings(FEW)
@pytest.mark.parametrize("limit", [0, 2**30])
def test_an_unreadable_sample_is_named_by_its_place_in_the_whole(blobs, centroid_scorer, monkeypatch, limit):
    monkeypatch.setattr(in_memory, "MEMORY_LIMIT", limit)
    data, good = blobs(300), blobs(300, seed=1)
    data.tensors[0][271] = torch.nan
    with pytest.raises(UnreadableSampleError, match="sample 271 holds NaN"):
        untrusted(data, centroid_scorer())
    with pytest.raises(UnreadableSampleError, match="sample 271 holds NaN"):
        trusting(job(good, centroid_scorer()), data)


@pytest.mark.parametrize("size", [2, 3])
def test_ranks_agree_with_one(blobs, centroid_scorer, several_ranks, size, monkeypatch):
    monkeypatch.setattr(inference, "BLOCK_SIZE", 64)
    monkeypatch.setattr(with_trusted, "ENOUGH_PER_CLASS", 0)
    data, trusted = blobs(200, flipped=20), blobs(300, seed=1)
    alone = untrusted(data, centroid_scorer()), trusting(job(data, centroid_scorer()), trusted)
    works = (
        lambda runtime: untrusted(data, centroid_scorer(), runtime=runtime),
        lambda runtime: trusting(job(data, centroid_scorer(), runtime=runtime), trusted),
    )
    for expected, work in zip(alone, works, strict=True):
        for found in several_ranks(size, work):
            assert torch.equal(found.scores, expected.scores)
            assert torch.equal(found.suggested_labels, expected.suggested_labels)
            assert torch.equal(found.decision.keep, expected.decision.keep)
            assert torch.equal(found.decision.p_values, expected.decision.p_values)


def test_trusted_samples_of_another_shape_are_named_before_a_fit(blobs, centroid_scorer):
    scorer = centroid_scorer()
    with pytest.raises(
        ValueError, match=r"`trusted` to be samples of shape \(4,\), as the judged ones have, but got \(6,\)"
    ):
        trusting(job(blobs(60), scorer), blobs(300, features=6))
    assert not scorer.is_fitted
