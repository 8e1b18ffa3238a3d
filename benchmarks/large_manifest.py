"""Time and memory of the manifest of a verdict on ten million samples, one in a hundred of them removed.

    python benchmarks/large_manifest.py --data-root data --results manifest.jsonl

A verdict on 10,000,000 samples of 100 classes, with a posterior, the p-values of two members, and paths, is made from
random numbers. In a process of its own each, the manifest of that verdict is built and written, a second one of a
verdict with one in ten other samples is, the first is read, and both are compared; verdict files are written and read
too. Memory is the peak of the resident memory in a part, minus what verdict, data set and modules had before it. No
data are read.
"""

import argparse
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness.runs import Figures, Results, benchmark_parser, print_goal, print_table, spread_of, start
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import Verdict
from lightning_poison.manifest import Manifest, read_manifest
from lightning_poison.sanitization.evidence import Evidence

CLASSES, WIDTH, REMOVED, OTHER = 100, 8, 0.01, 0.1
PARTS = ("write", "write the second", "read", "compare", "save the verdict", "load the verdict")
SECONDS, GIBIBYTES = 60.0, 1.0
FORMATS = ("csv", "parquet")


class Names(list[Any]):
    """Path and label of each sample, made when they are asked for, so that they need no memory."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        return f"train/class-{index % CLASSES:03d}/image-{index:08d}.jpg", index % CLASSES


class Vectors(Dataset[tuple[Tensor, int]]):
    """Vectors that are made when they are read."""

    def __init__(self, length: int) -> None:
        self.samples = Names(length)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.arange(index, index + WIDTH, dtype=torch.float32), index % CLASSES


def verdict_on(length: int, seed: int, *, second: bool) -> Verdict:
    """Return a verdict; the second one removes one in ten other samples."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(length) % CLASSES
    posterior = torch.rand(length, generator=generator, dtype=torch.float64) * 0.5
    count = int(length * REMOVED)
    order = torch.randperm(length, generator=generator)
    start_at = int(count * OTHER) if second else 0
    removed = order[start_at : start_at + count]
    posterior[removed] += 0.5
    keep = torch.ones(length, dtype=torch.bool)
    keep[removed] = False
    votes = [torch.rand(length, generator=generator, dtype=torch.float64).clamp_min(1e-12) for _ in range(3)]
    return Verdict(
        scores=posterior * 20,
        p_values=votes[0],
        keep=keep,
        labels=labels,
        suggested_labels=(labels + 1) % CLASSES,
        thresholds=torch.full((CLASSES,), torch.inf, dtype=torch.float64),
        evidence=Evidence(True, 0.01, 0.008, 0.012, 0.95, 0.003),
        calibration="wrong-label null",
        false_positive_rate=0.01,
        scorer="combined",
        fingerprint="0123456789abcdef" * 4,
        posterior=posterior,
        posterior_threshold=0.5,
        votes={"likelihood": votes[1], "neighbors": votes[2]},
        sample_digests=torch.arange(length),
    )


def resident(name: str) -> int:
    """Return a figure of the memory of this process: `VmRSS`, what is resident, or `VmHWM`, its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))


def measure(work: Callable[[], Any]) -> Figures:
    """Return what a call takes, in CPU seconds and gibibytes beyond what was resident, and the length of its result."""
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    begin = time.process_time()
    result = work()
    seconds = time.process_time() - begin
    return {"s": seconds, "GiB": max(0, resident("VmHWM") - before) / 2**30, "rows": len(result or ())}


def run_child(part: str, folder: Path, form: str, length: int, seed: int) -> Figures:
    torch.set_num_threads(1)
    first, second = folder / f"first.{form}", folder / f"second.{form}"
    if part.startswith("write"):
        target = second if part.endswith("second") else first
        verdict, dataset = verdict_on(length, seed, second=part.endswith("second")), Vectors(length)
        names = [f"class {number}" for number in range(CLASSES)]

        def write() -> Manifest:
            manifest = Manifest.from_verdict(verdict, dataset, class_names=names)
            manifest.write(target)
            return manifest

        return {**measure(write), "bytes": target.stat().st_size}
    if part == "read":
        return measure(lambda: read_manifest(first))
    if part == "compare":
        differences: list[Any] = []

        def compare() -> list[Any]:
            found = read_manifest(first).diff(read_manifest(second))
            differences.extend([*found.added, *found.removed])
            return differences

        return measure(compare)
    file = folder / "verdict.safetensors"
    if part.startswith("save"):
        verdict = verdict_on(length, seed, second=False)
        return {**measure(lambda: verdict.save(file)), "bytes": file.stat().st_size}
    return measure(lambda: Verdict.load(file))


def run_seed(form: str, length: int, seed: int) -> Figures:
    figures: Figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            command = [sys.executable, __file__, "--child", part, folder, form, str(length), str(seed)]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: S603 (our own)
            figures[part] = json.loads(output.splitlines()[-1])
    manifest = [figures[part] for part in PARTS[:4]]
    figures["manifest"] = {"s": sum(each["s"] for each in manifest), "GiB": max(each["GiB"] for each in manifest)}
    return figures


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=FORMATS)
    args: argparse.Namespace = parser.parse_args()
    start(args, setting=f"{args.samples:,} samples")
    results = Results(args.results)
    for form in args.formats:
        key = {"format": form, "samples": args.samples}
        runs = results.over_seeds(range(args.seeds), key, functools.partial(run_seed, form, args.samples))
        rows = [[name, spread_of(runs, name, "s", form=".1f"), spread_of(runs, name, "GiB", form=".2f")]
                for name in (*PARTS, "manifest")]  # fmt: skip
        print_table([f"{form}", "CPU seconds", "GiB beyond the verdict"], rows)
        print_goal(f"at most {SECONDS:.0f} CPU s", [each["manifest"]["s"] <= SECONDS for each in runs])
        print_goal(f"at most {GIBIBYTES:.0f} GiB", [each["manifest"]["GiB"] <= GIBIBYTES for each in runs])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        name, where, suffix, samples, number = sys.argv[2:]
        print(json.dumps(run_child(name, Path(where), suffix, int(samples), int(number))))
    else:
        main()
