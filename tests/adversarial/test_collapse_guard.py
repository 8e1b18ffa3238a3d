import pytest
import torch

from lightning_poison.adversarial.adversaries import FGSM, PGD
from lightning_poison.adversarial.collapse_guard import CollapseGuard, is_read


@pytest.mark.parametrize(
    ("right", "collapsed"),
    [((100, 0), True), ((100, 49), True), ((100, 60), False), ((10, 2), False), ((0, 0), False), ((30, 40), False)],
)
def test_what_counts_as_a_collapse(right, collapsed):
    assert CollapseGuard().has_collapsed(torch.tensor(right)) is collapsed


def test_both_attacks_are_counted_on_the_same_samples(attacked):
    labels = (attacked().inputs.flatten(1).mean(1) > 0.5).long()
    batch = attacked(FGSM(0.05, random_start=False), batch=(attacked().inputs.clamp(0, 1), labels))
    guard = CollapseGuard(samples=8, steps=5)
    right = guard.probe([batch])
    by_hand = []
    for one in (batch.adversary, PGD(0.05, steps=5)):
        found = batch.perturbed(batch.inputs[:8], lambda x: batch.loss(batch.logits(x), labels[:8]), adversary=one)
        by_hand.append(int(is_read(batch.read(found), labels[:8]).sum()))
    assert right.tolist() == by_hand


def test_of_several_batches_the_last_samples_are_counted(attacked):
    batches = [attacked(which=number) for number in range(3)]
    guard = CollapseGuard(samples=18, steps=2)
    assert guard.latest(batches) == batches[1:]
    both = CollapseGuard(samples=12, steps=2).probe(batches[2:]) + CollapseGuard(samples=6, steps=2).probe(batches[1:2])
    assert guard.probe(batches).tolist() == both.tolist()


def test_the_fallback_has_the_same_radius():
    assert CollapseGuard(fallback_steps=4).fallback(0.2) == PGD(0.2, steps=4)


def test_mixed_labels_are_read_as_their_largest():
    assert is_read(torch.eye(3), torch.tensor([[0.6, 0.4, 0.0], [0.7, 0.3, 0.0], [0.0, 0.1, 0.9]])).tolist() == [
        True,
        False,
        True,
    ]


@pytest.mark.parametrize("settings", [{"samples": 0}, {"steps": 0}, {"share": 1.0}, {"fallback_steps": 0}])
def test_settings_that_cannot_be(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        CollapseGuard(**settings)
