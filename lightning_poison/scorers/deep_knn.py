"""`DeepKNNScorer`: how little the labels of a sample's neighbours in feature space speak for its own.

Peri, Gupta, Huang, Fowl, Zhu, Feizi, Goldstein, Dickerson, "Deep k-NN Defense against Clean-label Data Poisoning
Attacks", ECCV workshops 2020, arXiv 1909.13374.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_poison.checks import expected, positive_int
from lightning_poison.functional.feature_sets import check_class_sizes, check_feature_set
from lightning_poison.functional.neighbours import nearest_neighbours, neighbour_scores
from lightning_poison.scorers.feature_model import FeatureModel

_WHY = "A single sample has no neighbour of its own class."


class DeepKNNScorer:
    """Scores by how little the labels of the nearest other samples speak for a sample's own label.

    It differs from the paper in the score: the paper removes a sample whose label is not the mode of the labels of its
    `k` neighbours, which `lightning_poison.functional.neighbours.plurality_disagrees` does; here neighbours are
    weighted by their distance and the score is a smoothed −log of the label's share, a ranking without ties.

    Neighbours that are themselves poisoned vote too: poison that lies together, more of it than half of `k`, outvotes
    the rest. The paper advises a `k` of twice the number of poisons that may lie together. A class with fewer than half
    as many samples as `k` has a minority among the neighbours of its own samples.

    Args:
        feature_model: the network whose features are looked at; a classifier of its own where it is `None`.
        k: how many neighbours vote.
        block: how many samples are compared with others at once; bounds the memory, not the result.

    Raises:
        ValueError: where a number is no positive integer.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(40) % 2
        >>> features = torch.randn(40, 4, generator=generator) + 6 * labels[:, None]
        >>> labels[7] = 0
        >>> DeepKNNScorer(k=5).score_features(features, labels).argmax()
        tensor(7)
    """

    name = "deep-knn"
    is_control = False

    def __init__(self, feature_model: FeatureModel | None = None, *, k: int = 50, block: int = 32_768) -> None:
        self.feature_model = feature_model if feature_model is not None else FeatureModel()
        self.k = positive_int("k", k)
        self.block = positive_int("block", block)

    def __repr__(self) -> str:
        return f"DeepKNNScorer({self.feature_model!r}, k={self.k}, block={self.block})"

    def score_features(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the score of each sample under its own label, float32 `(N,)`; see `score_feature_labels`."""
        return self.score_feature_labels(features, labels).gather(1, labels[:, None])[:, 0]

    def score_feature_labels(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the score of each sample under each label.

        Args:
            features: float32 `(N, D)`, of all samples.
            labels: int64 `(N,)`, the labels that they carry.

        Returns:
            float32 `(N, C)`, where C is the largest label plus 1.

        Raises:
            ValueError: where there are not `k` other samples, a class has one sample only, or features are not finite
                or all the same.
        """
        check_feature_set(features, labels, why=_WHY)
        self.check_labels(labels)
        distances, near = nearest_neighbours(features, features, self.k, block=self.block, exclude_self=True)
        return neighbour_scores(distances, labels[near], num_classes=int(labels.max()) + 1).float()

    def check_labels(self, labels: Tensor) -> None:
        """Raise where a set has too few samples for `k` neighbours, or a class has one only; see `CheckingScorer`."""
        check_class_sizes(labels, 2, _WHY)
        if self.k >= len(labels):
            came = f"{self.k} with {len(labels)} samples"
            raise ValueError(expected("k", "smaller than the number of samples", came, "Ask for fewer neighbours."))

    def settings(self) -> Mapping[str, Any]:
        """Return what the scorer was built with, as JSON can hold it."""
        return {"feature_model": dict(self.feature_model.settings()), "k": self.k, "block": self.block}
