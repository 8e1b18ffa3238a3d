"""Features of a network that has learned a backdoor, for set scorers."""

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
