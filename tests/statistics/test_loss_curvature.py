import pytest
import torch
import torch.nn.functional as F

from lightning_poison.statistics import loss_curvature
from lightning_poison.statistics.loss_curvature import LossCurvature


def blobs(count=300, classes=3, size=5):
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % classes
    features = 0.5 + torch.randn(count, size, generator=generator) @ torch.randn(size, size, generator=generator)
    features[torch.arange(count), labels] += 1.5
    return features.double(), labels


def loss_of(coefficients, features, labels, penalty):
    logits = features @ coefficients[:-1] + coefficients[-1]
    return F.cross_entropy(logits, labels) + penalty / 2 * coefficients[:-1].square().sum()


@pytest.mark.parametrize("is_diagonal", [False, True])
def test_coordinates_and_back(is_diagonal, monkeypatch):
    if is_diagonal:
        monkeypatch.setattr(loss_curvature, "_AXES", 0)
    features, labels = blobs()
    curvature = LossCurvature.of(features, labels, 3)
    assert (curvature.axes is None) == is_diagonal
    coordinates = curvature.coordinates(0.1)
    coefficients = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(coordinates.coefficients(coordinates.of(coefficients)), coefficients)


def test_gradient_agrees_with_autograd():
    features, labels = blobs()
    coordinates = LossCurvature.of(features, labels, 3).coordinates(0.1)
    coefficients = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    coefficients.requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss_of(coefficients, features, labels, 0.1), coefficients)
    at = coordinates.of(coefficients.detach()).requires_grad_(True)
    (expected,) = torch.autograd.grad(loss_of(coordinates.coefficients(at), features, labels, 0.1), at)
    torch.testing.assert_close(coordinates.gradient(gradient), expected)


def test_descent_is_the_derivative_at_weights_of_zero():
    features, labels = blobs()
    curvature = LossCurvature.of(features, labels, 3)
    start = torch.cat([torch.zeros(5, 3).double(), curvature.shares.log()[None]]).requires_grad_(True)
    (gradient,) = torch.autograd.grad(loss_of(start, features, labels, 0.0), start)
    torch.testing.assert_close(curvature.descent, -gradient[:-1])


def test_a_strong_penalty_is_solved_by_the_newton_step():
    """The loss is then quadratic: the weights are the derivative divided by the penalty."""
    features, labels = blobs()
    curvature = LossCurvature.of(features, labels, 3)
    torch.testing.assert_close(curvature.newton_step(1e4)[:-1], curvature.descent / 1e4, rtol=1e-2, atol=0)


@pytest.mark.parametrize("penalty", [1.0, 0.01, 1e-4])
def test_newton_step_is_better_than_frequencies(penalty):
    features, labels = blobs()
    curvature = LossCurvature.of(features, labels, 3)
    frequencies = torch.cat([torch.zeros(5, 3).double(), curvature.shares.log()[None]])
    found, without = (
        loss_of(each, features, labels, penalty) for each in (curvature.newton_step(penalty), frequencies)
    )
    assert found < without


def test_single_samples_absent_classes_and_features_that_do_not_vary():
    features = torch.tensor([[1.0, 0.0, 1.0], [2.0, 0.0, 2.0], [3.0, 0.0, 3.0]])
    curvature = LossCurvature.of(features, torch.tensor([0, 1, 3]), 5)
    step = curvature.newton_step(1e-3)
    assert bool(step.isfinite().all())
    assert step.shape == (4, 5)
    assert bool(curvature.coordinates(1e-3).of(step).isfinite().all())
