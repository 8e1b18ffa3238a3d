"""Tests of the metrics: known answers, cover samples, empty input, and reduction over ranks."""

import pickle

import pytest
import torch
from sklearn.metrics import roc_curve

from lightning_poison.attacks.objectives import AvailabilityObjective, ProtectedClassObjective
from lightning_poison.evaluation.metrics import AttackSuccessRate, TPRAtFPR

pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method of metric:UserWarning")


def bits(text):
    return torch.tensor([char == "1" for char in text])


POISON, COVER = bits("0111000000"), bits("0000000011")


def test_attack_success_follows_objective():
    metric = AttackSuccessRate(ProtectedClassObjective(0, target_class=2))
    metric.update(torch.tensor([2, 1]), torch.zeros(2).long(), torch.full((2,), 2))
    metric.update(torch.tensor([2, 2, 0]), torch.zeros(3).long(), torch.full((3,), 2))
    assert metric.compute() == pytest.approx(3 / 5)


def test_attack_success_accepts_logits_and_excludes_reference_failures():
    metric = AttackSuccessRate(AvailabilityObjective())
    true, any_other = torch.tensor([0, 1, 2]), torch.full((3,), -1)
    logits, reference = torch.eye(3)[[1, 0, 2]], torch.eye(3)[[0, 2, 2]]
    metric.update(logits, true, any_other)
    assert metric.compute() == pytest.approx(2 / 3)
    metric.reset()
    metric.update(logits, true, any_other, reference=reference)
    assert metric.compute() == pytest.approx(1 / 3)


def test_attack_success_needs_items():
    with pytest.raises(ValueError, match="Expected items of an evaluation set"):
        AttackSuccessRate(AvailabilityObjective()).compute()
    empty = torch.zeros(0).long()
    metric = AttackSuccessRate(AvailabilityObjective())
    metric.update(empty, empty, empty)
    with pytest.raises(ValueError, match="has no target in this test set"):
        metric.compute()


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.07, 0.29, 0.5])
@pytest.mark.parametrize("levels", [10, 100_000])
def test_tpr_matches_scikit_learn_roc_curve(rate, levels):
    generator = torch.Generator().manual_seed(levels)
    poison = torch.rand(300, generator=generator) < 0.3
    scores = (torch.randn(300, generator=generator) + 2 * poison).mul(levels).round() / levels
    metric = TPRAtFPR(rate)
    for part in range(0, 300, 100):
        metric.update(scores[part : part + 100], poison[part : part + 100])
    false_positives, true_positives, _ = roc_curve(poison, scores, drop_intermediate=False)
    assert float(metric.compute()) == pytest.approx(true_positives[false_positives <= rate + 1e-9].max())


def test_tpr_allows_exactly_the_given_rate():
    scores = torch.cat([torch.arange(100.0), torch.tensor([70.5, 69.5, 71.0])])
    poison = torch.arange(103) >= 100
    metric = TPRAtFPR(0.29)
    metric.update(scores, poison)
    assert metric.compute() == pytest.approx(2 / 3)


def test_tpr_distinguishes_large_scores():
    scores, poison = torch.tensor([900.0, 901.0, 902.0, 903.0]), bits("0011")
    metric = TPRAtFPR(0.01)
    metric.update(scores, poison)
    assert metric.compute() == 1


def test_tpr_ignores_cover_samples():
    scores, poison = torch.tensor([1.0, 2.0, 9.0, 5.0]), bits("0001")
    metric = TPRAtFPR(0.01)
    metric.update(scores, poison, bits("0010"))
    assert metric.compute() == 1
    metric.reset()
    metric.update(scores, poison)
    assert metric.compute() == 0


def test_tpr_needs_poison_and_clean_samples():
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
    scores = torch.rand(10, generator=torch.Generator().manual_seed(0))
    return lambda **kwargs: TPRAtFPR(0.2, **kwargs), (scores, POISON, COVER)


def on_two_ranks(make, first, second):
    """Compute on rank 0 as torchmetrics does on two ranks, with the states of the other rank passed in order."""
    sent = []
    other = make()
    if second is not None:
        other.update(*second)
    other.sync(dist_sync_fn=lambda value, group: sent.append(value) or [value], distributed_available=lambda: True)
    received = iter(sent)
    mine = make(dist_sync_fn=lambda value, group: [value, next(received)], distributed_available_fn=lambda: True)
    mine.update(*first)
    return mine.compute()


@pytest.mark.parametrize("kind", ["attack", "scores"])
@pytest.mark.parametrize("cut", [3, None])
def test_reduction_over_ranks_equals_single_rank(kind, cut):
    make, whole = metric_and_batches(kind)
    first = tuple(part[:cut] for part in whole)
    second = tuple(part[cut:] for part in whole) if cut else None
    alone = make()
    alone.update(*whole)
    assert torch.equal(on_two_ranks(make, first, second), alone.compute())


@pytest.mark.parametrize("kind", ["attack", "scores"])
def test_metrics_can_be_pickled_and_reset(kind):
    make, whole = metric_and_batches(kind)
    metric = make()
    metric.update(*whole)
    copy = pickle.loads(pickle.dumps(metric))  # noqa: S301 (our own bytes)
    assert torch.equal(copy.compute(), metric.compute())
    metric.reset()
    metric.update(*whole)
    assert torch.equal(copy.compute(), metric.compute())


def test_error_names_invalid_argument():
    labels = torch.zeros(3).long()
    attack, tpr = AttackSuccessRate(AvailabilityObjective()), TPRAtFPR()
    with pytest.raises(ValueError, match=r"`predictions` to be integer labels \(3,\)"):
        attack.update(torch.zeros(2).long(), labels, labels)
    with pytest.raises(ValueError, match=r"`predictions` .* but got a float32 tensor of shape \(3,\)"):
        attack.update(torch.rand(3), labels, labels)
    with pytest.raises(ValueError, match="`reference`"):
        attack.update(labels, labels, labels, reference=torch.rand(3))
    with pytest.raises(ValueError, match="`wanted`"):
        attack.update(labels, labels, labels[:2])
    scores = torch.rand(3)
    with pytest.raises(ValueError, match=r"`is_poison` to be a boolean mask \(3,\), as `scores`"):
        tpr.update(scores, POISON)
    with pytest.raises(ValueError, match=r"`is_poison` to be a boolean mask \(3,\), as `scores`"):
        tpr.update(scores, labels)
    with pytest.raises(ValueError, match=r"`is_cover` .* but got sample 1 as poison and cover"):
        tpr.update(scores, POISON[:3], POISON[:3])
    with pytest.raises(ValueError, match=r"`scores` to be numbers, but got NaN at sample 1"):
        tpr.update(torch.tensor([0.0, torch.nan]), POISON[:2])
    with pytest.raises(ValueError, match=r"`scores` to be one-dimensional"):
        tpr.update(labels, POISON[:3])
    with pytest.raises(ValueError, match=r"`false_positive_rate` to be a number in \(0, 1\), but got 5"):
        TPRAtFPR(5)
