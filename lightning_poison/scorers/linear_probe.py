"""`LinearProbeScorer`: how little probability a linear classifier on fixed features assigns to a sample's label.

A linear classifier on the features of a network that does not change is a linear probe (Alain, Bengio, "Understanding
intermediate layers using linear classifier probes", 2016, arXiv 1610.01644). The score is that of confident learning:
Northcutt, Jiang, Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021, arXiv 1911.00068,
section 3, with out-of-sample probabilities.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_poison.checks import positive_int
from lightning_poison.contexts import full_precision
from lightning_poison.data.copies import connected, first_places
from lightning_poison.data.large_matrices import zeros_in_file
from lightning_poison.models.backbones import moments
from lightning_poison.randomness import derived_generator
from lightning_poison.runtime import Progress
from lightning_poison.scorers.feature_model import FeatureModel, checked_feature_model
from lightning_poison.scorers.label_scores import surprisals
from lightning_poison.scorers.progress import progress_bar
from lightning_poison.scorers.protocol import SetScorer
from lightning_poison.statistics.feature_sets import check_class_sizes, check_feature_set
from lightning_poison.statistics.logistic_regression import fit_logistic_regression, logits_of
from lightning_poison.statistics.loss_curvature import LossCurvature
from lightning_poison.statistics.row_blocks import AT_ONCE, row_blocks
from lightning_poison.statistics.stratified import stratified_folds

_PENALTIES = (10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3)
"""Penalties that are tried, from the strongest, until the probability of held-out labels decreases."""

_MANY, _MIDDLE, _WEAK = 2**24, 4, 6
"""Number of scores under all labels from which the search begins at a weaker penalty, which saves time.

It is the one at the first of these places, and at the second if fits are accelerated.
"""

_MANY_CLASSES = 100
"""Number of classes above which fits are accelerated.

With fewer, they take seconds, and scores would change by about what they are from the minimum, which is up to .05.
"""

_LARGEST = 20.0
"""Largest absolute value of a standardized feature."""

_WHY = "A class needs samples to fit on, and samples to score."


class LinearProbeScorer(SetScorer):
    """Scores a sample by how little probability a linear classifier on fixed features assigns to its label.

    The classifier is a multinomial logistic regression on standardized features. Each sample is scored by one that was
    fitted on the other folds; copies of a sample, which have the same features, are in one fold. The weight of the L2
    penalty is the one that gives the held-out labels of the first fold the highest probability. Fitting takes seconds.

    With features that never saw the labels (`FeatureModel("efficientnet-lite0")`, `"timm:NAME"`, or embeddings that you
    have), a sample with a backdoor's trigger and another label is an ordinary wrong label: the network has not learned
    the trigger. A trigger that such a network sees by itself, such as a pattern over the whole image, is learned by the
    classifier and not found, and neither is poison with a correct label.

    It differs from the paper in the use of the score: the paper counts, class by class, how many samples confidently
    belong to another class, and removes as many; here a threshold is calibrated.

    Args:
        feature_model: Network whose features are classified. Default: `FeatureModel("auto")`, the embedded encoder for
            images, and vectors as they are.
        folds: Number of folds, at least 2. Classes with fewer samples reduce it. Default: 5.
        seed: Seed of the folds. Default: 0.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(40) % 2
        >>> features = torch.randn(40, 4, generator=generator) + 6 * labels[:, None]
        >>> labels[7] = 0
        >>> LinearProbeScorer().score_features(features, labels).argmax()
        tensor(7)
    """

    name = "linear-probe"
    scores_labels = True

    def __init__(self, feature_model: FeatureModel | None = None, *, folds: int = 5, seed: int = 0) -> None:
        self.feature_model = checked_feature_model(feature_model, lambda: FeatureModel("auto"))
        self.folds = positive_int("folds", folds, minimum=2)
        self.seed = positive_int("seed", seed, minimum=0)

    def score_feature_labels(self, features: Tensor, labels: Tensor) -> Tensor:
        """Score each sample under each label, −log p(k | x) out of fold; see `SetScorer.score_feature_labels`.

        Raises:
            ValueError: If a class has a single sample, or features are not finite or all the same.
        """
        check_feature_set(features, labels, why=_WHY)
        self.check_set(labels)
        with full_precision(features.device):
            logits = self._logits(features.float(), labels)
            for rows in row_blocks(*logits.shape):
                logits[rows] = surprisals(logits[rows])
            return logits

    def check_set(self, labels: Tensor) -> None:
        """Raise if a class has a single sample; see `SetScorer`."""
        check_class_sizes(labels, 2, _WHY)

    def _logits(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return out-of-fold logits, float32 `(N, C)`."""
        center, spread = moments(features[rows] for rows in row_blocks(*features.shape))
        assigned = self._folds(features, labels)
        num_classes = max(2, int(labels.max()) + 1)
        logits = zeros_in_file((len(labels), num_classes), features.dtype).to(features.device)
        penalty = None

        def standardized(rows: Tensor) -> Tensor:
            return features[rows].sub_(center).div_(spread).clamp_(-_LARGEST, _LARGEST)

        folds = int(assigned.max()) + 1
        with progress_bar(len(_PENALTIES) + folds - 1, "Fitting linear classifiers") as bar:
            for number in range(folds):
                inside, outside = assigned != number, (assigned == number).nonzero().flatten()
                part, truth = standardized(inside), labels[inside]
                fit = _fit_of(part, truth, num_classes)
                if penalty is None:
                    held_out = standardized(outside), labels[outside]
                    penalty, coefficients = _fit_best(fit, *held_out, len(labels), num_classes, bar)
                else:
                    coefficients = fit(penalty=penalty)
                    bar.advance()
                for rows in torch.split(outside, max(1, AT_ONCE // num_classes)):
                    logits[rows] = logits_of(coefficients, standardized(rows))
        return logits[:, : int(labels.max()) + 1]

    def _folds(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the fold of each sample, int64 `(N,)`."""
        copies = _copies(features).cpu()
        if self.sample_groups is not None:
            copies = connected(first_places(self.sample_groups), torch.stack([copies, torch.arange(len(copies))], 1))
        first = first_places(torch.stack([labels.cpu(), copies], 1))
        different = labels.cpu()[first == torch.arange(len(first))]
        smallest = int(torch.unique(different, return_counts=True)[1].min())
        folds = max(2, min(self.folds, smallest))
        generator = derived_generator(self.seed, "linear-probe folds")
        return stratified_folds(labels.cpu(), folds, generator, groups=copies).to(labels.device)


def _copies(features: Tensor) -> Tensor:
    """Return the position of the first sample with the same features as each sample, int64 `(N,)`.

    Example:
        >>> _copies(torch.tensor([[3.0, 1.0], [2.0, 5.0], [3.0, 1.0]]))
        tensor([0, 1, 0])
    """
    weights = torch.randn(2, features.shape[1], generator=torch.Generator().manual_seed(0)).to(features)
    keys = torch.cat(
        [torch.stack([(features[rows] * row).sum(1) for row in weights], 1) for rows in row_blocks(*features.shape)]
    )
    return first_places(keys)


def _fit_of(features: Tensor, labels: Tensor, num_classes: int) -> Callable[..., Tensor]:
    """Return a function that fits to samples with a `penalty`, and from a `start`."""
    curvature = LossCurvature.of(features, labels, num_classes) if num_classes > _MANY_CLASSES else None
    return partial(fit_logistic_regression, features, labels, num_classes=num_classes, curvature=curvature)


def _fit_best(
    fit: Callable[..., Tensor], held_out: Tensor, held_out_labels: Tensor, length: int, num_classes: int, bar: Progress
) -> tuple[float, Tensor]:
    """Return the penalty under which held-out labels have the highest probability, and the coefficients.

    Weaker penalties are tried until one is worse. If the first of several weaker ones is, stronger ones are tried.
    The bar advances by one step for each penalty, tried or not.
    """
    first = (_WEAK if num_classes > _MANY_CLASSES else _MIDDLE) if length * num_classes > _MANY else 0
    best: tuple[float, float, Tensor] | None = None
    tried = 0
    for penalties in (_PENALTIES[first:], _PENALTIES[:first][::-1]):
        if best is not None and best[1] != _PENALTIES[first]:
            break
        start = None if best is None else best[2]
        for penalty in penalties:
            start = fit(penalty=penalty, start=start)
            loss = _cross_entropy(start, held_out, held_out_labels)
            tried += 1
            bar.advance()
            if best is not None and loss >= best[0]:
                break
            best = (loss, penalty, start)
    bar.advance(len(_PENALTIES) - tried)
    assert best is not None  # noqa: S101 (there are penalties)
    return best[1], best[2]


def _cross_entropy(coefficients: Tensor, features: Tensor, labels: Tensor) -> float:
    """Return the mean cross-entropy, summed over blocks of samples."""
    blocks = list(row_blocks(len(features), coefficients.shape[1]))
    losses = [
        F.cross_entropy(logits_of(coefficients, features[rows]), labels[rows])
        * ((rows.stop - rows.start) / len(labels))
        for rows in blocks
    ]
    return float(torch.stack(losses).sum())
