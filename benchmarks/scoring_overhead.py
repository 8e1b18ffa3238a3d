"""What a scoring pass costs, divided by a bare inference loop of the same network over the same data.

    python benchmarks/scoring_overhead.py --data-root data --results overhead.jsonl

The scoring pass is `score_set` with a fitted `LikelihoodScorer` (the default network), as `sanitize` runs it with
trusted data. The bare loop is what a user would write: an ordinary DataLoader of the same data set, batch size and
workers, the same network and head in evaluation mode under the same autocast and memory format, no gradients, and the
logits kept. Both run over 10,000 images in alternation, in one process, and each is timed in wall and in CPU time; a
seed's figure is the median of the ratios of neighbors. On a machine with other work on it that is noisy: the ratio of
the fastest passes stands beside it. Three data sets:

- torchvision's MNIST with a transform of `torchvision.transforms.v2`, PIL image to float tensor;
- the same images in memory, a `TensorDataset`;
- the first through a wrapper that lists no labels, so that each sample must be read for its own; there the whole of
  `sanitize` is timed, fingerprint and decision with it. The same for the first, beside it.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from common import Figures, Results, arguments, load_mnist, print_goal, print_setting, print_table, spread
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision.transforms import v2

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
    "unlisted": "the same, its labels not listed",
}


class Unlisted(Dataset[Any]):
    """A data set as people write them: samples, and no list of labels."""

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


def timed(work: Callable[..., None], *arguments: Any) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work(*arguments)
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(dataset: Any, scorer: LikelihoodScorer, ours: Callable[..., None]) -> Figures:
    """Time both in alternation, each first in turn."""
    runtime = LocalRuntime()
    network = nn.Sequential(default_backbone((1, 28, 28), scorer.feature_size), LGMHead(scorer.feature_size, 10))
    network.to(memory_format=torch.channels_last).eval()
    works = {"library": (ours, scorer), "bare": (score_bare, network)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for work, model in works.values():
        work(Subset(dataset, range(2 * BLOCK_SIZE)), model, runtime)
    for repeat in range(REPEATS):
        for name in ("library", "bare") if repeat % 2 else ("bare", "library"):
            work, model = works[name]
            times[name].append(timed(work, dataset, model, runtime))
    figures: Figures = {}
    for place, clock in enumerate(("wall", "cpu")):
        library, bare = ([pair[place] for pair in times[name]] for name in ("library", "bare"))
        figures |= {f"library_{clock}": statistics.median(library), f"bare_{clock}": statistics.median(bare)}
        figures[f"ratios_{clock}"] = [ours / theirs for ours, theirs in zip(library, bare, strict=True)]
        figures[f"ratio_{clock}"] = statistics.median(figures[f"ratios_{clock}"])
        figures[f"fastest_{clock}"] = min(library) / min(bare)
    return figures


def main() -> None:
    args = arguments(__doc__).parse_args()
    torch.set_num_threads(1)
    print_setting("scoring_overhead", args)
    transform = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    stored = torchvision.datasets.MNIST(args.data_root, train=True, transform=transform)
    images, labels = load_mnist(args.data_root, train=True)
    results = Results(args.results)
    rows: dict[str, list[Figures]] = {name: [] for name in NAMES}
    for seed in range(args.seeds):
        chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:IMAGES]
        datasets = {
            "torchvision": Subset(stored, chosen.tolist()),
            "memory": TensorDataset(images[chosen], labels[chosen]),
            "listed": Subset(stored, chosen.tolist()),
            "unlisted": Unlisted(Subset(stored, chosen.tolist())),
        }
        few = TensorDataset(images[chosen[:FITTED_ON]], labels[chosen[:FITTED_ON]])
        scorer = LikelihoodScorer(fit_settings=FitSettings(epochs=1, min_steps=150)).fit(few)
        for name, dataset in datasets.items():
            key = {"data": name, "seed": seed, "repeats": REPEATS}
            ours = sanitize_whole if "listed" in name else score_with_library
            rows[name].append(
                results.get(key, lambda data=dataset, scorer=scorer, ours=ours: measure(data, scorer, ours))
            )
    columns = ["data", "scoring, CPU s", "bare loop, CPU s", "ratio, CPU", "ratio, wall", "ratio of the fastest, CPU"]
    figures = [("library_cpu", ".2f"), ("bare_cpu", ".2f"), ("ratio_cpu", ".3f"), ("ratio_wall", ".3f")]
    figures += [("fastest_cpu", ".3f")]
    print_table(
        columns,
        [
            [NAMES[name], *(spread([run[key] for run in runs], form) for key, form in figures)]
            for name, runs in rows.items()
        ],
    )
    for name, runs in rows.items():
        print_goal(f"{NAMES[name]}: ratio (CPU) at most 1.15", [run["ratio_cpu"] <= 1.15 for run in runs])
        print_goal(f"{NAMES[name]}: ratio (wall) at most 1.15", [run["ratio_wall"] <= 1.15 for run in runs])


if __name__ == "__main__":
    main()
