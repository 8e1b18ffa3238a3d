import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.models.encoders import Encoder


class Recorder(nn.Module):
    """Returns its images, flattened, and records their shapes."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def forward(self, images):
        self.shapes.append(tuple(images.shape))
        return images.flatten(1)


def encoder(network=None, **settings):
    settings = {"mean": (0.0,), "std": (1.0,), "image_size": 8, **settings}
    return Encoder(Recorder() if network is None else network, **settings)


def images(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_images_of_the_right_size_are_only_normalized():
    raw = images(5, 3, 8, 8)
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    expected = (raw - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(encoder(mean=mean, std=std)(raw), expected.flatten(1))


def test_gray_images_get_three_equal_channels():
    found = encoder()(images(2, 1, 8, 8)).view(2, 3, 8, 8)
    assert torch.equal(found[:, 0], found[:, 1])
    assert torch.equal(found[:, 0], found[:, 2])


@pytest.mark.parametrize(
    ("size", "shape", "side"),
    [(16, (8, 8), 16), (4, (8, 8), 4), ((8, 16), (4, 4), 8), ((8, 16), (10, 12), 12), ((8, 16), (20, 30), 16)],
)
def test_images_are_enlarged_or_reduced_as_a_whole(size, shape, side):
    network, raw = Recorder(), images(2, 3, *shape)
    found = encoder(network, image_size=size)(raw)
    assert network.shapes == [(2, 3, side, side)]
    whole = F.interpolate(raw, (side, side), mode="bilinear", antialias=True)
    torch.testing.assert_close(found, whole.flatten(1))


def test_flip_average_gives_an_image_and_its_mirror_image_the_same_features():
    raw = images(3, 3, 8, 8)
    averaging = encoder(flip_average=True)
    torch.testing.assert_close(averaging(raw), averaging(raw.flip(-1)))
    torch.testing.assert_close(averaging(raw), (encoder()(raw) + encoder()(raw.flip(-1))) / 2)


def test_pixels_undo_the_normalization_of_the_data_set():
    pixels, raw = PixelRange(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)), images(4, 3, 8, 8)
    torch.testing.assert_close(encoder(pixels=pixels)(pixels.from_raw(raw)), encoder()(raw))


def test_a_large_batch_passes_in_parts_and_gives_the_same_features():
    network, raw = Recorder(), images(70, 1, 112, 112)
    found = encoder(network, image_size=112)(raw)
    assert [shape[0] for shape in network.shapes] == [32, 32, 6]
    assert torch.equal(found[40:41], encoder(image_size=112)(raw[40:41]))


def test_network_runs_in_evaluation_mode_and_keeps_its_own():
    network = nn.Sequential(nn.Dropout(0.9), nn.Flatten()).train()
    raw = images(2, 3, 8, 8)
    found = encoder(network)(raw)
    torch.testing.assert_close(found, raw.flatten(1))
    assert network.training


def test_features_of_a_layer():
    network = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5))
    assert encoder(network, layer="1")(images(3, 3, 8, 8)).shape == (3, 12)


@pytest.mark.parametrize(
    ("inputs", "settings", "message"),
    [
        (images(2, 3, 8, 8) * 255, {}, "(?s)raw images in .0, 1.*Divide gray levels by 255"),
        (images(2, 3, 8, 8) * 4 - 2, {}, "(?s)raw images in .0, 1.*pixels=PixelRange"),
        (
            images(2, 3, 8, 8),
            {"pixels": PixelRange(mean=(0.5,), std=(9.0,))},
            "(?s)once `pixels` has undone.*Correct `pixels`",
        ),
        (images(2, 4, 8, 8), {}, r"shape \(4, 8, 8\)"),
        (images(2, 8), {}, r"shape \(8,\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), {}, "floating-point images"),
    ],
)
def test_inputs_of_another_range_or_shape(inputs, settings, message):
    with pytest.raises(ValueError, match=message):
        encoder(**settings)(inputs)


def test_a_small_overshoot_of_interpolation_is_in_range():
    assert encoder()(images(2, 3, 8, 8) * 1.03 - 0.015).shape == (2, 192)


class Broken(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, inputs):
        return self.output(inputs)


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (lambda x: x.flatten(1).sqrt().log(), ValueError, "NaN or infinite values at sample 1"),
        (lambda x: x.mean(), ValueError, "a vector for each of the 3 samples"),
        (lambda x: x[:1], ValueError, "a vector for each of the 3 samples"),
        (lambda x: {"features": x}, TypeError, "to return a tensor, but got dict"),
    ],
)
def test_networks_that_return_something_else(output, error, message):
    raw = images(3, 3, 8, 8) + 1e-3
    raw[1, 0, 0, 0] = 0
    with pytest.raises(error, match=message):
        encoder(Broken(output))(raw.clamp(0, 1))


@pytest.mark.parametrize("size", [0, 7.5, "8", (8,), (16, 8), (8, 0)])
def test_sizes_that_are_none(size):
    with pytest.raises(ValueError, match="image_size"):
        encoder(image_size=size)


def test_settings_are_part_of_the_architecture():
    from lightning_poison.data.fingerprints import architecture_of

    network = nn.Flatten()
    settings = [{}, {"image_size": 9}, {"flip_average": True}, {"pixels": PixelRange(mean=(0.5,), std=(0.5,))}]
    assert len({architecture_of(encoder(network, **each)) for each in settings}) == len(settings)
