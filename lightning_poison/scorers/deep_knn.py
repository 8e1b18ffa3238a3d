"""`DeepKNNScorer`: how few of a sample's neighbors in feature space carry its label.

Peri, Gupta, Huang, Fowl, Zhu, Feizi, Goldstein, Dickerson, "Deep k-NN Defense against Clean-label Data Poisoning
Attacks", ECCV workshops 2020, arXiv 1909.13374.
"""

import torch
from torch import Tensor

from lightning_poison.checks import expected, positive_int
from lightning_poison.contexts import full_precision
from lightning_poison.data.large_matrices import zeros_in_file
from lightning_poison.scorers.feature_model import FeatureModel, checked_feature_model
from lightning_poison.scorers.protocol import SetScorer
from lightning_poison.statistics.feature_sets import check_class_sizes, check_feature_set, check_features
from lightning_poison.statistics.row_blocks import row_blocks

_QUERIES = 512
"""Queries per tile. With 32,768 references, a tile of distances takes 64 MiB."""

_GROUP = 16
"""Distances per group of columns, of which the smallest is compared first."""

_GATHERED = 2**19
"""Elements of neighbors' features that are gathered at once, to compute distances from the differences."""

_WHY = "A single sample has no neighbor of its own class."


def nearest_neighbors(
    queries: Tensor, references: Tensor, k: int, *, block: int = 32_768, exclude_self: bool = False
) -> tuple[Tensor, Tensor]:
    """Find the `k` nearest references of each query, by Euclidean distance.

    References are processed in blocks, keeping the `k` nearest so far. Besides the features and the result, memory
    holds one tile of distances and one block of references. Within a tile, the square is expanded into a matrix product
    in float32, after both sides are centered at the mean of the references; the returned distances are computed from
    the differences. So the neighbors are exact if squared distances differ by more than about 1e-7 of the squared norms
    of the centered vectors. Within clusters that are narrower than that, relative to their distance from the mean, any
    of the references may be returned.

    Args:
        queries: Floating-point `(Q, D)`.
        references: Floating-point `(R, D)`, on the same device.
        k: Number of neighbors.
        block: Number of references to compare at once. Default: 32,768.
        exclude_self: Whether queries and references are the same samples in the same order, and no sample is its own
            neighbor. Default: `False`.

    Returns:
        Distances, ascending, float32 `(Q, k)` (float64 for float64 features), and positions of the references, int64
        `(Q, k)`.

    Raises:
        ValueError: If shapes disagree, features are not finite, or there are fewer than `k` references.

    Example:
        >>> points = torch.tensor([[0.0], [1.0], [5.0]])
        >>> nearest_neighbors(points, points, 1, exclude_self=True)
        (tensor([[1.],
                [1.],
                [4.]]), tensor([[1],
                [0],
                [1]]))
    """
    _check(queries, references, k, exclude_self)
    positive_int("block", block)
    dtype = torch.promote_types(torch.promote_types(queries.dtype, references.dtype), torch.float32)
    with torch.no_grad(), full_precision(queries.device):
        center = references.mean(0, dtype=dtype)
        found = torch.full((len(queries), k), torch.inf, dtype=dtype, device=queries.device)
        indices = torch.zeros((len(queries), k), dtype=torch.int64, device=queries.device)
        for start in range(0, len(references), block):
            part = references[start : start + block].to(dtype) - center
            norms = part.square().sum(1)
            buffer = norms.new_empty(min(_QUERIES, len(queries)), len(part))
            for first in range(0, len(queries), _QUERIES):
                rows = slice(first, min(first + _QUERIES, len(queries)))
                centered = queries[rows].to(dtype) - center
                tile = torch.addmm(norms, centered, part.T, alpha=-2, out=buffer[: len(centered)])
                if exclude_self:
                    _mask_self(tile, first - start)
                _merge(found[rows], indices[rows], tile, start)
        return _sorted(queries, references, indices, dtype)


def neighbor_scores(distances: Tensor, neighbor_labels: Tensor, *, num_classes: int) -> Tensor:
    """Compute how few neighbors of a sample carry each label, weighted by distance.

    With weights w_j = exp(−2 (d_j / d_k)²), d_k the distance of the farthest neighbor, and W_c the sum of those of
    label c, the score is −log((W_c + 1/C) / (Σ_c W_c + 1)): a smoothed −log p(c | x). Nearer neighbors have larger
    weights, which also separates samples whose neighbors carry the same labels.

    Args:
        distances: Ascending, at least 0, floating-point `(N, k)`.
        neighbor_labels: int64 `(N, k)`, in [0, `num_classes`).
        num_classes: C.

    Returns:
        float64 `(N, C)`, above 0.

    Example:
        >>> distances, labels = torch.tensor([[1.0, 2.0, 2.0]]), torch.tensor([[0, 0, 1]])
        >>> neighbor_scores(distances, labels, num_classes=3).argsort()
        tensor([[0, 1, 2]])
    """
    positive_int("num_classes", num_classes)
    with full_precision(distances.device):
        farthest = distances[:, -1:].double()
        ratios = torch.where(farthest > 0, distances.double() / farthest, 0.0)
        weights = torch.exp(-2 * ratios.square())
        votes = torch.zeros(len(weights), num_classes, dtype=weights.dtype, device=weights.device)
        votes = votes.scatter_add(1, neighbor_labels, weights)
        return -((votes + 1 / num_classes) / (votes.sum(1, keepdim=True) + 1)).log()


def _check(queries: Tensor, references: Tensor, k: int, exclude_self: bool) -> None:
    check_features(queries)
    check_features(references)
    if queries.shape[1] != references.shape[1]:
        what = f"of {references.shape[1]} features, as the references are"
        raise ValueError(expected("queries", what, f"{queries.shape[1]}"))
    if exclude_self and len(queries) != len(references):
        what = f"the {len(references)} references themselves, since `exclude_self` is set"
        raise ValueError(expected("queries", what, f"{len(queries)} samples"))
    positive_int("k", k)
    available = len(references) - exclude_self
    if k > available:
        others = "other samples" if exclude_self else "references"
        raise ValueError(expected("k", f"at most the {available} {others} there are", k, "Use fewer neighbors."))


def _mask_self(tile: Tensor, offset: int) -> None:
    """Set elements of a tile to infinity in row `i` and column `i + offset`, in place."""
    rows = torch.arange(len(tile), device=tile.device)
    inside = (rows + offset >= 0) & (rows + offset < tile.shape[1])
    tile[rows[inside], rows[inside] + offset] = torch.inf


def _merge(found: Tensor, indices: Tensor, tile: Tensor, start: int) -> None:
    """Merge the nearest references of a tile into the nearest so far, in place."""
    k = found.shape[1]
    near, places = _smallest(tile, min(k, tile.shape[1]))
    values = torch.cat([found, near], dim=1)
    positions = torch.cat([indices, places + start], dim=1)
    chosen = values.topk(k, dim=1, largest=False, sorted=False)
    found.copy_(chosen.values)
    indices.copy_(positions.gather(1, chosen.indices))


def _smallest(tile: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the `k` smallest values of each row and their columns, in any order.

    Columns are compared in groups: the `k` smallest values are in the `k` groups with the smallest minima, which leaves
    a small part of a long row to search.
    """
    width = tile.shape[1] // _GROUP
    if width < 2 * k:
        found = tile.topk(k, dim=1, largest=False, sorted=False)
        return found.values, found.indices
    grouped = tile[:, : width * _GROUP].view(len(tile), _GROUP, width)
    groups = grouped.amin(1).topk(k, dim=1, largest=False, sorted=False).indices[:, None].expand(-1, _GROUP, -1)
    rest = torch.arange(width * _GROUP, tile.shape[1], device=tile.device).expand(len(tile), -1)
    steps = width * torch.arange(_GROUP, device=tile.device)[:, None]
    columns = torch.cat([(groups + steps).flatten(1), rest], dim=1)
    chosen = torch.cat([grouped.gather(2, groups).flatten(1), tile[:, width * _GROUP :]], dim=1)
    found = chosen.topk(k, dim=1, largest=False, sorted=False)
    return found.values, columns.gather(1, found.indices)


def _sorted(queries: Tensor, references: Tensor, indices: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Compute the distances of the neighbors from the differences, and sort by them."""
    k, features = indices.shape[1], references.shape[1]
    step = max(1, _GATHERED // (k * features))
    distances = torch.empty(indices.shape, dtype=dtype, device=indices.device)
    buffer = references.new_empty(min(step, len(queries)) * k, features)
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        near = indices[rows].flatten()
        gathered = torch.index_select(references, 0, near, out=buffer[: len(near)]).to(dtype).view(-1, k, features)
        gathered -= queries[rows].to(dtype)[:, None]
        distances[rows] = torch.linalg.vector_norm(gathered, dim=2)
    indices, order = indices.sort(dim=1)
    distances, by_distance = distances.gather(1, order).sort(dim=1, stable=True)
    return distances, indices.gather(1, by_distance)


class DeepKNNScorer(SetScorer):
    """Scores by how few of the nearest other samples carry a sample's own label.

    It differs from the paper in the score: the paper removes a sample whose label is not the mode of the labels of its
    `k` neighbors. Here neighbors are weighted by their distance, and the score is a smoothed −log of the label's share,
    a ranking without ties.

    Poisoned neighbors vote too: a cluster of more than `k` / 2 poisoned samples outvotes the rest. The paper recommends
    a `k` of twice the number of poisons that may form a cluster. A class with fewer than `k` / 2 samples is a minority
    among the neighbors of its own samples.

    Args:
        feature_model: Network whose features are compared. Default: `FeatureModel()`.
        k: Number of neighbors. Default: 50.
        block: Number of samples to compare at once. Limits the memory and does not affect the result. Default: 32,768.

    Raises:
        ValueError: If a number is not a positive integer.

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
    scores_labels = True

    def __init__(self, feature_model: FeatureModel | None = None, *, k: int = 50, block: int = 32_768) -> None:
        self.feature_model = checked_feature_model(feature_model)
        self.k = positive_int("k", k)
        self.block = positive_int("block", block)

    def score_feature_labels(self, features: Tensor, labels: Tensor) -> Tensor:
        """Score each sample under each label; see `SetScorer.score_feature_labels`.

        Raises:
            ValueError: If there are not more than `k` samples, a class has a single sample, or features are not finite
                or all the same.
        """
        check_feature_set(features, labels, why=_WHY)
        self.check_set(labels)
        distances, near = nearest_neighbors(features, features, self.k, block=self.block, exclude_self=True)
        classes = int(labels.max()) + 1
        scores = zeros_in_file((len(labels), classes), torch.float32).to(features.device)
        for rows in row_blocks(len(labels), classes):
            scores[rows] = neighbor_scores(distances[rows], labels[near[rows]], num_classes=classes).float()
        return scores

    def check_set(self, labels: Tensor) -> None:
        """Raise if there are too few samples for `k` neighbors, or a class has a single one; see `SetScorer`."""
        check_class_sizes(labels, 2, _WHY)
        if self.k >= len(labels):
            came = f"{self.k} with {len(labels)} samples"
            raise ValueError(expected("k", "smaller than the number of samples", came, "Use fewer neighbors."))
