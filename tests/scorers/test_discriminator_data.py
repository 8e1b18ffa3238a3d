import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.scorers.training_data import TrustedSamples


def test_moments_of_many_blocks():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(700, 3, generator=generator) * torch.tensor([1.0, 1e-2, 0.0]) + torch.tensor([0.0, 1e3, 5.0])
    mean, spread = TrustedSamples.read(TensorDataset(points, torch.arange(700) % 2)).moments(0)
    torch.testing.assert_close(mean, points.double().mean(0).float())
    expected = points.double().std(0, correction=0).float()
    torch.testing.assert_close(spread, torch.where(expected > 0, expected, 1.0), rtol=1e-3, atol=1e-6)
    assert spread[2] == 1


def test_the_number_of_classes_is_one_more_than_the_largest_label():
    samples = TrustedSamples.read(TensorDataset(torch.rand(4, 3, 8, 8), torch.tensor([0, 4, 2, 0])))
    assert (samples.shape, samples.num_classes) == ((3, 8, 8), 5)


def test_the_range_of_images_is_checked_and_that_of_vectors_is_not():
    labels = torch.arange(4) % 2
    normalized = TrustedSamples.read(TensorDataset(torch.full((4, 1, 8, 8), 2.5), labels))
    with pytest.raises(ValueError, match=r"raw values from 2\.5 to 2\.5"):
        normalized.check_range(PixelRange())
    normalized.check_range(PixelRange(mean=(0.0,), std=(0.4,)))
    TrustedSamples.read(TensorDataset(torch.full((4, 3), 2.5), labels)).check_range(PixelRange())
