"""What `sanitize(data)` does with small data sets: clean, with wrong labels, and with copies of samples.

    python benchmarks/small_sets.py --data-root data --results small.jsonl

Without a scorer, trusted data or any other choice. Data: scikit-learn's iris, wine and breast cancer, as they are (not
standardized), and subsets of its digits. *Clean*: the data as they are, in another order in each seed. *Flips*: 10 % of
the labels are exchanged for another class. *Copies*: 400 digits, 1 of 12 mislabeled, 16 copies of each in turn. Nothing
is read from `--data-root`. Seconds are CPU seconds of one thread.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from harness.runs import Figures, Results, benchmark_parser, print_table, share, spread_of, start, with_cpu_seconds
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_poison import sanitize
from lightning_poison.errors import InconclusiveError, NothingKeptError
from lightning_poison.runtime import LocalRuntime

FLIPPED, COPIES, COPIED = 0.1, 16, 400


def vectors(load: Callable[..., Any]) -> tuple[Tensor, Tensor]:
    features, labels = load(return_X_y=True)
    return torch.tensor(features).float(), torch.tensor(labels).long()


def digits(count: int) -> tuple[Tensor, Tensor]:
    images, labels = vectors(load_digits)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:count]
    return images[order].view(-1, 1, 8, 8) / 16, labels[order]


DATA = {
    "iris": functools.partial(vectors, load_iris),
    "wine": functools.partial(vectors, load_wine),
    "breast cancer": functools.partial(vectors, load_breast_cancer),
    **{f"digits, {count:,}": functools.partial(digits, count) for count in (100, 200, 300, 600, 1797)},
}


def decided(inputs: Tensor, labels: Tensor, wrong: Tensor, seed: int) -> Figures:
    data, runtime = TensorDataset(inputs, labels), LocalRuntime(threads=1)
    try:
        verdict, seconds = with_cpu_seconds(lambda: sanitize(data, seed=seed, runtime=runtime))
    except InconclusiveError as error:
        return {"refused": str(error)}
    except NothingKeptError as error:
        return {"refused": str(error)}
    removed = ~verdict.keep
    return {
        "samples": len(labels),
        "removed": int(removed.sum()),
        "lost": share(removed[~wrong]),
        "caught": share(removed[wrong]) if wrong.any() else None,
        "present": verdict.evidence.present,
        "power": verdict.evidence.power,
        "seconds": seconds,
    }


def measure(load: Callable[[], tuple[Tensor, Tensor]], flipped: float, seed: int) -> Figures:
    inputs, labels = load()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    inputs, labels = inputs[order], labels[order].clone()
    wrong, classes = torch.zeros(len(labels), dtype=torch.bool), int(labels.max()) + 1
    wrong[torch.randperm(len(labels), generator=generator)[: round(flipped * len(labels))]] = True
    moved = torch.randint(1, classes, (len(labels),), generator=generator)
    return decided(inputs, torch.where(wrong, (labels + moved) % classes, labels), wrong, seed)


def measure_copies(copies: int, seed: int) -> Figures:
    inputs, labels = digits(COPIED)
    place = torch.arange(COPIED)
    wrong = place % 12 == seed % 12
    labels = torch.where(wrong, (labels + 1 + place // 12 % 9) % 10, labels)
    return decided(inputs.repeat(copies, 1, 1, 1), labels.repeat(copies), wrong.repeat(copies), seed)


def row(name: str, runs: list[Figures]) -> list[str]:
    judged = [run for run in runs if "refused" not in run]
    refused = f"{len(runs) - len(judged)} of {len(runs)}"
    if not judged:
        return [name, *["-"] * 6, refused]
    forms = {"removed": ".0f", "lost": ".4f", "caught": ".2f", "power": ".2f", "seconds": ".1f"}
    known = {key: [run for run in judged if run[key] is not None] for key in forms}
    figures = [spread_of(known[key], key, form=form) if known[key] else "-" for key, form in forms.items()]
    evidence = f"{sum(run['present'] for run in judged)} of {len(judged)}"
    return [name, *figures, evidence, refused]


def main() -> None:
    args = benchmark_parser(__doc__).parse_args()
    start(args)
    results = Results(args.results)
    rows = []
    for title, flipped in (("clean", 0.0), ("flips", FLIPPED)):
        for name, load in DATA.items():
            key = {"data": name, "flipped": flipped}
            runs = results.over_seeds(range(args.seeds), key, functools.partial(measure, load, flipped))
            rows.append(row(f"{name}, {title}", runs))
    for copies in (1, COPIES):
        runs = results.over_seeds(range(args.seeds), {"copies": copies}, functools.partial(measure_copies, copies))
        rows.append(row(f"digits, {COPIED}, flips, {copies} of each", runs))
    columns = ["data", "removed", "clean lost", "caught", "power", "CPU s", "evidence", "refused"]
    print_table(columns, rows)


if __name__ == "__main__":
    main()
