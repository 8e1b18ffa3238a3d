import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_poison.adversarial.sample_losses import SampleLosses

POINTS = torch.tensor([[1.0, 2.0], [3.0, -4.0]])


def squares(images):
    return images.square().sum(1)


@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
def test_values_and_gradients_are_per_image(context):
    losses = SampleLosses(squares, POINTS)
    with context():
        assert losses.values(POINTS).tolist() == [5, 25]
        assert torch.equal(losses.gradient(POINTS), 2 * POINTS)
    assert POINTS.grad is None
    assert not POINTS.requires_grad


def test_loss_and_points_keep_their_dtypes():
    dtypes = []

    def loss(images):
        dtypes.append(images.dtype)
        return squares(images)

    losses = SampleLosses(loss, POINTS.bfloat16())
    assert losses.gradient(POINTS).dtype == losses.values(POINTS).dtype == torch.float32
    assert dtypes == [torch.bfloat16] * 2


@pytest.mark.parametrize("where", ["autocast", "images", "loss"])
def test_small_gradients_do_not_underflow_in_half_precision(where):
    def loss(images):
        losses = (images.half() * 1e-4 * 1e-4).sum(1)
        return losses if where == "loss" else losses.float()

    with torch.autocast("cpu", dtype=torch.float16, enabled=where == "autocast"):
        gradient = SampleLosses(loss, POINTS.half() if where == "images" else POINTS).gradient(POINTS)
    assert (gradient > 0).all()


def test_large_gradients_are_not_scaled_in_half_precision():
    gradient = SampleLosses(lambda images: (images * 100).sum(1), POINTS.half()).gradient(POINTS)
    assert torch.equal(gradient, torch.full((2, 2), 100.0))


def test_float32_is_not_scaled():
    assert torch.equal(SampleLosses(lambda images: images.sum(1), POINTS).gradient(POINTS), torch.ones(2, 2))


def test_refuses_loss_of_whole_batch():
    with pytest.raises(ValueError, match="a loss for each of the 2 images"):
        SampleLosses(lambda images: images.sum(), POINTS).values(POINTS)


class TestReentrantCheckpoints:
    def losses(self, frozen):
        torch.manual_seed(0)
        layer = nn.Linear(3, 1)
        layer.requires_grad_(not frozen)
        plain = SampleLosses(lambda x: layer(x)[:, 0] ** 2, torch.zeros(2, 3))
        checkpointed = SampleLosses(
            lambda x: checkpoint(layer, x, use_reentrant=True)[:, 0] ** 2, torch.zeros(2, 3), parameters_frozen=frozen
        )
        return layer, plain, checkpointed

    def test_same_gradient_with_frozen_parameters(self):
        layer, plain, checkpointed = self.losses(frozen=True)
        points = torch.tensor([[1.0, 2.0, 3.0], [0.5, -1.0, 0.0]])
        torch.testing.assert_close(checkpointed.gradient(points), plain.gradient(points))
        assert layer.weight.grad is None

    def test_refuses_parameters_that_are_not_frozen(self):
        layer, _, checkpointed = self.losses(frozen=False)
        with pytest.raises(RuntimeError, match="use_reentrant=False"):
            checkpointed.gradient(torch.ones(2, 3))
        assert layer.weight.grad is None
