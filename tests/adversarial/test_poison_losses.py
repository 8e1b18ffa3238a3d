import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_poison.adversarial.poison_losses import gradient_alignment, loss_gradient


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_gradient_of_linear_model_matches_closed_form(generator):
    inputs, labels = torch.rand(5, 6, generator=generator).double(), torch.tensor([2, 2, 1, 0, 2])
    model = nn.Linear(6, 3).double()
    errors = model(inputs).softmax(1) - F.one_hot(labels, 3)
    expected = torch.cat([(errors.T @ inputs).flatten(), errors.sum(0)]).detach()
    found = loss_gradient(F.cross_entropy(model(inputs), labels, reduction="sum"), list(model.parameters()))
    torch.testing.assert_close(found, expected)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_half_precision_gives_float32():
    weights = torch.ones(2, dtype=torch.bfloat16, requires_grad=True)
    found = loss_gradient(weights.square().sum(), [weights], create_graph=True)
    assert found.dtype == torch.float32
    assert found.requires_grad


@pytest.mark.parametrize("length", [1e-30, 1.0, 1e30])
@pytest.mark.parametrize(("goal", "cosine"), [([2.0, 0.0], 1.0), ([0.0, 5.0], 0.0), ([-1.0, 0.0], -1.0), ([3, 4], 0.6)])
def test_cosine_does_not_depend_on_lengths(goal, cosine, length):
    gradient = torch.tensor([length, 0.0], requires_grad=True)
    found = gradient_alignment(gradient, torch.tensor(goal, dtype=torch.float32))
    assert float(found.detach()) == pytest.approx(cosine, abs=1e-6)


def test_cosine_with_zero_vector_is_zero():
    gradient = torch.zeros(3, requires_grad=True)
    value = gradient_alignment(gradient, torch.ones(3))
    value.backward()
    assert float(value.detach()) == 0
    assert bool(gradient.grad.isfinite().all())
    assert float(gradient_alignment(torch.ones(3), torch.zeros(3))) == 0


def test_gradient_of_cosine(generator):
    pair = [torch.randn(7, generator=generator).double().requires_grad_() for _ in range(2)]
    assert torch.autograd.gradcheck(gradient_alignment, pair)


def test_second_derivative(generator):
    inputs = torch.rand(4, 6, generator=generator).double().requires_grad_()
    model, labels = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double(), torch.tensor([0, 1, 2, 0])
    goal = torch.randn(53, generator=generator).double()

    def aligned(inputs):
        loss = F.cross_entropy(model(inputs), labels, reduction="sum")
        return gradient_alignment(loss_gradient(loss, list(model.parameters()), create_graph=True), goal)

    assert torch.autograd.gradcheck(aligned, inputs)
