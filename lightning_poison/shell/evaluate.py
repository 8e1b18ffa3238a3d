"""The command `evaluate`: attacks × defenses × seeds, from settings to tables and a page.

Needs no torch if nothing is missing.
"""

import hashlib
import json
import os
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from lightning_poison.checks import printable
from lightning_poison.evaluation.cells import Cell
from lightning_poison.evaluation.cells_file import CellsFile
from lightning_poison.evaluation.grid import cells_of, is_complete
from lightning_poison.evaluation.tables import render_adaptive, render_matrix, render_table
from lightning_poison.registry.hookspecs import PROJECT
from lightning_poison.shell.class_paths import add_working_directory
from lightning_poison.shell.evaluate_grid import grid_of
from lightning_poison.shell.evaluate_keys import key_of_data, key_of_model, package_version
from lightning_poison.shell.evaluate_page import write_page_of
from lightning_poison.shell.evaluate_settings import EvaluationSettings, as_json
from lightning_poison.shell.output import Write

FAILED = 2
"""Exit status if cells failed."""


def run_evaluation(
    settings: EvaluationSettings,
    *,
    write: Write,
    report: Write,
    as_json_object: bool = False,
    retry_failed: bool = False,
) -> int:
    """Evaluate what is not in the file of the results yet, print all cells, and write the page of the file.

    Args:
        settings: What is evaluated.
        write: Called with each line of the output.
        report: Called with each line about progress and failures.
        as_json_object: Whether to write one JSON object in place of the tables.
        retry_failed: Whether cells that failed earlier are computed again.

    Returns:
        The exit status: 0 if all cells have figures, 2 if some failed.

    Raises:
        ValueError: If settings are not valid.
        OSError: If the results or the page cannot be written.
    """
    add_working_directory()
    device = "cuda" if settings.gpus_per_cell else "cpu"
    shared = {"data": key_of_data(settings.data), "model": key_of_model(settings.model), "version": package_version()}
    if device != "cpu":
        shared["device"] = device
    request = _request(settings, shared)
    cells = _stored(settings, shared, device, request, retry_failed)
    if cells is None:
        cells = _computed(settings, shared, device, request, report, retry_failed)
    else:
        report(f"All {len(cells)} cells are in {printable(settings.results)}.")
    failed = [cell for cell in cells if cell.error is not None]
    if as_json_object:
        write(json.dumps({"results": str(settings.results), "cells": [cell.to_json() for cell in cells]}))
    else:
        _print(cells, write)
    if settings.results.suffix != ".html":
        report(f"page: {printable(write_page_of(settings.results))}")
    for cell in failed:
        report(f"failed: {_named(cell)}: {printable(cell.error, limit=1000)}")
    if failed:
        report(f"{len(failed)} of {len(cells)} cells failed. `--retry-failed` computes them again.")
    return FAILED if failed else 0


def _stored(
    settings: EvaluationSettings, shared: dict[str, Any], device: str, request: str, retry_failed: bool
) -> list[Cell] | None:
    """Return all cells from the file of the results, or `None` if some are to be computed."""
    with CellsFile(settings.results) as file:
        adaptive = file.plan(request)
        if adaptive is None:
            return None
        grid = grid_of(settings, shared, device, adaptive, needs_preparation=frozenset())
        return cells_of(grid, file) if is_complete(grid, file, retry_failed=retry_failed) else None


def _computed(
    settings: EvaluationSettings,
    shared: dict[str, Any],
    device: str,
    request: str,
    report: Write,
    retry_failed: bool,
) -> list[Cell]:
    """Check the settings against what is installed, and compute the missing cells."""
    from lightning_poison.evaluation.grid_run import evaluate_grid
    from lightning_poison.shell.evaluate_plan import adaptive_pairs, check_names, needing_surrogates

    check_names(settings)
    adaptive = adaptive_pairs(settings)
    grid = grid_of(settings, shared, device, adaptive, needs_preparation=needing_surrogates(settings, adaptive))
    executor = _executor(settings)
    with CellsFile(settings.results) as file:
        if file.plan(request) != adaptive:
            file.add_plan(request, adaptive)
    begin = time.monotonic()

    def notify(cell: Cell, finished: int, total: int) -> None:
        spent = time.monotonic() - begin
        left = spent / finished * (total - finished)
        what = f"failed: {printable(cell.error)}" if cell.error is not None else f"{cell.seconds:.0f} s"
        report(f"{finished} of {total} cells: {_named(cell)}: {what}; about {_duration(left)} left")

    return evaluate_grid(grid, results=settings.results, executor=executor, retry_failed=retry_failed, notify=notify)


def _request(settings: EvaluationSettings, shared: dict[str, Any]) -> str:
    """Return a digest of what is asked for and of the installed plug-ins, which may add adaptive attackers."""
    points = metadata.entry_points(group=f"{PROJECT}.plugins")
    plugins = sorted(f"{point.dist.name} {point.dist.version}" for point in points if point.dist is not None)
    plugins += [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith("LIGHTNING_POISON_")]
    asked = [as_json(each) for each in (*settings.attacks, *settings.defenses)]
    text = json.dumps([shared, asked, settings.adaptive, plugins], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _executor(settings: EvaluationSettings) -> Any:
    from lightning_poison.evaluation.executors import InProcessExecutor, ProcessExecutor
    from lightning_poison.evaluation.ray_executor import RayExecutor

    if settings.executor == "ray":
        try:
            return RayExecutor(settings.ray_address, workers=settings.workers, gpus_per_task=settings.gpus_per_cell)
        except ModuleNotFoundError as error:
            raise ValueError(str(error)) from error
    return InProcessExecutor() if settings.workers == 1 else ProcessExecutor(settings.workers)


def _print(cells: Sequence[Cell], write: Write) -> None:
    for attack in dict.fromkeys(cell.attack for cell in cells):
        of_attack = [cell for cell in cells if cell.attack == attack]
        count = len({cell.seed for cell in of_attack})
        seeds = "1 seed" if count == 1 else f"medians and ranges over {count} seeds"
        write(f"\n{printable(attack)}, {seeds}")
        write(render_table(of_attack))
    if adaptive := render_adaptive(cells):
        write(f"\n{adaptive}")
    write(f"\n{render_matrix(cells)}")


def _named(cell: Cell) -> str:
    return f"{printable(cell.attack)}, {printable(cell.defense)}, seed {cell.seed}"


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
