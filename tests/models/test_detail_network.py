import pytest
import torch

from lightning_poison.models import DetailConvNet


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 28, 28), (3, 33, 20), (3, 300, 200), (3, 4, 120)])
def test_maps_images_to_features(shape):
    network = DetailConvNet(shape, 10)
    assert network(torch.zeros(2, *shape)).shape == (2, 10)


def test_small_images_keep_their_resolution_in_the_first_layer():
    network = DetailConvNet((1, 28, 28))
    assert network.convolutions[0](torch.zeros(1, 1, 28, 28)).shape[-2:] == (28, 28)
    assert network.reduced is None


def test_large_images_are_averaged():
    network = DetailConvNet((1, 128, 64)).eval()
    image = torch.rand(1, 1, 128, 64, generator=torch.Generator().manual_seed(0))
    small = torch.nn.functional.avg_pool2d(image, 2)
    assert network.reduced == (64, 32)
    torch.testing.assert_close(network(image), network(small), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(10,), (3, 2, 9), (3, 3, 3, 3)])
def test_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="shape"):
        DetailConvNet(shape)
