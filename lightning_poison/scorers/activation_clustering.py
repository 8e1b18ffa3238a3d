"""`ActivationClusteringScorer`: whether a class falls into two clusters, and a sample lies in the smaller one.

Chen, Carvalho, Baracaldo, Ludwig, Edwards, Lee, Molloy, Srivastava, "Detecting Backdoor Attacks on Deep Neural
Networks by Activation Clustering", SafeAI 2019, arXiv 1811.03728.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_poison.checks import expected, fraction, positive_int
from lightning_poison.functional.activation_clusters import clustering_scores
from lightning_poison.functional.feature_sets import check_class_sizes
from lightning_poison.scorers.feature_model import FeatureModel


class ActivationClusteringScorer:
    """Scores by how much nearer a sample lies to the smaller of its class's two clusters than to the larger.

    The features of each class are reduced by a principal component analysis and clustered by 2-means, both of
    scikit-learn. A class in which the smaller cluster is not small, or the two are not well apart, counts as clean:
    none of its scores is above 0. So a score above 0 is the authors' decision, and the score a ranking without ties.
    `sanitize` does not cut at 0 but where trusted samples of the class say, which are part of the set: there it is they
    that keep a clean class whole, and the gates change nothing.

    It differs from the paper in the reduction, which there is an independent component analysis to ten dimensions, and
    in the ranking: the paper removes a cluster or keeps it. The paper finds that silhouettes above .10 to .15 tell a
    poisoned class. The default gates, .35 and .10, are ART's: poison passes that is more than a third of a class. On
    MNIST poison of 1 and 5 % of the data did not form a cluster of its own in the features of a network that was
    trained plainly.

    Args:
        feature_model: the network whose features are looked at; a classifier of its own where it is `None`.
        components: how many principal components are kept.
        restarts: from how many starts 2-means runs.
        max_share: the share of a class below which the smaller cluster may be poison, in (0, 1).
        min_silhouette: the mean silhouette above which it may be, in [−1, 1).
        seed: seeds the starts.

    Raises:
        ValueError: where an argument is out of its range.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> features = torch.randn(100, 8, generator=generator)
        >>> features[:10, 0] += 9
        >>> scores = ActivationClusteringScorer().score_features(features, torch.zeros(100, dtype=torch.int64))
        >>> (scores > 0).nonzero().flatten()
        tensor([0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """

    name = "activation-clustering"
    is_control = False

    def __init__(
        self,
        feature_model: FeatureModel | None = None,
        *,
        components: int = 10,
        restarts: int = 4,
        max_share: float = 0.35,
        min_silhouette: float = 0.10,
        seed: int = 0,
    ) -> None:
        self.feature_model = feature_model if feature_model is not None else FeatureModel()
        self.components = positive_int("components", components)
        self.restarts = positive_int("restarts", restarts)
        self.max_share = fraction("max_share", max_share)
        if not -1 <= min_silhouette < 1:
            raise ValueError(expected("min_silhouette", "in [-1, 1)", min_silhouette))
        self.min_silhouette = float(min_silhouette)
        self.seed = positive_int("seed", seed, minimum=0)

    def __repr__(self) -> str:
        chosen = ", ".join(f"{name}={value}" for name, value in self._own_settings().items())
        return f"ActivationClusteringScorer({self.feature_model!r}, {chosen})"

    def score_features(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the score of each sample, float32 `(N,)`.

        Args:
            features: float32 `(N, D)`, of all samples.
            labels: int64 `(N,)`, the labels that they carry.

        Raises:
            ValueError: where a class has fewer than three samples or does not vary, or features are not finite.
        """
        return clustering_scores(features, labels, **self._own_settings()).float()

    def check_labels(self, labels: Tensor) -> None:
        """Raise where a class has fewer than three samples; see `CheckingScorer`."""
        check_class_sizes(labels, 3, "They cannot fall into a larger and a smaller cluster.")

    def settings(self) -> Mapping[str, Any]:
        """Return what the scorer was built with, as JSON can hold it."""
        return {"feature_model": dict(self.feature_model.settings()), **self._own_settings()}

    def _own_settings(self) -> dict[str, Any]:
        names = ("components", "restarts", "max_share", "min_silhouette", "seed")
        return {name: getattr(self, name) for name in names}
