"""A network, and batches as recipes receive them."""

import pytest
import torch
from torch import nn

from lightning_poison.adversarial.adversaries import PGD
from lightning_poison.adversarial.batch import AttackedBatch, sample_cross_entropy
from lightning_poison.data.sample_spec import SampleSpec


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))


@pytest.fixture
def attacked(network):
    """Return a factory of batches with twelve gray images of three classes."""

    def make(adversary=None, **parts):
        labels = torch.arange(12) % 3
        images = 0.5 * torch.rand(12, 1, 6, 6, generator=torch.Generator().manual_seed(parts.pop("which", 0)))
        defaults = {
            "batch": (images + 0.2 * labels[:, None, None, None], labels),
            "sample": SampleSpec(),
            "module": network,
            "logits": network,
            "loss": sample_cross_entropy,
            "adversary": adversary or PGD(0.1, steps=2, random_start=False),
            "pixels": None,
            "strength": 1.0,
            "epoch": 0,
            "index": 0,
            "generator": torch.Generator().manual_seed(0),
        }
        return AttackedBatch(**{**defaults, **parts})

    return make
