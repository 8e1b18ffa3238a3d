import pytest
import torch

from lightning_poison.models.residual_network import ResidualConvNet


@pytest.mark.parametrize("shape", [(3, 24, 24), (3, 32, 32), (1, 28, 95), (4, 33, 50)])
def test_maps_images_to_features(shape):
    network = ResidualConvNet(shape, 7)
    assert network(torch.rand(4, *shape)).shape == (4, 7)


def test_gradients_reach_every_weight():
    network = ResidualConvNet((3, 32, 32), 5)
    network(torch.rand(8, 3, 32, 32)).square().sum().backward()
    assert all(bool(weight.grad.abs().sum() > 0) for weight in network.parameters())


def test_width_multiplies_channels():
    narrow, wide = (ResidualConvNet((3, 32, 32), 5, width=width) for width in (8, 16))
    assert narrow.linear.in_features == 32
    assert wide.linear.in_features == 64


@pytest.mark.parametrize("shape", [(3, 23, 32), (3, 32), (32,)])
def test_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="at least 24 x 24"):
        ResidualConvNet(shape, 5)


def test_refuses_empty_features():
    with pytest.raises(ValueError, match="feature_size"):
        ResidualConvNet((3, 32, 32), 0)
