import pytest
import torch

from lightning_poison.adversarial.adversaries import FGSM, PGD
from lightning_poison.adversarial.batch import is_correct
from lightning_poison.adversarial.collapse_guard import CollapseGuard


@pytest.mark.parametrize(
    ("counts", "collapsed"),
    [((100, 0), True), ((100, 49), True), ((100, 60), False), ((10, 2), False), ((0, 0), False), ((30, 40), False)],
)
def test_detects_collapse(counts, collapsed):
    assert CollapseGuard().has_collapsed(torch.tensor(counts)) is collapsed


def test_counts_both_attacks_on_same_samples(attacked):
    labels = (attacked().inputs.flatten(1).mean(1) > 0.5).long()
    batch = attacked(FGSM(0.05, random_start=False), batch=(attacked().inputs.clamp(0, 1), labels))
    guard = CollapseGuard(samples=8, steps=5)
    counts = guard.probe([batch])
    expected = []
    for adversary in (batch.adversary, PGD(0.05, steps=5)):
        perturbed = batch.perturb(
            batch.inputs[:8], lambda x: batch.loss(batch.logits(x), labels[:8]), adversary=adversary
        )
        expected.append(int(is_correct(batch.evaluate(perturbed), labels[:8]).sum()))
    assert counts.tolist() == expected


def test_counts_samples_of_last_batches(attacked):
    batches = [attacked(which=number) for number in range(3)]
    guard = CollapseGuard(samples=18, steps=2)
    assert guard.latest(batches) == batches[1:]
    both = CollapseGuard(samples=12, steps=2).probe(batches[2:]) + CollapseGuard(samples=6, steps=2).probe(batches[1:2])
    assert guard.probe(batches).tolist() == both.tolist()


def test_fallback_has_same_radius():
    assert CollapseGuard(fallback_steps=4).fallback(0.2) == PGD(0.2, steps=4)


@pytest.mark.parametrize("settings", [{"samples": 0}, {"steps": 0}, {"share": 1.0}, {"fallback_steps": 0}])
def test_refuses_settings_out_of_range(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        CollapseGuard(**settings)
