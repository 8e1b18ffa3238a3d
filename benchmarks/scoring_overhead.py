"""Time of a scoring pass, divided by that of a bare inference loop of the same network over the same data: MNIST.

    python benchmarks/scoring_overhead.py --data-root data --results overhead.jsonl

The scoring pass is `score_set` with a fitted `LikelihoodScorer` (the default network), as `sanitize` runs it with
trusted data. The bare loop is what a user would write: a DataLoader with the same data set, batch size and workers, the
same network and head in evaluation mode with the same autocast and memory format, no gradients, and the logits
collected. Both run over 10,000 images in alternation, in one process, and are timed in wall and in CPU time; a seed's
result is the median of the ratios of consecutive passes. On a busy machine this is noisy, so the ratio of the fastest
passes is given too. Three data sets:

- torchvision's MNIST with a transform of `torchvision.transforms.v2`, PIL image to float tensor;
- the same images in memory, a `TensorDataset`;
- the first through a wrapper that lists no labels, so that each sample must be read for its label; here the whole of
  `sanitize` is timed, including fingerprint and decision. The same is timed for the first data set.
"""

import functools
import statistics
from collections.abc import Callable
from typing import Any

import torch
from harness.datasets import load_mnist, stored_mnist
from harness.runs import Figures, Results, benchmark_parser, print_goal, print_table, spread_of, start, with_seconds
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from lightning_poison import LikelihoodScorer, SampleSpec, sanitize
from lightning_poison.data import Block, score_set
from lightning_poison.data.blocks import BLOCK_SIZE
from lightning_poison.models import FitSettings, LGMHead, default_backbone
from lightning_poison.runtime import LocalRuntime

IMAGES, FITTED_ON = 10_000, 2_000
REPEATS = 9
NAMES = {
    "torchvision": "torchvision's MNIST, v2 transform",
    "memory": "in memory",
    "listed": "torchvision's MNIST, the whole of `sanitize`",
    "unlisted": "the same, labels not listed",
}


class UnlistedDataset(Dataset[Any]):
    """A typical user's data set: samples without a list of labels."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        return self.inner[index]


def score_with_library(dataset: Any, scorer: LikelihoodScorer, runtime: LocalRuntime) -> None:
    def score(block: Block) -> torch.Tensor:
        return scorer.score_labels(block.inputs)

    score_set(dataset, torch.arange(len(dataset)), score, sample=SampleSpec(), runtime=runtime, seed=0)


def sanitize_whole(dataset: Any, scorer: LikelihoodScorer, runtime: LocalRuntime) -> None:
    sanitize(dataset, scorer, runtime=runtime)


def score_bare(dataset: Any, network: nn.Module, runtime: LocalRuntime) -> None:
    kept = []
    with torch.no_grad(), runtime.autocast():
        for inputs, _ in DataLoader(dataset, batch_size=BLOCK_SIZE):
            kept.append(network(inputs.contiguous(memory_format=torch.channels_last)).double())
    torch.cat(kept)


def measure(dataset: Any, scorer: LikelihoodScorer, ours: Callable[..., None]) -> Figures:
    """Time both in alternation, each first in every second repeat."""
    runtime = LocalRuntime()
    network = nn.Sequential(default_backbone((1, 28, 28), scorer.feature_size), LGMHead(scorer.feature_size, 10))
    network.to(memory_format=torch.channels_last).eval()
    passes: dict[str, tuple[Callable[..., None], Any]] = {"library": (ours, scorer), "bare": (score_bare, network)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in passes}
    for score, model in passes.values():
        score(Subset(dataset, range(2 * BLOCK_SIZE)), model, runtime)
    for repeat in range(REPEATS):
        for name in ("library", "bare") if repeat % 2 else ("bare", "library"):
            score, model = passes[name]
            _, wall, cpu = with_seconds(functools.partial(score, dataset, model, runtime))
            times[name].append((wall, cpu))
    figures: Figures = {}
    for place, clock in enumerate(("wall", "cpu")):
        library, bare = ([pair[place] for pair in times[name]] for name in ("library", "bare"))
        figures |= {f"library_{clock}": statistics.median(library), f"bare_{clock}": statistics.median(bare)}
        figures[f"ratios_{clock}"] = [ours / theirs for ours, theirs in zip(library, bare, strict=True)]
        figures[f"ratio_{clock}"] = statistics.median(figures[f"ratios_{clock}"])
        figures[f"fastest_{clock}"] = min(library) / min(bare)
    return figures


def main() -> None:
    args = benchmark_parser(__doc__).parse_args()
    start(args)
    stored = stored_mnist(args.data_root)
    images, labels = load_mnist(args.data_root, train=True)
    results = Results(args.results)
    rows: dict[str, list[Figures]] = {name: [] for name in NAMES}
    for seed in range(args.seeds):
        chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:IMAGES]
        datasets = {
            "torchvision": Subset(stored, chosen.tolist()),
            "memory": TensorDataset(images[chosen], labels[chosen]),
            "listed": Subset(stored, chosen.tolist()),
            "unlisted": UnlistedDataset(Subset(stored, chosen.tolist())),
        }
        few = TensorDataset(images[chosen[:FITTED_ON]], labels[chosen[:FITTED_ON]])
        scorer = LikelihoodScorer(fit_settings=FitSettings(epochs=1, min_steps=150)).fit(few)
        for name, dataset in datasets.items():
            key = {"data": name, "seed": seed, "repeats": REPEATS}
            ours = sanitize_whole if "listed" in name else score_with_library
            rows[name].append(results.get(key, functools.partial(measure, dataset, scorer, ours)))
    columns = ["data", "scoring, CPU s", "bare loop, CPU s", "ratio, CPU", "ratio, wall", "ratio of the fastest, CPU"]
    figures = [("library_cpu", ".2f"), ("bare_cpu", ".2f"), ("ratio_cpu", ".3f"), ("ratio_wall", ".3f")]
    figures += [("fastest_cpu", ".3f")]
    print_table(
        columns,
        [[NAMES[name], *(spread_of(runs, key, form=form) for key, form in figures)] for name, runs in rows.items()],
    )
    for name, runs in rows.items():
        print_goal(f"{NAMES[name]}: ratio (CPU) at most 1.15", [run["ratio_cpu"] <= 1.15 for run in runs])
        print_goal(f"{NAMES[name]}: ratio (wall) at most 1.15", [run["ratio_wall"] <= 1.15 for run in runs])


if __name__ == "__main__":
    main()
