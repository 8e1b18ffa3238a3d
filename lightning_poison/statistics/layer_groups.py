"""Groups of a whole set by one number per layer, searched over the layers and then divided by label."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_poison.statistics.arguments import check_fraction, check_integer
from lightning_poison.statistics.subgroups import Subgroup, find_subgroups


def deviations(log_densities: Tensor) -> Tensor:
    """Map log-densities of a normal distribution to distances from the mean, in standard deviations.

    The largest log-density of a column is taken for that of the mean. A gap between log-densities remains a gap, which
    ranks would close, and the long tail of log-densities, which are quadratic, becomes short.

    Args:
        log_densities: Floating-point `(N, K)`.

    Returns:
        √(2 (max a − a)), float64 `(N, K)`.

    Example:
        >>> deviations(torch.tensor([[-1.0], [-3.0], [-51.0]]))[:, 0]
        tensor([ 0.,  2., 10.], dtype=torch.float64)
    """
    values = log_densities.detach().double()
    return (2 * (values.amax(0) - values)).sqrt()


def find_layer_groups(
    log_densities: Tensor,
    labels: Tensor,
    *,
    min_separation: float,
    min_size: int = 20,
    max_share: float = 0.9,
    max_cuts: int = 16,
    restarts: int = 4,
    seed: int = 0,
) -> tuple[Subgroup, ...]:
    """Find groups of a whole set of samples, of any label, and divide them by label.

    For each number of last columns that are left out, the samples are searched by `find_subgroups` as if they were one
    class. The columns count that give the largest separation of a group of `min_size`.

    Args:
        log_densities: One number per sample and layer, in the order of the layers, floating-point `(N, L)`.
        labels: int64 `(N,)`.
        min_separation: Minimum Ashman's D of a separate group, above 0.
        min_size: Minimum number of samples of a group, over all labels. Default: 20.
        max_share: Maximum share of a label in a group. A larger part is not compared with the rest. Default: .9.
        max_cuts: Maximum number of choices of columns; with more columns, they are spread evenly. Default: 16.
        restarts: Number of k-means initializations. Default: 4.
        seed: Seed of k-means. Default: 0.

    Returns:
        Groups of one label each; the parts of a group of the set have its separation. For a label in several groups of
        the set, in the order of the search.

    Raises:
        ValueError: If an argument is out of range, or `find_subgroups` rejects the numbers.

    Example:
        >>> values = -torch.randn(400, 3, generator=torch.Generator().manual_seed(0)).square()
        >>> values[:60, :2] -= 200
        >>> found = find_layer_groups(values, torch.arange(400) % 2, min_separation=6.5)
        >>> [(group.label, len(group.members)) for group in found if group.separation >= 6.5]
        [(0, 30), (1, 30)]
    """
    check_fraction("max_share", max_share)
    check_integer("max_cuts", max_cuts)
    check_integer("min_size", min_size)
    distances, labels = deviations(log_densities), labels.cpu()
    whole = torch.zeros(len(distances), dtype=torch.int64, device=distances.device)
    best: tuple[Subgroup, ...] = ()
    for width in _widths(distances.shape[1], max_cuts):
        part = distances[:, :width]
        if width < distances.shape[1] and bool((part == part[0]).all()):
            continue
        found = find_subgroups(part, whole, min_separation=min_separation, restarts=restarts, seed=seed)
        if not best or _largest(found, min_size) > _largest(best, min_size):
            best = found
    return tuple(part for group in best for part in _by_label(group, labels, max_share))


def _widths(columns: int, most: int) -> Sequence[int]:
    """Return the numbers of first columns to try."""
    steps = min(columns, most)
    return sorted({round(columns * (step + 1) / steps) for step in range(steps)})


def _largest(groups: Sequence[Subgroup], min_size: int) -> float:
    return max((group.separation for group in groups if len(group.members) >= min_size), default=0.0)


def _by_label(group: Subgroup, labels: Tensor, max_share: float) -> list[Subgroup]:
    parts, own = [], labels[group.positions]
    for label in torch.unique(own).tolist():
        mask = own == label
        odds = group.log_odds[mask]
        if int((odds > 0).sum()) <= max_share * len(odds):
            parts.append(Subgroup(label, group.positions[mask], odds, group.separation))
    return parts
