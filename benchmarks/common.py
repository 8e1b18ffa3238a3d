"""What the benchmarks share: images in memory, results that outlive an interruption, goals, and Markdown tables."""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from lightning_poison.serialization import atomic_path

Figures = dict[str, Any]


def arguments(description: str | None, *, seeds: int = 3) -> argparse.ArgumentParser:
    """Return a parser with the arguments of every benchmark; the first line of `description` is its help."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--data-root", type=Path, required=True, help="folder that holds MNIST in torchvision's layout")
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--results", type=Path, help="JSON lines, one a run; runs that stand there are not repeated")
    return parser


def load_mnist(root: Path, *, train: bool) -> tuple[Tensor, Tensor]:
    """Return float32 images `(N, 1, 28, 28)` in [0, 1] and labels `(N,)`."""
    data = torchvision.datasets.MNIST(root, train=train)
    return data.data[:, None].float() / 255, data.targets


def load_cifar(root: Path, *, train: bool, classes: Sequence[int] = tuple(range(10))) -> tuple[Tensor, Tensor]:
    """Return images of CIFAR-10 (JPEG q75), float32 `(N, 3, 32, 32)` in [0, 1], and labels `(N,)`, class by class."""
    folder = torchvision.datasets.ImageFolder(root / "cifar10" / ("train" if train else "test"))
    wanted = [path for path, label in folder.samples if label in classes]
    labels = torch.tensor([label for _, label in folder.samples if label in classes])
    return torch.stack([decode_image(path, ImageReadMode.RGB) for path in wanted]).float() / 255, labels


def timed(measure: Callable[[], Figures]) -> Figures:
    """Return figures and the seconds that they took, `wall_s` and `cpu_s`."""
    wall, cpu = time.perf_counter(), time.process_time()
    figures = measure()
    return {**figures, "wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}


class Results:
    """Figures of finished runs, kept in a file of JSON lines where a path is given.

    Args:
        path: the file; it is written anew, atomically, after each run.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.lines: list[Figures] = []
        if path is not None and path.is_file():
            self.lines = [json.loads(line) for line in path.read_text().splitlines() if line]

    def get(self, key: Figures, measure: Callable[[], Figures]) -> Figures:
        """Return the figures of a run, measured now unless the file has them; `wall_s` and `cpu_s` are added."""
        for line in self.lines:
            if line["key"] == key:
                return line["figures"]
        figures = json.loads(json.dumps(timed(measure)))
        self.lines.append({"key": key, "figures": figures})
        if self.path is not None:
            with atomic_path(self.path) as partial:
                partial.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
        print(f"{json.dumps(key)}: {json.dumps(figures)}", flush=True)
        return figures


def spread(values: Sequence[float], form: str = ".4f") -> str:
    """Return the median and the range of values."""
    if len(values) == 1:
        return f"{values[0]:{form}}"
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a Markdown table."""
    print("\n| " + " | ".join(columns) + " |")
    print("| " + " | ".join("---" for _ in columns) + " |")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(flush=True)


def print_goal(name: str, met: Sequence[bool]) -> None:
    """Print whether a goal is met, over seeds."""
    share = f"{sum(met)} of {len(met)}"
    verdict = "met" if all(met) else "MISSED"
    print(f"- {name}: {verdict} ({share} seeds)")


def print_setting(script: str, args: argparse.Namespace) -> None:
    """Print what the figures depend on besides the code."""
    print(f"{script}: {args.seeds} seeds, {torch.get_num_threads()} thread(s), torch {torch.__version__}", flush=True)
