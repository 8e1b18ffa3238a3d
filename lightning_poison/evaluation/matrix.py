"""Evaluation of attacks against defenses and controls, for any training procedure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from lightning_poison.attacks.poison import Poison
from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.checks import describe, expected, printable
from lightning_poison.contexts import process_state_restored
from lightning_poison.data.labels import labels_of
from lightning_poison.data.views import SanitizedDataset
from lightning_poison.entry_points import call_plugin
from lightning_poison.randomness import derived_generator

Predict = Callable[[Any], Tensor]
"""Maps a data set of N samples `(input, label, ...)` to predicted labels, int64 `(N,)`."""

Train = Callable[[Any, int], Predict]
"""Trains a model on a data set with a seed, deterministically, and returns its prediction function."""

Defense = Callable[[Any], Tensor]
"""Maps an untrusted data set to a mask of the samples to keep, bool `(N,)`, without access to the ground truth."""

_CONTROLS = {"no defense", "random filter", "perfect filter"}

MIN_SUCCESS_RATE = 0.05
"""Success rate without a defense below which an attack counts as failed, so that it proves nothing about defenses."""


@dataclass(frozen=True)
class Cell:
    """Measurements of a model trained on one poisoned data set with one defense or control.

    Args:
        attack: Name of the attack.
        defense: Name of the defense or control.
        is_control: Whether this is a control, which ignores the data or knows the ground truth.
        seed: Seed of the training.
        clean_accuracy: Accuracy on the clean test set, in [0, 1].
        attack_success_rate: Share of the attack's evaluation set on which the attacker succeeds, excluding items on
            which a model trained without poison fails in the same way, in [0, 1].
        poison_caught: Share of the poison that was removed, in [0, 1].
        clean_lost: Share of the clean samples that was removed, in [0, 1]. Cover samples count in neither.
        removed: Number of removed samples.

    Example:
        >>> cell = Cell("frog", "likelihood", False, 0, 0.97, 0.2, poison_caught=0.9, clean_lost=0.01, removed=20)
        >>> cell.attack_success_rate, cell.poison_caught
        (0.2, 0.9)
    """

    attack: str
    defense: str
    is_control: bool
    seed: int
    clean_accuracy: float
    attack_success_rate: float
    poison_caught: float
    clean_lost: float
    removed: int


def evaluate(
    dataset: Any,
    poison: Poison,
    test: Any,
    *,
    defenses: Mapping[str, Defense],
    train: Train,
    seed: int = 0,
) -> list[Cell]:
    """Train on a poisoned data set without a defense, with each defense, and with two control filters.

    The random filter removes as many samples as the first defense; the perfect filter removes exactly the poison. A
    reference model is trained on the clean data with the same seed, to exclude errors that the attack did not cause.

    Args:
        dataset: Clean training set.
        poison: Poison for this data set.
        test: Clean test set.
        defenses: Defenses by name. Each is called with the poisoned data set only.
        train: Trains a model.
        seed: Seed of the trainings and of the random filter.

    Returns:
        One cell each for no defense, the random filter, the defenses in order, and the perfect filter.

    Raises:
        ValueError: If a defense does not return a mask of the data set, or has the name of a control.
        PluginError: If the objective of the attack fails, chained to its error.

    What a defense or the objective changes of the process, such as grad mode, is undone. Exceptions of a defense
    propagate, with a note that names it.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_poison.attacks.objectives import AvailabilityObjective
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
    if reserved := set(defenses) & _CONTROLS:
        raise ValueError(f"Expected defense names other than those of the controls, but got {sorted(reserved)}.")
    poisoned = PoisonedDataset(dataset, poison)
    masks = {"no defense": torch.ones(len(poisoned), dtype=torch.bool)}
    defended = {name: _mask_of(name, defend, poisoned) for name, defend in defenses.items()}
    first = next(iter(defended.values()), masks["no defense"])
    masks["random filter"] = random_mask(len(poisoned), int((~first).sum()), seed=seed)
    masks |= defended
    masks["perfect filter"] = ~poisoned.is_poison
    evaluator = _Evaluator(poison, poisoned, test, train(dataset, seed))
    return [
        evaluator.cell(name, name not in defenses, mask, train(SanitizedDataset(poisoned, mask), seed), seed)
        for name, mask in masks.items()
    ]


def random_mask(length: int, removed: int, *, seed: int) -> Tensor:
    """Return a mask that removes a number of samples at random, as a control.

    Its random numbers are independent of those of an attack with the same seed, so that the two do not select the same
    samples.

    Example:
        >>> keep = random_mask(100, 30, seed=0)
        >>> int((~keep).sum()), keep.equal(random_mask(100, 30, seed=0)), keep.equal(random_mask(100, 30, seed=1))
        (30, True, False)
    """
    keep = torch.ones(length, dtype=torch.bool)
    keep[torch.randperm(length, generator=derived_generator(seed, "random filter"))[:removed]] = False
    return keep


def gap_closed(cells: Sequence[Cell], defense: str) -> float | None:
    """Return the share of the gap in attack success between the random and the perfect filter that a defense closes.

    1 equals the perfect filter, 0 the random filter. With several seeds, medians are compared. If there is no gap, the
    result is `None`.

    Example:
        >>> names, success = ("no defense", "random filter", "likelihood", "perfect filter"), (0.9, 0.8, 0.2, 0.0)
        >>> cells = [
        ...     Cell("frog", name, name != "likelihood", 0, 0.97, rate, poison_caught=0.0, clean_lost=0.01, removed=20)
        ...     for name, rate in zip(names, success, strict=True)
        ... ]
        >>> round(gap_closed(cells, "likelihood"), 3)
        0.75
    """
    random, perfect, defended = (
        median([cell.attack_success_rate for cell in cells if cell.defense == name])
        for name in ("random filter", "perfect filter", defense)
    )
    return None if random - perfect < MIN_SUCCESS_RATE / 2 else (random - defended) / (random - perfect)


def attack_works(cells: Sequence[Cell]) -> bool:
    """Check whether the attack succeeds without a defense; otherwise it proves nothing about defenses.

    Example:
        >>> rest = {"clean_accuracy": 0.97, "poison_caught": 0.0, "clean_lost": 0.0, "removed": 0}
        >>> attack_works([Cell("frog", "no defense", True, 0, attack_success_rate=0.02, **rest)])
        False
    """
    return median([cell.attack_success_rate for cell in cells if cell.defense == "no defense"]) >= MIN_SUCCESS_RATE


def render_table(cells: Sequence[Cell]) -> str:
    """Format the cells of one attack as a text table, with medians over the seeds.

    Example:
        >>> names, success = ("no defense", "random filter", "likelihood", "perfect filter"), (0.9, 0.8, 0.2, 0.0)
        >>> cells = [
        ...     Cell("frog", name, name != "likelihood", 0, 0.97, rate, poison_caught=0.5, clean_lost=0.01, removed=20)
        ...     for name, rate in zip(names, success, strict=True)
        ... ]
        >>> print(render_table(cells))
                                  clean accuracy  attack success  poison caught  clean lost  gap closed
        ------------------------  --------------  --------------  -------------  ----------  ----------
        no defense (control)              97.0 %          90.0 %         50.0 %       1.0 %
        random filter (control)           97.0 %          80.0 %         50.0 %       1.0 %
        likelihood                        97.0 %          20.0 %         50.0 %       1.0 %        75 %
        perfect filter (control)          97.0 %           0.0 %         50.0 %       1.0 %
    """
    header = ("", "clean accuracy", "attack success", "poison caught", "clean lost", "gap closed")
    rows: list[tuple[str, ...]] = [header]
    for name in dict.fromkeys(cell.defense for cell in cells):
        group = [cell for cell in cells if cell.defense == name]
        metrics = ("clean_accuracy", "attack_success_rate", "poison_caught", "clean_lost")
        values = [f"{100 * median([getattr(cell, metric) for cell in group]):.1f} %" for metric in metrics]
        closed = gap_closed(cells, name) if not group[0].is_control else None
        label = printable(name) + (" (control)" if group[0].is_control else "")
        rows.append((label, *values, "" if closed is None else f"{100 * closed:.0f} %"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = []
    for row in rows:
        values = [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *values]))
    if not attack_works(cells):
        lines.append("The attack fails even without a defense: these rows prove nothing.")
    return "\n".join(line.rstrip() for line in [lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


@dataclass(frozen=True)
class _Evaluator:
    """Measures models trained on one poison, relative to a reference model trained without it."""

    poison: Poison
    poisoned: PoisonedDataset
    test: Any
    reference: Predict

    def cell(self, name: str, is_control: bool, keep: Tensor, predict: Predict, seed: int) -> Cell:
        what = f"the objective of the attack `{printable(self.poison.attack)}`"
        items, true, wanted = call_plugin(self._items, what)
        predicted, reference = predict(items), self.reference(items)
        success = call_plugin(
            lambda: self.poison.objective.success(predicted, true.clone(), wanted.clone(), reference=reference), what
        )
        is_poison = self.poisoned.is_poison
        is_clean = ~is_poison & ~self.poison.is_cover(len(self.poisoned.dataset))
        return Cell(
            attack=self.poison.attack,
            defense=name,
            is_control=is_control,
            seed=seed,
            clean_accuracy=_share(predict(self.test) == labels_of(self.test)),
            attack_success_rate=_share(success),
            poison_caught=_share(~keep[is_poison]),
            clean_lost=_share(~keep[is_clean]),
            removed=int((~keep).sum()),
        )

    def _items(self) -> tuple[Any, Tensor, Tensor]:
        items: Any = self.poison.objective.evaluation_set(self.test)
        labels = [items[index][1:] for index in range(len(items))]
        true, wanted = torch.tensor(labels, dtype=torch.int64).reshape(-1, 2).unbind(1)
        return items, true, wanted


def _share(mask: Tensor) -> float:
    return float(mask.double().mean()) if len(mask) else 0.0


def _mask_of(name: str, defend: Defense, poisoned: PoisonedDataset) -> Tensor:
    """Run a defense, and return a copy of its mask, which it cannot change later."""
    try:
        with process_state_restored():
            keep = defend(poisoned)
    except Exception as error:
        error.add_note(f"Raised by the defense `{printable(name)}`.")
        raise
    length = len(poisoned)
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool or keep.shape != (length,):
        came = printable(describe(keep))
        raise ValueError(expected(f"the result of {printable(name)}", f"a boolean mask ({length},)", came))
    return keep.detach().clone()
