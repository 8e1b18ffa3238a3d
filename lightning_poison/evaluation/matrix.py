"""Attack against defense, with honest controls beside; how a model is trained is handed in."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from lightning_poison.attacks.poison import Poison
from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.checks import expected, printable
from lightning_poison.data.labels import labels_of
from lightning_poison.data.views import SanitizedDataset
from lightning_poison.randomness import derived_generator

Predict = Callable[[Any], Tensor]
"""Maps a data set of N samples `(input, label, ...)` to predicted labels, int64 `(N,)`."""

Train = Callable[[Any, int], Predict]
"""Trains a model on a data set under a seed, always alike, and returns how it predicts."""

Defense = Callable[[Any], Tensor]
"""Maps an untrusted data set to what is kept of it, bool `(N,)`; it never sees the truth."""

_CONTROLS = {"no defense", "random filter", "perfect filter"}

TAKES = 0.05
"""An attack whose success rate without defense is below this did not take: its rows prove nothing about a defense."""


@dataclass(frozen=True)
class Cell:
    """One model, trained on one data set under one defense or control.

    Args:
        attack: the name of the attack.
        defense: the name of the defense or control.
        is_control: whether it knew the truth or guessed.
        seed: the seed of the training.
        clean_accuracy: share of the clean test samples that are read rightly, in [0, 1].
        attack_success_rate: share of the attacker's evaluation set on which it gets what it wants, and would not have
            got it from a model that was trained without poison, in [0, 1].
        poison_caught: share of the poison that was kept out, in [0, 1].
        clean_lost: share of the clean samples that were kept out, in [0, 1]; cover samples count in neither.
        removed: how many samples were kept out.

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
    """Train on a poisoned data set without defense, under each defense, and under the two controls.

    The controls are a filter that removes as many samples as the first defense, at random, and one that knows the
    poison. A further model is trained on the clean data, under the same seed, to tell what the attack did not cause.

    Args:
        dataset: the clean training set.
        poison: drawn for it.
        test: the clean test set.
        defenses: by name; each is given the poisoned data set and nothing else.
        train: trains a model.
        seed: seeds the trainings and the random filter.

    Returns:
        A cell each for no defense, the random filter, the defenses in their order, and the perfect filter.

    Raises:
        ValueError: where a defense returns no mask over the data set, or has the name of a control.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_poison.attacks.objectives import AvailabilityObjective
        >>> data = TensorDataset(torch.zeros(6, 2), torch.zeros(6).long())
        >>> poison = Poison(torch.arange(4), torch.ones(4).long(), AvailabilityObjective(), attack="label-flip")
        >>> def train(dataset, seed):  # predicts the label that most samples carry
        ...     return lambda asked: labels_of(dataset).mode().values.expand(len(asked))
        >>> cells = evaluate(data, poison, data, defenses={"mine": lambda _: torch.arange(6) > 1}, train=train)
        >>> {cell.defense: cell.poison_caught for cell in cells if cell.defense != "random filter"}
        {'no defense': 0.0, 'mine': 0.5, 'perfect filter': 1.0}
        >>> {cell.defense: cell.attack_success_rate for cell in cells if cell.defense != "random filter"}
        {'no defense': 1.0, 'mine': 0.0, 'perfect filter': 0.0}
    """
    if taken := set(defenses) & _CONTROLS:
        raise ValueError(f"Expected other names for defenses than those of controls, but got {sorted(taken)}.")
    poisoned = PoisonedDataset(dataset, poison)
    masks = {"no defense": torch.ones(len(poisoned), dtype=torch.bool)}
    kept = {name: _checked(name, defend(poisoned), len(poisoned)) for name, defend in defenses.items()}
    like = next(iter(kept.values()), masks["no defense"])
    masks["random filter"] = random_mask(len(poisoned), int((~like).sum()), seed=seed)
    masks |= kept
    masks["perfect filter"] = ~poisoned.is_poison
    judge = _Judge(poison, poisoned, test, train(dataset, seed))
    return [
        judge.cell(name, name not in defenses, mask, train(SanitizedDataset(poisoned, mask), seed), seed)
        for name, mask in masks.items()
    ]


def random_mask(length: int, removed: int, *, seed: int) -> Tensor:
    """Return a mask that keeps all but so many samples, chosen at random; a control.

    Its random numbers are none that an attack under the same seed draws: the two would choose the same samples.

    Example:
        >>> keep = random_mask(100, 30, seed=0)
        >>> int((~keep).sum()), keep.equal(random_mask(100, 30, seed=0)), keep.equal(random_mask(100, 30, seed=1))
        (30, True, False)
    """
    keep = torch.ones(length, dtype=torch.bool)
    keep[torch.randperm(length, generator=derived_generator(seed, "random filter"))[:removed]] = False
    return keep


def gap_closed(cells: Sequence[Cell], defense: str) -> float | None:
    """Return which share of the gap in attack success from the random to the perfect filter a defense closes.

    1 is as good as knowing the poison, 0 no better than chance; `None` where there is no gap to close. Over several
    seeds the medians are compared.

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
    return None if random - perfect < TAKES / 2 else (random - defended) / (random - perfect)


def takes(cells: Sequence[Cell]) -> bool:
    """Tell whether the attack works where nothing is done against it; its rows prove nothing otherwise.

    Example:
        >>> caught = {"clean_accuracy": 0.97, "poison_caught": 0.0, "clean_lost": 0.0, "removed": 0}
        >>> [takes([Cell("frog", "no defense", True, 0, attack_success_rate=rate, **caught)]) for rate in (0.02, 0.9)]
        [False, True]
    """
    return median([cell.attack_success_rate for cell in cells if cell.defense == "no defense"]) >= TAKES


def render_table(cells: Sequence[Cell]) -> str:
    """Return the cells of one attack as a table of text, medians over the seeds, controls marked.

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
        figures = ("clean_accuracy", "attack_success_rate", "poison_caught", "clean_lost")
        shown = [f"{100 * median([getattr(cell, figure) for cell in group]):.1f} %" for figure in figures]
        closed = gap_closed(cells, name) if not group[0].is_control else None
        label = printable(name) + (" (control)" if group[0].is_control else "")
        rows.append((label, *shown, "" if closed is None else f"{100 * closed:.0f} %"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = []
    for row in rows:
        figures_of_row = [text.rjust(width) for text, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *figures_of_row]))
    if not takes(cells):
        lines.append("This attack does not work even without a defense: these rows prove nothing.")
    return "\n".join(line.rstrip() for line in [lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


@dataclass(frozen=True)
class _Judge:
    """Measures models against one poison; the reference was trained without it."""

    poison: Poison
    poisoned: PoisonedDataset
    test: Any
    reference: Predict

    def cell(self, name: str, is_control: bool, keep: Tensor, predict: Predict, seed: int) -> Cell:
        goals = self.poison.objective.evaluation_set(self.test)
        items = [goals[index][1:] for index in range(len(goals))]  # type: ignore[arg-type]
        true, wanted = torch.tensor(items, dtype=torch.int64).reshape(-1, 2).unbind(1)
        success = self.poison.objective.success(predict(goals), true, wanted, reference=self.reference(goals))
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


def _share(mask: Tensor) -> float:
    return float(mask.double().mean()) if len(mask) else 0.0


def _checked(name: str, keep: Tensor, length: int) -> Tensor:
    if not isinstance(keep, Tensor) or keep.dtype != torch.bool or keep.shape != (length,):
        raise ValueError(expected(f"the result of {printable(name)}", f"a boolean mask ({length},)", str(keep)[:80]))
    return keep
