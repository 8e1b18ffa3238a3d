"""Metrics: known answers, cover samples apart, what is undefined, and the reduction over ranks."""

import pickle

import pytest
import torch
from sklearn.metrics import precision_score, recall_score, roc_curve
from torchmetrics import MetricCollection

from lightning_poison.attacks.objectives import AvailabilityObjective, ProtectedClassObjective
from lightning_poison.evaluation.metrics import (
    AttackSuccessRate,
    CoverRemovalRate,
    RemovalCounts,
    RemovalFalsePositiveRate,
    RemovalPrecision,
    RemovalRecall,
    TPRAtFPR,
)

pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")


def bits(text):
    return torch.tensor([char == "1" for char in text])


KEEP, POISON, COVER = bits("1100110010"), bits("0111000000"), bits("0000000011")
"""Of 3 poisons 2 are removed, of 5 clean samples 2, of 2 cover samples 1."""


def test_attack_success_counts_what_the_objective_says():
    metric = AttackSuccessRate(ProtectedClassObjective(0, target_class=2))
    metric.update(torch.tensor([2, 1]), torch.zeros(2).long(), torch.full((2,), 2))
    metric.update(torch.tensor([2, 2, 0]), torch.zeros(3).long(), torch.full((3,), 2))
    assert metric.compute() == pytest.approx(3 / 5)


def test_attack_success_takes_logits_and_subtracts_what_fails_without_poison():
    metric = AttackSuccessRate(AvailabilityObjective())
    true, any_other = torch.tensor([0, 1, 2]), torch.full((3,), -1)
    logits, reference = torch.eye(3)[[1, 0, 2]], torch.eye(3)[[0, 2, 2]]
    metric.update(logits, true, any_other)
    assert metric.compute() == pytest.approx(2 / 3)
    metric.reset()
    metric.update(logits, true, any_other, reference=reference)
    assert metric.compute() == pytest.approx(1 / 3)


def test_counts_and_shares():
    metrics = MetricCollection(
        [RemovalCounts(), RemovalPrecision(), RemovalRecall(), RemovalFalsePositiveRate(), CoverRemovalRate()]
    )
    metrics.update(KEEP[:6], POISON[:6], COVER[:6])
    metrics.update(KEEP[6:], POISON[6:], COVER[6:])
    found = metrics.compute()
    assert found.pop("RemovalCounts").tolist() == [[2, 3], [2, 5], [1, 2]]
    assert {name: round(float(value), 6) for name, value in found.items()} == {
        "RemovalPrecision": 0.5,
        "RemovalRecall": round(2 / 3, 6),
        "RemovalFalsePositiveRate": 0.4,
        "CoverRemovalRate": 0.5,
    }


def test_precision_and_recall_are_scikit_learns_where_there_is_no_cover():
    generator = torch.Generator().manual_seed(0)
    keep, poison = torch.rand(2, 200, generator=generator) < 0.6
    precision, recall = RemovalPrecision(), RemovalRecall()
    assert float(precision(keep, poison)) == pytest.approx(precision_score(poison, ~keep))
    assert float(recall(keep, poison)) == pytest.approx(recall_score(poison, ~keep))


def test_what_is_undefined_is_nan():
    nothing, everything = torch.zeros(4).bool(), torch.ones(4).bool()
    assert RemovalPrecision()(everything, POISON[:4]).isnan()
    assert RemovalRecall()(nothing, nothing).isnan()
    assert RemovalFalsePositiveRate()(nothing, everything).isnan()
    assert CoverRemovalRate()(nothing, everything).isnan()
    assert RemovalPrecision()(bits("1110"), nothing, bits("0001")).isnan()


@pytest.mark.parametrize("metric", [RemovalCounts(), RemovalPrecision(), RemovalRecall(), CoverRemovalRate()])
def test_nothing_to_judge_a_removal_by(metric):
    with pytest.raises(ValueError, match="Expected samples to judge a removal by"):
        metric.compute()


def test_nothing_to_judge_an_attack_by():
    with pytest.raises(ValueError, match="Expected the items of an evaluation set"):
        AttackSuccessRate(AvailabilityObjective()).compute()
    empty = torch.zeros(0).long()
    metric = AttackSuccessRate(AvailabilityObjective())
    metric.update(empty, empty, empty)
    with pytest.raises(ValueError, match="has no target in this test set"):
        metric.compute()


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.07, 0.29, 0.5])
@pytest.mark.parametrize("levels", [10, 100_000])
def test_tpr_is_the_best_point_of_scikit_learns_curve(rate, levels):
    generator = torch.Generator().manual_seed(levels)
    poison = torch.rand(300, generator=generator) < 0.3
    scores = (torch.randn(300, generator=generator) + 2 * poison).mul(levels).round() / levels
    metric = TPRAtFPR(rate)
    for part in range(0, 300, 100):
        metric.update(scores[part : part + 100], poison[part : part + 100])
    false_positives, true_positives, _ = roc_curve(poison, scores, drop_intermediate=False)
    assert float(metric.compute()) == pytest.approx(true_positives[false_positives <= rate + 1e-9].max())


def test_tpr_allows_exactly_the_stated_share():
    scores = torch.cat([torch.arange(100.0), torch.tensor([70.5, 69.5, 71.0])])
    poison = torch.arange(103) >= 100
    metric = TPRAtFPR(0.29)
    metric.update(scores, poison)
    assert metric.compute() == pytest.approx(2 / 3)


def test_tpr_keeps_large_scores_apart():
    scores, poison = torch.tensor([900.0, 901.0, 902.0, 903.0]), bits("0011")
    metric = TPRAtFPR(0.01)
    metric.update(scores, poison)
    assert metric.compute() == 1


def test_tpr_leaves_cover_out():
    scores, poison = torch.tensor([1.0, 2.0, 9.0, 5.0]), bits("0001")
    metric = TPRAtFPR(0.01)
    metric.update(scores, poison, bits("0010"))
    assert metric.compute() == 1
    metric.reset()
    metric.update(scores, poison)
    assert metric.compute() == 0


def test_tpr_needs_both_kinds():
    metric = TPRAtFPR(0.01)
    with pytest.raises(ValueError, match="but got 0 and 0"):
        metric.compute()
    metric.update(torch.rand(3), bits("000"))
    with pytest.raises(ValueError, match="but got 0 and 3"):
        metric.compute()


def metric_and_batches(kind):
    if kind == "attack":
        labels = torch.tensor([0, 1, 2, 0, 1, 1, 2])
        whole = (labels.roll(2), labels, torch.full((7,), -1))
        return lambda **kwargs: AttackSuccessRate(AvailabilityObjective(), **kwargs), whole
    if kind == "removal":
        return RemovalCounts, (KEEP, POISON, COVER)
    scores = torch.rand(10, generator=torch.Generator().manual_seed(0))
    return lambda **kwargs: TPRAtFPR(0.2, **kwargs), (scores, POISON, COVER)


def on_two_ranks(make, first, second):
    """Compute on rank 0 as torchmetrics does on two ranks, the other rank's states handed over in their order."""
    sent = []
    other = make()
    if second is not None:
        other.update(*second)
    other.sync(dist_sync_fn=lambda value, group: sent.append(value) or [value], distributed_available=lambda: True)
    incoming = iter(sent)
    mine = make(dist_sync_fn=lambda value, group: [value, next(incoming)], distributed_available_fn=lambda: True)
    mine.update(*first)
    return mine.compute()


@pytest.mark.parametrize("kind", ["attack", "removal", "scores"])
@pytest.mark.parametrize("cut", [3, None])
def test_ranks_are_reduced_to_what_one_would_have_computed(kind, cut):
    make, whole = metric_and_batches(kind)
    first = tuple(part[:cut] for part in whole)
    second = tuple(part[cut:] for part in whole) if cut else None
    alone = make()
    alone.update(*whole)
    assert torch.equal(on_two_ranks(make, first, second), alone.compute())


@pytest.mark.parametrize("kind", ["attack", "removal", "scores"])
def test_metrics_pickle_and_reset(kind):
    make, whole = metric_and_batches(kind)
    metric = make()
    metric.update(*whole)
    copy = pickle.loads(pickle.dumps(metric))  # noqa: S301 (our own bytes)
    assert torch.equal(copy.compute(), metric.compute())
    metric.reset()
    metric.update(*whole)
    assert torch.equal(copy.compute(), metric.compute())


def test_bad_input_is_named():
    labels = torch.zeros(3).long()
    attack, removal, tpr = AttackSuccessRate(AvailabilityObjective()), RemovalRecall(), TPRAtFPR()
    with pytest.raises(ValueError, match=r"`predictions` to be labels \(3,\)"):
        attack.update(torch.zeros(2).long(), labels, labels)
    with pytest.raises(ValueError, match=r"`predictions` .* but got a float32 tensor of shape \(3,\)"):
        attack.update(torch.rand(3), labels, labels)
    with pytest.raises(ValueError, match="`reference`"):
        attack.update(labels, labels, labels, reference=torch.rand(3))
    with pytest.raises(ValueError, match="`wanted`"):
        attack.update(labels, labels, labels[:2])
    with pytest.raises(ValueError, match=r"`keep` to be a boolean mask"):
        removal.update(labels, KEEP[:3])
    with pytest.raises(ValueError, match=r"`is_poison` to be a boolean mask \(3,\), as `keep`"):
        removal.update(KEEP[:3], POISON)
    with pytest.raises(ValueError, match=r"`is_cover` .* but got sample 1 as poison and cover"):
        removal.update(KEEP, POISON, POISON)
    with pytest.raises(ValueError, match=r"`scores` to be numbers, but got NaN at sample 1"):
        tpr.update(torch.tensor([0.0, torch.nan]), POISON[:2])
    with pytest.raises(ValueError, match=r"`scores` to be one-dimensional"):
        tpr.update(labels, POISON[:3])
    with pytest.raises(ValueError, match=r"`false_positive_rate` to be a number in \(0, 1\), but got 5"):
        TPRAtFPR(5)
