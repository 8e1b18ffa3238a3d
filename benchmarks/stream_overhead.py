"""The price of filtering a stream: the time of an epoch over the filtered loader, divided by the bare loader: MNIST.

    python benchmarks/stream_overhead.py --data-root data --results streams.jsonl

The stream reads 5,000 images of torchvision's MNIST with a transform of `torchvision.transforms.v2`, PIL image to float
tensor, in one process without workers. Both loaders are read in alternation; a seed's result is the median ratio of CPU
times of consecutive epochs. The scorer is `LikelihoodScorer` with the default network.
"""

import functools
import statistics
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from harness.datasets import load_mnist, stored_mnist
from harness.runs import Figures, Results, benchmark_parser, print_table, spread_of, start, with_seconds
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset

from lightning_poison import LikelihoodScorer
from lightning_poison.models import FitSettings
from lightning_poison.sanitization import SanitizedStream, StreamFilter

IMAGES, TRUSTED, REPEATS = 5_000, 4_000, 5


class Stream(IterableDataset[Any]):
    """A map-style data set, read in its order."""

    def __init__(self, data: Dataset[Any], count: int) -> None:
        self.data, self.count = data, count

    def __iter__(self) -> Iterator[Any]:
        return (self.data[index] for index in range(self.count))


def measure(stream: Stream, scorer: Any, trusted: TensorDataset) -> Figures:
    stream_filter = StreamFilter.fit(scorer, trusted)
    loaders = {
        "bare": DataLoader(stream, batch_size=64),
        "filtered": DataLoader(SanitizedStream(stream, stream_filter, warn=False), batch_size=64),
    }
    times: dict[str, list[float]] = {name: [] for name in loaders}
    for repeat in range(REPEATS):
        for name in ("filtered", "bare") if repeat % 2 else ("bare", "filtered"):
            _, _, cpu = with_seconds(functools.partial(sum, (len(labels) for _, labels in loaders[name])))
            times[name].append(cpu)
    ratios = [ours / theirs for ours, theirs in zip(times["filtered"], times["bare"], strict=True)]
    return {name: statistics.median(each) for name, each in times.items()} | {"ratio": statistics.median(ratios)}


def main() -> None:
    args = benchmark_parser(__doc__).parse_args()
    start(args)
    warnings.filterwarnings("ignore", "The false-positive rate is calibrated")
    stored = stored_mnist(args.data_root)
    images, labels = load_mnist(args.data_root, train=True)
    results, runs = Results(args.results), []
    scorer = LikelihoodScorer(fit_settings=FitSettings(epochs=1, min_steps=150))
    for seed in range(args.seeds):
        chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
        stream = Stream(Subset(stored, chosen[:IMAGES].tolist()), IMAGES)
        trusted = TensorDataset(images[chosen[-TRUSTED:]], labels[chosen[-TRUSTED:]])
        key = {"scorer": "LikelihoodScorer", "seed": seed, "repeats": REPEATS}
        runs.append(results.get(key, functools.partial(measure, stream, scorer, trusted)))
    print_table(
        ["filtered, CPU s", "bare, CPU s", "ratio"],
        [[spread_of(runs, each, form=".2f") for each in ("filtered", "bare", "ratio")]],
    )


if __name__ == "__main__":
    main()
