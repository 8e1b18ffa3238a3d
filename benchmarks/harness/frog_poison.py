"""Twins trained on MNIST and poison frogs crafted on them, for the benchmarks of the likelihood."""

from typing import Any

import torch
from torch import nn
from torch.utils.data import TensorDataset

from harness.datasets import ShiftedDataset
from harness.lgm_twins import train
from lightning_poison import Poison, Surrogate, Threat, craft
from lightning_poison.models import SmallConvNet
from lightning_poison.randomness import seeded_rng
from lightning_poison_collisions import FrogAttack

FEATURES, TRAINING, EPOCHS, POISONS = 32, 20_000, 3, 100
WIDTH, LEARNING_RATE, SHIFT = 32, 5e-3, 1
RATES = {"1 %": 0.01, "5 %": 0.05}


def fit_twin(kind: type[Any], data: TensorDataset, seed: int) -> Any:
    """Train one of the twins from scratch."""
    with seeded_rng(seed):
        module = kind(SmallConvNet((1, 28, 28), FEATURES, width=WIDTH), FEATURES, learning_rate=LEARNING_RATE)
    images, labels = data.tensors
    train(module, ShiftedDataset(images, labels, shift=SHIFT), epochs=EPOCHS, seed=seed)
    return module


def craft_frogs(module: nn.Module, test: TensorDataset, *, bounded: bool, seed: int) -> Poison:
    """Craft 100 frogs, with β = 8e-3 or within an L∞ ball of 0.2; bases and targets are test images."""
    generator = torch.Generator().manual_seed(seed)
    threat = Threat(POISONS, epsilon=0.2 if bounded else None, clean_label=True)
    attack = FrogAttack(base_choice="random", candidates=len(test), steps=40 if bounded else 200)
    surrogates = [Surrogate(module, "body")]
    return craft(attack, test, threat, surrogates=surrogates, holdout=test, generator=generator)
