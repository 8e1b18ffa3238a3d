import pytest
import torch
from torch import nn

from lightning_poison.attacks.surrogate_features import RawFeatures, read_features
from lightning_poison.attacks.threat import Surrogate
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.raw_images import RawImages
from lightning_poison.testing.tiny_images import TinyImages

NORMALIZED = PixelRange(mean=(0.5,), std=(0.25,))


@pytest.fixture
def model(generator):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
    return model


@pytest.fixture
def images(generator):
    return torch.rand(5, 1, 8, 8, generator=generator)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_features_of_raw_images_equal_features_of_samples(model, images):
    features = RawFeatures(Surrogate(model, "2"), NORMALIZED)
    torch.testing.assert_close(features(images), model[:3]((images - 0.5) / 0.25))


def test_features_are_differentiable_in_raw_images(images):
    leaf = images.clone().requires_grad_()
    RawFeatures(Surrogate(nn.Flatten(), ""), NORMALIZED)(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, torch.full_like(images, 4.0))


def test_device_follows_model(model):
    assert RawFeatures(Surrogate(model.to("meta"), "2"), NORMALIZED).device == torch.device("meta")
    assert RawFeatures(Surrogate(nn.BatchNorm1d(3, affine=False).to("meta"), ""), NORMALIZED).device.type == "meta"
    assert RawFeatures(Surrogate(nn.Flatten(), ""), NORMALIZED).device.type == "cpu"


def test_refuses_unknown_layer(model):
    with pytest.raises(ValueError, match=r"one of the layers of Sequential \(0, 1, 2, 3\), but got 'body'"):
        RawFeatures(Surrogate(model, "body"), NORMALIZED)


def test_read_features_of_several_maps(model):
    tiny = TinyImages(12, pixels=NORMALIZED)
    raw = RawImages(tiny, NORMALIZED, seed=0, batch_size=2)
    maps = [RawFeatures(Surrogate(model, layer), NORMALIZED) for layer in ("2", "3")]
    rows = torch.tensor([3, 9, 3])
    found = read_features(raw, rows, maps)
    samples = torch.stack([tiny[row][0] for row in rows.tolist()])
    for features, layers in zip(found, (model[:3], model), strict=True):
        torch.testing.assert_close(features, layers(samples).detach())
        assert not features.requires_grad


def test_repr(model):
    shown = repr(RawFeatures(Surrogate(model, "2"), NORMALIZED))
    assert shown.startswith("RawFeatures(FeatureExtractor(Sequential, '2'), PixelRange(")
