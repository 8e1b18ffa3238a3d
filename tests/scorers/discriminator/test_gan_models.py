import pytest
import torch
from torch import nn

from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.scorers.discriminator.gan_models import ClassDiscriminators, ClassGenerators

SHAPES = [(1, 8, 8), (3, 8, 12), (1, 28, 28), (3, 32, 32), (1, 5, 4), (3, 70, 90)]


@pytest.mark.parametrize("shape", SHAPES)
def test_networks_follow_the_shape(shape):
    discriminators, generators = ClassDiscriminators(shape, 3, width=2), ClassGenerators(shape, 3, width=2)
    made = generators(torch.randn(2, 3, 1, 1, generator=torch.Generator().manual_seed(0))).detach()
    assert made.shape == (2, 3 * shape[0], *shape[1:])
    assert 0 < float(made.min()) <= float(made.max()) < 1
    assert discriminators.logits_of_raw(made).shape == (2, 3)
    assert discriminators(torch.rand(2, *shape)).shape == (2, 3)


def test_layers_match_the_paper():
    discriminators, generators = ClassDiscriminators((1, 28, 28), 10), ClassGenerators((1, 28, 28), 10)
    block = [nn.Conv2d, nn.MaxPool2d, nn.LeakyReLU, nn.Dropout]
    assert [type(layer) for layer in discriminators.layers] == 4 * block
    transposed = [layer for layer in generators.layers if isinstance(layer, nn.ConvTranspose2d)]
    assert len(transposed) == 4  # the first, of one pixel, is the dense layer
    assert transposed[0](torch.zeros(1, 10, 1, 1)).shape[-2:] == (7, 7)
    everything = [*discriminators.modules(), *generators.modules()]
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in everything)


def test_classes_have_separate_networks():
    model, images = ClassDiscriminators((1, 8, 8), 3, width=2, dropout=0.0), torch.rand(2, 3, 8, 8)
    before = model.logits_of_raw(images)
    images[:, 1] = 1 - images[:, 1]
    changed = (model.logits_of_raw(images) != before).any(0)
    assert changed.tolist() == [False, True, False]
    with torch.no_grad():
        model.output.bias[2] += 1
    assert (model.logits_of_raw(images) != before).any(0).tolist() == [False, True, True]


def test_forward_runs_every_discriminator():
    model, images = ClassDiscriminators((3, 8, 8), 4, width=2).eval(), torch.rand(5, 3, 8, 8)
    assert torch.equal(model(images), model.logits_of_raw(images.repeat(1, 4, 1, 1)))


def test_normalized_images_give_the_logits_of_raw_images():
    pixels, images = PixelRange(mean=(0.3,), std=(0.5,)), torch.rand(2, 1, 8, 8)
    raw, normalized = (ClassDiscriminators((1, 8, 8), 2, pixels=each).eval() for each in (PixelRange(), pixels))
    torch.testing.assert_close(normalized(pixels.from_raw(images)), raw(images))


def test_generator_maps_one_number_to_an_image():
    generators = ClassGenerators((1, 8, 8), 2, width=2)
    noise = torch.tensor([[0.5, 0.5], [0.5, -0.5]])[:, :, None, None]
    made = generators(noise)
    assert torch.equal(made[0, 0], made[1, 0])
    assert not torch.equal(made[0, 1], made[1, 1])
    assert not torch.equal(made[0, 0], made[0, 1])


@pytest.mark.parametrize("kind", [ClassDiscriminators, ClassGenerators])
def test_refuses_vectors(kind):
    with pytest.raises(ValueError, match=r"images \(C, H, W\) of at least 4 x 4, but got shape \(8,\)"):
        kind((8,), 2)
