"""Groups of samples that are separated from the rest of their class by a gap in feature space."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits
from torch import Tensor

from lightning_poison.statistics.arguments import check_integer, invalid
from lightning_poison.statistics.feature_sets import check_feature_set
from lightning_poison.statistics.two_normals import MIN_VALUES, fit_two_normals

MIN_CLASS_SIZE = 12
"""Minimum number of samples in a class that is searched for groups."""

TOO_SMALL = "In a smaller class, a separate group cannot be distinguished from chance."

_CLUSTERS = (2, 4, 8)
"""Numbers of clusters per class: a group of a few percent is not one of two clusters, but may be one of eight."""

_PER_COMPONENT = 6
"""Samples of a class per principal component. With fewer, a discriminant finds a gap in any data."""

_ROUNDS = 20

_CLEAR = 3.0
"""Ashman's D of two normals that are clearly two parts. The halves of a single one have 2.65."""

_MAX_LOST = 0.1
"""Share of the members of a group that may belong to the other one of two normals."""

_NEW_MEMBER = math.log(9)
"""Log-odds from which a sample becomes a member then."""

_RIDGE = 1e-6
"""Ridge in units of the mean variance, so that a direction without variance has a finite weight."""


@dataclass(frozen=True)
class Subgroup:
    """The samples of a class in two parts: a smaller group that may be separate, and the rest.

    Args:
        label: The class.
        positions: Positions of the samples in the data set, int64 `(M,)`. Members of groups found earlier are excluded.
        log_odds: Log-odds of group membership, float64 `(M,)`, above 0 for members.
        separation: Ashman's D of the two parts; see `ashman_separation`.

    Example:
        >>> group = Subgroup(3, torch.tensor([4, 7, 9]), torch.tensor([-5.0, 6.0, -4.0]).double(), 8.0)
        >>> group.members, group.rest
        (tensor([7]), tensor([4, 9]))
    """

    label: int
    positions: Tensor
    log_odds: Tensor
    separation: float

    @property
    def members(self) -> Tensor:
        """Positions of the members of the group, int64."""
        return self.positions[self.log_odds > 0]

    @property
    def rest(self) -> Tensor:
        """Positions of the other samples of the class, int64."""
        return self.positions[self.log_odds <= 0]


def ashman_separation(values: Tensor, second: Tensor) -> float:
    """Compute Ashman's D of two groups of numbers, √2 |μ₁ − μ₂| / √(σ₁² + σ₂²).

    Ashman, Bird, Zepf, "Detecting bimodality in astronomical datasets", Astronomical Journal 108, 1994, eq. 4. Two
    normal distributions are just distinguishable at D = 2. The halves of a single normal distribution, cut at its mean,
    have D = 2.65: clusters have a gap between them only if their D is well above that.

    Args:
        values: Numbers, floating-point `(N,)`.
        second: Mask of the second group, bool `(N,)`. Each group has at least two numbers.

    Returns:
        D, at least 0. Infinite if both groups are constant and their means differ.

    Example:
        >>> values = torch.tensor([0.0, 2.0, 10.0, 12.0])
        >>> round(ashman_separation(values, torch.tensor([False, False, True, True])), 3)
        7.071
    """
    first, other = values[~second].double(), values[second].double()
    distance = float((first.mean() - other.mean()).abs())
    spread = float((first.var() + other.var()).sqrt())
    if not spread:
        return float("inf") if distance else 0.0
    return math.sqrt(2) * distance / spread


def find_subgroups(
    features: Tensor,
    labels: Tensor,
    *,
    min_separation: float,
    components: int = 10,
    restarts: int = 4,
    max_groups: int = 3,
    seed: int = 0,
) -> tuple[Subgroup, ...]:
    """Find the separate groups of each class, and the most separated part of a class without any.

    Each class is reduced to its principal components and partitioned by k-means into two, four and eight clusters. Of
    all clusters with at most half the samples, the one with the largest separation is selected. Its boundary is
    refitted by a linear discriminant until convergence, and its separation is measured along the discriminant. If the
    group is separate, it is removed, and the search is repeated on the rest of the class.

    Args:
        features: Features, floating-point `(N, D)`.
        labels: Labels, int64 `(N,)`.
        min_separation: Minimum Ashman's D of a separate group, above 0.
        components: Number of principal components, limited to a sixth of the samples of a class. Default: 10.
        restarts: Number of k-means initializations. Default: 4.
        max_groups: Maximum number of groups per class. Default: 3.
        seed: Seed of PCA and k-means. Default: 0.

    Returns:
        For each class, in ascending order: the separate groups in the order of the search, and the part below
        `min_separation` with which the search ended, if any.

    Raises:
        ValueError: If an argument is out of range, a class has fewer than `MIN_CLASS_SIZE` samples or constant
            features, or `check_feature_set` rejects the features and labels.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> features = torch.randn(300, 8, generator=generator)
        >>> features[:30, 0] += 12
        >>> found = find_subgroups(features, torch.zeros(300, dtype=torch.int64), min_separation=6.5)
        >>> [(len(group.members), group.separation > 6.5) for group in found]
        [(30, True), (10, False)]
    """
    if not 0 < min_separation < math.inf:
        raise invalid("min_separation", "a finite number above 0", min_separation)
    for name, value in (("components", components), ("restarts", restarts), ("max_groups", max_groups)):
        check_integer(name, value)
    check_feature_set(features, labels, per_class=MIN_CLASS_SIZE, why=TOO_SMALL)
    found = []
    with threadpool_limits(limits=1):
        for number in torch.unique(labels).tolist():
            positions = (labels == number).nonzero().flatten().cpu()
            if bool((features[labels == number] == features[positions[0]]).all()):
                hint = "Use the features of another layer, or remove the class."
                raise invalid("features", f"different vectors within class {number}", "a single vector", hint)
            for _ in range(max_groups):
                group = _most_separated(features, positions, number, components, restarts, seed)
                if group is None:
                    break
                found.append(group)
                positions = group.rest
                if group.separation < min_separation:
                    break
    return tuple(found)


def with_fitted_odds(group: Subgroup) -> Subgroup:
    """Fit the log-odds of membership again, for parts that vary differently, and return the group with these.

    The linear discriminant assumes that both parts of a class vary alike. Poison often varies more than the rest, and
    the samples in its tail are then on the wrong side. Here, the log-odds of samples that are no members are those of
    two normal distributions with spreads of their own, of the values along the discriminant; see `fit_two_normals`.
    They are reduced so that a probability of .9 makes such a sample a member. Those of members stay as they are.

    Args:
        group: The group.

    Returns:
        The group with new log-odds. The same group if the two distributions are not its two parts: if there is hardly a
        gap between them, if more than a tenth of the members belong to the other one, or if their number would more
        than double.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> values = torch.randn(1000, generator=generator).double() * 3 - 15
        >>> values[:200] = torch.randn(200, generator=generator).double() * 9 + 7
        >>> group = Subgroup(0, torch.arange(1000), values, 4.5)
        >>> len(group.members), len(with_fitted_odds(group).members)
        (169, 184)
    """
    if len(group.log_odds) < MIN_VALUES or not bool(group.log_odds.isfinite().all()):
        return group
    mixture, inside = fit_two_normals(group.log_odds), group.log_odds > 0
    log_odds = mixture.log_odds(group.log_odds)
    if mixture.means[1] < mixture.means[0]:  # members have the larger values, and are the larger part
        log_odds = -log_odds
    lost = int((inside & (log_odds <= 0)).sum())
    log_odds = torch.where(inside, group.log_odds, log_odds - _NEW_MEMBER)
    size, count = int(inside.sum()), int((log_odds > 0).sum())
    if mixture.separation < _CLEAR or lost > _MAX_LOST * size or count > 2 * size:
        return group
    return replace(group, log_odds=log_odds)


def subgroup_scores(groups: Sequence[Subgroup], count: int, *, is_apart: Callable[[Subgroup], bool]) -> Tensor:
    """Compute suspicion scores: the log-odds of membership in a separate group of the class.

    In a class without a separate group, the largest log-odds are subtracted from all, so that the order is preserved
    and no score is above 0.

    Args:
        groups: Result of `find_subgroups`.
        count: Number of samples in the data set.
        is_apart: Maps a group to whether it is separate.

    Returns:
        Scores, float64 `(count,)`. Above 0 for members of separate groups.

    Example:
        >>> group = Subgroup(0, torch.tensor([0, 1, 2]), torch.tensor([-3.0, 5.0, -2.0]).double(), 8.0)
        >>> subgroup_scores([group], 3, is_apart=lambda group: group.separation > 9)
        tensor([-8.,  0., -7.], dtype=torch.float64)
    """
    scores = torch.full((count,), -torch.inf, dtype=torch.float64)
    with_separate_group = {group.label for group in groups if is_apart(group)}
    for group in groups:
        if is_apart(group):
            scores[group.positions] = torch.maximum(scores[group.positions], group.log_odds)
        elif group.label not in with_separate_group:
            scores[group.positions] = group.log_odds - group.log_odds.max().clamp_min(0)
    return scores.nan_to_num(neginf=0.0)


def _most_separated(
    features: Tensor, positions: Tensor, label: int, components: int, restarts: int, seed: int
) -> Subgroup | None:
    rows = features[positions.to(features.device)].detach().float().cpu().numpy()
    if len(rows) < MIN_CLASS_SIZE:
        return None
    dimensions = min(components, rows.shape[1], len(rows) // _PER_COMPONENT)
    min_size = dimensions + 2
    points = torch.from_numpy(PCA(dimensions, random_state=seed).fit_transform(rows)).double()
    candidates = _clusters(points, restarts, seed, min_size)
    best = max(candidates, key=lambda mask: ashman_separation(_log_odds(points, mask), mask), default=None)
    if best is None:
        return None
    log_odds = _refine(points, best, min_size)
    return Subgroup(label, positions, log_odds, ashman_separation(log_odds, log_odds > 0))


def _clusters(points: Tensor, restarts: int, seed: int, min_size: int) -> Iterator[Tensor]:
    for count in _CLUSTERS:
        assigned = torch.from_numpy(KMeans(count, n_init=restarts, random_state=seed).fit(points.numpy()).labels_)
        for number in range(count):
            mask = assigned == number
            size = int(mask.sum())
            if size >= min_size and 2 * size <= len(mask):
                yield mask


def _log_odds(points: Tensor, mask: Tensor) -> Tensor:
    """Return the log-odds of group membership under a linear discriminant, float64 `(N,)`."""
    inside, outside = points[mask], points[~mask]
    scatter = sum((part - part.mean(0)).T @ (part - part.mean(0)) for part in (inside, outside))
    shared = torch.as_tensor(scatter) / (len(points) - 2)
    shared += _RIDGE * shared.trace() / len(shared) * torch.eye(len(shared), dtype=shared.dtype)
    direction = torch.linalg.solve(shared, inside.mean(0) - outside.mean(0))
    middle = (inside.mean(0) + outside.mean(0)) / 2
    prior = torch.tensor(len(inside) / len(outside), dtype=torch.float64).log()
    return torch.as_tensor((points - middle) @ direction + prior)


def _refine(points: Tensor, mask: Tensor, min_size: int) -> Tensor:
    """Refit the boundary until convergence and return the last log-odds for which both parts are large enough."""
    log_odds = _log_odds(points, mask)
    result = torch.where(mask, log_odds.abs(), -log_odds.abs())
    for _ in range(_ROUNDS):
        inside = log_odds > 0
        if int(inside.sum()) < min_size or 2 * int(inside.sum()) > len(inside):
            break
        result = log_odds
        if torch.equal(inside, mask):
            break
        mask = inside
        log_odds = _log_odds(points, mask)
    return result
