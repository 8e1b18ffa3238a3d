import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.scorers.training_data import TrainingData


def test_what_is_found():
    found = TrainingData.of(TensorDataset(torch.zeros(6, 3, 8, 4), torch.tensor([0, 4, 0, 4, 4, 1])))
    assert found.shape == (3, 8, 4)
    assert found.num_classes == 5
    assert found.labels.tolist() == [0, 4, 0, 4, 4, 1]


def test_samples_of_another_structure():
    samples = [{"image": torch.zeros(2), "label": index % 2} for index in range(4)]
    assert TrainingData.of(samples).sample == SampleSpec(inputs="image", labels="label")


def test_one_class_is_not_enough():
    with pytest.raises(ValueError, match=r"at least two classes, but got class 3 alone\.\nSo it is\."):
        TrainingData.of(TensorDataset(torch.zeros(2, 2), torch.full((2,), 3)), why="So it is.")
