"""Exact nearest neighbors in blocks: time against the full distance matrix, and memory at 1,000,000 x 512.

    python benchmarks/nearest_neighbors_scaling.py --data-root data --results neighbors.jsonl

Part one: the 50 nearest other samples of each of 20,000 samples, with 64 and with 512 features drawn from ten normal
distributions. "Full matrix" is the direct implementation: `torch.cdist` of all samples against all, the diagonal set to
infinity, `topk`. Both run in alternation in one process, three turns per seed; the fastest turn of each counts, in wall
and in CPU time. Memory is measured in separate processes. The neighbors are compared with those of the full matrix: the
share of (sample, neighbor) pairs in common, and the largest difference of distances.

Part two: the peak memory of a process that stores 1,000,000 x 512 float32 features and looks up 20,000 of them, minus
its peak before the look-up, by `ru_maxrss`; the 2 GiB of the features are not counted. Time is measured on `QUERIES`
queries and extrapolated to 20,000. Memory is not extrapolated: only the result grows with the number of queries, and
the missing part of its 20,000 x 50 numbers is added.

No data set is read; `--data-root` is accepted as in every benchmark.
"""

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from harness.runs import (
    Figures,
    Results,
    benchmark_parser,
    print_goal,
    print_table,
    spread,
    spread_of,
    start,
    with_seconds,
)
from torch import Tensor

from lightning_poison.scorers import nearest_neighbors

SAMPLES, SIZES, K, TURNS = 20_000, (64, 512), 50, 3
LARGE, WIDE, QUERIES, ALL_QUERIES = 1_000_000, 512, 2_048, 20_000
GIB = 1024**3
MAX_GIB = 3.0


def draw_features(count: int, size: int, seed: int) -> Tensor:
    """Return float32 features of ten classes, drawn block by block so that drawing needs no extra memory."""
    generator = torch.Generator().manual_seed(seed)
    centers = 2 * torch.randn(10, size, generator=generator)
    features = torch.empty(count, size)
    for begin, block in zip(range(0, count, 10_000), torch.split(features, 10_000), strict=True):
        block.normal_(generator=generator)
        block += centers[(torch.arange(len(block)) + begin) % 10]
    return features


def in_blocks(features: Tensor) -> tuple[Tensor, Tensor]:
    return nearest_neighbors(features, features, K, exclude_self=True)


def by_full_matrix(features: Tensor) -> tuple[Tensor, Tensor]:
    distances = torch.cdist(features, features).fill_diagonal_(torch.inf)
    nearest = distances.topk(K, largest=False)
    return nearest.values, nearest.indices


METHODS = {"blocks": in_blocks, "full matrix": by_full_matrix}


def peak_memory() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def compare(size: int, seed: int) -> Figures:
    """Time both methods in alternation, and compare their results."""
    features = draw_features(SAMPLES, size, seed)
    seconds: dict[str, dict[str, list[float]]] = {method: {"wall": [], "cpu": []} for method in METHODS}
    found = {}
    for turn in range(TURNS):
        for method in sorted(METHODS, reverse=not turn % 2):
            found[method], wall, cpu = with_seconds(partial(METHODS[method], features))
            seconds[method]["wall"].append(wall)
            seconds[method]["cpu"].append(cpu)
    (ours, neighbors), (theirs, reference) = (found[method] for method in METHODS)
    pairs = [(torch.arange(SAMPLES)[:, None] * SAMPLES + each).flatten() for each in (neighbors, reference)]
    same = {"shared": float(torch.isin(*pairs).double().mean()), "apart": float((ours - theirs).abs().max())}
    fastest = {method: {clock: min(each) for clock, each in both.items()} for method, both in seconds.items()}
    return {**fastest, "same": same}


def look_up_memory(method: str, size: int, seed: int) -> float:
    """Return the additional memory of one look-up in this process, in GiB."""
    features = draw_features(SAMPLES, size, seed)
    METHODS[method](features[:2_000])
    before = peak_memory()
    METHODS[method](features)
    return (peak_memory() - before) / GIB


def large_look_up(seed: int) -> Figures:
    features = draw_features(LARGE, WIDE, seed)
    nearest_neighbors(features[:64], features[:4_096], K)
    before, begin = peak_memory(), time.perf_counter()
    nearest_neighbors(features[:QUERIES], features, K)
    wall = time.perf_counter() - begin
    missing = (ALL_QUERIES - QUERIES) * K * (4 + 8)
    gib = (peak_memory() - before + missing) / GIB
    return {"gib": gib, "held_gib": before / GIB, "wall": wall * ALL_QUERIES / QUERIES}


CHILDREN: dict[str, Callable[..., Any]] = {"turns": compare, "memory": look_up_memory, "large": large_look_up}


def in_process(*call: Any) -> Any:
    """Run one of `CHILDREN` in a process of its own."""
    command = [sys.executable, __file__, "--data-root", ".", "--child", json.dumps(call)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 (this script)
    return json.loads(printed.splitlines()[-1])


def measure(size: int, seed: int) -> Figures:
    figures: Figures = in_process("turns", size, seed)
    for method in METHODS:
        figures[method]["gib"] = in_process("memory", method, size, seed)
    return figures


def report(small: dict[int, list[Figures]], large: list[Figures]) -> None:
    rows = []
    for size, runs in small.items():
        for method in METHODS:
            cells = [spread_of(runs, method, name, form=".2f") for name in ("wall", "cpu", "gib")]
            rows.append([str(size), method, *cells])
        ratio = [run["blocks"]["wall"] / run["full matrix"]["wall"] for run in runs]
        shared = spread_of(runs, "same", "shared", form=".6f")
        apart = max(run["same"]["apart"] for run in runs)
        times = f"{size} features: time {spread(ratio, '.2f')} of the full matrix's"
        print(f"{times}; shared neighbors {shared}, distances differ by at most {apart:.1e}")
    print_table(["features", "method", "wall s", "CPU s", "memory beyond the features, GiB"], rows)
    print_table(
        ["references", "queries", "memory beyond the features, GiB", "peak before, GiB", "wall s, extrapolated"],
        [
            [f"{LARGE:,} x {WIDE}", f"{ALL_QUERIES:,}"]
            + [spread_of(large, name, form=form) for name, form in (("gib", ".2f"), ("held_gib", ".2f"))]
            + [spread_of(large, "wall", form=".0f")]
        ],
    )
    print()
    for size, runs in small.items():
        met = [run["blocks"]["wall"] <= run["full matrix"]["wall"] for run in runs]
        print_goal(f"{SAMPLES:,} samples, {size} features: not slower than the full matrix", met)
    goal = f"{ALL_QUERIES:,} queries against {LARGE:,} x {WIDE}: at most {MAX_GIB:g} GiB"
    print_goal(goal, [run["gib"] <= MAX_GIB for run in large])


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--child", type=json.loads, help="internal: the measurement of a child process")
    args = parser.parse_args()
    start(args)
    if args.child:
        name, *arguments = args.child
        print(json.dumps(CHILDREN[name](*arguments)))
        return
    results = Results(args.results)
    small = {size: results.over_seeds(range(args.seeds), {"features": size}, partial(measure, size)) for size in SIZES}
    report(small, [results.get({"large": WIDE}, lambda: dict(in_process("large", 0)))])


if __name__ == "__main__":
    main()
