import pytest
import torch
from torch import nn

from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.scorers.discriminator.high_pass import high_pass_channels
from lightning_poison.scorers.discriminator.projection import ProjectionDiscriminator


def random_images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_logits_match_closed_form():
    model, images = ProjectionDiscriminator((1, 8, 8), 5), random_images(3, 1, 8, 8)
    features = model.trunk(high_pass_channels(images)).flatten(1)
    psi = features @ model.unconditional.weight[0] + model.unconditional.bias
    expected = [psi + features @ model.embeddings.weight[label] for label in range(5)]
    torch.testing.assert_close(model(images), torch.stack(expected, dim=1))


@pytest.mark.parametrize(
    ("side", "halvings", "convolutions"),
    [(4, 0, 4), (5, 0, 4), (6, 1, 4), (8, 1, 4), (12, 2, 4), (28, 3, 4), (32, 3, 4), (96, 5, 6), (224, 6, 7)],
)
def test_trunk_depends_on_the_side(side, halvings, convolutions):
    model = ProjectionDiscriminator((3, side, side), 2, width=2)
    kinds = [type(layer) for layer in model.trunk]
    assert kinds.count(nn.MaxPool2d) == halvings
    assert kinds.count(nn.Conv2d) == convolutions
    assert model.unconditional.in_features == 8 * (side >> halvings) ** 2
    assert model(torch.zeros(1, 3, side, side)).shape == (1, 2)


def test_shorter_side_determines_the_trunk():
    model = ProjectionDiscriminator((1, 8, 21), 2, width=2)
    assert model(torch.zeros(2, 1, 8, 21)).shape == (2, 2)
    assert model.unconditional.in_features == 8 * 4 * 10


def test_trunk_for_digits():
    trunk = ProjectionDiscriminator((1, 28, 28), 10).trunk
    assert [layer.out_channels for layer in trunk if isinstance(layer, nn.Conv2d)] == [16, 32, 64, 64]


def test_normalized_images_give_the_logits_of_raw_images():
    pixels, images = PixelRange(mean=(0.3,), std=(0.5,)), random_images(2, 1, 8, 8)
    raw, normalized = (ProjectionDiscriminator((1, 8, 8), 2, pixels=each) for each in (PixelRange(), pixels))
    torch.testing.assert_close(normalized(pixels.from_raw(images)), raw(images))


def test_vectors_are_standardized():
    points = random_images(50, 3) * torch.tensor([1.0, 10.0, 100.0]) + 7
    model = ProjectionDiscriminator((3,), 2)
    model.standardize(points.mean(0), points.std(0, correction=0))
    raw = model.to_raw(points)
    torch.testing.assert_close(raw.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(raw.std(0, correction=0), torch.ones(3))
    assert {"center", "spread"} <= set(model.state_dict())
    assert model(points).shape == (50, 2)


def test_weights_depend_on_the_seed():
    one, two, other = (ProjectionDiscriminator((1, 8, 8), 2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.embeddings.weight, two.embeddings.weight)
    assert not torch.equal(one.embeddings.weight, other.embeddings.weight)


def test_refuses_integers():
    with pytest.raises(ValueError, match="`inputs` to be floating-point samples"):
        ProjectionDiscriminator((1, 8, 8), 2)(torch.zeros(1, 1, 8, 8, dtype=torch.uint8))


@pytest.mark.parametrize("shape", [(1, 3, 8), (8, 8), (), (1, 4, 8, 8)])
def test_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"images \(C, H, W\) of at least 4 x 4, or vectors \(D,\), but got shape"):
        ProjectionDiscriminator(shape, 2)
