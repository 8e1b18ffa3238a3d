"""Time of a scoring pass that hashes every sample, divided by that of the same pass without hashing: MNIST, CIFAR-10.

    python benchmarks/sample_hashing.py --data-root data --results hashing.jsonl

A fitted `LikelihoodScorer` (the default network) scores 10,000 images with `score_set`, as `sanitize` does with trusted
data. In one of the two passes the data set collects digests of its samples, in the other it does not. Both run in
alternation in one process; a seed's result is the ratio of the medians. Data: MNIST in memory, MNIST from torchvision
with a transform, and CIFAR-10 as JPEG files.
"""

import functools
import statistics
from dataclasses import replace
from typing import Any

import torch
import torchvision
from harness.datasets import TO_FLOAT, load_mnist, stored_mnist
from harness.runs import Figures, Results, benchmark_parser, print_goal, print_table, spread_of, start, with_cpu_seconds
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from lightning_poison import LikelihoodScorer, SampleSpec
from lightning_poison.data import Block, score_set
from lightning_poison.data.blocks import SelectedDataset
from lightning_poison.data.sample_digests import SampleDigests
from lightning_poison.data.source import open_source
from lightning_poison.models import FitSettings
from lightning_poison.runtime import LocalRuntime

IMAGES, FITTED_ON, REPEATS = 10_000, 2_000, 9
GOAL = 1.02
NAMES = {"memory": "MNIST in memory", "torchvision": "MNIST, v2 transform", "files": "CIFAR-10, JPEG files"}


def measure(dataset: Any, seed: int) -> Figures:
    """Time the two passes in alternation, each first in every second repeat."""
    scorer = LikelihoodScorer(fit_settings=FitSettings(epochs=1, min_steps=150)).fit(Subset(dataset, range(FITTED_ON)))
    plain, everything, runtime = open_source(dataset, sample=None), torch.arange(len(dataset)), LocalRuntime()

    def score(block: Block) -> Tensor:
        return scorer.score_labels(block.inputs)

    def run(*, hashed: bool) -> float:
        source = replace(plain, digests=SampleDigests(len(dataset) if hashed else 0))
        view = SelectedDataset(source, everything, torch.zeros(len(dataset), dtype=torch.int64))
        _, seconds = with_cpu_seconds(
            lambda: score_set(view, everything, score, sample=SampleSpec(), runtime=runtime, seed=seed)
        )
        assert len(source.digests.missing) == 0
        return seconds

    run(hashed=True)
    pairs = [(True, False) if repeat % 2 else (False, True) for repeat in range(REPEATS)]
    times: dict[bool, list[float]] = {True: [], False: []}
    for hashed in (each for pair in pairs for each in pair):
        times[hashed].append(run(hashed=hashed))
    with_hash, without = statistics.median(times[True]), statistics.median(times[False])
    return {"hashed": with_hash, "bare": without, "ratio": with_hash / without}


def main() -> None:
    args = benchmark_parser(__doc__).parse_args()
    start(args)
    stored = stored_mnist(args.data_root)
    images, labels = load_mnist(args.data_root, train=True)
    files = torchvision.datasets.ImageFolder(str(args.data_root / "cifar10" / "train"), transform=TO_FLOAT)
    results = Results(args.results)
    rows: dict[str, list[Figures]] = {name: [] for name in NAMES}
    for seed in range(args.seeds):
        generator = torch.Generator().manual_seed(seed)
        chosen, files_chosen = (torch.randperm(len(data), generator=generator)[:IMAGES] for data in (images, files))
        datasets = {
            "memory": TensorDataset(images[chosen], labels[chosen]),
            "torchvision": Subset(stored, chosen.tolist()),
            "files": Subset(files, files_chosen.tolist()),
        }
        for name, dataset in datasets.items():
            key = {"data": name, "seed": seed, "repeats": REPEATS}
            rows[name].append(results.get(key, functools.partial(measure, dataset, seed)))
    print_table(
        ["data", "with hashing, CPU s", "without, CPU s", "ratio"],
        [
            [NAMES[name], *(spread_of(runs, key, form=form) for key, form in FORMS.items())]
            for name, runs in rows.items()
        ],
    )
    for name, runs in rows.items():
        print_goal(f"{NAMES[name]}: ratio at most {GOAL}", [run["ratio"] <= GOAL for run in runs])


FORMS = {"hashed": ".2f", "bare": ".2f", "ratio": ".3f"}

if __name__ == "__main__":
    main()
