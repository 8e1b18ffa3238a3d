"""`ActivationClusteringScorer`: whether a class falls into two clusters, and a sample lies in the smaller one.

Chen, Carvalho, Baracaldo, Ludwig, Edwards, Lee, Molloy, Srivastava, "Detecting Backdoor Attacks on Deep Neural
Networks by Activation Clustering", SafeAI 2019, arXiv 1811.03728.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from lightning_poison.checks import expected, fraction, positive_int
from lightning_poison.contexts import full_precision
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.statistics.feature_sets import check_class_sizes, check_feature_set

_BLOCK = 1024


_FEWEST = 3
"""Samples that a class must have for two clusters of which one is larger."""


@dataclass(frozen=True)
class Split:
    """A class in two clusters.

    Args:
        points: the reduced features, float32 `(N, K)`.
        margins: distance to the center of the larger cluster minus that to the center of the smaller one, float64
            `(N,)`, in units of the features; above 0 where a sample lies in the smaller cluster.
        in_smaller: whether a sample lies in the smaller cluster, bool `(N,)`.

    Example:
        >>> Split(torch.zeros(4, 1), torch.zeros(4), torch.tensor([True, False, False, False])).smaller_share
        0.25
    """

    points: Tensor
    margins: Tensor
    in_smaller: Tensor

    @property
    def smaller_share(self) -> float:
        """The share of the samples that lie in the smaller cluster, in (0, 0.5]."""
        return float(self.in_smaller.double().mean())

    def is_suspicious(self, *, max_share: float, min_silhouette: float) -> bool:
        """Tell whether the smaller cluster is small enough, and the two far enough apart, to be taken for poison."""
        return self.smaller_share < max_share and mean_silhouette(self.points, self.in_smaller) > min_silhouette


def split_in_two(features: Tensor, *, components: int = 10, restarts: int = 4, seed: int = 0) -> Split:
    """Cluster the features of one class in two, after a principal component analysis.

    Both are scikit-learn's. They run on one thread: on several, sums of 2-means would depend on which is done first.

    Args:
        features: floating-point `(N, D)`, of one class.
        components: how many principal components are kept, or as many as there are.
        restarts: from how many starts 2-means runs; the best result counts.
        seed: seeds the starts.

    Returns:
        The split, on the CPU.

    Raises:
        ValueError: where there are fewer than three samples, or fewer than two different ones.

    Example:
        >>> split = split_in_two(torch.tensor([[0.0, 0.0], [0.0, 1.0], [9.0, 0.0]]))
        >>> split.in_smaller
        tensor([False, False,  True])
    """
    with threadpool_limits(limits=1):
        return _split(features, components, restarts, seed)


def mean_silhouette(points: Tensor, second: Tensor) -> float:
    """Compute the mean silhouette of two clusters (Rousseeuw, J. Comput. Appl. Math. 20, 1987), block by block.

    Each sample's is (b − a) / max(a, b), where a is the mean distance to the others of its cluster and b that to the
    other cluster; 0 where it is alone in its cluster. Memory grows with the number of samples, not with its square.

    Args:
        points: floating-point `(N, D)`.
        second: whether a sample lies in the second cluster, bool `(N,)`; both must occur.

    Returns:
        The mean over samples, in [−1, 1].

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [10.0], [11.0]])
        >>> round(mean_silhouette(points, torch.tensor([False, False, True, True])), 3)
        0.9
    """
    order = second.long().argsort(stable=True)
    points, counts = points[order], torch.bincount(second.long(), minlength=2)
    cluster = second[order].long()
    with full_precision(points.device):
        sizes: list[int] = counts.tolist()
        tiles = (torch.split(torch.cdist(block, points), sizes, dim=1) for block in torch.split(points, _BLOCK))
        sums = torch.cat([torch.stack([part.sum(1) for part in tile], 1) for tile in tiles]).double()
    own, other = cluster[:, None], 1 - cluster[:, None]
    within = sums.gather(1, own)[:, 0] / (counts[cluster] - 1).clamp_min(1)
    between = sums.gather(1, other)[:, 0] / counts[1 - cluster]
    largest = torch.maximum(within, between).clamp_min(torch.finfo(torch.float64).tiny)
    return float(torch.where(counts[cluster] > 1, (between - within) / largest, 0.0).mean())


def clustering_scores(
    features: Tensor,
    labels: Tensor,
    *,
    components: int = 10,
    restarts: int = 4,
    max_share: float = 0.35,
    min_silhouette: float = 0.10,
    seed: int = 0,
) -> Tensor:
    """Compute how much nearer each sample lies to the smaller of its class's two clusters than to the larger.

    Where the smaller cluster is not below `max_share` of the class, or the mean silhouette not above `min_silhouette`,
    the class counts as clean: its largest margin is subtracted from all of them, so that their order stays and none is
    above 0. So a score above 0 is the decision of Chen et al. 2018 (arXiv 1811.03728).

    Args:
        features: floating-point `(N, D)`.
        labels: int64 `(N,)`.
        components: how many principal components are kept.
        restarts: from how many starts 2-means runs.
        max_share: the share of a class below which the smaller cluster may be poison, in (0, 1).
        min_silhouette: the mean silhouette above which it may be, in [−1, 1].
        seed: seeds the starts.

    Returns:
        float64 `(N,)`, in units of the features.

    Raises:
        ValueError: where a class has fewer than three samples or features that do not differ, an argument is out of
            its range, or features and labels are not what `check_feature_set` asks for.

    Example:
        >>> features = torch.cat([torch.arange(9.0), torch.tensor([50.0])])[:, None]
        >>> clustering_scores(features, torch.zeros(10, dtype=torch.int64)).argmax()
        tensor(9)
    """
    fraction("max_share", max_share)
    positive_int("restarts", restarts)
    positive_int("components", components)
    check_feature_set(features, labels, per_class=_FEWEST, why="They cannot fall into a larger and a smaller cluster.")
    scores = torch.empty(len(features), dtype=torch.float64, device=features.device)
    with threadpool_limits(limits=1):
        for number in torch.unique(labels).tolist():
            members = labels == number
            split = _split(features[members], components, restarts, seed, f"class {number}")
            margins = split.margins
            if not split.is_suspicious(max_share=max_share, min_silhouette=min_silhouette):
                margins = margins - margins.max()
            scores[members] = margins.to(scores.device)
    return scores


def _split(features: Tensor, components: int, restarts: int, seed: int, whose: str = "a class") -> Split:
    if len(features) < _FEWEST or bool((features == features[0]).all()):
        came = f"{len(features)}" if len(features) < _FEWEST else "the same vector in all of it"
        raise ValueError(
            expected("features", f"at least {_FEWEST} vectors of {whose} that differ", came)
            + "\nLook at features of another layer, or leave the class out."
        )
    rows = features.detach().float().cpu().numpy()
    reduced = PCA(min(components, *rows.shape), random_state=seed).fit_transform(rows)
    clusters = KMeans(2, n_init=restarts, random_state=seed).fit(reduced)
    points, second = torch.from_numpy(reduced), torch.from_numpy(clusters.labels_).bool()
    centers = torch.from_numpy(clusters.cluster_centers_).double()
    smaller = int(2 * int(second.sum()) <= len(second))
    distances = (points.double()[:, None] - centers).square().sum(2).sqrt()
    return Split(points, distances[:, 1 - smaller] - distances[:, smaller], second == bool(smaller))


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
