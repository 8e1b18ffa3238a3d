import pytest
import torch
import torch.nn.functional as F

from lightning_poison_shielding.ridge import moments, ridge_gradient, ridge_head

PENALTY = 0.05


@pytest.fixture
def samples(generator):
    return torch.randn(30, 4, generator=generator, dtype=torch.float64), torch.arange(30) % 3


def test_head_is_least_squares_solution(samples):
    features, labels = samples
    root = (30 * PENALTY) ** 0.5
    stacked = torch.cat([features, root * torch.eye(4, dtype=torch.float64)])
    goals = torch.cat([F.one_hot(labels, 3).double(), torch.zeros(4, 3, dtype=torch.float64)])
    torch.testing.assert_close(
        ridge_head(moments(features, labels, 3), PENALTY), torch.linalg.lstsq(stacked, goals).solution
    )


def test_weights_are_equivalent_to_repetitions(samples):
    features, labels = samples
    weighted = moments(features[:10], labels[:10], 3, weight=3.0) + moments(features[10:], labels[10:], 3)
    rows = torch.cat([torch.arange(10).repeat(3), torch.arange(10, 30)])
    repeated = moments(features[rows], labels[rows], 3)
    assert weighted.count == repeated.count == 50
    torch.testing.assert_close(ridge_head(weighted, PENALTY), ridge_head(repeated, PENALTY))


@pytest.mark.parametrize("weight", [1.0, 2.5])
def test_gradient_matches_autograd_and_finite_differences(samples, generator, weight):
    features, labels = samples
    clean, poison = moments(features[6:], labels[6:], 3), features[:6].clone().requires_grad_()
    outer = torch.randn(4, 3, generator=generator, dtype=torch.float64)

    def loss(values):
        return (outer * ridge_head(clean + moments(values, labels[:6], 3, weight=weight), PENALTY).sin()).sum()

    sums = clean + moments(poison.detach(), labels[:6], 3, weight=weight)
    head = ridge_head(sums, PENALTY)
    found = ridge_gradient(head, sums, PENALTY, outer * head.cos(), poison.detach(), labels[:6], weight=weight)
    (through,) = torch.autograd.grad(loss(poison), poison)
    torch.testing.assert_close(found, through)
    step = torch.zeros_like(found)
    step[2, 1] = 1e-6
    slope = (loss(poison.detach() + step) - loss(poison.detach() - step)) / 2e-6
    assert float(found[2, 1]) == pytest.approx(float(slope), rel=1e-5)
