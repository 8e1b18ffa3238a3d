"""Data with a backdoor, and features of a network that has learned one, for set scorers."""

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.models.fitting import FitSettings
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers.feature_model import FeatureModel


@pytest.fixture(scope="session")
def backdoored_features(digits):
    """Features, labels and poison mask of digits, a twentieth of which have a bright corner and the label 0."""
    images, labels = (tensor.clone() for tensor in digits.tensors)
    poison = (torch.arange(len(labels)) % 20 == 0) & (labels != 0)
    images[poison, :, :2, :2] = 1
    labels[poison] = 0
    model = FeatureModel(feature_size=32, fit_settings=FitSettings(epochs=6, batch_size=64, min_steps=0))
    model.fit(TensorDataset(images, labels), runtime=LocalRuntime(precision="32", threads=1))
    with torch.no_grad():
        return model.features(images), labels, poison


@pytest.fixture(scope="session")
def images_with_a_backdoor():
    """Return a factory of 1,500 faint images of three classes; 90 have a checkered corner and another label."""

    def make(labels_of):
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(1500) % 3
        patterns = torch.rand(3, 1, 12, 12, generator=generator)
        noise = 0.12 * torch.randn(1500, 1, 12, 12, generator=generator)
        images = (0.5 + 0.25 * (patterns[labels] - 0.5) + noise).clamp(0, 1)
        poison = torch.randperm(1500, generator=generator)[:90]
        images[poison, :, -3:, -3:] = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 1]])
        labels[poison] = labels_of(labels[poison])
        return TensorDataset(images, labels), poison

    return make
