import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.scorers.training_data import TrainingData


def test_finds_shape_labels_and_number_of_classes():
    found = TrainingData.of(TensorDataset(torch.zeros(6, 3, 8, 4), torch.tensor([0, 4, 0, 4, 4, 1])))
    assert found.shape == (3, 8, 4)
    assert found.num_classes == 5
    assert found.labels.tolist() == [0, 4, 0, 4, 4, 1]


def test_detects_paths_in_samples():
    samples = [{"image": torch.zeros(2), "label": index % 2} for index in range(4)]
    assert TrainingData.of(samples).sample == SampleSpec(inputs="image", labels="label")


def test_refuses_one_class():
    with pytest.raises(ValueError, match=r"at least two classes, but got class 3 alone\.\nThe reason\."):
        TrainingData.of(TensorDataset(torch.zeros(2, 2), torch.full((2,), 3)), why="The reason.")


def test_moments_of_several_blocks():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(700, 3, generator=generator) * torch.tensor([1.0, 1e-2, 0.0]) + torch.tensor([0.0, 1e3, 5.0])
    mean, spread = TrainingData.of(TensorDataset(points, torch.arange(700) % 2)).moments(0)
    torch.testing.assert_close(mean, points.double().mean(0).float())
    expected = points.double().std(0, correction=0).float()
    torch.testing.assert_close(spread, torch.where(expected > 0, expected, 1.0), rtol=1e-3, atol=1e-6)
    assert spread[2] == 1


def test_number_of_classes_is_the_largest_label_plus_one():
    samples = TrainingData.of(TensorDataset(torch.rand(4, 3, 8, 8), torch.tensor([0, 4, 2, 0])))
    assert (samples.shape, samples.num_classes) == ((3, 8, 8), 5)


def test_checks_range_of_images_but_not_of_vectors():
    labels = torch.arange(4) % 2
    normalized = TrainingData.of(TensorDataset(torch.full((4, 1, 8, 8), 2.5), labels))
    with pytest.raises(ValueError, match=r"raw values from 2\.5 to 2\.5"):
        normalized.check_range(PixelRange())
    normalized.check_range(PixelRange(mean=(0.0,), std=(0.4,)))
    TrainingData.of(TensorDataset(torch.full((4, 3), 2.5), labels)).check_range(PixelRange())
