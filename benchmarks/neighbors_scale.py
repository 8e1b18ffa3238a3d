"""Exact nearest neighbors: against the full matrix of distances at 20,000 samples, and memory at 1,000,000 x 512.

    python benchmarks/neighbors_scale.py --data-root data --results neighbors.jsonl

Part one: the 50 nearest other samples of each of 20,000, for 64 and for 512 features drawn from ten normal
distributions. "Full matrix" is what one would write: `torch.cdist` of all against all, the diagonal set to infinity,
`topk`. They take turns in one process, three a seed; the fastest turn of each counts, in wall and in CPU time. Memory
is that of a process of its own. Neighbors are compared with the full matrix's: the share of (sample, neighbor) pairs
that agree, and the largest difference of distances.

Part two: the peak memory of a process that holds 1,000,000 x 512 float32 features and looks up 20,000 of them,
less what it held before the look-up: `ru_maxrss`, the features' own 2 GiB already in it. Time is that of `QUERIES`
queries, times what 20,000 would take; memory needs no such factor, since what grows with the queries is what comes
back (the rest of it, 20,000 x 50 numbers, is added).
"""

import json
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from common import Figures, Results, arguments, print_goal, print_setting, print_table, spread
from torch import Tensor

from lightning_poison.scorers import nearest_neighbors

SAMPLES, SIZES, K, TURNS = 20_000, (64, 512), 50, 3
LARGE, WIDE, QUERIES, ASKED = 1_000_000, 512, 2_048, 20_000
GIB = 1024**3
MOST = 3.0


def normals(count: int, features: int, seed: int) -> Tensor:
    """Return float32 features of ten classes, made a part at a time so that making them takes no memory of its own."""
    generator = torch.Generator().manual_seed(seed)
    centers = 2 * torch.randn(10, features, generator=generator)
    rows = torch.empty(count, features)
    for start, part in zip(range(0, count, 10_000), rows.split(10_000), strict=True):
        part.normal_(generator=generator)
        part += centers[(torch.arange(len(part)) + start) % 10]
    return rows


def tiled(features: Tensor) -> tuple[Tensor, Tensor]:
    return nearest_neighbors(features, features, K, exclude_self=True)


def full_matrix(features: Tensor) -> tuple[Tensor, Tensor]:
    distances = torch.cdist(features, features).fill_diagonal_(torch.inf)
    found = distances.topk(K, largest=False)
    return found.values, found.indices


WAYS = {"tiled": tiled, "full matrix": full_matrix}


def peak() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run_turns(features: int, seed: int) -> Figures:
    """Time both ways in turns, and compare what they find."""
    rows = normals(SAMPLES, features, seed)
    seconds: dict[str, dict[str, list[float]]] = {way: {"wall": [], "cpu": []} for way in WAYS}
    found = {}
    for turn in range(TURNS):
        for way in sorted(WAYS, reverse=bool(turn % 2)):
            wall, cpu = time.perf_counter(), time.process_time()
            found[way] = WAYS[way](rows)
            seconds[way]["wall"].append(time.perf_counter() - wall)
            seconds[way]["cpu"].append(time.process_time() - cpu)
    (ours, near), (theirs, reference) = (found[way] for way in WAYS)
    pairs = [(torch.arange(SAMPLES)[:, None] * SAMPLES + each).flatten() for each in (near, reference)]
    same = {"shared": float(torch.isin(*pairs).double().mean()), "apart": float((ours - theirs).abs().max())}
    return {**{way: {clock: min(each) for clock, each in both.items()} for way, both in seconds.items()}, "same": same}


def run_memory(way: str, features: int, seed: int) -> float:
    """Return the memory of one look-up in this process, beyond what it held before, in GiB."""
    rows = normals(SAMPLES, features, seed)
    WAYS[way](rows[:2_000])
    before = peak()
    WAYS[way](rows)
    return (peak() - before) / GIB


def run_large(seed: int) -> Figures:
    rows = normals(LARGE, WIDE, seed)
    nearest_neighbors(rows[:64], rows[:4_096], K)
    before, start = peak(), time.perf_counter()
    nearest_neighbors(rows[:QUERIES], rows, K)
    wall = time.perf_counter() - start
    back = (ASKED - QUERIES) * K * (4 + 8)
    return {"gib": (peak() - before + back) / GIB, "held_gib": before / GIB, "wall": wall * ASKED / QUERIES}


CHILDREN = {"turns": run_turns, "memory": run_memory, "large": run_large}


def in_process(*words: Any) -> Any:
    command = [sys.executable, __file__, "--data-root", ".", "--child", json.dumps(words)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 (this script)
    return json.loads(printed.splitlines()[-1])


def measure(features: int, seed: int) -> Figures:
    figures = in_process("turns", features, seed)
    for way in WAYS:
        figures[way]["gib"] = in_process("memory", way, features, seed)
    return figures


def report(small: dict[int, list[Figures]], large: list[Figures]) -> None:
    rows = []
    for features, runs in small.items():
        for way in WAYS:
            cells = [spread([run[way][name] for run in runs], form) for name, form in (("wall", ".2f"), ("cpu", ".2f"))]
            rows.append([str(features), way, *cells, spread([run[way]["gib"] for run in runs], ".2f")])
        ratio = [run["tiled"]["wall"] / run["full matrix"]["wall"] for run in runs]
        shared = spread([run["same"]["shared"] for run in runs], ".6f")
        apart = max(run["same"]["apart"] for run in runs)
        print(
            f"{features} features: time {spread(ratio, '.2f')} of the full matrix's; neighbors shared {shared}, ",
            end="",
        )
        print(f"distances at most {apart:.1e} apart")
    print_table(["features", "way", "wall s", "CPU s", "memory beyond the features, GiB"], rows)
    print_table(
        ["references", "queries", "memory beyond the features, GiB", "held before, GiB", "wall s, extrapolated"],
        [
            [f"{LARGE:,} x {WIDE}", f"{ASKED:,}"]
            + [spread([run[name] for run in large], form) for name, form in (("gib", ".2f"), ("held_gib", ".2f"))]
            + [spread([run["wall"] for run in large], ".0f")]
        ],
    )
    print()
    for features, runs in small.items():
        met = [run["tiled"]["wall"] <= run["full matrix"]["wall"] for run in runs]
        print_goal(f"{SAMPLES:,} samples, {features} features: not slower than the full matrix", met)
    print_goal(
        f"{ASKED:,} queries against {LARGE:,} x {WIDE}: at most {MOST:g} GiB", [run["gib"] <= MOST for run in large]
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--child", type=json.loads, help="what this process measures; for the benchmark itself")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.child:
        what, *words = args.child
        print(json.dumps(CHILDREN[what](*words)))
        return
    print_setting("neighbors_scale", args)
    results = Results(args.results)
    small = {
        features: [
            results.get(
                {"features": features, "seed": seed}, lambda features=features, seed=seed: measure(features, seed)
            )
            for seed in range(args.seeds)
        ]
        for features in SIZES
    }
    report(small, [results.get({"large": WIDE}, lambda: in_process("large", 0))])


if __name__ == "__main__":
    main()
