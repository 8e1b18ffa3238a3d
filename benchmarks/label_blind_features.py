"""Wrong labels and backdoors to eyes that never saw the labels: a linear probe on a pretrained encoder.

    python benchmarks/label_blind_features.py --data-root data --results label_blind_features.jsonl

`sanitize(data, LinearProbeScorer())` without trusted data, on 10,000 images of CIFAR-10 (JPEG q75) and of MNIST, drawn
anew for each seed. The encoder is the embedded one, EfficientNet-Lite0 with ImageNet weights, with its defaults: images
are enlarged to 128 pixels. Cases: no poison; 10 % of the labels flipped to any other class; BadNets (a checkerboard of
3 by 3 pixels in a corner) on 1 % and 5 % of the images, and a noise image blended in at .15 on 5 %, each with the label
of class 0.

"Predicted correctly" is the share of clean images whose least suspicious label is the true one, out of fold. AUROC is
that of the scores, poison against the rest. If `sanitize` refuses to decide, the table says so, and the columns about
removal are those of `remove_without_evidence=True`. Seed 0 chose the size of the images and the settings of the probe;
seeds 1 to N are reported. CPU seconds are those of the call, or of both calls. Cases with the same images, "none" and
"flips", share their features in a cache folder, so the second shows the time of the probe alone.
"""

import argparse
import tempfile
import time
from functools import cache, partial
from pathlib import Path

import torch
from harness.datasets import LabeledImages, RawDataset, load_cifar, load_mnist
from harness.runs import Figures, Results, benchmark_parser, print_table, share, spread_of, start
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_poison import Threat, Verdict, craft, sanitize
from lightning_poison.attacks import Attack, PoisonedDataset
from lightning_poison.errors import InconclusiveError
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers import FeatureModel, LinearProbeScorer
from lightning_poison_backdoors import BadNets, Blended
from lightning_poison_labels import LabelFlip

IMAGES = 10_000
LOADERS = {"CIFAR-10": load_cifar, "MNIST": load_mnist}
CASES: dict[str, tuple[Attack | None, float]] = {
    "none": (None, 0),
    "flips, 10 %": (LabelFlip(), 0.1),
    "BadNets, 1 %": (BadNets(target_class=0), 0.01),
    "BadNets, 5 %": (BadNets(target_class=0), 0.05),
    "blended, 5 %": (Blended(target_class=0, amplitude=0.15), 0.05),
}
"""Attack and share of poison by the name of the case."""


@cache
def loaded(root: Path, name: str) -> LabeledImages:
    """Return the training images of a data set and their labels."""
    return LOADERS[name](root, train=True)


def poisoned(images: Tensor, labels: Tensor, case: str, seed: int) -> tuple[TensorDataset, Tensor]:
    """Return the judged data and the mask of the poison."""
    attack, part = CASES[case]
    is_poison = torch.zeros(len(labels), dtype=torch.bool)
    if attack is None:
        return TensorDataset(images, labels), is_poison
    clean = RawDataset.from_floats(images, labels)
    generator = torch.Generator().manual_seed(1000 + seed)
    poison = craft(attack, clean, Threat(round(part * len(labels))), generator=generator)
    is_poison[poison.indices] = True
    view = PoisonedDataset(clean, poison)
    inputs = images.clone()
    for index in poison.indices.tolist():
        inputs[index] = view[index][0]
    return TensorDataset(inputs, labels.index_put((poison.indices,), poison.labels)), is_poison


def decide(data: TensorDataset, size: int | None, folder: Path, *, force: bool) -> Verdict:
    """Return the verdict of the public call."""
    model = FeatureModel("auto", image_size=size)
    return sanitize(
        data,
        LinearProbeScorer(model),
        remove_without_evidence=force,
        max_removed=1,
        runtime=LocalRuntime(threads=1),
        cache=folder,
    )


def measure(args: argparse.Namespace, name: str, case: str, folder: Path, seed: int) -> Figures:
    """Return what the call does in one case."""
    images, labels = loaded(args.data_root, name)
    drawn = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1000 + seed))[: args.images]
    images, truth = images[drawn], labels[drawn]
    data, is_poison = poisoned(images, truth, case, seed)
    refused, begin = False, time.process_time()
    try:
        verdict = decide(data, args.image_size, folder, force=False)
    except InconclusiveError:
        refused = True
        verdict = decide(data, args.image_size, folder, force=True)
    seconds = time.process_time() - begin
    removed = ~verdict.keep
    found: Figures = {
        "refused": refused,
        "evidence": verdict.evidence.present,
        "contamination": verdict.evidence.contamination,
        "low": verdict.evidence.low,
        "high": verdict.evidence.high,
        "correct": share((verdict.suggested_labels == truth)[~is_poison]),
        "lost": share(removed[~is_poison]),
        "call_s": seconds,
    }
    if is_poison.any():
        found |= {"auroc": roc_auc_score(is_poison, verdict.scores), "caught": share(removed[is_poison])}
    return found


def report(name: str, count: int, runs: dict[str, list[Figures]]) -> None:
    def cell(case: str, figure: str, form: str = ".3f") -> str:
        return spread_of(runs[case], figure, form=form) if figure in runs[case][0] else ""

    rows = []
    for case, found in runs.items():
        answers = {"refused" if run["refused"] else "evidence" if run["evidence"] else "no evidence" for run in found}
        rows.append(
            [
                case,
                cell(case, "correct"),
                cell(case, "auroc"),
                ", ".join(sorted(answers)),
                cell(case, "contamination", ".4f"),
                cell(case, "caught"),
                cell(case, "lost", ".4f"),
                cell(case, "call_s", ".0f"),
            ]
        )
    columns = ["predicted correctly", "AUROC", "answer", "estimated share", "caught", "clean removed", "CPU s"]
    print(f"\n{name}, {count:,} images")
    print_table(["poison", *columns], rows)


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.set_defaults(seeds=2)
    parser.add_argument("--data", nargs="+", choices=list(LOADERS), default=list(LOADERS), help="default: both")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES), help="default: all")
    parser.add_argument("--image-size", type=int, help="side to which images are resized; default: 128")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"number of images; default: {IMAGES}")
    args = parser.parse_args()
    start(args, setting="" if args.image_size is None else f"images of {args.image_size} pixels")
    results = Results(args.results)
    with tempfile.TemporaryDirectory() as folder:
        for name in args.data:
            runs: dict[str, list[Figures]] = {case: [] for case in args.cases}
            for seed in range(1, args.seeds + 1):
                for case in args.cases:
                    key = {"data": name, "case": case, "images": args.images, "size": args.image_size, "seed": seed}
                    work = partial(measure, args, name, case, Path(folder), seed)
                    runs[case].append(results.get(key, work))
            report(name, args.images, runs)


if __name__ == "__main__":
    main()
