"""`lightning-poison scan` of CIFAR-10 as JPEG files: time outside of networks, and work that kills lose.

    python benchmarks/scan_killed.py --data-root data --results scan_killed.jsonl --images 10000 --seeds 1

A folder of links to the first images of each class, of which one in twenty is in the folder of another class. It is
scanned once without interruption. Training, scoring, embedding, the tests of groups and the fits of linear classifiers
count as training and forward passes, and the rest is everything else: imports, reading files, calibration,
manifest and report. Then another folder of results is used: five scans are killed with SIGKILL, each at a random moment
of the time that an undisturbed one takes, and a sixth finishes. Both manifests must be the same.
"""

import functools
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from harness.runs import Figures, Results, benchmark_parser, print_goal, print_table, spread_of, start

from lightning_poison.runtime import Progress
from lightning_poison.scorers import linear_probe
from lightning_poison.shell import scan
from lightning_poison.shell.whole_run import WholeRun
from lightning_poison.statistics.logistic_regression import fit_logistic_regression

KILLS, OUTSIDE = 5, 0.15
NETWORKS = ("Fitting", "Scoring", "Extracting", "Testing", "Linear")


class TimedRun(WholeRun):
    """Adds up the seconds of the parts by the first word of their descriptions."""

    seconds: dict[str, float]

    @contextmanager
    def progress(self, total: int, description: str) -> Iterator[Progress]:
        """Measure how long a part takes."""
        begin, word = time.perf_counter(), description.split(maxsplit=1)[0]
        with super().progress(total, description) as part:
            yield part
        TimedRun.seconds[word] = TimedRun.seconds.get(word, 0.0) + time.perf_counter() - begin


def timed_fit(*arguments: Any, **settings: Any) -> Any:
    """Fit a linear classifier, which is training without a progress bar of its own."""
    begin = time.perf_counter()
    found = fit_logistic_regression(*arguments, **settings)
    TimedRun.seconds["Linear"] = TimedRun.seconds.get("Linear", 0.0) + time.perf_counter() - begin
    return found


def run_child(folder: str, output: str) -> None:
    TimedRun.seconds = {}
    fits = mock.patch.object(linear_probe, "fit_logistic_regression", timed_fit)
    with mock.patch.object(scan, "WholeRun", TimedRun), fits:
        status = scan.run_scan(folder, scan.ScanOptions(Path(output)), write=lambda _: None)
    Path(f"{output}.json").write_text(json.dumps({"status": status, "seconds": TimedRun.seconds}))


def link_images(source: Path, folder: Path, count: int, seed: int) -> None:
    """Link images of each class; one in twenty is put into the folder of another class."""
    classes = sorted(path.name for path in source.iterdir() if path.is_dir())
    generator = torch.Generator().manual_seed(seed)
    for number, name in enumerate(classes):
        for position, file in enumerate(sorted((source / name).iterdir())[: count // len(classes)]):
            other = int(torch.randint(1, len(classes), (1,), generator=generator))
            own = classes[(number + other) % len(classes)] if position % 20 == 0 else name
            link = folder / own / f"{name}-{file.name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            os.link(file, link)


def launch(folder: Path, output: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, __file__, "--child", str(folder), str(output)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)  # noqa: S603 (our own program)


def measure(root: Path, images: int, kills: int, seed: int) -> Figures:
    with tempfile.TemporaryDirectory(dir=root) as name:
        folder, whole, killed = (Path(name) / part for part in ("images", "whole", "killed"))
        link_images(root / "cifar10" / "train", folder, images, seed)
        begin = time.perf_counter()
        assert launch(folder, whole).wait() in (0, None)
        seconds = time.perf_counter() - begin
        parts = json.loads(Path(f"{whole}.json").read_text())["seconds"]
        inside = sum(parts.get(word, 0.0) for word in NETWORKS)
        figures: Figures = {
            "minutes": seconds / 60,
            "outside": 1 - inside / seconds,
            "reading": parts.get("Reading", 0.0) / seconds,
        }
        if not kills:
            return figures
        moments = torch.rand(kills, generator=torch.Generator().manual_seed(seed)) * seconds
        total = 0.0
        for moment in moments.tolist():
            child, begin = launch(folder, killed), time.perf_counter()
            try:
                child.wait(moment)
            except subprocess.TimeoutExpired:
                child.send_signal(signal.SIGKILL)
                child.wait()
            total += time.perf_counter() - begin
        begin = time.perf_counter()
        assert launch(folder, killed).wait() == 0
        total += time.perf_counter() - begin
        same = (whole / scan.MANIFEST).read_bytes() == (killed / scan.MANIFEST).read_bytes()
    return figures | {"killed ÷ undisturbed": total / seconds, "same": same}


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--kills", type=int, default=KILLS, help="0 measures undisturbed scans only")
    args = parser.parse_args()
    start(args)
    run = functools.partial(measure, args.data_root, args.images, args.kills)
    key = {"images": args.images} if args.kills else {"images": args.images, "kills": 0}
    runs = Results(args.results).over_seeds(range(args.seeds), key, run)
    forms = {"minutes": ".1f", "outside": ".3f", "reading": ".3f"}
    if args.kills:
        forms["killed ÷ undisturbed"] = ".2f"
    print_table(["", "median (range)"], [[name, spread_of(runs, name, form=form)] for name, form in forms.items()])
    print_goal(f"at most {OUTSIDE} of the time outside of networks", [each["outside"] <= OUTSIDE for each in runs])
    if args.kills:
        print_goal("the manifest of the killed scans is the same", [each["same"] for each in runs])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        run_child(sys.argv[2], sys.argv[3])
    else:
        main()
