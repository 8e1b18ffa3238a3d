"""Work that is lost when a run is killed ten times with SIGKILL and resumed: MNIST, 10,000 images, default scorer.

    python benchmarks/interrupted_runs.py --data-root data --results interrupted.jsonl

A seed flips 5 % of the labels and calls `sanitize(data, cache=folder)` in a process of its own,
once without interruption. Then another folder is used: each of ten processes kills itself after a tenth of the work of
the undisturbed run, and an eleventh finishes. Work is counted in steps of progress bars that are computed (fit steps
and scored blocks; what is restored does not count), and in CPU seconds of the processes, less those of a
process that only imports the package and reads the images. The verdicts must agree bit for bit.
"""

import functools
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from harness.datasets import load_mnist
from harness.runs import Figures, Results, benchmark_parser, print_goal, print_table, spread_of, start
from torch.utils.data import TensorDataset

from lightning_poison import sanitize
from lightning_poison.runtime import LocalRuntime

IMAGES, FLIPPED, KILLS = 10_000, 500, 10
GOAL = 1.15


class CountingRuntime(LocalRuntime):
    """Counts the steps that are computed, and kills the process after a number of them."""

    def __init__(self, limit: int) -> None:
        super().__init__(threads=1)
        self.steps = 0
        self.limit = limit

    @contextmanager
    def progress(self, total: int, description: str) -> Iterator["CountingRuntime"]:  # noqa: ARG002 (nothing is shown)
        yield self

    def advance(self, steps: int = 1) -> None:
        """Count one computed step; restored ones arrive together."""
        if steps != 1:
            return
        self.steps += 1
        if self.steps == self.limit:
            os.kill(os.getpid(), signal.SIGKILL)


def run_child(data_root: Path, seed: int, cache: str, limit: int, output: str) -> None:
    torch.set_num_threads(1)
    images, labels = load_mnist(data_root, train=True)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images), generator=generator)[:IMAGES]
    images, labels = images[chosen], labels[chosen].clone()
    labels[:FLIPPED] = (labels[:FLIPPED] + torch.randint(1, 10, (FLIPPED,), generator=generator)) % 10
    if limit == 0:
        return
    runtime = CountingRuntime(limit)
    verdict = sanitize(TensorDataset(images, labels), seed=seed, runtime=runtime, cache=cache)
    verdict.save(f"{output}.safetensors")
    Path(output).write_text(json.dumps({"steps": runtime.steps}))


def launch(data_root: Path, seed: int, cache: str, limit: int, output: str) -> tuple[int, float]:
    """Run a child; return its exit status and its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, __file__, "--child", str(data_root), str(seed), cache, str(limit), output],
        os.environ,
    )
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return status, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run_seed(data_root: Path, seed: int) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        _, idle = launch(data_root, seed, "", 0, "")
        whole, killed = f"{folder}/whole", f"{folder}/killed"
        _, seconds = launch(data_root, seed, f"{folder}/cache-1", -1, whole)
        steps = json.loads(Path(whole).read_text())["steps"]
        done, spent, statuses = 0, 0.0, []
        for _ in range(KILLS):
            status, cpu = launch(data_root, seed, f"{folder}/cache-2", steps // KILLS, killed)
            statuses.append(status)
            spent += cpu - idle
            done += steps // KILLS
        status, cpu = launch(data_root, seed, f"{folder}/cache-2", -1, killed)
        assert statuses == [-signal.SIGKILL] * KILLS, statuses
        assert status == 0
        rest = json.loads(Path(killed).read_text())["steps"]
        same = Path(f"{whole}.safetensors").read_bytes() == Path(f"{killed}.safetensors").read_bytes()
        return {
            "steps": steps,
            "work": (done + rest) / steps,
            "cpu": (spent + cpu - idle) / (seconds - idle),
            "seconds": seconds - idle,
            "same": same,
        }


def main() -> None:
    args = benchmark_parser(__doc__).parse_args()
    start(args)
    runs = Results(args.results).over_seeds(range(args.seeds), {}, functools.partial(run_seed, args.data_root))
    print_table(
        ["", "median (range)"],
        [
            ["steps of an undisturbed run", spread_of(runs, "steps", form=".0f")],
            ["CPU seconds of an undisturbed run", spread_of(runs, "seconds", form=".1f")],
            ["steps in all ÷ undisturbed", spread_of(runs, "work", form=".3f")],
            ["CPU seconds in all ÷ undisturbed", spread_of(runs, "cpu", form=".3f")],
        ],
    )
    print_goal("same verdict, bit for bit", [run["same"] for run in runs])
    print_goal(f"steps in all at most {GOAL} of an undisturbed run", [run["work"] <= GOAL for run in runs])
    print_goal(f"CPU seconds in all at most {GOAL} of an undisturbed run", [run["cpu"] <= GOAL for run in runs])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_child(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]), sys.argv[6])
    else:
        main()
