import pytest
import torch
from torch import nn

from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.scorers.discriminator.gan_models import ClassDiscriminators, ClassGenerators

SHAPES = [(1, 8, 8), (3, 8, 12), (1, 28, 28), (3, 32, 32), (1, 5, 4), (3, 70, 90)]


@pytest.mark.parametrize("shape", SHAPES)
def test_both_follow_the_shape(shape):
    discriminators, generators = ClassDiscriminators(shape, 3, width=2), ClassGenerators(shape, 3, width=2)
    made = generators(torch.randn(2, 3, 1, 1, generator=torch.Generator().manual_seed(0))).detach()
    assert made.shape == (2, 3 * shape[0], *shape[1:])
    assert 0 < float(made.min()) <= float(made.max()) < 1
    assert discriminators.judge(made).shape == (2, 3)
    assert discriminators(torch.rand(2, *shape)).shape == (2, 3)


def test_the_layers_are_the_papers():
    discriminators, generators = ClassDiscriminators((1, 28, 28), 10), ClassGenerators((1, 28, 28), 10)
    block = [nn.Conv2d, nn.MaxPool2d, nn.LeakyReLU, nn.Dropout]
    assert [type(layer) for layer in discriminators.layers] == 4 * block
    transposed = [layer for layer in generators.layers if isinstance(layer, nn.ConvTranspose2d)]
    assert len(transposed) == 4  # the first, of one pixel, is the dense layer
    assert transposed[0](torch.zeros(1, 10, 1, 1)).shape[-2:] == (7, 7)
    everything = [*discriminators.modules(), *generators.modules()]
    assert not any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in everything)


def test_each_class_has_a_network_of_its_own():
    model, images = ClassDiscriminators((1, 8, 8), 3, width=2, dropout=0.0), torch.rand(2, 3, 8, 8)
    before = model.judge(images)
    images[:, 1] = 1 - images[:, 1]
    moved = (model.judge(images) != before).any(0)
    assert moved.tolist() == [False, True, False]
    with torch.no_grad():
        model.output.bias[2] += 1
    assert (model.judge(images) != before).any(0).tolist() == [False, True, True]


def test_one_image_is_judged_by_all():
    model, images = ClassDiscriminators((3, 8, 8), 4, width=2).eval(), torch.rand(5, 3, 8, 8)
    assert torch.equal(model(images), model.judge(images.repeat(1, 4, 1, 1)))


def test_a_normalized_image_is_the_raw_one():
    pixels, images = PixelRange(mean=(0.3,), std=(0.5,)), torch.rand(2, 1, 8, 8)
    raw, normalized = (ClassDiscriminators((1, 8, 8), 2, pixels=each).eval() for each in (PixelRange(), pixels))
    torch.testing.assert_close(normalized(pixels.from_raw(images)), raw(images))


def test_a_generator_makes_an_image_of_one_number():
    generators = ClassGenerators((1, 8, 8), 2, width=2)
    noise = torch.tensor([[0.5, 0.5], [0.5, -0.5]])[:, :, None, None]
    made = generators(noise)
    assert torch.equal(made[0, 0], made[1, 0])
    assert not torch.equal(made[0, 1], made[1, 1])
    assert not torch.equal(made[0, 0], made[0, 1])


@pytest.mark.parametrize("kind", [ClassDiscriminators, ClassGenerators])
def test_vectors_are_refused(kind):
    with pytest.raises(ValueError, match=r"images \(C, H, W\) of at least 4 x 4, but got shape \(8,\)"):
        kind((8,), 2)
