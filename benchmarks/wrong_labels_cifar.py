"""Wrong labels without trusted data, filter by filter: CIFAR-10, 50,000 images (JPEG q75), 10 % flipped.

    python benchmarks/wrong_labels_cifar.py --data-root data --results wrong_labels_cifar.jsonl
    python benchmarks/wrong_labels_cifar.py --data-root data --results wrong_labels_cifar.jsonl --filter confidence

Labels are flipped by `LabelFlip`, to any other class. `--noise` takes others: of images of other classes as class 0, of
each class as the next, or as a confused annotator gives them: drawn from the predictions of a network that was trained
on the test images, more of them where it is unsure. `--share 0` is the data as they are.

Every row is the public call, `sanitize(data, scorer, seed=seed)`
without trusted data, with the defaults of the scorer except for what the row names. It cross-fits over three folds, so
each image is scored by a model that was trained on the other two, including their wrong labels. "linear probe" reads
features of the embedded encoder, which never saw the labels. "confidence, SmallConvNet" is without the default network
for photos, and without mirror images.

AUROC and the true-positive rate at 1 % and 5 % false positives are over all images, ranked together by `scores`; "by
the decision", in the order in which samples are removed.
"Predicted correctly" is the share of images whose suggested label is the true one. "Caught", "clean lost" and "power",
the share of random wrong labels that the verdict expects to remove, are those of the decision. If the call refuses to
decide, the ranking is that of the error, and the last columns are empty. "In interval" counts the seeds in which the
interval around the estimate contains the share of wrong labels. CIFAR-10's own wrong labels count as clean.
CPU seconds are those of the call. `--images` takes fewer images, drawn anew in each seed.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness.datasets import LabeledImages, load_cifar
from harness.networks import fit_network, outputs_of, photo_network
from harness.runs import (
    Figures,
    Results,
    benchmark_parser,
    print_goal,
    print_table,
    share,
    spread_of,
    start,
    with_cpu_seconds,
)
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_poison import LikelihoodScorer, Threat, Verdict, craft, sanitize
from lightning_poison.errors import InconclusiveError
from lightning_poison.models import FitSettings, SmallConvNet
from lightning_poison.randomness import seeded_rng
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers import (
    CharacteristicVectorScorer,
    ConfidenceScorer,
    DeepKNNScorer,
    LinearProbeScorer,
    MahalanobisScorer,
)
from lightning_poison_labels import LabelFlip

FLIPPED, IMAGES, CLASSES = 0.1, 50_000, 10
GOAL = 0.93
RANKED = "tpr 1 %, ranked"
"""True-positive rate at 1 % false positives in the order in which the decision removes samples."""

TPR = {"tpr 1 %": 0.01, "tpr 5 %": 0.05}
DECISION = {"caught": ".3f", "clean lost": ".4f", "power": ".2f", "estimate": ".3f", "low": ".3f", "high": ".3f"}
NOISE = ("random", "to class 0", "to the next class", "confused")


def small_network() -> SmallConvNet:
    """Return the default network of images that are no small photos."""
    with seeded_rng(0):
        return SmallConvNet((3, 32, 32), 32)


FILTERS: dict[str, Callable[[], Any]] = {
    "default": lambda: "balanced",
    "linear probe": LinearProbeScorer,
    "confidence": ConfidenceScorer,
    "confidence, SmallConvNet": lambda: ConfidenceScorer(
        backbone=small_network(), fit_settings=FitSettings(mirror=False)
    ),
    "confidence, normalized": lambda: ConfidenceScorer("normalized"),
    "likelihood": LikelihoodScorer,
    "likelihood, posterior": lambda: LikelihoodScorer("posterior"),
    "Mahalanobis": MahalanobisScorer,
    "Mahalanobis, posterior": lambda: MahalanobisScorer(score="posterior"),
    "k-NN": DeepKNNScorer,
    "characteristic vectors": CharacteristicVectorScorer,
}


def decide(data: TensorDataset, scorer: Any, seed: int) -> Verdict | InconclusiveError:
    """Return the verdict of the public call, or its refusal."""
    try:
        return sanitize(data, scorer, seed=seed, max_removed=1, runtime=LocalRuntime(threads=1))
    except InconclusiveError as error:
        return error


def wrong_labels(noise: str, data: LabeledImages, count: int, root: Path, generator: torch.Generator) -> Tensor:
    """Return the labels, of which some are wrong."""
    images, truth = data
    labels = truth.clone()
    if noise == "random" and count:
        flips = craft(LabelFlip(), TensorDataset(images, truth), Threat(count), generator=generator)
        labels[flips.indices] = flips.labels
        return labels
    confusion = torch.zeros(len(truth), CLASSES)
    if noise == "confused":
        confusion = annotator_of(root, images)
    elif noise == "to class 0":
        confusion[:, 0] = 1
    else:
        confusion[torch.arange(len(truth)), (truth + 1) % CLASSES] = 1
    confusion[torch.arange(len(truth)), truth] = 0
    if count:
        chosen = torch.multinomial(confusion.sum(1), count, generator=generator)
        labels[chosen] = torch.multinomial(confusion[chosen], 1, generator=generator)[:, 0]
    return labels


def annotator_of(root: Path, images: Tensor) -> Tensor:
    """Return the probabilities that a network which was trained on the test images gives at temperature 2."""
    with seeded_rng(0):
        network = photo_network(CLASSES)
    fit_network(network, *load_cifar(root, train=False), epochs=10, seed=0).eval()
    return (outputs_of(network, images) / 2).softmax(1)


def measure(root: Path, name: str, count: int, noise: str, wrong: float, seed: int) -> Figures:
    """Return the detection of wrong labels by a filter."""
    images, truth = load_cifar(root, train=True)
    generator = torch.Generator().manual_seed(1000 + seed)
    chosen = torch.randperm(len(truth), generator=generator)[:count].sort().values
    images, truth = images[chosen], truth[chosen]
    labels = wrong_labels(noise, (images, truth), round(wrong * count), root, generator)
    found, seconds = with_cpu_seconds(lambda: decide(TensorDataset(images, labels), FILTERS[name](), seed))
    figures: Figures = {"seconds": seconds}
    if wrong:
        figures |= detection(found.scores, labels != truth)
    if isinstance(found, Verdict):
        evidence = found.evidence
        figures["correct"] = share(found.suggested_labels == truth)
        if wrong:
            figures["caught"] = share(~found.keep[labels != truth])
            figures[RANKED] = detection(-found.p_values, labels != truth)["tpr 1 %"]
        figures["clean lost"] = share(~found.keep[labels == truth])
        figures |= {"power": evidence.power, "low": evidence.low, "high": evidence.high}
        figures["estimate"] = evidence.contamination
        figures["in interval"] = evidence.low <= wrong <= evidence.high
    return figures


def detection(scores: Tensor, is_wrong: Tensor) -> Figures:
    """Return the detection of wrong labels by scores `(N,)`."""
    false, true, _ = roc_curve(is_wrong, scores)
    figures: Figures = {name: float(true[false <= rate].max()) for name, rate in TPR.items()}
    return {**figures, "auroc": roc_auc_score(is_wrong, scores)}


def report(found: dict[str, list[Figures]]) -> None:
    columns = {"auroc": ".4f", **dict.fromkeys((*TPR, RANKED, "correct"), ".3f"), **DECISION, "seconds": ".0f"}
    rows = []
    for name, runs in found.items():
        cells = [
            spread_of(runs, key, form=form) if all(run.get(key) is not None for run in runs) else ""
            for key, form in columns.items()
        ]
        rows.append([name, str(len(runs)), *cells, str(sum(run.get("in interval", False) for run in runs))])
    rates = ["TPR at 1 %", "TPR at 5 %", "TPR at 1 % by the decision"]
    headings = ["AUROC", *rates, "predicted correctly", *DECISION, "CPU s", "in interval"]
    print_table(["filter", "seeds", *headings], rows)
    if all("auroc" in run for runs in found.values() for run in runs):
        best = max(found, key=lambda name: sum(run["auroc"] for run in found[name]) / len(found[name]))
        print_goal(f"{best}: AUROC at least {GOAL}", [run["auroc"] >= GOAL for run in found[best]])


def main() -> None:
    parser = benchmark_parser(__doc__)
    parser.add_argument("--filter", action="append", choices=list(FILTERS), help="run only these; may be repeated")
    parser.add_argument("--images", type=int, default=IMAGES, help=f"number of images; default: {IMAGES}")
    parser.add_argument("--noise", choices=NOISE, default="random", help="which labels are wrong; default: random ones")
    parser.add_argument("--share", type=float, default=FLIPPED, help=f"share of wrong labels; default: {FLIPPED}")
    args = parser.parse_args()
    start(args)
    results = Results(args.results)
    report(
        {
            name: results.over_seeds(
                range(args.seeds),
                {"filter": name, "images": args.images, "noise": args.noise, "share": args.share},
                functools.partial(measure, args.data_root, name, args.images, args.noise, args.share),
            )
            for name in args.filter or FILTERS
        }
    )


if __name__ == "__main__":
    main()
