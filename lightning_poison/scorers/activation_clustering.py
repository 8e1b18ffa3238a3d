"""`ActivationClusteringScorer`: whether a class consists of two clusters, and a sample is in the smaller one.

Chen, Carvalho, Baracaldo, Ludwig, Edwards, Lee, Molloy, Srivastava, "Detecting Backdoor Attacks on Deep Neural
Networks by Activation Clustering", SafeAI 2019, arXiv 1811.03728.
"""

import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits
from torch import Tensor

from lightning_poison.checks import expected, fraction, positive_int
from lightning_poison.contexts import full_precision
from lightning_poison.scorers.feature_model import FeatureModel, checked_feature_model
from lightning_poison.scorers.protocol import SetScorer
from lightning_poison.statistics.feature_sets import check_class_sizes, check_feature_set

_BLOCK = 1024

_MIN_SAMPLES = 3
"""Samples that a class needs to have two clusters of different sizes."""

_WHY = "They cannot form a larger and a smaller cluster."


def mean_silhouette(points: Tensor, second: Tensor) -> float:
    """Compute the mean silhouette of two clusters (Rousseeuw, J. Comput. Appl. Math. 20, 1987), block by block.

    The silhouette of a sample is (b − a) / max(a, b), where a is its mean distance to the other samples of its cluster
    and b that to the other cluster; it is 0 for the only sample of a cluster. Memory grows with the number of samples,
    not with its square.

    Args:
        points: Floating-point `(N, D)`.
        second: Whether a sample is in the second cluster, bool `(N,)`; both clusters must occur.

    Returns:
        Mean over samples, in [−1, 1].

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
    """Compute how much nearer each sample is to the smaller of its class's two clusters than to the larger.

    Each class is clustered in two by k-means, after a principal component analysis. The margin of a sample is its
    distance to the center of the larger cluster minus that to the center of the smaller one.

    If the smaller cluster is not below `max_share` of the class, or the mean silhouette not above `min_silhouette`, the
    class counts as clean: its largest margin is subtracted from all margins, which keeps their order and leaves none
    above 0. So a score above 0 is the decision of Chen et al. 2018 (arXiv 1811.03728).

    Both algorithms are scikit-learn's. They run on one thread: with several, the sums of k-means would depend on which
    thread is done first.

    Args:
        features: Floating-point `(N, D)`.
        labels: int64 `(N,)`.
        components: Number of principal components. Default: 10.
        restarts: Number of k-means starts, of which the best result counts. Default: 4.
        max_share: Share of a class below which the smaller cluster may be poison, in (0, 1). Default: .35.
        min_silhouette: Mean silhouette above which the smaller cluster may be poison, in [−1, 1]. Default: .10.
        seed: Seeds the starts. Default: 0.

    Returns:
        float64 `(N,)`, in units of the features.

    Raises:
        ValueError: If a class has fewer than three samples or features that do not differ, an argument is out of range,
            or `check_feature_set` rejects features and labels.

    Example:
        >>> features = torch.cat([torch.arange(9.0), torch.tensor([50.0])])[:, None]
        >>> clustering_scores(features, torch.zeros(10, dtype=torch.int64)).argmax()
        tensor(9)
    """
    fraction("max_share", max_share)
    positive_int("restarts", restarts)
    positive_int("components", components)
    check_feature_set(features, labels, per_class=_MIN_SAMPLES, why=_WHY)
    scores = torch.empty(len(features), dtype=torch.float64, device=features.device)
    with threadpool_limits(limits=1):
        for label in torch.unique(labels).tolist():
            members = labels == label
            points, margins, in_smaller = _two_clusters(features[members], components, restarts, seed, label)
            suspicious = float(in_smaller.double().mean()) < max_share
            if not suspicious or not mean_silhouette(points, in_smaller) > min_silhouette:
                margins = margins - margins.max()
            scores[members] = margins.to(scores.device)
    return scores


def _two_clusters(
    features: Tensor, components: int, restarts: int, seed: int, label: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the reduced features, the margins, and whether a sample is in the smaller cluster."""
    if bool((features == features[0]).all()):
        way = "Use features of another layer, or leave the class out."
        raise ValueError(expected("features", f"different within class {label}", "the same vector in all of it", way))
    rows = features.detach().float().cpu().numpy()
    reduced = PCA(min(components, *rows.shape), random_state=seed).fit_transform(rows)
    clusters = KMeans(2, n_init=restarts, random_state=seed).fit(reduced)
    points, second = torch.from_numpy(reduced), torch.from_numpy(clusters.labels_).bool()
    centers = torch.from_numpy(clusters.cluster_centers_).double()
    smaller = int(2 * int(second.sum()) <= len(second))
    distances = (points.double()[:, None] - centers).square().sum(2).sqrt()
    return points, distances[:, 1 - smaller] - distances[:, smaller], second == bool(smaller)


class ActivationClusteringScorer(SetScorer):
    """Scores by how much nearer a sample is to the smaller of its class's two clusters than to the larger.

    See `clustering_scores`. A class whose smaller cluster is not small, or whose clusters are not separated, counts as
    clean: none of its scores is above 0. So a score above 0 is the authors' decision, and the score is a ranking
    without ties. `sanitize` does not cut at 0 but at a threshold calibrated on the trusted samples of the class, which
    are part of the set: there, they keep a clean class whole, and `max_share` and `min_silhouette` change nothing.

    It differs from the paper in the reduction, which there is an independent component analysis to ten dimensions, and
    in the ranking: the paper removes a cluster or keeps it. The paper finds that silhouettes above .10 to .15 indicate
    a poisoned class. The default limits, .35 and .10, are ART's: poison above a third of a class is not detected. On
    MNIST, poison of 1 and 5 % of the data did not form a cluster of its own in the features of a network that was
    trained plainly.

    Args:
        feature_model: Network whose features are clustered. Default: `FeatureModel()`.
        components: Number of principal components. Default: 10.
        restarts: Number of k-means starts. Default: 4.
        max_share: Share of a class below which the smaller cluster may be poison, in (0, 1). Default: .35.
        min_silhouette: Mean silhouette above which the smaller cluster may be poison, in [−1, 1). Default: .10.
        seed: Seeds the starts. Default: 0.

    Raises:
        ValueError: If an argument is out of range.

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
        self.feature_model = checked_feature_model(feature_model)
        self.components = positive_int("components", components)
        self.restarts = positive_int("restarts", restarts)
        self.max_share = fraction("max_share", max_share)
        if not -1 <= min_silhouette < 1:
            raise ValueError(expected("min_silhouette", "in [-1, 1)", min_silhouette))
        self.min_silhouette = float(min_silhouette)
        self.seed = positive_int("seed", seed, minimum=0)

    def score_features(self, features: Tensor, labels: Tensor) -> Tensor:
        """Score each sample, float32 `(N,)`; see `clustering_scores`."""
        return clustering_scores(
            features,
            labels,
            components=self.components,
            restarts=self.restarts,
            max_share=self.max_share,
            min_silhouette=self.min_silhouette,
            seed=self.seed,
        ).float()

    def check_set(self, labels: Tensor) -> None:
        """Raise if a class has fewer than three samples; see `SetScorer`."""
        check_class_sizes(labels, _MIN_SAMPLES, _WHY)
