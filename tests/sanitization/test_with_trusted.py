import warnings

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.data import inference, labeled_data
from lightning_poison.data.labeled_data import read_labeled
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.source import open_source
from lightning_poison.errors import InconclusiveError, UnreadableSampleError
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization import with_trusted
from lightning_poison.sanitization.job import Job
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.sanitization.settings import DecisionSettings
from lightning_poison.sanitization.with_trusted import check_trusted, decide_by_trusted, judge_with_trusted
from lightning_poison.sanitization.without_trusted import judge_without_trusted
from lightning_poison.scorers.protocol import Scorer
from lightning_poison.statistics.thresholds import log_p_by_trusted

RUNTIME = LocalRuntime(precision="32", threads=1)
FEW = "ignore:The false-positive rate is calibrated on:UserWarning"


def labeled(data, sample=None):
    return read_labeled(open_source(data, sample=sample), runtime=RUNTIME, name="data")


def job(data, scorer, *, sample=None, runtime=RUNTIME, **settings):
    return Job(labeled(data, sample), scorer, runtime, DecisionSettings(**settings))


def with_trusted_data(job, trusted, sample=None):
    known = labeled(trusted, sample)
    check_trusted(job.data, known)
    return judge_with_trusted(job, known)


def without_trusted_data(data, scorer, **parts):
    return judge_without_trusted(job(data, scorer, **parts))


class WithoutLabels(Scorer):
    """A scorer that does not score other labels."""

    name = "plain"

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


def test_scores_are_out_of_fold_without_trusted_data(blobs, centroid_scorer):
    scorer = centroid_scorer()
    found = without_trusted_data(blobs(600, flipped=30), scorer)
    assert len(scorer.fits) == 3
    assert not scorer.is_fitted
    assert (~found.decision.keep).nonzero().flatten().tolist() == list(range(570, 600))
    assert found.suggested_labels.tolist() == (torch.arange(600) % 3).tolist()
    assert found.decision.evidence.present


def test_fitted_scorer_is_not_refitted(blobs, centroid_scorer):
    scorer = centroid_scorer().fit(blobs(300, seed=1))
    found = without_trusted_data(blobs(600, flipped=30), scorer)
    assert len(scorer.fits) == 1
    points, labels = blobs(600, flipped=30).tensors
    torch.testing.assert_close(found.scores.float(), scorer.score_batch(points, labels))
    assert (~found.decision.keep).nonzero().flatten().tolist() == list(range(570, 600))


@pytest.mark.filterwarnings(FEW)
def test_fits_on_most_trusted_samples_and_calibrates_on_the_rest(blobs, centroid_scorer):
    scorer, trusted = centroid_scorer(), blobs(1000, seed=1)
    found = with_trusted_data(job(blobs(600, flipped=30), scorer), trusted)
    assert not scorer.is_fitted
    (fitted_on,) = scorer.fits
    assert len(fitted_on) == 700
    assert len({tuple(point) for point in fitted_on.tolist()} & {tuple(p) for p in trusted.tensors[0].tolist()}) == 700
    assert not found.decision.keep[570:].any()
    assert float(found.decision.keep[:570].double().mean()) > 0.97
    assert found.suggested_labels.tolist() == (torch.arange(600) % 3).tolist()


@pytest.mark.filterwarnings(FEW)
def test_fitted_scorer_is_calibrated_on_all_trusted_samples(blobs, centroid_scorer):
    scorer = centroid_scorer().fit(blobs(300, seed=2))
    trusted = blobs(99, seed=1)
    found = with_trusted_data(job(blobs(60), scorer, false_positive_rate=0.5), trusted)
    assert len(scorer.fits) == 1
    scores = scorer.score_batch(*trusted.tensors)
    for number in range(3):
        own = scores[trusted.tensors[1] == number].double()
        assert float(found.decision.thresholds[number]) == pytest.approx(float(own.sort().values[-17]))


def test_each_class_has_its_own_threshold(blobs, centroid_scorer):
    def stretched(count, seed):
        points, labels = blobs(count, seed=seed).tensors
        return TensorDataset(torch.where(labels[:, None] == 1, 10 * points, points), labels)

    data = stretched(3000, 0)
    decision = with_trusted_data(job(data, centroid_scorer(), false_positive_rate=0.05), stretched(3000, 1)).decision
    for number in range(3):
        assert 0.025 < float((~decision.keep)[data.tensors[1] == number].double().mean()) < 0.075


def test_repeated_runs_agree(blobs, centroid_scorer):
    scorer, data, trusted = centroid_scorer(), blobs(600, flipped=30), blobs(1500, seed=1)
    one, two = (with_trusted_data(job(data, scorer), trusted) for _ in range(2))
    assert torch.equal(one.scores, two.scores)
    assert torch.equal(one.decision.keep, two.decision.keep)


def test_scorer_without_label_scores_needs_trusted_data(blobs, centroid_scorer):
    data = blobs(600, flipped=30)
    found = with_trusted_data(job(data, WithoutLabels(centroid_scorer())), blobs(1500, seed=1))
    plain = with_trusted_data(job(data, centroid_scorer()), blobs(1500, seed=1))
    assert torch.equal(found.scores, plain.scores)
    assert found.suggested_labels.unique().tolist() == [-1]
    with pytest.raises(ValueError, match=r"`trusted=` data, since the plain scorer[\s\S]*a scorer with `score_labels`"):
        without_trusted_data(data, WithoutLabels(centroid_scorer()))


def test_warns_of_few_calibration_samples(blobs, centroid_scorer):
    with pytest.warns(UserWarning, match="calibrated on 30 held-out trusted samples in the smallest class"):
        with_trusted_data(job(blobs(60), centroid_scorer()), blobs(300, seed=1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with_trusted_data(job(blobs(60), centroid_scorer()), blobs(1002, seed=1))


def test_refuses_class_without_trusted_samples(blobs, centroid_scorer):
    with pytest.raises(ValueError, match=r"there is none of class 2\.\nAdd some, or omit `trusted`"):
        with_trusted_data(job(blobs(60), centroid_scorer()), blobs(300, classes=2))


def test_refuses_single_trusted_sample_of_class(blobs, centroid_scorer):
    points, labels = blobs(300, classes=2, seed=1).tensors
    labels[7] = 2
    with pytest.raises(ValueError, match="at least two samples of class 2, but got 1"):
        with_trusted_data(job(blobs(60), centroid_scorer()), TensorDataset(points, labels))


@pytest.mark.filterwarnings(FEW)
def test_accepts_single_trusted_sample_of_absent_class(blobs, centroid_scorer):
    points, labels = blobs(300, classes=2, seed=1).tensors
    labels[7] = 2
    found = with_trusted_data(job(blobs(60, classes=2), centroid_scorer()), TensorDataset(points, labels))
    assert float(found.decision.keep.double().mean()) > 0.9


def test_refuses_labels_unknown_to_fitted_scorer(blobs, centroid_scorer):
    scorer = centroid_scorer().fit(blobs(300, classes=2))
    with pytest.raises(ValueError, match="labels below 2, the number of classes of the scorer, but got 2"):
        without_trusted_data(blobs(60), scorer)
    with (
        pytest.warns(UserWarning, match="33"),
        pytest.raises(ValueError, match="labels below 2, the number of classes of the scorer"),
    ):
        with_trusted_data(job(blobs(60), scorer), blobs(99, seed=1))


@pytest.mark.filterwarnings(FEW)
@pytest.mark.parametrize("limit", [0, 2**30])
def test_result_does_not_depend_on_sample_structure_or_size(blobs, centroid_scorer, monkeypatch, limit):
    def dicts(data):
        return [{"left": x, "right": 0 * x, "y": int(y)} for x, y in zip(*data.tensors, strict=True)]

    monkeypatch.setattr(labeled_data, "MEMORY_LIMIT", limit)
    spec, data, trusted = SampleSpec("left", "y"), blobs(60), blobs(300, seed=1)
    plain = with_trusted_data(job(data, centroid_scorer()), trusted)
    found = with_trusted_data(job(dicts(data), centroid_scorer(), sample=spec), dicts(trusted), spec)
    assert torch.equal(found.scores, plain.scores)
    assert torch.equal(found.decision.keep, plain.decision.keep)


@pytest.mark.filterwarnings(FEW)
@pytest.mark.parametrize("limit", [0, 2**30])
def test_unreadable_sample_is_named_by_its_index(blobs, centroid_scorer, monkeypatch, limit):
    monkeypatch.setattr(labeled_data, "MEMORY_LIMIT", limit)
    data, good = blobs(300), blobs(300, seed=1)
    data.tensors[0][271] = torch.nan
    with pytest.raises(UnreadableSampleError, match="sample 271 contains NaN"):
        without_trusted_data(data, centroid_scorer())
    with pytest.raises(UnreadableSampleError, match="sample 271 contains NaN"):
        with_trusted_data(job(good, centroid_scorer()), data)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 3])
def test_ranks_agree_with_one(blobs, centroid_scorer, several_ranks, size, monkeypatch):
    monkeypatch.setattr(inference, "BLOCK_SIZE", 64)
    monkeypatch.setattr(with_trusted, "ENOUGH_PER_CLASS", 0)
    data, trusted = blobs(200, flipped=20), blobs(300, seed=1)
    alone = without_trusted_data(data, centroid_scorer()), with_trusted_data(job(data, centroid_scorer()), trusted)
    works = (
        lambda runtime: without_trusted_data(data, centroid_scorer(), runtime=runtime),
        lambda runtime: with_trusted_data(job(data, centroid_scorer(), runtime=runtime), trusted),
    )
    for expected, work in zip(alone, works, strict=True):
        for found in several_ranks(size, work):
            assert torch.equal(found.scores, expected.scores)
            assert torch.equal(found.suggested_labels, expected.suggested_labels)
            assert torch.equal(found.decision.keep, expected.decision.keep)
            assert torch.equal(found.decision.p_values, expected.decision.p_values)


def test_refuses_trusted_samples_of_other_shape_before_fit(blobs, centroid_scorer):
    scorer = centroid_scorer()
    with pytest.raises(
        ValueError, match=r"`trusted` to be samples of shape \(4,\), the shape of the training data, but got \(6,\)"
    ):
        with_trusted_data(job(blobs(60), scorer), blobs(300, features=6))
    assert not scorer.is_fitted


def by_trusted(*scores_and_labels, **settings):
    return decide_by_trusted(*scores_and_labels, DecisionSettings(**settings))


def normal(count, seed, *, classes=2):
    labels = torch.arange(count) % classes
    scores = torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return scores + 10 * labels, labels


def test_threshold_is_quantile_of_each_class():
    trusted = torch.cat([torch.arange(99.0), 1000 + torch.arange(99.0)]).double()
    labels = torch.arange(2).repeat_interleave(99)
    judged = torch.tensor([89.0, 89.5, 1089.0, 1089.5]).double()
    found = by_trusted(judged, torch.tensor([0, 0, 1, 1]), trusted, labels, false_positive_rate=0.1)
    assert found.thresholds.tolist() == [89, 1089]
    assert found.keep.tolist() == [True, False, True, False]
    assert found.posterior is None
    assert found.posterior_threshold is None


@pytest.mark.parametrize("rate", [0.01, 0.05])
def test_realized_rate_matches_stated_rate(rate):
    scores, labels = normal(20_000, 0)
    found = by_trusted(scores, labels, *normal(2_000, 1), false_positive_rate=rate)
    removed = float((~found.keep).double().mean())
    assert 0.5 * rate <= removed <= 1.5 * rate
    assert not found.evidence.present
    assert found.evidence.contamination < 0.01
    assert torch.equal(found.keep, found.p_values > rate)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3])
def test_excess_above_threshold_estimates_contamination(share):
    scores, labels = normal(10_000, 0)
    scores[: int(10_000 * share)] += 50
    found = by_trusted(scores, labels, *normal(2_000, 3))
    assert found.evidence.present
    assert found.evidence.low <= share <= found.evidence.high
    assert found.evidence.contamination == pytest.approx(share, abs=0.006)
    assert not found.keep[: int(10_000 * share)].any()


@pytest.mark.parametrize("names", [(3, 7), (0, 5)])
def test_labels_with_gaps_and_classes_only_in_trusted_data(names):
    scores, labels = normal(400, 0)
    trusted_scores, trusted_labels = normal(600, 1)
    plain = by_trusted(scores, labels, trusted_scores, trusted_labels)
    rename = torch.tensor(names)
    more_scores = torch.cat([trusted_scores, torch.tensor([99.0, 98.0]).double()])
    more_labels = torch.cat([rename[trusted_labels], torch.tensor([1, 9])])
    found = by_trusted(scores, rename[labels], more_scores, more_labels)
    assert len(found.thresholds) == 10
    assert torch.equal(found.thresholds[rename], plain.thresholds)
    assert found.thresholds.isinf().sum() == 8
    assert torch.equal(found.p_values, plain.p_values)
    assert torch.equal(found.keep, plain.keep)
    assert found.evidence == plain.evidence


def test_p_values_of_member_are_per_class():
    trusted, known = torch.cat([torch.arange(99.0), 1000 + torch.arange(99.0)]), torch.tensor([2] * 99 + [7] * 99)
    scores, labels = torch.tensor([50.0, 1050.0]).double(), torch.tensor([2, 7])
    log_p = log_p_by_trusted(scores, labels, trusted.double(), known)
    torch.testing.assert_close(log_p.exp(), torch.tensor([0.5, 0.5]).double())
    alone = log_p_by_trusted(scores[:1], labels[:1], trusted.double(), known)
    torch.testing.assert_close(alone, log_p[:1])


@pytest.mark.parametrize(
    ("trusted", "message"),
    [
        (torch.tensor([1.0, 2.0, 3.0, 9.0]), "at least two held-out samples of class 1, but got 1"),
        (torch.tensor([1.0, 2.0, 3.0, 9.0, 9.0, 9.0]), "differ among the 3 held-out trusted samples of class 1"),
    ],
)
def test_refuses_class_without_threshold(trusted, message):
    labels = torch.tensor([0, 0, 0, 1, 1, 1])[: len(trusted)]
    with pytest.raises(ValueError, match=message):
        by_trusted(torch.tensor([1.0, 50.0]).double(), torch.tensor([0, 1]), trusted.double(), labels)


def test_equal_scores_have_threshold_if_rate_allows():
    trusted, labels = torch.zeros(200).double(), torch.zeros(200).long()
    found = by_trusted(torch.tensor([0.0, 1.0]).double(), labels[:2], trusted, labels)
    assert found.keep.tolist() == [True, False]


def test_trusted_data_that_number_the_classes_differently_are_named(blobs, centroid_scorer):
    trusted = blobs(900, seed=1)
    shifted = TensorDataset(trusted.tensors[0], (trusted.tensors[1] + 1) % 3)
    few = pytest.warns(UserWarning, match="calibrated on")
    with few, pytest.raises(InconclusiveError, match="numbered differently"):
        with_trusted_data(job(blobs(300), centroid_scorer()), shifted)


@pytest.mark.parametrize("wrong", [60, 240])
def test_wrong_labels_among_trusted_data_are_said(blobs, centroid_scorer, wrong):
    trusted = blobs(1_200, seed=1, flipped=wrong)
    with pytest.warns(UserWarning, match="`trusted` has wrong labels: an estimated"):
        outcome = with_trusted_data(job(blobs(300), centroid_scorer()), trusted)
    listed = outcome.notes[0].partition("such as ")[2].partition(".")[0].split(", ")
    assert all(int(index) >= 1_200 - wrong for index in listed)


def test_correct_trusted_data_have_no_notes(blobs, centroid_scorer):
    assert with_trusted_data(job(blobs(300), centroid_scorer()), blobs(1_200, seed=1)).notes == ()


@pytest.mark.filterwarnings(FEW)
def test_stored_work_is_found_whatever_is_kept_in_memory(blobs, centroid_scorer, monkeypatch):
    """Samples that are not kept are not all read before the work is looked up, if the data set lists its labels."""
    data, trusted, keys = blobs(1500), blobs(300, seed=1), []
    listed = ListedPairs(*data.tensors)
    for limit in (2**30, 0):
        monkeypatch.setattr(labeled_data, "MEMORY_LIMIT", limit)
        keys.append(sanitize(listed, centroid_scorer(), trusted=trusted).made_with)
    assert keys[0] == keys[1]


class ListedPairs(TensorDataset):
    """Points that list their labels."""

    @property
    def targets(self):
        return self.tensors[1]
