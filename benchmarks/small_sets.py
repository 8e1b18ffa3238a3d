"""What `sanitize(data)` does with small data sets: clean, with wrong labels, and with copies of samples.

    python benchmarks/small_sets.py --data-root data --results small.jsonl
    python benchmarks/small_sets.py --data-root data --results small.jsonl --photos features.pt

Without a scorer, trusted data or any other choice. Data: scikit-learn's iris, wine and breast cancer, as they are (not
standardized), and subsets of its digits. *Clean*: the data as they are, in another order in each seed. *Flips*: 10 % of
the labels are exchanged for another class. *Copies*: 400 digits, 1 of 12 mislabeled, 16 copies of each in turn.

With `--photos`: features of CIFAR-10's training images, by the encoder that comes with `FeatureModel`, with
`LinearProbeScorer`. Other images in each seed; five classes are birds, cats, deer, dogs and horses, two are cats and
dogs. The features are computed once and stored in the file. Otherwise, nothing is read from `--data-root`.

What is lost of the clean samples is given as the mean over the seeds, beside median and range: in a small set, one
sample is a large share. Seconds are CPU seconds of one thread.
"""

import functools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness.datasets import load_cifar
from harness.runs import Figures, Results, benchmark_parser, print_table, share, spread_of, start, with_cpu_seconds
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from lightning_poison import sanitize
from lightning_poison.data import EmbeddingDataset
from lightning_poison.errors import InconclusiveError, NothingKeptError
from lightning_poison.models.pretrained import EMBEDDED
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers import FeatureModel, LinearProbeScorer
from lightning_poison.serialization import atomic_path

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

CLASSES = {10: range(10), 5: (2, 3, 4, 5, 7), 2: (3, 5)}
PHOTOS = ((600, 10), (1000, 10), (2000, 10), (2000, 5), (2000, 2))
AT_ONCE = 250


def decided(data: Dataset[Any], wrong: Tensor, seed: int, *scorer: LinearProbeScorer) -> Figures:
    runtime = LocalRuntime(threads=1)
    try:
        verdict, seconds = with_cpu_seconds(lambda: sanitize(data, *scorer, seed=seed, runtime=runtime))
    except InconclusiveError as error:
        return {"refused": str(error)}
    except NothingKeptError as error:
        return {"refused": str(error)}
    removed = ~verdict.keep
    return {
        "samples": len(wrong),
        "removed": int(removed.sum()),
        "lost": share(removed[~wrong]),
        "caught": share(removed[wrong]) if wrong.any() else None,
        "present": verdict.evidence.present,
        "power": verdict.evidence.power,
        "seconds": seconds,
    }


def flips(labels: Tensor, share: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Exchange a share of the labels for others, and return them with the mask of the wrong ones."""
    wrong, classes = torch.zeros(len(labels), dtype=torch.bool), int(labels.max()) + 1
    wrong[torch.randperm(len(labels), generator=generator)[: round(share * len(labels))]] = True
    moved = torch.randint(1, classes, (len(labels),), generator=generator)
    return torch.where(wrong, (labels + moved) % classes, labels), wrong


def measure(load: Callable[[], tuple[Tensor, Tensor]], flipped: float, seed: int) -> Figures:
    inputs, labels = load()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    given, wrong = flips(labels[order], flipped, generator)
    return decided(TensorDataset(inputs[order], given), wrong, seed)


def features_of(path: Path, data_root: Path) -> tuple[Tensor, Tensor]:
    """Return features and labels of CIFAR-10's training images, from a file, which is written if it does not exist."""
    if not path.is_file():
        images, labels = load_cifar(data_root, train=True)
        model = FeatureModel(EMBEDDED)
        with torch.no_grad():
            features = torch.cat([model.features(part) for part in torch.split(images, AT_ONCE)])
        with atomic_path(path) as partial_file:
            torch.save({"features": features, "labels": labels}, partial_file)
    stored = torch.load(path, weights_only=True)
    return stored["features"], stored["labels"]


def measure_photos(features: Tensor, truth: Tensor, count: int, classes: int, flipped: float, seed: int) -> Figures:
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.tensor(CLASSES[classes])
    order = torch.randperm(len(truth), generator=generator)
    order = order[torch.isin(truth[order], chosen)][:count]
    labels, wrong = flips(torch.searchsorted(chosen, truth[order]), flipped, generator)
    scorer = LinearProbeScorer(FeatureModel("auto"))
    return decided(EmbeddingDataset(features[order], labels), wrong, seed, scorer)


def measure_copies(copies: int, seed: int) -> Figures:
    inputs, labels = digits(COPIED)
    place = torch.arange(COPIED)
    wrong = place % 12 == seed % 12
    labels = torch.where(wrong, (labels + 1 + place // 12 % 9) % 10, labels)
    data = TensorDataset(inputs.repeat(copies, 1, 1, 1), labels.repeat(copies))
    return decided(data, wrong.repeat(copies), seed)


def row(name: str, runs: list[Figures]) -> list[str]:
    judged = [run for run in runs if "refused" not in run]
    refused = f"{len(runs) - len(judged)} of {len(runs)}"
    if not judged:
        return [name, *["-"] * 7, refused]
    forms = {"removed": ".0f", "lost": ".4f", "caught": ".2f", "power": ".2f", "seconds": ".1f"}
    known = {key: [run for run in judged if run[key] is not None] for key in forms}
    figures = [spread_of(known[key], key, form=form) if known[key] else "-" for key, form in forms.items()]
    evidence = f"{sum(run['present'] for run in judged)} of {len(judged)}"
    mean = f"{statistics.mean(run['lost'] for run in judged):.4f}"
    return [name, figures[0], mean, *figures[1:], evidence, refused]


def rows_of_photos(path: Path, data_root: Path, results: Results, seeds: int) -> list[list[str]]:
    features, truth = features_of(path, data_root)
    rows = []
    for title, flipped in (("clean", 0.0), ("flips", FLIPPED)):
        for count, classes in PHOTOS:
            key = {"photos": count, "classes": classes, "flipped": flipped}
            run = functools.partial(measure_photos, features, truth, count, classes, flipped)
            name = f"{count:,} photos of {classes} classes, {title}"
            rows.append(row(name, results.over_seeds(range(seeds), key, run)))
    return rows


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--photos", type=Path, metavar="FILE", help="only photos; features are stored in this file")
    args = parser.parse_args()
    start(args)
    results = Results(args.results)
    columns = ["data", "removed", "clean lost, mean", "clean lost", "caught", "power", "CPU s", "evidence", "refused"]
    if args.photos is not None:
        print_table(columns, rows_of_photos(args.photos, args.data_root, results, args.seeds))
        return
    rows = []
    for title, flipped in (("clean", 0.0), ("flips", FLIPPED)):
        for name, load in DATA.items():
            key = {"data": name, "flipped": flipped}
            runs = results.over_seeds(range(args.seeds), key, functools.partial(measure, load, flipped))
            rows.append(row(f"{name}, {title}", runs))
    for copies in (1, COPIES):
        runs = results.over_seeds(range(args.seeds), {"copies": copies}, functools.partial(measure_copies, copies))
        rows.append(row(f"digits, {COPIED}, flips, {copies} of each", runs))
    print_table(columns, rows)


if __name__ == "__main__":
    main()
