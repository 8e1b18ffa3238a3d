"""Work that is lost when a run is killed ten times with SIGKILL and resumed: MNIST, 10,000 images, default scorer.

    python benchmarks/interrupted_runs.py --data-root data --results interrupted.jsonl

A seed flips 5 % of the labels and calls `sanitize(data, cache=folder)` in a process of its own, once without
interruption. Then another folder is used: each of ten processes kills itself after a tenth of the steps of progress
bars that the undisturbed run computes (what is restored does not count), and an eleventh finishes. Work is the CPU time
of a process from the call of `sanitize` to its end, so that imports and loading the images do not count. The verdicts,
not their files, whose headers have no fixed order, must agree bit for bit.
"""

import functools
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from harness.datasets import load_mnist
from harness.runs import Figures, Results, benchmark_parser, print_goal, print_table, spread_of, start
from torch.utils.data import TensorDataset

from lightning_poison import sanitize
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization import Verdict

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
    Path(f"{output}.start").write_text(str(time.process_time()))
    runtime = CountingRuntime(limit)
    verdict = sanitize(TensorDataset(images, labels), seed=seed, runtime=runtime, cache=cache)
    verdict.save(f"{output}.safetensors")
    Path(output).write_text(json.dumps({"steps": runtime.steps}))


def launch(data_root: Path, seed: int, cache: str, limit: int, output: str) -> tuple[int, float]:
    """Run a child; return its exit status and the CPU seconds from its call of `sanitize` on."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, __file__, "--child", str(data_root), str(seed), cache, str(limit), output],
        os.environ,
    )
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return status, spent - float(Path(f"{output}.start").read_text())


def differences(first: Verdict, second: Verdict) -> list[str]:
    """Return the names of the tensors that differ, with the largest difference, and `meta` if the rest does."""
    ours, theirs = first.tensors(), second.tensors()
    found = [
        f"{name}: {float((ours[name].double() - theirs[name].double()).abs().max()):.3g}"
        for name in ours
        if ours[name].numpy().tobytes() != theirs[name].numpy().tobytes()
    ]
    return found if first.meta() == second.meta() else [*found, "meta"]


def run_seed(data_root: Path, seed: int) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = f"{folder}/whole", f"{folder}/killed"
        _, seconds = launch(data_root, seed, f"{folder}/cache-1", -1, whole)
        steps = json.loads(Path(whole).read_text())["steps"]
        killing = [launch(data_root, seed, f"{folder}/cache-2", steps // KILLS, killed) for _ in range(KILLS)]
        status, last = launch(data_root, seed, f"{folder}/cache-2", -1, killed)
        assert all(each == -signal.SIGKILL for each, _ in killing), killing
        assert status == 0
        differs = differences(Verdict.load(f"{whole}.safetensors"), Verdict.load(f"{killed}.safetensors"))
        parts = [*(cpu for _, cpu in killing), last]
        return {
            "steps": steps,
            "seconds": seconds,
            "parts": parts,
            "work": sum(parts) / seconds,
            "same": not differs,
            "differs": differs,
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
            ["CPU seconds in all ÷ undisturbed", spread_of(runs, "work", form=".3f")],
        ],
    )
    print_goal("same verdict, bit for bit", [run["same"] for run in runs])
    print_goal(f"CPU seconds in all at most {GOAL} of an undisturbed run", [run["work"] <= GOAL for run in runs])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_child(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]), sys.argv[6])
    else:
        main()
