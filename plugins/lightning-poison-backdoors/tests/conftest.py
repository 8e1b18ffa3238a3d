import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_poison import Surrogate, Threat, craft
from lightning_poison.testing import TinyImages


@pytest.fixture
def images():
    """Raw images, 32 of each of three classes."""
    return TinyImages(96)


@pytest.fixture
def colors():
    return TinyImages(24, channels=3)


@pytest.fixture
def floats(images):
    """A data set whose raw images cannot be read."""
    return TensorDataset(torch.stack([image for image, _ in images]), images.targets)


@pytest.fixture
def poison_of():
    def run(attack, dataset, budget=6, seed=0, surrogates=(), **threat_settings):
        threat = Threat(budget, **threat_settings)
        return craft(attack, dataset, threat, surrogates=surrogates, generator=torch.Generator().manual_seed(seed))

    return run


@pytest.fixture
def surrogate_of():
    """Return an untrained small model for a data set, independent of the global random state."""

    def build(dataset, outputs=3, seed=0):
        size = dataset[0][0].numel()
        model = nn.Sequential(nn.Flatten(), nn.Linear(size, 16), nn.ReLU(), nn.Linear(16, outputs))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.3, generator=generator)
        return Surrogate(model, "2")

    return build
