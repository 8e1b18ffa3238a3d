"""Time of a scoring pass, divided by that of a bare inference loop of the same network over the same data.

    python benchmarks/scoring_overhead.py --data-root data --results overhead.jsonl

The scoring pass is `score_set` with a fitted `LikelihoodScorer` (the default network), as `sanitize` runs it with
trusted data. The bare loop is what a user would write: a DataLoader with the same data set, batch size and workers, the
same network and head in evaluation mode with the same autocast and memory format, no gradients, and the logits
collected. Both run over 10,000 images in alternation, in one process, and are timed in wall and in CPU time; a seed's
result is the median of the ratios of consecutive passes. On a busy machine this is noisy, so the ratio of the fastest
passes is given too. The data sets:

- CIFAR-10 as JPEG files, which a data set of the user decodes one by one;
- MNIST in memory, a `TensorDataset`;
- torchvision's MNIST with a transform of `torchvision.transforms.v2`, PIL image to float tensor;
- the last one through a wrapper that lists no labels, so that each sample must be read for its label; here the whole of
  `sanitize` is timed, including fingerprint and decision. The same is timed for the data set itself.
"""

import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
from harness.datasets import cifar_files, load_mnist, stored_mnist
from harness.runs import Figures, Results, benchmark_parser, print_goal, print_table, spread_of, start, with_seconds
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset
from torchvision.io import ImageReadMode, decode_image

from lightning_poison import LikelihoodScorer, SampleSpec, sanitize
from lightning_poison.data import Block, score_set
from lightning_poison.data.blocks import BLOCK_SIZE
from lightning_poison.models import FitSettings, LGMHead, default_backbone
from lightning_poison.runtime import LocalRuntime

IMAGES, FITTED_ON = 10_000, 2_000
REPEATS = 9
GOALS = {"files": 1.05, "memory": 1.05, "torchvision": 1.15, "listed": 1.15, "unlisted": 1.15}
NAMES = {
    "files": "CIFAR-10 as JPEG files",
    "memory": "MNIST in memory",
    "torchvision": "torchvision's MNIST, v2 transform",
    "listed": "the same, the whole of `sanitize`",
    "unlisted": "the last, labels not listed",
}


class UnlistedDataset(Dataset[Any]):
    """A typical user's data set: samples without a list of labels."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        return self.inner[index]


class JpegFiles(Dataset[Any]):
    """A user's data set of image files."""

    def __init__(self, paths: Sequence[str], targets: torch.Tensor) -> None:
        self.paths, self.targets = paths, targets

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Any:
        return decode_image(self.paths[index], ImageReadMode.RGB).float() / 255, int(self.targets[index])


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
            moved = inputs.to(runtime.device)
            kept.append(network(moved.contiguous(memory_format=torch.channels_last)).double().cpu())
    torch.cat(kept)


def quick_scorer(data: Any, *, runtime: LocalRuntime | None = None) -> LikelihoodScorer:
    """Return a scorer that is fitted for as long as scores need to be finite."""
    scorer = LikelihoodScorer(fit_settings=FitSettings(epochs=1, min_steps=150))
    return scorer.fit(data, runtime=runtime)


def measure(
    dataset: Any,
    scorer: LikelihoodScorer,
    ours: Callable[..., None],
    *,
    repeats: int = REPEATS,
    runtime: LocalRuntime | None = None,
) -> Figures:
    """Time both in alternation, each first in every second repeat."""
    runtime = runtime or LocalRuntime()
    shape = tuple(dataset[0][0].shape)
    network = nn.Sequential(default_backbone(shape, scorer.feature_size), LGMHead(scorer.feature_size, 10))
    network.to(runtime.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
    passes: dict[str, tuple[Callable[..., None], Any]] = {"library": (ours, scorer), "bare": (score_bare, network)}
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in passes}
    for score, model in passes.values():
        score(Subset(dataset, range(min(len(dataset), 2 * BLOCK_SIZE))), model, runtime)
    for repeat in range(repeats):
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
    parser = benchmark_parser(__doc__)
    parser.add_argument("--data", nargs="+", choices=NAMES, default=list(NAMES), help="default: all")
    args = parser.parse_args()
    start(args)
    stored = stored_mnist(args.data_root)
    images, labels = load_mnist(args.data_root, train=True)
    results = Results(args.results)
    paths, targets = cifar_files(args.data_root, train=True, classes=range(10))
    rows: dict[str, list[Figures]] = {name: [] for name in args.data}
    for seed in range(args.seeds):
        chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:IMAGES]
        files = torch.randperm(len(paths), generator=torch.Generator().manual_seed(seed))[:IMAGES]
        datasets = {
            "files": JpegFiles([paths[index] for index in files.tolist()], targets[files]),
            "torchvision": Subset(stored, chosen.tolist()),
            "memory": TensorDataset(images[chosen], labels[chosen]),
            "listed": Subset(stored, chosen.tolist()),
            "unlisted": UnlistedDataset(Subset(stored, chosen.tolist())),
        }
        few = {
            False: TensorDataset(images[chosen[:FITTED_ON]], labels[chosen[:FITTED_ON]]),
            True: Subset(datasets["files"], range(FITTED_ON)),
        }
        scorers = {are_files: quick_scorer(few[are_files]) for are_files in {name == "files" for name in args.data}}
        for name in args.data:
            dataset, scorer = datasets[name], scorers[name == "files"]
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
        for clock in ("cpu", "wall"):
            met = [run[f"ratio_{clock}"] <= GOALS[name] for run in runs]
            print_goal(f"{NAMES[name]}: ratio ({clock}) at most {GOALS[name]}", met)


if __name__ == "__main__":
    main()
