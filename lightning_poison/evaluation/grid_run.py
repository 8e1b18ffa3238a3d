"""`evaluate_grid`: evaluates attacks × defenses × seeds, and continues where an earlier run stopped."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_poison.evaluation.cells import (
    MIN_SUCCESS_RATE,
    NO_DEFENSE,
    PERFECT_FILTER,
    RANDOM_FILTER,
    Cell,
    gap_closed,
)
from lightning_poison.evaluation.cells_file import CellsFile
from lightning_poison.evaluation.executors import Executor, Failure, InProcessExecutor, Pool
from lightning_poison.evaluation.grid import Grid, GridAttack, cells_of, missing_rows, random_key
from lightning_poison.evaluation.grid_tasks import (
    Crafted,
    Filtered,
    Trained,
    craft,
    filtered,
    prepare,
    reference,
    trained,
)
from lightning_poison.evaluation.measurement import Removal, random_mask

Notify = Callable[[Cell, int, int], None]
"""Called with a finished cell, the number of finished cells and that of all; random filters are not counted."""


def evaluate_grid(
    grid: Grid,
    *,
    results: Path | None = None,
    executor: Executor | None = None,
    retry_failed: bool = False,
    notify: Notify | None = None,
) -> list[Cell]:
    """Evaluate attacks × defenses × seeds, each with no defense, random filters and a perfect filter.

    What cells share is computed once: a model without poison for each seed, one without a defense for each attack and
    seed, and one for defenses and random filters that keep the same samples, such as all of them.

    A task that raises ends only the cells that need it. They are stored with the reason, and are not tried again by a
    later run unless `retry_failed` is set.

    Args:
        grid: What is evaluated.
        results: JSON-lines file of finished cells (`CellsFile`), which are not computed again. Default: nothing is
            stored.
        executor: Where tasks run. Default: one after the other in this process.
        retry_failed: Whether to compute stored cells that failed. Default: `False`.
        notify: Called with each cell when it is finished. Optional.

    Returns:
        All cells of the grid, those of earlier runs included, by attack, seed and defense; see `evaluate`.

    Raises:
        OSError: If the file cannot be written.
        ValueError: If it is not a file of cells.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_poison.attacks.objectives import AvailabilityObjective
        >>> from lightning_poison.attacks.poison import Poison
        >>> from lightning_poison.data.labels import labels_of
        >>> from lightning_poison.evaluation.grid import GridDefense, Parts
        >>> data = TensorDataset(torch.zeros(6, 2), torch.zeros(6).long())
        >>> def train(dataset, seed):  # predicts the most frequent label
        ...     return lambda items: labels_of(dataset).mode().values.expand(len(items))
        >>> def flip(parts, seed, prepared):
        ...     return Poison(torch.arange(4), torch.ones(4).long(), AvailabilityObjective(), attack="flip")
        >>> grid = Grid(
        ...     lambda seed: Parts(data, data),
        ...     train,
        ...     [GridAttack("flip", flip)],
        ...     [GridDefense("mine", lambda untrusted, seed, trusted: torch.arange(6) > 1)],
        ...     seeds=[0],
        ... )
        >>> [(cell.defense, cell.attack_success_rate) for cell in evaluate_grid(grid) if not cell.is_control]
        [('mine', 0.0)]
    """
    with CellsFile(results) as file:
        run = _GridRun(grid, file, retry_failed, notify)
        if run.units:
            with (executor or InProcessExecutor()).pool(grid) as pool:
                run.compute(pool)
        return cells_of(grid, file)


class _RandomFilter(NamedTuple):
    """The row of the random filter that removes a number of samples."""

    removed: int


_Row = str | _RandomFilter
"""A row of a unit: a random filter, or any other control or a defense by its name."""


@dataclass
class _Unit:
    """One attack and one seed, and what is known of them so far."""

    attack: GridAttack
    seed: int
    missing: set[str]
    crafted: Crafted | None = None
    reference: Tensor | None = None
    filters: dict[str, Filtered] = field(default_factory=dict)
    masks: dict[_Row, bytes] = field(default_factory=dict)
    """Mask of each row, by which trainings are shared."""
    waiting: dict[bytes, Tensor] = field(default_factory=dict)
    """Masks on which nothing has been trained yet."""
    figures: dict[bytes, Trained | Failure] = field(default_factory=dict)
    stored: set[_Row] = field(default_factory=set)

    @property
    def name(self) -> tuple[str, int]:
        return self.attack.name, self.seed

    def has_figures(self, row: _Row) -> bool:
        return self.masks.get(row) in self.figures

    def compared_with(self, row: _Row) -> tuple[_Row, ...]:
        """Return the controls by which the gap of a defense is measured; none for a control."""
        if not isinstance(row, str) or row not in self.filters:
            return ()
        removed = int((~self.filters[row].keep).sum())
        return _RandomFilter(removed), PERFECT_FILTER, NO_DEFENSE


_KINDS = ("prepare", "craft", "reference", "trained", "filtered")
"""Kinds of tasks. Of the same attack, trainings come before filters, since they finish cells."""


class _GridRun:
    """The tasks of a run and what depends on what: preparation → poison → masks and reference model → trainings."""

    def __init__(self, grid: Grid, file: CellsFile, retry_failed: bool, notify: Notify | None) -> None:
        self.grid, self.file, self.notify = grid, file, notify
        units = [
            _Unit(attack, seed, missing_rows(grid, file, attack, seed, retry_failed=retry_failed))
            for seed in grid.seeds
            for attack in grid.attacks
        ]
        self.units = {unit.name: unit for unit in units if unit.missing}
        self.total = sum(len(unit.missing) for unit in self.units.values())
        self.finished = self.open_tasks = 0
        self.order = {attack.name: number for number, attack in enumerate(grid.attacks)}

    def compute(self, pool: Pool) -> None:
        """Compute and store all missing cells."""
        self.pool = pool
        for seed in self.grid.seeds:
            of_seed = self._of(seed)
            if any(unit.attack.needs_preparation for unit in of_seed) and self.grid.prepare is not None:
                self._submit(("prepare", seed), prepare, seed)
            for unit in of_seed:
                if not unit.attack.needs_preparation or self.grid.prepare is None:
                    self._submit(("craft", *unit.name), craft, *unit.name, None)
        while self.open_tasks:
            name, result = pool.next()
            self.open_tasks -= 1
            self._after(name, result)

    def _after(self, name: Any, result: Any) -> None:
        kind, *rest = name
        follow: dict[str, Callable[..., None]] = {
            "prepare": self._after_prepare,
            "craft": self._after_craft,
            "reference": self._after_reference,
            "filtered": self._after_filtered,
            "trained": self._after_trained,
        }
        follow[kind](*rest, result)

    def _of(self, seed: int) -> list[_Unit]:
        return [unit for unit in self.units.values() if unit.seed == seed]

    def _submit(self, name: tuple[Any, ...], function: Callable[..., Any], *args: Any) -> None:
        """Submit a task; those of the first seeds and attacks come first, so that cells are finished early."""
        kind, *rest = name
        seed = rest[0] if kind in ("prepare", "reference") else rest[1]
        attack = -1 if kind in ("prepare", "craft", "reference") else self.order[rest[0]]
        self.open_tasks += 1
        self.pool.submit(name, function, *args, order=(self.grid.seeds.index(seed), attack, _KINDS.index(kind)))

    def _after_prepare(self, seed: int, result: Any) -> None:
        for unit in [unit for unit in self._of(seed) if unit.attack.needs_preparation]:
            if isinstance(result, Failure):
                self._give_up(unit, f"the preparation failed: {result.reason}")
            else:
                self._submit(("craft", *unit.name), craft, *unit.name, result)
        self._train_reference(seed)

    def _after_craft(self, attack: str, seed: int, result: Crafted | Failure) -> None:
        unit = self.units[attack, seed]
        if isinstance(result, Failure):
            self._give_up(unit, f"the attack failed: {result.reason}")
        else:
            unit.crafted = result
            for defense in self.grid.against(unit.attack):
                if defense.name in unit.missing:
                    name = ("filtered", attack, seed, defense.name)
                    self._submit(name, filtered, defense.name, seed, result.poison)
        self._train_reference(seed)

    def _train_reference(self, seed: int) -> None:
        """Train the model without poison when the poison of all attacks of a seed is known, which it is to judge."""
        units = self._of(seed)
        if units and all(unit.crafted is not None for unit in units):
            poisons = {unit.attack.name: unit.crafted.poison for unit in units if unit.crafted is not None}
            self._submit(("reference", seed), reference, seed, poisons)

    def _after_reference(self, seed: int, result: dict[str, Tensor] | Failure) -> None:
        for unit in self._of(seed):
            if isinstance(result, Failure):
                self._give_up(unit, f"the training without poison failed: {result.reason}")
                continue
            assert unit.crafted is not None  # noqa: S101
            unit.reference = result[unit.attack.name]
            self._want(unit, NO_DEFENSE, torch.ones(unit.crafted.length, dtype=torch.bool))
            self._want(unit, PERFECT_FILTER, ~unit.crafted.is_poison)
            self._train_waiting(unit)

    def _after_filtered(self, attack: str, seed: int, defense: str, result: Filtered | Failure) -> None:
        unit = self.units.get((attack, seed))
        if unit is None:  # the unit was given up meanwhile
            return
        if isinstance(result, Failure):
            self._fail(unit, defense, f"the defense failed: {result.reason}")
            self._forget(unit)
            return
        unit.filters[defense] = result
        removed = int((~result.keep).sum())
        self._want(unit, _RandomFilter(removed), random_mask(len(result.keep), removed, seed=seed))
        self._want(unit, defense, result.keep)
        self._train_waiting(unit)

    def _want(self, unit: _Unit, row: _Row, keep: Tensor) -> None:
        """Note the mask of a row, and its figures if they are stored."""
        mask = unit.masks[row] = keep.numpy().tobytes()
        if mask in unit.figures or mask in unit.waiting:
            return
        known = self.file.get(self._key(unit, row)) if row not in unit.missing else None
        if known is not None and known.error is None:
            unit.figures[mask] = _figures_of(known)
        else:
            unit.waiting[mask] = keep

    def _train_waiting(self, unit: _Unit) -> None:
        if unit.reference is not None and unit.crafted is not None:
            for mask, keep in unit.waiting.items():
                name = ("trained", *unit.name, mask)
                self._submit(name, trained, unit.seed, unit.crafted.poison, keep, unit.reference)
            unit.waiting.clear()
            self._store(unit)

    def _after_trained(self, attack: str, seed: int, mask: bytes, result: Trained | Failure) -> None:
        if (unit := self.units.get((attack, seed))) is not None:
            unit.figures[mask] = result
            self._store(unit)

    def _store(self, unit: _Unit) -> None:
        """Store the cells whose figures are known; those of a defense when the controls of its gap are known too."""
        for row in unit.masks:
            controls = unit.compared_with(row)
            if row in unit.stored or not all(unit.has_figures(each) for each in (row, *controls)):
                continue
            is_new = isinstance(row, _RandomFilter) and self.file.get(self._key(unit, row)) is None
            if row in unit.missing or is_new:
                cell = self._cell(unit, row)
                if controls and cell.error is None:
                    compared = [cell, *(self._cell(unit, control) for control in controls)]
                    cell = replace(cell, gap_closed=_gap_of(compared, cell.defense))
                self._add(unit, row, cell)
            unit.stored.add(row)
        self._forget(unit)

    def _cell(self, unit: _Unit, row: _Row) -> Cell:
        figures = unit.figures[unit.masks[row]]
        name = RANDOM_FILTER if isinstance(row, _RandomFilter) else row
        adaptive = row in unit.attack.adaptive_to
        if isinstance(figures, Failure):
            reason = f"the training failed: {figures.reason}"
            return Cell.failed(unit.attack.name, name, unit.seed, reason, is_adaptive=adaptive)
        spent = unit.filters.get(name)
        return Cell(
            attack=unit.attack.name,
            defense=name,
            is_control=spent is None,
            seed=unit.seed,
            clean_accuracy=figures.clean_accuracy,
            attack_success_rate=figures.attack_success_rate,
            **vars(figures.removal),
            seconds=figures.seconds + (spent.seconds if spent else 0.0),
            peak_memory_mib=max(figures.peak_memory_mib, spent.peak_memory_mib if spent else 0.0),
            is_adaptive=adaptive,
            scores=spent.scores if spent else None,
            predictions=figures.predictions,
            pictures=unit.crafted.pictures if row == NO_DEFENSE and unit.crafted is not None else (),
            features=figures.features if row == NO_DEFENSE else None,
        )

    def _key(self, unit: _Unit, row: _Row) -> dict[str, Any]:
        if isinstance(row, _RandomFilter):
            return self.grid.key(unit.attack, unit.seed, random_key(row.removed))
        is_control = row in (NO_DEFENSE, PERFECT_FILTER)
        identity = {"name": row} if is_control else {"name": row, **self.grid.defense(row).settings}
        return self.grid.key(unit.attack, unit.seed, identity)

    def _add(self, unit: _Unit, row: _Row, cell: Cell) -> None:
        self.file.add(self._key(unit, row), cell)
        if row in unit.missing:
            self.finished += 1
            if self.notify is not None:
                self.notify(cell, self.finished, self.total)

    def _fail(self, unit: _Unit, row: str, reason: str) -> None:
        unit.stored.add(row)
        is_adaptive = row in unit.attack.adaptive_to
        self._add(unit, row, Cell.failed(unit.attack.name, row, unit.seed, reason, is_adaptive=is_adaptive))

    def _give_up(self, unit: _Unit, reason: str) -> None:
        for row in sorted(unit.missing - unit.stored):
            self._fail(unit, row, reason)
        self.units.pop(unit.name, None)

    def _forget(self, unit: _Unit) -> None:
        """Free the memory of a unit whose cells are all stored."""
        if unit.missing <= unit.stored:
            self.units.pop(unit.name, None)


def _gap_of(rows: list[Cell], defense: str) -> float | None:
    undefended = next(cell for cell in rows if cell.defense == NO_DEFENSE)
    works = undefended.error is None and undefended.attack_success_rate >= MIN_SUCCESS_RATE
    return gap_closed(rows, defense) if works else None


def _figures_of(cell: Cell) -> Trained:
    removal = Removal(cell.removed, dict(cell.removed_by_class), cell.poison_caught, cell.clean_lost)
    seconds, peak = (0.0 if math.isnan(value) else value for value in (cell.seconds, cell.peak_memory_mib))
    return Trained(
        cell.clean_accuracy, cell.attack_success_rate, removal, seconds, peak, cell.predictions, cell.features
    )
