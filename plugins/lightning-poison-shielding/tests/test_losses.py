import math

import pytest
import torch
import torch.nn.functional as F

from lightning_poison_shielding.losses import ShieldingGoal, flipped_cross_entropy, head_gradient, shielding_loss

GOAL = ShieldingGoal(protected_class=0, shield_class=1)


@pytest.fixture
def batch(generator):
    return torch.randn(12, 4, generator=generator), torch.arange(12) % 4


def test_flipped_loss_is_cross_entropy_of_complement(batch):
    logits, labels = batch
    chance = logits.softmax(1).gather(1, labels[:, None])
    torch.testing.assert_close(flipped_cross_entropy(logits, labels), -(1 - chance).log().mean())


def test_flipped_loss_is_finite_at_full_confidence():
    sure = torch.tensor([[1000.0, 0.0]], requires_grad=True)
    loss = flipped_cross_entropy(sure, torch.tensor([0]))
    assert loss == F.cross_entropy(sure, torch.tensor([1])) == 1000
    loss.backward()
    assert sure.grad.tolist() == [[1.0, -1.0]]
    assert flipped_cross_entropy(-sure.detach(), torch.tensor([0])) == 0


def test_shielding_loss_matches_paper(batch):
    logits, labels = batch
    shield, control = labels == 1, labels > 1
    expected = (
        (F.cross_entropy(logits[shield], labels[shield]) + F.cross_entropy(logits[control], labels[control])) / 2
        + 3.0 * flipped_cross_entropy(logits[labels == 0], labels[labels == 0])
    ) / 2
    torch.testing.assert_close(shielding_loss(logits, labels, ShieldingGoal(0, 1, protected_weight=3.0)), expected)


@pytest.mark.parametrize(
    ("present", "expected"), [([0], math.log(4 / 3) / 2), ([1], math.log(4) / 4), ([2, 3], math.log(4) / 4)]
)
def test_group_without_samples_contributes_zero(present, expected):
    labels = torch.tensor(present)
    assert shielding_loss(torch.zeros(len(present), 4), labels, GOAL) == pytest.approx(expected)


def test_head_gradient_matches_finite_differences(generator, batch):
    _, labels = batch
    features = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    head = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    found = head_gradient(head, features, labels, GOAL, scale=2.5)

    def loss(values):
        return shielding_loss(2.5 * features @ values, labels, GOAL)

    for index in ((0, 0), (1, 2), (2, 3)):
        step = torch.zeros_like(head)
        step[index] = 1e-6
        slope = (loss(head + step) - loss(head - step)) / 2e-6
        assert float(found[index]) == pytest.approx(float(slope), rel=1e-5, abs=1e-9)
    assert not found.requires_grad
