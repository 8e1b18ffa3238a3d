"""Share of the time of `sanitize` that goes into storing finished and half-finished work: MNIST, no trusted data.

    python benchmarks/cache_cost.py --data-root data --results cache.jsonl

A seed flips 5 % of the labels of some images and calls `sanitize(data, cache=folder)` with an empty folder. The time
inside of the outermost calls that store, look up or remove work is added up, and divided by the time of the whole call,
in one run, since two runs on one machine differ by more than 2 %: in CPU time of one thread, and by the clock, which
also counts waiting for the disk and for other programs. The last columns are the time of a second call with the same
folder, which finds the decision and only reads the data, and what is left in the folder.
"""

import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from harness.datasets import load_mnist
from harness.runs import (
    Figures,
    Results,
    benchmark_parser,
    print_goal,
    print_table,
    spread_of,
    start,
    with_cpu_seconds,
    with_seconds,
)
from torch.utils.data import TensorDataset

from lightning_poison import LikelihoodScorer, RecommendedScorer, sanitize
from lightning_poison.data import inference
from lightning_poison.models.fit_state import FitState
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization import copies, decide
from lightning_poison.sanitization.units import FileUnits

IMAGES, FLIPPED = 10_000, 0.05
GOAL = 0.02
CALLS: list[tuple[Any, str]] = [
    *((FileUnits, name) for name in ("load", "save", "samples_match", "keep_only", "clear")),
    *((FitState, name) for name in ("__init__", "resume", "save")),
    *((inference._StoredBlocks, name) for name in ("__init__", "save")),
    (decide, "open_units"),
    (copies, "open_units"),
]
"""Where work is stored, looked up or removed."""


class Clock:
    """Adds up the seconds in the outermost calls of some functions."""

    def __init__(self) -> None:
        self.seconds, self.cpu, self.depth, self.calls = 0.0, 0.0, 0, 0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that is timed."""

        @functools.wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            begin, cpu = time.perf_counter(), time.process_time()
            self.depth += 1
            try:
                return function(*args, **options)
            finally:
                self.depth -= 1
                if self.depth == 0:
                    self.seconds += time.perf_counter() - begin
                    self.cpu += time.process_time() - cpu
                    self.calls += 1

        return call

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Time all calls of the cache."""
        with ExitStack() as stack:
            for owner, name in CALLS:
                stack.enter_context(mock.patch.object(owner, name, self.timed(getattr(owner, name))))
            yield


def measure(data_root: Path, images: int, scorer: str, seed: int) -> Figures:
    inputs, labels = load_mnist(data_root, train=True)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(inputs), generator=generator)[:images]
    inputs, labels = inputs[chosen], labels[chosen].clone()
    flipped = int(images * FLIPPED)
    labels[:flipped] = (labels[:flipped] + torch.randint(1, 10, (flipped,), generator=generator)) % 10
    dataset, clock = TensorDataset(inputs, labels), Clock()
    with tempfile.TemporaryDirectory() as folder:

        def run() -> None:
            own = LikelihoodScorer() if scorer == "likelihood" else RecommendedScorer("balanced")
            sanitize(dataset, own, seed=seed, runtime=LocalRuntime(threads=1, quiet=True), cache=folder)

        with clock.installed():
            _, wall, cpu = with_seconds(run)
        _, again = with_cpu_seconds(run)
        left = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    return {
        "CPU s": cpu,
        "in the cache": clock.cpu,
        "share": clock.cpu / cpu,
        "share by the clock": clock.seconds / wall,
        "calls": clock.calls,
        "again, CPU s": again,
        "MiB": left / 2**20,
    }


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--scorers", nargs="+", default=["likelihood", "default"], choices=["likelihood", "default"])
    args = parser.parse_args()
    start(args, setting=f"{args.images:,} images")
    results = Results(args.results)
    forms = {"CPU s": ".1f", "in the cache": ".2f", "share": ".4f", "share by the clock": ".4f", "calls": ".0f"}
    forms |= {"again, CPU s": ".2f", "MiB": ".1f"}
    rows, met = [], []
    for scorer in args.scorers:
        run = functools.partial(measure, args.data_root, args.images, scorer)
        runs = results.over_seeds(range(args.seeds), {"scorer": scorer, "images": args.images}, run)
        rows.append([scorer, *(spread_of(runs, name, form=form) for name, form in forms.items())])
        met += [each["share"] <= GOAL for each in runs]
    print_table(["scorer", *forms], rows)
    print_goal(f"at most {GOAL} of the time", met)


if __name__ == "__main__":
    main()
