"""Two normal components of one-dimensional values: whether a class has two parts, and which is the smaller one."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_poison.statistics.arguments import invalid

MIN_VALUES = 12
"""Minimum number of values."""

_STARTS = (0.02, 0.05, 0.2, 0.5, 0.8, 0.95, 0.98)
"""Shares of the values below the cut at which a fit starts: a few percent on either side, or a half."""

_ITERATIONS = 200

_TOLERANCE = 1e-7
"""Increase of the mean log-likelihood below which a fit has converged."""

_MIN_SPREAD = 0.02
"""Smallest standard deviation of a component, in units of the overall one: without it, equal values are a component."""


@dataclass(frozen=True)
class TwoNormals:
    """A mixture of two normal distributions, the larger component first.

    Args:
        share: Share of the smaller component, in [0, .5].
        means: Means of the larger and the smaller component.
        spreads: Standard deviations of both.

    Example:
        >>> round(TwoNormals(0.1, (0.0, 8.0), (1.0, 1.0)).separation, 2)
        8.0
    """

    share: float
    means: tuple[float, float]
    spreads: tuple[float, float]

    @property
    def separation(self) -> float:
        """Ashman's D of the components; see `lightning_poison.statistics.subgroups.ashman_separation`."""
        distance = abs(self.means[0] - self.means[1])
        return math.sqrt(2) * distance / math.hypot(*self.spreads)

    def log_odds(self, values: Tensor) -> Tensor:
        """Compute the log-odds of values to be of the smaller component.

        They are monotone: beyond a mean, they are those at the mean. Otherwise, the wider component would own the
        values that are farthest out on either side.

        Args:
            values: Any shape.

        Returns:
            float64, of the shape of `values`.

        Example:
            >>> mixture = TwoNormals(0.5, (0.0, 4.0), (1.0, 2.0))
            >>> mixture.log_odds(torch.tensor([-9.0, 0.0, 4.0, 9.0])).round(decimals=2)
            tensor([-2.6900, -2.6900,  7.3100,  7.3100], dtype=torch.float64)
        """
        inside = values.double().clamp(min(self.means), max(self.means))
        parts = [
            math.log(max(weight, 1e-300)) - math.log(spread) - ((inside - mean) / spread).square() / 2
            for weight, mean, spread in zip((1 - self.share, self.share), self.means, self.spreads, strict=True)
        ]
        return parts[1] - parts[0]


def fit_two_normals(values: Tensor) -> TwoNormals:
    """Fit two normal components by expectation maximization, from several starts, and return the most likely fit.

    Args:
        values: Finite numbers, floating-point `(N,)`, at least `MIN_VALUES`.

    Raises:
        ValueError: If there are too few values, or one is not finite.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> values = torch.randn(1000, generator=generator)
        >>> values[:50] = values[:50] / 2 - 9
        >>> found = fit_two_normals(values)
        >>> round(found.share, 3), round(found.means[1]), found.separation > 9
        (0.05, -9, True)
    """
    if values.ndim != 1 or len(values) < MIN_VALUES:
        raise invalid("values", f"a vector of at least {MIN_VALUES} numbers", f"shape {tuple(values.shape)}")
    if not bool(values.isfinite().all()):
        raise invalid("values", "finite", "NaN or infinite values")
    values = values.detach().double().cpu()
    center, scale = float(values.mean()), float(values.std())
    if not scale:
        return TwoNormals(0.0, (center, center), (1.0, 1.0))
    rows = (values - center) / scale
    best = _fit(rows)
    first, second = (0, 1) if float(best[0][0]) >= float(best[0][1]) else (1, 0)
    weights, means, spreads = ([float(part[number]) for number in (first, second)] for part in best)
    return TwoNormals(
        weights[1], (center + scale * means[0], center + scale * means[1]), (scale * spreads[0], scale * spreads[1])
    )


def _fit(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return weights, means and spreads of both components, the most likely ones that any start leads to."""
    cuts = rows.quantile(torch.tensor(_STARTS, dtype=rows.dtype))
    upper = rows > torch.where(cuts < rows.max(), cuts, rows.min())[:, None]
    belongs = torch.stack([~upper, upper], 1).double()
    found = torch.zeros(len(cuts), 3, 2, dtype=rows.dtype)
    likelihood = torch.full((len(cuts),), -torch.inf, dtype=rows.dtype)
    active = torch.ones(len(cuts), dtype=torch.bool)
    for _ in range(_ITERATIONS):
        counts = belongs.sum(2)
        active = active & (counts.amin(1) >= 1)
        if not bool(active.any()):
            break
        counts = counts.clamp_min(1e-9)
        means = belongs @ rows / counts
        offsets = rows - means[:, :, None]
        spreads = ((belongs * offsets.square()).sum(2) / counts).sqrt().clamp_min(_MIN_SPREAD)
        weights = counts / len(rows)
        joint = (weights / spreads).log()[:, :, None] - (offsets / spreads[:, :, None]).square() / 2
        total = joint.logsumexp(1)
        now, belongs = total.mean(1), (joint - total[:, None]).exp()
        found[active] = torch.stack([weights, means, spreads], 1)[active]
        grows = now - likelihood >= _TOLERANCE
        likelihood = torch.where(active, now, likelihood)
        active = active & grows
    weights, means, spreads = found[int(likelihood.argmax())]
    return weights, means, spreads
