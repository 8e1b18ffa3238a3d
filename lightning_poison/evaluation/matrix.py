"""Evaluation of attacks against defenses and controls, for any training procedure."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_poison.attacks.poison import Poison
from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.evaluation.cells import CONTROLS, NO_DEFENSE, PERFECT_FILTER, RANDOM_FILTER, Cell, check_names
from lightning_poison.evaluation.measurement import (
    Predict,
    Removal,
    accuracy,
    evaluation_items,
    kept,
    mask_of,
    random_mask,
    success_rate,
)

Train = Callable[[Any, int], Predict]
"""Trains a model on a data set with a seed, deterministically, and returns its prediction function."""

Defense = Callable[[Any], Tensor]
"""Maps an untrusted data set to a mask of the samples to keep, bool `(N,)`, without access to the ground truth."""


def evaluate(
    dataset: Any,
    poison: Poison,
    test: Any,
    *,
    defenses: Mapping[str, Defense],
    train: Train,
    seed: int = 0,
) -> list[Cell]:
    """Train on a poisoned data set without a defense, with each defense, and with control filters.

    There is a random filter for each number of samples that a defense removes; the perfect filter removes exactly the
    poison. A reference model is trained on the clean data with the same seed, to exclude errors that the attack did not
    cause. `evaluate_grid` does this for several attacks and seeds.

    Args:
        dataset: Clean training set.
        poison: Poison for this data set.
        test: Clean test set.
        defenses: Defenses by name. Each is called with the poisoned data set only.
        train: Trains a model.
        seed: Seed of the trainings and of the random filters.

    Returns:
        One cell for no defense, one for each defense in order, before it one for a random filter of its size unless
        there is one already, and one for the perfect filter.

    Raises:
        ValueError: If a defense does not return a mask of the data set, or has the name of a control.
        PluginError: If the objective of the attack fails, chained to its error.

    What a defense or the objective changes of the process, such as grad mode, is undone. Exceptions of a defense
    propagate, with a note that names it.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_poison.attacks.objectives import AvailabilityObjective
        >>> from lightning_poison.data.labels import labels_of
        >>> data = TensorDataset(torch.zeros(6, 2), torch.zeros(6).long())
        >>> poison = Poison(torch.arange(4), torch.ones(4).long(), AvailabilityObjective(), attack="label-flip")
        >>> def train(dataset, seed):  # predicts the most frequent label
        ...     return lambda items: labels_of(dataset).mode().values.expand(len(items))
        >>> cells = evaluate(data, poison, data, defenses={"mine": lambda _: torch.arange(6) > 1}, train=train)
        >>> {cell.defense: cell.poison_caught for cell in cells if cell.defense != "random filter"}
        {'no defense': 0.0, 'mine': 0.5, 'perfect filter': 1.0}
        >>> {cell.defense: cell.attack_success_rate for cell in cells if cell.defense != "random filter"}
        {'no defense': 1.0, 'mine': 0.0, 'perfect filter': 0.0}
    """
    check_names(defenses)
    poisoned = PoisonedDataset(dataset, poison)
    defended = {name: mask_of(name, defend, poisoned) for name, defend in defenses.items()}
    reference = train(dataset, seed)
    cells = []
    for name, keep in _with_controls(defended, poisoned, seed):
        predict = train(kept(poisoned, keep), seed)
        items, true, wanted = evaluation_items(poison, test)
        rate = success_rate(poison, predict(items), true, wanted, reference(items))
        removal = Removal.of(keep, poisoned)
        cells.append(Cell(poison.attack, name, name in CONTROLS, seed, accuracy(predict, test), rate, **vars(removal)))
    return cells


def _with_controls(
    defended: Mapping[str, Tensor], poisoned: PoisonedDataset, seed: int
) -> Iterator[tuple[str, Tensor]]:
    """Yield names and masks of the rows in order, with one random filter for each number of removed samples."""
    everything = torch.ones(len(poisoned), dtype=torch.bool)
    yield NO_DEFENSE, everything
    sizes: set[int] = set()
    for name, keep in defended.items():
        if (removed := int((~keep).sum())) not in sizes:
            sizes.add(removed)
            yield RANDOM_FILTER, random_mask(len(poisoned), removed, seed=seed)
        yield name, keep
    if not defended:
        yield RANDOM_FILTER, everything
    yield PERFECT_FILTER, ~poisoned.is_poison
