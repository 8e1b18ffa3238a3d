"""The tasks into which the evaluation of a grid is divided. Each is a function of the grid and of earlier results."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_poison.attacks.poison import Poison
from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.evaluation.grid import Grid
from lightning_poison.evaluation.measurement import (
    Removal,
    accuracy,
    evaluation_items,
    kept,
    mask_of,
    measured,
    success_rate,
)


@dataclass(frozen=True)
class Filtered:
    """The mask of a defense, and what it took."""

    keep: Tensor
    seconds: float
    peak_memory_mib: float


@dataclass(frozen=True)
class Trained:
    """Figures of a mask and of a model that was trained on what it keeps, and what that took."""

    clean_accuracy: float
    attack_success_rate: float
    removal: Removal
    seconds: float
    peak_memory_mib: float


@dataclass(frozen=True)
class Crafted:
    """Poison, the length of the poisoned data, and which of these samples are poison, bool `(N,)`."""

    poison: Poison
    length: int
    is_poison: Tensor


def prepare(grid: Grid, seed: int) -> Any:
    """Task: compute what the attacks of a seed share."""
    assert grid.prepare is not None  # noqa: S101
    return grid.prepare(grid.data(seed), seed)


def craft(grid: Grid, attack: str, seed: int, prepared: Any) -> Crafted:
    """Task: craft the poison of an attack."""
    parts = grid.data(seed)
    poison = grid.attack(attack).craft(parts, seed, prepared)
    poisoned = PoisonedDataset(parts.train, poison)
    return Crafted(poison, len(poisoned), poisoned.is_poison)


def reference(grid: Grid, seed: int, poisons: Mapping[str, Poison]) -> dict[str, Tensor]:
    """Task: train once without poison, and predict the evaluation set of every attack."""
    parts = grid.data(seed)
    predict = grid.train(parts.train, seed)
    return {name: predict(evaluation_items(poison, parts.test)[0]) for name, poison in poisons.items()}


def filtered(grid: Grid, defense: str, seed: int, poison: Poison) -> Filtered:
    """Task: let a defense judge the poisoned data."""
    parts = grid.data(seed)
    keep = grid.defense(defense).keep
    with measured() as cost:
        mask = mask_of(defense, lambda data: keep(data, seed, parts.trusted), PoisonedDataset(parts.train, poison))
    return Filtered(mask, cost.seconds, cost.peak_memory_mib)


def trained(grid: Grid, seed: int, poison: Poison, keep: Tensor, reference: Tensor) -> Trained:
    """Task: train on what a mask keeps, and measure accuracy and success of the attack."""
    parts = grid.data(seed)
    poisoned = PoisonedDataset(parts.train, poison)
    with measured() as cost:
        predict = grid.train(kept(poisoned, keep), seed)
        items, true, wanted = evaluation_items(poison, parts.test)
        rate = success_rate(poison, predict(items), true, wanted, reference)
        correct = accuracy(predict, parts.test)
    return Trained(correct, rate, Removal.of(keep, poisoned), cost.seconds, cost.peak_memory_mib)
