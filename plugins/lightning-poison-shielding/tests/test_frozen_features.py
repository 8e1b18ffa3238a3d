import pytest
import torch
from torch import nn

from lightning_poison import PixelRange, Surrogate
from lightning_poison_shielding.frozen_features import FrozenFeatures


@pytest.fixture
def images(generator):
    return torch.rand(10, 1, 8, 8, generator=generator)


def features_of(model, layer="1", pixels=None, batch_size=4):
    return FrozenFeatures(Surrogate(model, layer), pixels or PixelRange(), batch_size=batch_size)


def test_features_of_normalized_images_have_constant(images):
    pixels = PixelRange(mean=(0.5,), std=(0.25,))
    extract = features_of(nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(64, 1000)), pixels=pixels)
    expected = torch.cat([(images.flatten(1) - 0.5) / 0.25, torch.ones(10, 1)], 1)
    torch.testing.assert_close(extract.detached(images), expected)


def test_fit_scale_sets_mean_square_to_one(images, surrogate):
    extract = FrozenFeatures(surrogate, PixelRange(), batch_size=4)
    scaled = extract.fit_scale(extract.detached(images))
    assert scaled[:, :-1].square().mean() == pytest.approx(1)
    assert (scaled[:, -1] == 1).all()
    torch.testing.assert_close(extract.detached(images), scaled)


def test_input_gradient_is_independent_of_batch_size(images, surrogate, generator):
    rows = torch.randn(10, 33, generator=generator)
    leaf = images.clone().requires_grad_()
    whole = FrozenFeatures(surrogate, PixelRange(), batch_size=10)
    (whole(leaf) * rows).sum().backward()
    found = FrozenFeatures(surrogate, PixelRange(), batch_size=3).input_gradient(images, rows)
    torch.testing.assert_close(found, leaf.grad)


def test_refuses_unknown_layer():
    with pytest.raises(ValueError, match=r"one of the layers of Sequential \(0, 1\), but got 'body'"):
        features_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), "body")


def test_refuses_features_that_are_not_finite(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    model[1].weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match="finite features, including layer `1` of Sequential, but got NaN"):
        features_of(model).detached(images)


def test_refuses_constant_features(images):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    model[1].weight.data.zero_()
    extract = features_of(model)
    with pytest.raises(ValueError, match="features differ between images"):
        extract.fit_scale(extract.detached(images))


def test_refuses_outputs_that_are_not_vectors(images):
    class Sum(nn.Module):
        def forward(self, inputs):
            return inputs.sum()

    with pytest.raises(ValueError, match="a vector for each of the 4 samples"):
        features_of(Sum(), "").detached(images)
