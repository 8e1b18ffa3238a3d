"""The tasks into which the evaluation of a grid is divided. Each is a function of the grid and of earlier results."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lightning_poison.attacks.poison import Poison
from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.evaluation.feature_map import FeatureMap
from lightning_poison.evaluation.feature_reduction import feature_map_of
from lightning_poison.evaluation.grid import Grid
from lightning_poison.evaluation.measurement import (
    Judgment,
    Removal,
    TrainedModel,
    accuracy,
    evaluation_items,
    judgment_of,
    kept,
    measured,
    predictions_by_class,
    success_rate,
)
from lightning_poison.evaluation.pictures import pictures_of
from lightning_poison.evaluation.score_summary import ScoreSummary


@dataclass(frozen=True)
class Filtered:
    """The mask of a defense, what it took, and how its scores rank the poison if it has scores."""

    keep: Tensor
    seconds: float
    peak_memory_mib: float
    scores: ScoreSummary | None = None


@dataclass(frozen=True)
class Trained:
    """Figures of a mask and of a model that was trained on what it keeps, what that took, predictions and features."""

    clean_accuracy: float
    attack_success_rate: float
    removal: Removal
    seconds: float
    peak_memory_mib: float
    predictions: Mapping[str, Mapping[str, int]] | None = None
    features: FeatureMap | None = None


@dataclass(frozen=True)
class Crafted:
    """Poison, the length of the poisoned data, which of these samples are poison, bool `(N,)`, and pictures."""

    poison: Poison
    length: int
    is_poison: Tensor
    pictures: tuple[tuple[str, str], ...] = ()


def prepare(grid: Grid, seed: int) -> Any:
    """Task: compute what the attacks of a seed share."""
    assert grid.prepare is not None  # noqa: S101
    return grid.prepare(grid.data(seed), seed)


def craft(grid: Grid, attack: str, seed: int, prepared: Any) -> Crafted:
    """Task: craft the poison of an attack."""
    parts = grid.data(seed)
    poison = grid.attack(attack).craft(parts, seed, prepared)
    poisoned = PoisonedDataset(parts.train, poison)
    return Crafted(poison, len(poisoned), poisoned.is_poison, pictures_of(parts.train, poison))


def reference(grid: Grid, seed: int, poisons: Mapping[str, Poison]) -> dict[str, Tensor]:
    """Task: train once without poison, and predict the evaluation set of every attack."""
    parts = grid.data(seed)
    predict = TrainedModel.of(grid.train(parts.train, seed)).predict
    return {name: predict(evaluation_items(poison, parts.test)[0]) for name, poison in poisons.items()}


def filtered(grid: Grid, defense: str, seed: int, poison: Poison) -> Filtered:
    """Task: let a defense judge the poisoned data."""
    parts = grid.data(seed)
    keep = grid.defense(defense).keep
    poisoned = PoisonedDataset(parts.train, poison)
    with measured() as cost:
        result = judgment_of(defense, lambda data: keep(data, seed, parts.trusted), poisoned)
    if not isinstance(result, Judgment):
        return Filtered(result, cost.seconds, cost.peak_memory_mib)
    return Filtered(result.keep, cost.seconds, cost.peak_memory_mib, result.summary(poisoned))


def trained(grid: Grid, seed: int, poison: Poison, keep: Tensor, reference: Tensor) -> Trained:
    """Task: train on what a mask keeps, and measure accuracy and success of the attack.

    If it keeps everything, the features of the model are mapped too, with the first seed.
    """
    parts = grid.data(seed)
    poisoned = PoisonedDataset(parts.train, poison)
    with measured() as cost:
        model = TrainedModel.of(grid.train(kept(poisoned, keep), seed))
        items, true, wanted = evaluation_items(poison, parts.test)
        predicted = model.predict(items)
        rate = success_rate(poison, predicted.clone(), true, wanted, reference)
        correct = accuracy(model.predict, parts.test)
    counts = predictions_by_class(predicted, true)
    features = None
    if model.features is not None and bool(keep.all()) and seed == grid.seeds[0]:
        with contextlib.suppress(TypeError, ValueError):  # no feature layer: there is no map, but all figures
            features = feature_map_of(model.features, poisoned, items, true, wanted, seed=seed)
    return Trained(correct, rate, Removal.of(keep, poisoned), cost.seconds, cost.peak_memory_mib, counts, features)
