"""Tests on MNIST from the folder in `LIGHTNING_POISON_DATA`; skipped if unset."""

import os

import pytest
import torch
from torch.utils.data import Subset
from torchvision.datasets import MNIST
from torchvision.transforms import v2

from lightning_poison.attacks.crafting import craft
from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.attacks.threat import Threat
from lightning_poison.models.fitting import FitSettings
from lightning_poison.registry.registry import get_attack
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.scorers.likelihood import LikelihoodScorer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def mnist():
    """The first 3,000 training digits, with a typical transform."""
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.1307], [0.3081])])
    return Subset(MNIST(os.environ["LIGHTNING_POISON_DATA"], train=True, transform=transform), range(3000))


def test_detects_flipped_labels_without_trusted_data(mnist):
    threat = Threat.of_fraction(mnist, 0.1)
    poison = craft(get_attack("label-flip"), mnist, threat, generator=torch.Generator().manual_seed(0))
    data = PoisonedDataset(mnist, poison)
    scorer = LikelihoodScorer(fit_settings=FitSettings(epochs=3, min_steps=150))
    verdict = sanitize(data, scorer, runtime=LocalRuntime(threads=1))
    wrong = data.is_poison
    assert verdict.evidence.present
    assert verdict.evidence.low < 0.1 < verdict.evidence.high
    assert float((~verdict.keep)[wrong].double().mean()) > 0.85
    assert float((~verdict.keep)[~wrong].double().mean()) < 0.02
