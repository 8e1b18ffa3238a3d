"""Work that is lost when a run is killed ten times with SIGKILL and resumed: MNIST, 10,000 images, default scorer.

    python benchmarks/interrupted_runs.py --data-root data --results interrupted.jsonl

A seed flips 5 % of the labels and calls `sanitize(data, cache=folder)` in a process of its own, once without
interruption. Then another folder is used: each of ten processes kills itself after a tenth of the steps of progress
bars that the undisturbed run computes (what is restored does not count), and an eleventh finishes. Work is the CPU time
of a process from the call of `sanitize` to its end, so that imports and loading the images do not count. The verdicts,
not their files, whose headers have no fixed order, must agree bit for bit.

With `--ranks 2`, the undisturbed run has two ranks of a Trainer, and one rank of a run is killed as soon as all ranks
together have computed a tenth of the steps. The runs have two, two, one, two and three ranks in turn, so that each
number of ranks continues what two have begun. Work is the CPU time of all ranks from the call of `sanitize` to their
ends.
"""

import functools
import json
import logging
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
from torch.utils.data import TensorDataset

from lightning_poison import sanitize
from lightning_poison.runtime import LocalRuntime, Progress, Runtime
from lightning_poison.sanitization import Verdict

FLIPPED, KILLS = 0.05, 10
WORLDS = (2, 2, 1, 2, 3)
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


def mislabeled(data_root: Path, count: int, seed: int) -> TensorDataset:
    images, labels = load_mnist(data_root, train=True)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(images), generator=generator)[:count]
    images, labels, flipped = images[chosen], labels[chosen].clone(), int(FLIPPED * count)
    labels[:flipped] = (labels[:flipped] + torch.randint(1, 10, (flipped,), generator=generator)) % 10
    return TensorDataset(images, labels)


def run_child(data_root: Path, count: int, seed: int, cache: str, limit: int, output: str) -> None:
    torch.set_num_threads(1)
    data = mislabeled(data_root, count, seed)
    Path(f"{output}.start").write_text(str(time.process_time()))
    runtime = CountingRuntime(limit)
    verdict = sanitize(data, seed=seed, runtime=runtime, cache=cache)
    verdict.save(f"{output}.safetensors")
    Path(output).write_text(json.dumps({"steps": runtime.steps}))


def launch(data_root: Path, count: int, seed: int, cache: str, limit: int, output: str) -> tuple[int, float]:
    """Run a child; return its exit status and the CPU seconds from its call of `sanitize` on."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    pid = os.posix_spawn(
        sys.executable,
        [sys.executable, __file__, "--child", str(data_root), str(count), str(seed), cache, str(limit), output],
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


def run_seed(data_root: Path, count: int, seed: int) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = f"{folder}/whole", f"{folder}/killed"
        _, seconds = launch(data_root, count, seed, f"{folder}/cache-1", -1, whole)
        steps = json.loads(Path(whole).read_text())["steps"]
        killing = [launch(data_root, count, seed, f"{folder}/cache-2", steps // KILLS, killed) for _ in range(KILLS)]
        status, last = launch(data_root, count, seed, f"{folder}/cache-2", -1, killed)
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


class RankLauncher:
    """Starts runs on several ranks that share a cache.

    Args:
        data_root: Folder of MNIST.
        count: Number of images.
        seed: Seed of data and decision.
        folder: Folder of all files of this launcher.
    """

    def __init__(self, data_root: Path, count: int, seed: int, folder: Path) -> None:
        self._data_root, self._count, self._seed, self._folder = data_root, count, seed, folder
        self.verdict = folder / "verdict.safetensors"
        folder.mkdir()

    def launch(self, world: int, *, limit: int = -1, victim: int = 0) -> tuple[list[int], int, float]:
        """Run on `world` ranks; once all have computed `limit` steps, kill one. Return statuses, steps, CPU seconds."""
        steps, pids = multiprocessing.Value("q", 0), multiprocessing.Array("q", world)

        def run(rank: int) -> None:
            silence_lightning()
            logging.disable()
            os.environ["TQDM_DISABLE"] = "1"
            pids[rank] = os.getpid()
            data = mislabeled(self._data_root, self._count, self._seed)

            def count(done: int) -> None:
                with steps.get_lock():
                    steps.value += done == 1
                    is_over = done == 1 and steps.value == limit
                    if is_over and victim != rank:
                        os.kill(pids[victim], signal.SIGKILL)
                if is_over and victim == rank:  # without the lock, for which the other ranks would wait
                    os.kill(os.getpid(), signal.SIGKILL)

            def work(runtime: Runtime) -> None:
                runtime.agree()
                (self._folder / f"start-{rank}").write_text(str(time.process_time()))
                runtime.progress = _counted(runtime.progress, count)  # type: ignore[method-assign]
                verdict = sanitize(data, seed=self._seed, runtime=runtime, cache=self._folder / "cache")
                if rank == 0:
                    verdict.save(self.verdict)

            with_runtime(world, work, self._folder)

        ended = run_ranks(world, run)
        before = sum(float((self._folder / f"start-{rank}").read_text()) for rank in range(world))
        return [each.status for each in ended], steps.value, sum(each.cpu_seconds for each in ended) - before


def _counted(progress: Callable[..., Any], count: Callable[[int], None]) -> Callable[..., Any]:
    @contextmanager
    def counted(total: int, description: str) -> Iterator[Progress]:
        with progress(total, description) as bar:
            yield _CountedProgress(bar, count)

    return counted


class _CountedProgress:
    def __init__(self, bar: Progress, count: Callable[[int], None]) -> None:
        self._bar, self._count = bar, count

    def advance(self, steps: int = 1) -> None:
        self._count(steps)
        self._bar.advance(steps)


def run_ranks_of_seed(data_root: Path, count: int, seed: int) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        whole, killed = (RankLauncher(data_root, count, seed, Path(folder, name)) for name in ("whole", "killed"))
        statuses, steps, seconds = whole.launch(2)
        assert statuses == [0, 0], statuses
        parts, worlds = [], []
        for number in range(KILLS + 1):
            world = WORLDS[number % len(WORLDS)]
            limit = steps // KILLS if number < KILLS else -1
            statuses, _, cpu = killed.launch(world, limit=limit, victim=number % world)
            parts.append(cpu)
            worlds.append(world)
            if not any(statuses):
                break
            assert -signal.SIGKILL in statuses, statuses
        differs = differences(Verdict.load(whole.verdict), Verdict.load(killed.verdict))
        kills = len(parts) - 1
        return {"steps": steps, "seconds": seconds, "parts": parts, "worlds": worlds, "kills": kills} | {
            "work": sum(parts) / seconds,
            "same": not differs,
            "differs": differs,
        }


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--images", type=int, default=10_000, help="number of images; default: 10,000")
    parser.add_argument("--ranks", type=int, choices=(1, 2), default=1, help="2: kill one of several ranks; default: 1")
    args = parser.parse_args()
    start(args, setting=f"{args.images:,} images, {args.ranks} ranks")
    measure = functools.partial(run_seed if args.ranks == 1 else run_ranks_of_seed, args.data_root, args.images)
    key = {"images": args.images, "ranks": args.ranks}
    runs = Results(args.results).over_seeds(range(args.seeds), key, measure)
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
        run_child(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], int(sys.argv[6]), sys.argv[7])
    else:
        main()
