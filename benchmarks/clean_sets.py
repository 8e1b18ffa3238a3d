"""What `sanitize(data)` removes of clean data, without a scorer or any other choice: it should be nothing.

    python benchmarks/clean_sets.py --data-root data --results clean.jsonl --seeds 5

MNIST and CIFAR-10 twice, as disjoint halves of what is drawn in each seed; all of MNIST; 1,000 images of each of two to
five classes of CIFAR-10; scikit-learn's digits, breast cancer and wine; and 20,000 synthetic samples with the columns
of a forest cover survey: ten quantities of scales from 1 to 5,000, 44 binary columns, and seven classes, whose shares
are those of covertype, with 6 % of the samples so close to another class that they are hard. Nothing else is wrong with
these samples; MNIST and CIFAR-10 have wrong labels of their own, of which removing a few is no fault (goal: at most
.3 %). Seconds are CPU seconds of one thread.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from harness.datasets import load_cifar, load_mnist
from harness.runs import Figures, Results, benchmark_parser, print_table, spread_of, start, with_cpu_seconds
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from small_sets import vectors
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_poison import sanitize
from lightning_poison.errors import InconclusiveError, NothingKeptError
from lightning_poison.runtime import LocalRuntime

MOST_REMOVED = 0.003
COVER_SHARES = (0.365, 0.488, 0.062, 0.005, 0.016, 0.03, 0.034)

Load = Callable[[Path, int], tuple[Tensor, Tensor]]


def images(
    load: Callable[..., tuple[Tensor, Tensor]], count: int, part: int, root: Path, seed: int
) -> tuple[Tensor, Tensor]:
    """Return a part of the images of a seed."""
    inputs, labels = load(root, train=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1000 + seed))
    chosen = order[part * count : (part + 1) * count]
    return inputs[chosen], labels[chosen]


def few_classes(chosen: Sequence[int], root: Path, seed: int) -> tuple[Tensor, Tensor]:
    """Return 1,000 images of CIFAR-10 of each of a few classes."""
    inputs, labels = load_cifar(root, train=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1000 + seed))
    places = torch.cat([order[labels[order] == number][:1000] for number in chosen])
    places = places[torch.randperm(len(places), generator=torch.Generator().manual_seed(seed))]
    numbers = torch.zeros(10, dtype=torch.int64).index_put((torch.tensor(chosen),), torch.arange(len(chosen)))
    return inputs[places], numbers[labels[places]]


def table(load: Callable[..., object], _root: Path, seed: int) -> tuple[Tensor, Tensor]:
    inputs, labels = vectors(load)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return inputs[order], labels[order]


def cover_survey(_root: Path, seed: int) -> tuple[Tensor, Tensor]:
    """Draw samples of seven classes of very different sizes, with columns of very different scales."""
    generator = torch.Generator().manual_seed(seed)
    shares = torch.tensor(COVER_SHARES)
    labels = torch.multinomial(shares, 20_000, replacement=True, generator=generator)
    centers = 0.6 * torch.randn(7, 10, generator=torch.Generator().manual_seed(99))
    hard = torch.rand(len(labels), generator=generator) < 0.06
    other = torch.multinomial(shares, len(labels), replacement=True, generator=generator)
    nearness = torch.where(hard, 0.45, 0.0)[:, None]
    middle = (1 - nearness) * centers[labels] + nearness * centers[other]
    quantities = middle + torch.randn(len(labels), 10, generator=generator)
    scales = torch.tensor([5000.0, 360, 60, 1400, 600, 7000, 250, 250, 250, 1])
    soil = torch.multinomial(
        torch.ones(7, 40).scatter(1, torch.arange(40).view(1, 40) % 7, 8.0)[labels], 1, generator=generator
    )
    area = torch.multinomial(torch.ones(len(labels), 4), 1, generator=generator)
    binary = torch.cat(
        [torch.zeros(len(labels), 4).scatter(1, area, 1), torch.zeros(len(labels), 40).scatter(1, soil, 1)], 1
    )
    return torch.cat([2 * scales + quantities * scales / 4, binary], 1), labels


DATA: dict[str, Load] = {
    "digits": functools.partial(table, load_digits),
    "breast cancer": functools.partial(table, load_breast_cancer),
    "wine": functools.partial(table, load_wine),
    "cover survey": cover_survey,
    "CIFAR-10, airplanes and cars": functools.partial(few_classes, (0, 1)),
    "CIFAR-10, cats and dogs": functools.partial(few_classes, (3, 5)),
    "CIFAR-10, three animals": functools.partial(few_classes, (3, 4, 5)),
    "CIFAR-10, five animals": functools.partial(few_classes, (2, 3, 4, 5, 7)),
    "MNIST 10,000, first": functools.partial(images, load_mnist, 10_000, 0),
    "MNIST 10,000, second": functools.partial(images, load_mnist, 10_000, 1),
    "CIFAR-10 20,000, first": functools.partial(images, load_cifar, 20_000, 0),
    "CIFAR-10 20,000, second": functools.partial(images, load_cifar, 20_000, 1),
    "MNIST 60,000": functools.partial(images, load_mnist, 60_000, 0),
}


def measure(load: Load, root: Path, seed: int) -> Figures:
    data = TensorDataset(*load(root, seed))
    try:
        verdict, seconds = with_cpu_seconds(lambda: sanitize(data, seed=seed, runtime=LocalRuntime(threads=1)))
    except (InconclusiveError, NothingKeptError) as error:
        return {"samples": len(data), "refused": str(error)}
    removed = int((~verdict.keep).sum())
    return {
        "samples": len(data),
        "removed": removed,
        "share": removed / len(data),
        "evidence": verdict.evidence.present,
        "estimate": verdict.evidence.contamination,
        "power": verdict.evidence.power,
        "seconds": seconds,
    }


def row(name: str, runs: Sequence[Figures]) -> list[str]:
    judged = [run for run in runs if "refused" not in run]
    counts = [f"{len(runs)}", f"{len(runs) - len(judged)}"]
    if not judged:
        return [name, *counts, *["-"] * 6]
    figures = [
        spread_of(judged, key, form=form) for key, form in (("removed", ".0f"), ("share", ".4f"), ("estimate", ".4f"))
    ]
    powers = [run for run in judged if run["power"] is not None]
    evidence = f"{sum(bool(run['evidence']) for run in judged)}"
    power = spread_of(powers, "power", form=".2f") if powers else "-"
    return [name, *counts, evidence, *figures, power, spread_of(judged, "seconds", form=".0f")]


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--data", action="append", choices=list(DATA), help="judge only these; may be repeated")
    args = parser.parse_args()
    start(args)
    results = Results(args.results)
    rows, every = [], []
    for name in args.data or DATA:
        run = functools.partial(measure, DATA[name], args.data_root)
        runs = results.over_seeds(range(20, 20 + args.seeds), {"clean": name}, run)
        rows.append(row(name, runs))
        every += runs
    print_table(["data", "runs", "refused", "evidence", "removed", "share", "estimate", "power", "CPU s"], rows)
    nothing = sum(run.get("removed") == 0 or "refused" in run for run in every)
    most = max((run.get("share", 0.0) for run in every), default=0.0)
    print(
        f"Nothing removed in {nothing} of {len(every)} runs, and at most {100 * most:.2f} % "
        f"(goal {100 * MOST_REMOVED:g} %)."
    )


if __name__ == "__main__":
    main()
