"""Groups of samples that stand apart from the rest of their class, with a gap between: how far, and who belongs."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from lightning_poison.checks import expected, positive, positive_int
from lightning_poison.statistics.feature_sets import check_feature_set

SMALLEST_CLASS = 12
"""Samples that a class must have to be parted."""

TOO_SMALL = "Of fewer, a group that stands apart cannot be told from chance."

_CLUSTERS = (2, 4, 8)
"""Into how many clusters a class is parted: a group of a few per cent is none of two, and may be one of eight."""

_PER_COMPONENT = 6
"""Samples of a class for each principal component: with fewer a discriminant finds a gap in anything."""

_ROUNDS = 20
_RIDGE = 1e-6
"""Of the mean variance, so that a direction in which nothing varies has a finite weight."""


@dataclass(frozen=True)
class Subgroup:
    """The samples of a class in two parts: a smaller one that may stand apart, and the rest.

    Args:
        label: the class.
        positions: int64 `(M,)`, where the samples stand in the set; those of groups that were found before are left
            out.
        log_odds: float64 `(M,)`, of belonging to the group; above 0 for its members.
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
        """The positions of the samples of the group, int64."""
        return self.positions[self.log_odds > 0]

    @property
    def rest(self) -> Tensor:
        """The positions of the others of its class, int64."""
        return self.positions[self.log_odds <= 0]


def ashman_separation(values: Tensor, second: Tensor) -> float:
    """Compute Ashman's D of two groups of numbers, √2 |μ₁ − μ₂| / √(σ₁² + σ₂²).

    Ashman, Bird, Zepf, "Detecting bimodality in astronomical datasets", Astronomical Journal 108, 1994, eq. 4. Two
    normal distributions of D = 2 can just be told apart. The halves of a single one, cut at its mean, have 2.65: what
    has been cut into clusters must lie well above that to have a gap.

    Args:
        values: floating-point `(N,)`.
        second: whether a number is of the second group, bool `(N,)`; two or more of each.

    Returns:
        At least 0; infinite where neither group varies and their means differ.

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
    most: int = 3,
    seed: int = 0,
) -> tuple[Subgroup, ...]:
    """Find the groups of each class that stand apart, and what comes nearest to one where there is none.

    A class is reduced to its principal components and parted by k-means into two, four and eight clusters. Of all
    clusters of at most half the class the one that stands furthest apart from the rest is taken, its border drawn anew
    by a linear discriminant until nothing changes, and its separation measured along that. Where it has a gap it is set
    aside, and the rest of the class is looked at again.

    Args:
        features: floating-point `(N, D)`.
        labels: int64 `(N,)`.
        min_separation: Ashman's D from which a gap is one, above 0.
        components: how many principal components are kept; at most a sixth of the samples of a class.
        restarts: from how many starts k-means runs.
        most: how many groups of a class are looked for.
        seed: seeds the starts.

    Returns:
        For each class, in order of its number: the groups that stand apart, in the order in which they were set aside,
        and the one below `min_separation` at which the search ended, if any.

    Raises:
        ValueError: where an argument is out of its range, a class has fewer than `SMALLEST_CLASS` samples or features
            that do not differ, or features and labels are not what `check_feature_set` asks for.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> features = torch.randn(300, 8, generator=generator)
        >>> features[:30, 0] += 12
        >>> found = find_subgroups(features, torch.zeros(300, dtype=torch.int64), min_separation=6.5)
        >>> [(len(group.members), group.separation > 6.5) for group in found]
        [(30, True), (10, False)]
    """
    positive("min_separation", min_separation)
    for name, value in (("components", components), ("restarts", restarts), ("most", most)):
        positive_int(name, value)
    check_feature_set(features, labels, per_class=SMALLEST_CLASS, why=TOO_SMALL)
    found = []
    with threadpool_limits(limits=1):
        for number in torch.unique(labels).tolist():
            positions = (labels == number).nonzero().flatten().cpu()
            if bool((features[labels == number] == features[positions[0]]).all()):
                raise ValueError(
                    expected("features", f"vectors of class {number} that differ", "the same vector in all of it")
                    + "\nLook at features of another layer, or leave the class out."
                )
            for _ in range(most):
                group = _stands_apart(features, positions, number, components, restarts, seed)
                if group is None:
                    break
                found.append(group)
                positions = group.rest
                if group.separation < min_separation:
                    break
    return tuple(found)


def subgroup_scores(groups: Sequence[Subgroup], count: int, *, is_apart: Callable[[Subgroup], bool]) -> Tensor:
    """Return how suspicious samples are: their log-odds of belonging to a group of their class.

    In a class without a group that counts the largest log-odds are subtracted from all, so that their order stays and
    none is above 0.

    Args:
        groups: of `find_subgroups`.
        count: how many samples the set has.
        is_apart: tells which groups count.

    Returns:
        float64 `(count,)`; above 0 for members of groups that count.

    Example:
        >>> group = Subgroup(0, torch.tensor([0, 1, 2]), torch.tensor([-3.0, 5.0, -2.0]).double(), 8.0)
        >>> subgroup_scores([group], 3, is_apart=lambda group: group.separation > 9)
        tensor([-8.,  0., -7.], dtype=torch.float64)
    """
    scores = torch.full((count,), -torch.inf, dtype=torch.float64)
    counted = {group.label for group in groups if is_apart(group)}
    for group in groups:
        if is_apart(group):
            scores[group.positions] = torch.maximum(scores[group.positions], group.log_odds)
        elif group.label not in counted:
            scores[group.positions] = group.log_odds - group.log_odds.max().clamp_min(0)
    return scores.nan_to_num(neginf=0.0)


def _stands_apart(
    features: Tensor, positions: Tensor, label: int, components: int, restarts: int, seed: int
) -> Subgroup | None:
    rows = features[positions.to(features.device)].detach().float().cpu().numpy()
    if len(rows) < SMALLEST_CLASS:
        return None
    kept = min(components, rows.shape[1], len(rows) // _PER_COMPONENT)
    fewest = kept + 2
    points = torch.from_numpy(PCA(kept, random_state=seed).fit_transform(rows)).double()
    candidates = _clusters(points, restarts, seed, fewest)
    best = max(candidates, key=lambda mask: ashman_separation(_log_odds(points, mask), mask), default=None)
    if best is None:
        return None
    log_odds = _settled(points, best, fewest)
    return Subgroup(label, positions, log_odds, ashman_separation(log_odds, log_odds > 0))


def _clusters(points: Tensor, restarts: int, seed: int, fewest: int) -> Iterator[Tensor]:
    for count in _CLUSTERS:
        numbers = torch.from_numpy(KMeans(count, n_init=restarts, random_state=seed).fit(points.numpy()).labels_)
        for number in range(count):
            mask = numbers == number
            size = int(mask.sum())
            if size >= fewest and 2 * size <= len(mask):
                yield mask


def _log_odds(points: Tensor, mask: Tensor) -> Tensor:
    """Return the log-odds of belonging to a group by a linear discriminant, float64 `(N,)`."""
    inside, outside = points[mask], points[~mask]
    scatter = sum((part - part.mean(0)).T @ (part - part.mean(0)) for part in (inside, outside))
    shared = torch.as_tensor(scatter) / (len(points) - 2)
    shared += _RIDGE * shared.trace() / len(shared) * torch.eye(len(shared), dtype=shared.dtype)
    direction = torch.linalg.solve(shared, inside.mean(0) - outside.mean(0))
    middle = (inside.mean(0) + outside.mean(0)) / 2
    prior = torch.tensor(len(inside) / len(outside), dtype=torch.float64).log()
    return torch.as_tensor((points - middle) @ direction + prior)


def _settled(points: Tensor, mask: Tensor, fewest: int) -> Tensor:
    """Draw the border of a group anew until nothing changes; the last one that left both parts large enough counts."""
    log_odds = _log_odds(points, mask)
    signed = torch.where(mask, log_odds.abs(), -log_odds.abs())
    for _ in range(_ROUNDS):
        chosen = log_odds > 0
        if int(chosen.sum()) < fewest or 2 * int(chosen.sum()) > len(chosen):
            break
        signed = log_odds
        if torch.equal(chosen, mask):
            break
        mask = chosen
        log_odds = _log_odds(points, mask)
    return signed
