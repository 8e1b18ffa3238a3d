"""Wrong labels without trusted data, filter by filter: CIFAR-10, 50,000 images (JPEG q75), 10 % flipped.

    python benchmarks/wrong_labels_cifar.py --data-root data --results wrong_labels_cifar.jsonl

Labels are flipped by `LabelFlip`, to any other class. Each filter is cross-fitted over three folds, as `sanitize` does
without trusted data: each image is scored by a model trained on the other two folds, including their wrong labels. All
filters run with their defaults, except for the score if one is named. The mixture head also runs with a smaller margin
and weight, chosen from seven settings on 20,000 of these images with other flips. There is one network per fold, no
average over repeats. Filters that use the same network share it here: each alone would train the same one from the same
generator. CPU seconds are those of such a group of filters, for training and scoring.

AUROC and the true-positive rate at 1 % and 5 % false positives are over all 50,000 images, ranked together. "Predicted
correctly" is the share of images whose least suspicious label is the true one. CIFAR-10's own wrong labels count as
clean.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from harness.datasets import load_cifar
from harness.discriminators import scores_under
from harness.runs import Figures, Results, benchmark_parser, print_goal, print_table, share, spread_of, start
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor
from torch.utils.data import TensorDataset

from lightning_poison import LikelihoodScorer, SampleSpec, Threat, craft
from lightning_poison.data import Block, MemoryDataset, score_set
from lightning_poison.randomness import derived_generator
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers import (
    CharacteristicVectorScorer,
    ConfidenceScorer,
    DeepKNNScorer,
    FeatureModel,
    MahalanobisScorer,
)
from lightning_poison.statistics.stratified import stratified_folds
from lightning_poison_labels import LabelFlip

FLIPPED, CLASSES, FOLDS = 0.1, 10, 3
RUNTIME = LocalRuntime(threads=1)
GOAL = 0.93
TPR = {"tpr 1 %": 0.01, "tpr 5 %": 0.05}
GROUPS = {
    "confidence": ("confidence, self-confidence", "confidence, margin", "confidence, normalized"),
    "likelihood": ("likelihood (LGM)", "posterior (LGM)"),
    "soft likelihood": ("likelihood (LGM), margin .1, weight .1", "posterior (LGM), margin .1, weight .1"),
    "features": ("k-NN (k = 50)", "Mahalanobis, distance", "Mahalanobis, posterior", "characteristic vectors"),
}
"""The filters that share a network."""


@dataclass(frozen=True)
class Fold:
    """The samples to fit on, and the positions of those to score, int64 `(M,)`."""

    data: MemoryDataset
    training: MemoryDataset
    scored: Tensor
    seed: int

    def score(self, score: Callable[[Block], Tensor]) -> Tensor:
        """Return the scores of the samples of this fold."""
        return score_set(self.data, self.scored, score, sample=SampleSpec(), runtime=RUNTIME, seed=self.seed)

    def score_by(self, scorer: Any) -> Tensor:
        """Return a fitted scorer's scores under every label."""
        return self.score(lambda block: scorer.score_labels(block.inputs))


def confidence_scores(fold: Fold, generator: torch.Generator) -> list[Tensor]:
    fitted = ConfidenceScorer("normalized").fit(fold.training, runtime=RUNTIME, generator=generator)
    weights = {name: value for name, value in fitted.state().items() if name != "log_thresholds"}
    others = (ConfidenceScorer("self-confidence").load(weights), ConfidenceScorer("margin").load(weights))
    return [fold.score_by(scorer) for scorer in (*others, fitted)]


def likelihood_scores(fold: Fold, generator: torch.Generator, **settings: Any) -> list[Tensor]:
    fitted = LikelihoodScorer(**settings).fit(fold.training, runtime=RUNTIME, generator=generator)
    posterior = LikelihoodScorer("posterior", **settings).load(fitted.state())
    return [fold.score_by(scorer) for scorer in (fitted, posterior)]


def feature_scores(fold: Fold, generator: torch.Generator) -> list[Tensor]:
    mahalanobis = MahalanobisScorer().fit(fold.training, runtime=RUNTIME, generator=generator)
    posterior = MahalanobisScorer(score="posterior").load(mahalanobis.state())
    model = FeatureModel().load(mahalanobis.state())
    vectors = CharacteristicVectorScorer(FeatureModel(model.network)).fit(fold.training, runtime=RUNTIME)
    features = fold.score(lambda block: model.features(block.inputs)).float()
    of_neighbors = DeepKNNScorer().score_feature_labels(features, fold.data.targets[fold.scored])
    return [of_neighbors.double(), *(fold.score_by(scorer) for scorer in (mahalanobis, posterior, vectors))]


SCORES: dict[str, Callable[[Fold, torch.Generator], list[Tensor]]] = {
    "confidence": confidence_scores,
    "likelihood": likelihood_scores,
    "soft likelihood": partial(likelihood_scores, margin=0.1, likelihood_weight=0.1),
    "features": feature_scores,
}


def measure(images: Tensor, labels: Tensor, group: str, seed: int) -> Figures:
    """Return the detection of each filter of a group."""
    threat = Threat(round(FLIPPED * len(labels)))
    generator = torch.Generator().manual_seed(1000 + seed)
    flips = craft(LabelFlip(), TensorDataset(images, labels), threat, generator=generator)
    data = MemoryDataset(images, labels.index_put((flips.indices,), flips.labels))
    assigned = stratified_folds(data.targets, FOLDS, derived_generator(seed, "folds"))
    scores = torch.zeros(len(labels), CLASSES * len(GROUPS[group]), dtype=torch.float64)
    for number in range(FOLDS):
        inside, outside = (assigned != number).nonzero().flatten(), (assigned == number).nonzero().flatten()
        fold = Fold(data, data.subset(inside), outside, seed)
        scores[outside] = torch.cat(SCORES[group](fold, derived_generator(seed, "cross-fit", number)), dim=1).double()
    by_filter = zip(GROUPS[group], torch.split(scores, CLASSES, dim=1), strict=True)
    return {name: detection(label_scores, data.targets, labels) for name, label_scores in by_filter}


def detection(label_scores: Tensor, labels: Tensor, truth: Tensor) -> Figures:
    """Return the detection of wrong labels by scores under every label, `(N, C)`."""
    scores, is_wrong = scores_under(labels, label_scores), labels != truth
    false, true, _ = roc_curve(is_wrong, scores)
    figures: Figures = {name: float(true[false <= rate].max()) for name, rate in TPR.items()}
    return {**figures, "auroc": roc_auc_score(is_wrong, scores), "correct": share(label_scores.argmin(1) == truth)}


def report(runs: list[dict[str, Figures]]) -> None:
    rows = [
        [
            name,
            spread_of(runs, group, name, "auroc"),
            *(spread_of(runs, group, name, figure, form=".3f") for figure in (*TPR, "correct")),
        ]
        for group, names in GROUPS.items()
        for name in names
    ]
    print_table(["filter, cross-fitted", "AUROC", "TPR at 1 %", "TPR at 5 %", "predicted correctly"], rows)
    cells = [[", ".join(names), spread_of(runs, group, "cpu_s", form=".0f")] for group, names in GROUPS.items()]
    print_table(["filters that share a network", "CPU s"], cells)
    aurocs = {name: [run[group][name]["auroc"] for run in runs] for group, names in GROUPS.items() for name in names}
    best = max(aurocs, key=lambda name: statistics.median(aurocs[name]))
    print(f"\nBest by the median: {best}.")
    print_goal(f"{best}: AUROC at least {GOAL}", [auroc >= GOAL for auroc in aurocs[best]])


def main() -> None:
    args = benchmark_parser(__doc__).parse_args()
    start(args)
    images, labels = load_cifar(args.data_root, train=True)
    results = Results(args.results)
    report(
        [
            {
                group: results.get({"group": group, "seed": seed}, partial(measure, images, labels, group, seed))
                for group in GROUPS
            }
            for seed in range(args.seeds)
        ]
    )


if __name__ == "__main__":
    main()
