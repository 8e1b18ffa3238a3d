"""Two ranks divided by one on one machine: wall-clock time of scoring, and of cross-fitting over three and four folds.

    python benchmarks/rank_speedup.py --data-root data --results speedup.jsonl

MNIST, without trusted data; each rank has one thread. `scoring` is one pass of the scorer's network over the images;
`cross-fitting` is `sanitize` with the likelihood scorer. One and two ranks take turns, so that other work on the
machine affects both. The machine needs two free cores: the last columns say how much CPU time the slowest rank had in a
second. "By CPU time" divides the CPU time of one rank by that of the slowest of two. Folds are whole units, so three
folds on two ranks take the time of two: 1.5 is the limit there.
"""

import functools
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from harness.datasets import load_mnist
from harness.rank_processes import run_ranks, with_runtime
from harness.runs import (
    Figures,
    Results,
    benchmark_parser,
    print_goal,
    print_table,
    silence_lightning,
    spread_of,
    start,
)
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_poison import LikelihoodScorer, sanitize
from lightning_poison.data.blocks import Block
from lightning_poison.data.inference import score_set
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.models import default_backbone
from lightning_poison.runtime import Runtime

GOAL = 1.8
NAMES = ("one", "two", "speedup", "by_cpu", "busy_one", "busy_two")
CASES = ("scoring", "3 folds", "4 folds")


def work_of(case: str, data_root: Path, images: int, seed: int) -> Callable[[Runtime], None]:
    inputs, labels = load_mnist(data_root, train=True)
    chosen = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))[:images]
    data = TensorDataset(inputs[chosen], labels[chosen])
    if case != "scoring":
        folds = int(case.split()[0])

        def cross_fitting(runtime: Runtime) -> None:
            sanitize(data, LikelihoodScorer(), folds=folds, seed=seed, runtime=runtime)

        return cross_fitting
    torch.manual_seed(seed)
    network = default_backbone(data[0][0].shape, 64).eval()

    def scoring(runtime: Runtime) -> None:
        def score(block: Block) -> Tensor:
            found: Tensor = network(block.inputs)
            return found

        score_set(data, torch.arange(len(data)), score, sample=SampleSpec(), runtime=runtime, seed=seed)

    return scoring


def measure(case: str, data_root: Path, images: int, seed: int, world: int) -> tuple[float, float]:
    """Return wall-clock and CPU seconds of the slowest rank."""
    with tempfile.TemporaryDirectory() as folder:

        def run(rank: int) -> None:
            silence_lightning()
            work = work_of(case, data_root, images, seed)

            def timed(runtime: Runtime) -> None:
                runtime.agree()
                wall, cpu = time.perf_counter(), time.process_time()
                work(runtime)
                seconds = time.perf_counter() - wall, time.process_time() - cpu
                Path(folder, f"{rank}.json").write_text(json.dumps(seconds))

            with_runtime(world, timed, Path(folder))

        assert all(each.status == 0 for each in run_ranks(world, run))
        found = [json.loads(path.read_text()) for path in Path(folder).glob("*.json")]
        return max(wall for wall, _ in found), max(cpu for _, cpu in found)


def run_seed(case: str, data_root: Path, images: int, seed: int) -> Figures:
    one, two = ([measure(case, data_root, images, seed, world)] for world in (1, 2))
    one.append(measure(case, data_root, images, seed, 1))
    alone = sum(wall for wall, _ in one) / 2
    (wall, cpu), busy = two[0], sum(cpu for _, cpu in one) / sum(wall for wall, _ in one)
    by_cpu = sum(cpu for _, cpu in one) / 2 / cpu
    return {
        "one": alone,
        "two": wall,
        "speedup": alone / wall,
        "by_cpu": by_cpu,
        "busy_one": busy,
        "busy_two": cpu / wall,
    }


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--images", type=int, default=10_000, help="number of images; default: 10,000")
    args = parser.parse_args()
    start(args, setting=f"{args.images:,} images")
    results, rows, goals = Results(args.results), [], {}
    for case in CASES:
        key = {"case": case, "images": args.images}
        runs = results.over_seeds(
            range(args.seeds), key, functools.partial(run_seed, case, args.data_root, args.images)
        )
        figures = [spread_of(runs, name, form=".2f") for name in NAMES]
        rows.append([case, *figures])
        goals[case] = [run["speedup"] >= GOAL for run in runs]
    columns = [
        "",
        "one rank, s",
        "two ranks, s",
        "one ÷ two",
        "by CPU time",
        "CPU ÷ wall-clock, one",
        "CPU ÷ wall-clock, two",
    ]
    print_table(columns, rows)
    for case, met in goals.items():
        print_goal(f"{case}: two ranks at least {GOAL} times as fast", met)


if __name__ == "__main__":
    main()
