"""The command line, the results file and the tables of every benchmark."""

import argparse
import json
import logging
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_poison.serialization import atomic_path

Figures = dict[str, Any]
"""The measurements of one run, as JSON can hold them."""

Result = TypeVar("Result")


def benchmark_parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the arguments of every benchmark; the first line of `description` is its help text."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--data-root", type=Path, required=True, help="folder with MNIST in torchvision's layout")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds; default: 3")
    parser.add_argument("--results", type=Path, help="JSON lines file of finished runs, which are not repeated")
    return parser


def start(args: argparse.Namespace, *, setting: str = "") -> None:
    """Limit torch to one thread, or to `--threads`, and print what the measurements depend on besides the code."""
    torch.set_num_threads(getattr(args, "threads", 1))
    name = ", ".join(part for part in (Path(sys.argv[0]).stem, setting) if part)
    print(f"{name}: {args.seeds} seeds, {torch.get_num_threads()} thread(s), torch {torch.__version__}", flush=True)


def silence_lightning() -> None:
    """Suppress Lightning's notes and warnings."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def with_seconds(work: Callable[[], Result]) -> tuple[Result, float, float]:
    """Return the result of a call and its wall-clock and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def with_cpu_seconds(work: Callable[[], Result]) -> tuple[Result, float]:
    """Return the result of a call and its CPU seconds."""
    result, _, cpu = with_seconds(work)
    return result, cpu


class Results:
    """Measurements of finished runs, stored in a JSON lines file.

    Args:
        path: The file, rewritten atomically after each run. If `None`, nothing is stored.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.lines: list[Figures] = []
        if path is not None and path.is_file():
            self.lines = [json.loads(line) for line in path.read_text().splitlines() if line]

    def find(self, key: Mapping[str, Any]) -> Figures | None:
        """Return the measurements of a run from the file, or `None` if it has not been measured."""
        return next((dict(line["figures"]) for line in self.lines if line["key"] == key), None)

    def store(self, key: Mapping[str, Any], measured: Figures) -> Figures:
        """Store the measurements of a run, and return them as JSON holds them."""
        figures: Figures = json.loads(json.dumps(measured))
        self.lines.append({"key": dict(key), "figures": figures})
        if self.path is not None:
            with atomic_path(self.path) as partial_file:
                partial_file.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        print(f"{json.dumps(key)}: {json.dumps(figures)}", flush=True)
        return figures

    def get(self, key: Mapping[str, Any], measure: Callable[[], Figures]) -> Figures:
        """Return the measurements of a run from the file, or measure now and add `wall_s` and `cpu_s`."""
        found = self.find(key)
        if found is not None:
            return found
        measured, wall, cpu = with_seconds(measure)
        return self.store(key, {**measured, "wall_s": wall, "cpu_s": cpu})

    def over_seeds(
        self, seeds: Iterable[int], key: Mapping[str, Any], measure: Callable[[int], Figures]
    ) -> list[Figures]:
        """Return the measurements of each seed; the key of a run is `key` and its `seed`."""
        return [self.get({**key, "seed": seed}, partial(measure, seed)) for seed in seeds]


def share(mask: Tensor) -> float:
    """Return the share of true entries."""
    return float(mask.double().mean())


def spread(values: Sequence[float], form: str = ".4f") -> str:
    """Return the median and the range of values."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def spread_of(runs: Sequence[Figures], *path: str, form: str = ".4f", scale: float = 1) -> str:
    """Return the median and the range over runs of the measurement at a path of keys, multiplied by `scale`."""
    return spread([scale * value for value in values_of(runs, *path)], form)


def values_of(runs: Iterable[Figures], *path: str) -> list[Any]:
    """Return one measurement of each run, found by its path of keys."""
    values: list[Any] = list(runs)
    for name in path:
        values = [value[name] for value in values]
    return values


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print("\n| " + " | ".join(columns) + " |")
    print("| " + " | ".join("---" for _ in columns) + " |")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def print_goal(name: str, met: Sequence[bool]) -> None:
    """Print in how many seeds a goal is met."""
    verdict = "met" if all(met) else "MISSED"
    print(f"- {name}: {verdict} ({sum(met)} of {len(met)} seeds)")
