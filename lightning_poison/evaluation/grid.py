"""`Grid`: attacks, defenses and seeds over data and a model, and which of its cells are stored. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lightning_poison.checks import expected, printable
from lightning_poison.evaluation.cells import CONTROLS, NO_DEFENSE, PERFECT_FILTER, RANDOM_FILTER, Cell, check_names
from lightning_poison.evaluation.cells_file import CellsFile

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_poison.attacks.poison import Poison
    from lightning_poison.evaluation.measurement import Judgment, Predict, TrainedModel


@dataclass(frozen=True)
class Parts:
    """The data of one seed. No sample is in two parts.

    Args:
        train: Clean training set, which is poisoned.
        test: Clean test set.
        holdout: Samples that the attacker has, for surrogates and targets. Optional.
        trusted: Known-clean samples that the defender has. Optional.
    """

    train: Any
    test: Any
    holdout: Any = None
    trusted: Any = None


@dataclass(frozen=True)
class GridAttack:
    """An attack of a grid.

    Args:
        name: Its name in the results, unique in the grid.
        craft: Maps the data of a seed, the seed and the result of `Grid.prepare` to the poison. Deterministic.
        settings: What the poison depends on, as JSON values. Stored cells are used if all of it is equal.
        defenses: Names of the defenses that it is evaluated against. Default: all.
        adaptive_to: Names of the defenses that it was made to evade.
        needs_preparation: Whether it uses the result of `Grid.prepare`. Default: `False`.
    """

    name: str
    craft: Callable[[Parts, int, Any], Poison]
    settings: Mapping[str, Any] = field(default_factory=dict)
    defenses: Sequence[str] | None = None
    adaptive_to: Sequence[str] = ()
    needs_preparation: bool = False


@dataclass(frozen=True)
class GridDefense:
    """A defense of a grid.

    Args:
        name: Its name in the results, unique in the grid.
        keep: Maps the untrusted training set, the seed and the trusted samples to a mask of the samples to keep, bool
            `(N,)`, without access to the ground truth, or to a `Judgment`, which has scores too. Deterministic.
        settings: What the mask depends on, as JSON values.
    """

    name: str
    keep: Callable[[Any, int, Any], Tensor | Judgment]
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Grid:
    """Attacks × defenses × seeds over data and a model.

    For executors with other processes, everything in it must be picklable: functions of modules, and dataclasses that
    can be called.

    Args:
        data: Returns the data of a seed.
        train: Trains a model on a data set with a seed, deterministically, and returns its prediction function, or a
            `TrainedModel`, which has features too.
        attacks: Attacks, with different names.
        defenses: Defenses, with different names.
        seeds: Seeds. Default: 0, 1, 2.
        settings: What data and model depend on, as JSON values. Stored cells are used if all of it is equal.
        prepare: Returns for the data of a seed and the seed what several attacks share, such as a surrogate. It is
            computed once for each seed that needs it. Optional.

    Raises:
        ValueError: If a name is repeated, or that of a control.
    """

    data: Callable[[int], Parts]
    train: Callable[[Any, int], Predict | TrainedModel]
    attacks: Sequence[GridAttack]
    defenses: Sequence[GridDefense]
    seeds: Sequence[int] = (0, 1, 2)
    settings: Mapping[str, Any] = field(default_factory=dict)
    prepare: Callable[[Parts, int], Any] | None = None

    def __post_init__(self) -> None:
        check_names(defense.name for defense in self.defenses)
        for what, named in (("attacks", self.attacks), ("defenses", self.defenses)):
            names = [each.name for each in named]
            if repeated := next((name for name in names if names.count(name) > 1), None):
                raise ValueError(expected(what, "of different names", f"{printable(repeated)!r} twice"))

    def against(self, attack: GridAttack) -> list[GridDefense]:
        """Return the defenses that an attack is evaluated against."""
        return [each for each in self.defenses if attack.defenses is None or each.name in attack.defenses]

    def key(self, attack: GridAttack, seed: int, defense: Mapping[str, Any]) -> dict[str, Any]:
        """Return the key of a cell."""
        own = {"name": attack.name, **attack.settings}
        return {**self.settings, "attack": own, "defense": dict(defense), "seed": seed}

    def attack(self, name: str) -> GridAttack:
        """Return the attack of a name."""
        return next(each for each in self.attacks if each.name == name)

    def defense(self, name: str) -> GridDefense:
        """Return the defense of a name."""
        return next(each for each in self.defenses if each.name == name)


def random_key(removed: int) -> dict[str, Any]:
    """Return what identifies the random filter that removes a number of samples."""
    return {"name": RANDOM_FILTER, "removed": removed}


def cells_of(grid: Grid, file: CellsFile) -> list[Cell]:
    """Return the stored cells of a grid, by attack, seed and defense."""
    return [cell for attack in grid.attacks for seed in grid.seeds for cell in _cells_of_unit(grid, file, attack, seed)]


def is_complete(grid: Grid, file: CellsFile, *, retry_failed: bool = False) -> bool:
    """Whether all cells of a grid are stored."""
    return not any(
        missing_rows(grid, file, attack, seed, retry_failed=retry_failed)
        for attack in grid.attacks
        for seed in grid.seeds
    )


def _cells_of_unit(grid: Grid, file: CellsFile, attack: GridAttack, seed: int) -> Iterator[Cell]:
    sizes: set[int] = set()

    def stored(identity: Any) -> Iterator[Cell]:
        if (cell := file.get(grid.key(attack, seed, identity))) is not None:
            yield cell

    yield from stored({"name": NO_DEFENSE})
    for defense in grid.against(attack):
        for cell in stored({"name": defense.name, **defense.settings}):
            if cell.error is None and cell.removed not in sizes:
                sizes.add(cell.removed)
                yield from stored(random_key(cell.removed))
            yield cell
    yield from stored({"name": PERFECT_FILTER})


def missing_rows(grid: Grid, file: CellsFile, attack: GridAttack, seed: int, *, retry_failed: bool) -> set[str]:
    """Return the names of the rows that are to be computed: defenses, also where their random filter is missing."""

    def is_stored(identity: Any) -> bool:
        cell = file.get(grid.key(attack, seed, identity))
        if cell is None or (cell.error is not None and retry_failed):
            return False
        if cell.error is not None or cell.defense in CONTROLS:
            return True
        return is_stored(random_key(cell.removed))

    rows: dict[str, Any] = {name: {"name": name} for name in (NO_DEFENSE, PERFECT_FILTER)}
    rows |= {each.name: {"name": each.name, **each.settings} for each in grid.against(attack)}
    return {name for name, identity in rows.items() if not is_stored(identity)}
