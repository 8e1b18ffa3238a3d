"""All checks that need a GPU, in one table and within a budget of time: one NVIDIA card, ten minutes.

    python benchmarks/on_gpu.py --data-root data --results on_gpu.jsonl

From the most to the least important:

1. `tests`: the tests with the marker `gpu`.
2. `sanitizing`: `sanitize(data)` on 50,000 CIFAR-10 images in memory, with the default scorer and nothing trusted: its
   seconds, and the share of the time in which the device is busy while networks are fitted and samples are scored, by
   `nvidia-smi` (utilization: at least one kernel runs).
3. `training`: ResNet-18 in a Trainer, bf16, batches of 128 from memory, on the same images. Two epochs are timed after
   a first one, and multiplied to 30. The seconds of 2 are divided by them.
4. `adversarial`: PGD-10 training of a compiled ResNet-18 in bf16, with `AdversarialTraining` and with the attack
   written out in the module: 50 steps of each after 15 others, three times in alternation; the median of the ratios.
5. `scoring`: a scoring pass divided by a bare inference loop, as in `scoring_overhead.py`, on 10,000 images in memory.

Each runs in a process of its own. One that fails is reported with its reason, and the others still run; one for which
the budget does not suffice is skipped. Those that are finished are stored in the file `--results` and not repeated, so
that a second call continues. Without a CUDA device, the table says "not run".

`--device cpu --quick` runs the same code on a few images, without bf16 and compiling, to try it. Its figures mean
nothing.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from harness.runs import Figures, Results, print_table

Shown = tuple[str, bool]
"""A figure as text, and whether it meets the goal."""

SECONDS_NEEDED = {"tests": 100, "sanitizing": 60, "training": 45, "adversarial": 90, "scoring": 20}
"""Seconds that must be left of the budget to start a measurement, in the order of importance."""


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Args:
        what: What is shown.
        goal: The goal.
        needs: The measurements that it is computed from.
        show: Computes it from their figures.
    """

    what: str
    goal: str
    needs: Sequence[str]
    show: Callable[..., Shown]


def show_tests(tests: Figures) -> Shown:
    return f"{tests['passed']} passed, {tests['failed']} failed", tests["passed"] > 0 and not tests["failed"]


def show_seconds(sanitizing: Figures) -> Shown:
    return f"{sanitizing['seconds']:.1f} s ({sanitizing['images']:,} images)", sanitizing["seconds"] <= 60


def show_busy(sanitizing: Figures) -> Shown:
    if sanitizing["busy"] is None:
        return "not measured: no utilization from `nvidia-smi`", False
    return f"{sanitizing['busy']:.2f} ({sanitizing['busy_in_all']:.2f} of the whole call)", sanitizing["busy"] >= 0.9


def show_share(sanitizing: Figures, training: Figures) -> Shown:
    ratio = sanitizing["seconds"] / training["seconds"]
    return f"{ratio:.3f} (training {training['seconds']:.0f} s, epoch {training['epoch_s']:.1f} s)", ratio <= 0.25


def show_adversarial(adversarial: Figures) -> Shown:
    callback, by_hand = (min(adversarial[f"{way}_ms"]) for way in ("callback", "by_hand"))
    text = f"{adversarial['ratio']:.3f} (steps of {callback:.1f} and {by_hand:.1f} ms)"
    return text, adversarial["ratio"] <= 1.03


def show_scoring(scoring: Figures) -> Shown:
    return f"{scoring['ratio']:.3f} ({scoring['library_s']:.2f} s and {scoring['bare_s']:.2f} s)", scoring[
        "ratio"
    ] <= 1.05


LINES = [
    Line("tests with the marker `gpu`", "all pass", ["tests"], show_tests),
    Line("default sanitizing, CIFAR-10, nothing trusted", "≤ 60 s", ["sanitizing"], show_seconds),
    Line("device busy while it fits and scores", "≥ .90", ["sanitizing"], show_busy),
    Line("default sanitizing ÷ 30 epochs of ResNet-18", "≤ .25", ["sanitizing", "training"], show_share),
    Line("PGD-10 training, callback ÷ by hand", "≤ 1.03", ["adversarial"], show_adversarial),
    Line("scoring pass ÷ bare inference loop", "≤ 1.05", ["scoring"], show_scoring),
]


def run_apart(command: Sequence[str], seconds: float) -> tuple[str, str | None]:
    """Run a command in a process of its own.

    Args:
        command: The command.
        seconds: Time after which it is killed, together with what it has started.

    Returns:
        What it printed, and why it failed; `None` if it did not.
    """
    with subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        try:
            printed, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return process.communicate()[0], f"not finished after {seconds:.0f} s"
    if process.returncode:
        lines = [line.strip() for line in printed.splitlines() if line.strip()]
        return printed, lines[-1][:200] if lines else f"exit code {process.returncode}"
    return printed, None


def measure_apart(name: str, args: argparse.Namespace, seconds: float) -> tuple[Figures | None, str]:
    """Measure in a process of its own, and return the figures or why there are none."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "figures.json"
        command = [sys.executable, __file__, "--measure", name, "--output", str(output), "--device", args.device]
        command += ["--quick"] * args.quick + (["--data-root", str(args.data_root)] if args.data_root else [])
        printed, reason = run_apart(command, seconds)
        print(printed, end="", flush=True)
        if reason is not None:
            return None, f"failed: {reason}"
        return json.loads(output.read_text()), "done"


def measure_here(name: str, args: argparse.Namespace) -> None:
    """Measure in this process and write the figures."""
    from harness.gpu_rows import MEASUREMENTS, Setting

    figures = MEASUREMENTS[name](Setting(args.device, args.quick, args.data_root))
    args.output.write_text(json.dumps(figures))


def measure_all(args: argparse.Namespace) -> tuple[dict[str, Figures], dict[str, str]]:
    """Return the figures of each measurement, and what became of those that have none."""
    device = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    results, end = Results(args.results), time.monotonic() + 60 * args.budget_minutes
    found: dict[str, Figures] = {}
    status: dict[str, str] = {}
    for name, needed in SECONDS_NEEDED.items():
        key = {"row": name, "device": device, "quick": args.quick}
        figures, left = results.find(key), end - time.monotonic()
        if figures is None and left < (0 if args.quick else needed):
            status[name] = f"skipped: {max(0, left):.0f} s are left of the budget, and it needs about {needed} s"
            continue
        if figures is None:
            figures, status[name] = measure_apart(name, args, left)
            if figures is not None and not figures.get("failed"):
                results.store(key, figures)
        if figures is not None:
            found[name] = figures
    return found, status


def table(found: dict[str, Figures], status: dict[str, str], *, quick: bool) -> list[list[str]]:
    """Return the lines of the table; `status` says why a measurement has no figures."""
    rows = []
    for line in LINES:
        missing = [name for name in line.needs if name not in found]
        if missing:
            text, met = status.get(missing[0], "not run"), ""
        else:
            text, is_met = line.show(*(found[name] for name in line.needs))
            met = "" if quick else "yes" if is_met else "no"
        rows.append([line.what, line.goal, text.replace("|", "/"), met])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data-root", type=Path, help="folder with cifar10/train/CLASS/*.jpg")
    parser.add_argument("--results", type=Path, help="JSON lines file of finished measurements, which are not repeated")
    parser.add_argument("--budget-minutes", type=float, default=10, help="default: 10")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="default: cuda")
    parser.add_argument("--quick", action="store_true", help="a few images, to try the code")
    parser.add_argument("--measure", choices=list(SECONDS_NEEDED), help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        measure_here(args.measure, args)
        return
    found: dict[str, Figures] = {}
    status: dict[str, str] = {}
    if args.device == "cpu" or torch.cuda.is_available():
        found, status = measure_all(args)
    else:
        print("PyTorch sees no CUDA device.")
    print_table(["check", "goal", "result", "met"], table(found, status, quick=args.quick))
    for name, seconds in found.get("sanitizing", {}).get("parts", {}).items():
        print(f"- {name}: {seconds:.1f} s of the default sanitizing")


if __name__ == "__main__":
    main()
