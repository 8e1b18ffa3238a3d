"""`QuantumEntropyScorer`: whether a sample is in the part of its class that enlarges a few variances.

Hayase, Kong, Somani, Oh, "SPECTRE: Defending Against Backdoor Attacks Using Robust Statistics", ICML 2021,
arXiv 2104.11315.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_poison.checks import fraction, not_negative, positive_int
from lightning_poison.scorers.feature_model import FeatureModel, checked_feature_model
from lightning_poison.scorers.group_scorer import GroupScorer
from lightning_poison.statistics.feature_sets import check_feature_set
from lightning_poison.statistics.prediction_stability import find_outer_parts
from lightning_poison.statistics.quantum_entropy import principal_sizes, quantum_entropy_scores
from lightning_poison.statistics.subgroups import MIN_CLASS_SIZE, TOO_SMALL, Subgroup

_SMALLEST = 1e-9
"""Smallest score, whose logarithm is finite."""


class QuantumEntropyScorer(GroupScorer):
    """Scores by the log-odds of belonging to a part of a class with large quantum entropy, and tests its effect.

    For backdoors of a few samples whose features form a tail or a small cluster. Each class is reduced to its principal
    components and whitened robustly, so that a few poisoned samples do not whiten themselves away, and the quantum
    entropy score is computed: SPECTRE. Two normal components are fitted to its logarithm, and the upper one, if it is
    the smaller, is tested for two effects (see `lightning_poison.scorers.protocol.SetScorer`). A part without an effect
    is kept.

    It differs from the paper in that the number of poisoned samples need not be known: the gap between the components
    determines the part, and the number of principal components is the one with the widest gap. Unlike in two published
    ports, Q is the exponential of a matrix, not of its elements.

    It reads the features of `feature_model`, which it shares with a `RobustFeatureScorer` of the same settings.

    Args:
        feature_model: Network that is trained on the data. A trained network must have been trained on the judged
            samples. Default: `FeatureModel()`.
        exclusion_model: Network that is trained without the groups, and predicts their members. Default: one like
            `feature_model`.
        alpha: How much directions with large variances count, at least 0. Default: 4, as in the paper.
        support: Share of a class by which it is whitened, in (0, 1). Default: .9.
        max_components: Maximum number of principal components, limited to a sixth of the samples of a class. Default:
            64.
        min_separation: Ashman's D of the components from which a part is separated. Default: 4.
        min_size: Minimum number of samples in a part. Default: 20.
        min_transfer: Share of samples of each other class that must be predicted as the part's, in (0, 1). Default: .6.
        min_resemblance: Share of a part that must at least look like other classes, in (0, 1). Default: .4.

    Raises:
        TypeError: If `feature_model` or `exclusion_model` is not a `FeatureModel`.
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> features = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
        >>> features[:40, 0] += 30
        >>> scores = QuantumEntropyScorer().score_features(features, torch.zeros(400, dtype=torch.int64))
        >>> (scores > 0).nonzero().flatten().equal(torch.arange(40))
        True
    """

    name = "quantum-entropy"

    def __init__(
        self,
        feature_model: FeatureModel | None = None,
        *,
        exclusion_model: FeatureModel | None = None,
        alpha: float = 4.0,
        support: float = 0.9,
        max_components: int = 64,
        min_separation: float = 4.0,
        min_size: int = 20,
        min_transfer: float = 0.6,
        min_resemblance: float = 0.4,
    ) -> None:
        model = checked_feature_model(feature_model)
        super().__init__(
            model,
            model,
            exclusion_model,
            min_separation=min_separation,
            min_size=min_size,
            min_transfer=min_transfer,
            min_resemblance=min_resemblance,
        )
        self.alpha = not_negative("alpha", alpha)
        self.support = fraction("support", support)
        self.max_components = positive_int("max_components", max_components)

    def find_groups(self, features: Tensor, labels: Tensor) -> Sequence[Subgroup]:
        """Return the part of each class with large quantum entropy."""
        check_feature_set(features, labels, per_class=MIN_CLASS_SIZE, why=TOO_SMALL)
        found = []
        for label in torch.unique(labels).tolist():
            positions = (labels == label).nonzero().flatten().cpu()
            rows = features[labels == label].detach().double().cpu()
            parts = [part for scores in self._scores(rows) for part in _upper_part(scores, label)]
            large = [part for part in parts if len(part.members) >= self.min_size] or parts
            if large:
                best = max(large, key=lambda part: part.separation)
                found.append(Subgroup(label, positions, best.log_odds, best.separation))
        return found

    def _scores(self, rows: Tensor) -> list[Tensor]:
        """Return the logarithms of the scores for each number of principal components, float64 `(M,)` each."""
        centered = rows - rows.mean(0)
        directions = torch.linalg.svd(centered, full_matrices=False).Vh
        sizes = principal_sizes(len(rows), len(directions), largest=self.max_components)
        reduced = [centered @ directions[:size].T for size in sizes]
        scores = (quantum_entropy_scores(each, alpha=self.alpha, support=self.support) for each in reduced)
        return [each.clamp_min(_SMALLEST).log() for each in scores]


def _upper_part(scores: Tensor, label: int) -> Sequence[Subgroup]:
    return find_outer_parts(scores, torch.full((len(scores),), label), upper_only=True)
