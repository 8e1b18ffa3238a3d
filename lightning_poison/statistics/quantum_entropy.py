"""Quantum entropy scores of robustly whitened features, by which a few directions of large variance stand out.

Hayase, Kong, Somani, Oh, "SPECTRE: Defending Against Backdoor Attacks Using Robust Statistics", ICML 2021,
arXiv 2104.11315, section 3.
"""

import math

import torch
from scipy.special import gammaincinv
from torch import Tensor

from lightning_poison.statistics.arguments import check_fraction, check_integer, invalid

_STEPS = 30
"""Maximum number of concentration steps. They have mostly converged after ten."""

_RIDGE = 1e-6
"""Ridge in units of the mean variance, so that a direction without variance can be whitened."""

_MIN_EXCESS = 0.05
"""Smallest excess of the largest variance over 1: below, all directions are alike, and no exponent enlarges that."""


def robust_moments(rows: Tensor, *, support: float = 0.9) -> tuple[Tensor, Tensor]:
    """Estimate mean and covariance while ignoring the most outlying rows, as one minimum covariance determinant.

    It starts from the rows that are nearest to the median and repeats concentration steps: mean and covariance of the
    nearest rows determine which rows are nearest (Rousseeuw, Van Driessen, "A fast algorithm for the minimum covariance
    determinant estimator", Technometrics 41, 1999). The covariance is scaled so that it is consistent for normal rows.
    One deterministic start is enough here, where few rows are outlying; the hundreds of random ones of scikit-learn's
    `MinCovDet` take seconds per class.

    Args:
        rows: Floating-point `(N, D)`.
        support: Share of the rows that is used, in (0, 1). Default: .9.

    Returns:
        Mean `(D,)` and covariance `(D, D)`, float64.

    Raises:
        ValueError: If there are fewer than D + 2 rows, or `support` is out of range.

    Example:
        >>> rows = torch.randn(2000, 3, generator=torch.Generator().manual_seed(0))
        >>> rows[:100] += 50
        >>> mean, covariance = robust_moments(rows)
        >>> float(mean.abs().max()) < 0.1, float((covariance - torch.eye(3)).abs().max()) < 0.2
        (True, True)
    """
    check_fraction("support", support)
    rows = rows.detach().double().cpu()
    count, size = rows.shape
    if count < size + 2:
        raise invalid("rows", f"at least {size + 2} of {size} numbers", count)
    used = min(count, max(size + 2, math.ceil(support * count)))
    center = rows.median(0).values
    spread = (rows - center).abs().median(0).values.clamp_min(1e-12)
    distances = ((rows - center) / spread).square().sum(1)
    chosen = distances.argsort(stable=True)[:used].sort().values
    for _ in range(_STEPS):
        mean, covariance = _moments(rows[chosen])
        distances = _distances(rows - mean, covariance)
        again = distances.argsort(stable=True)[:used].sort().values
        if torch.equal(again, chosen):
            break
        chosen = again
    mean, covariance = _moments(rows[chosen])
    typical = float(_distances(rows - mean, covariance).median())
    return mean, covariance * (typical / _chi_square_median(size))


def quantum_entropy_scores(rows: Tensor, *, alpha: float = 4.0, support: float = 0.9) -> Tensor:
    """Compute the quantum entropy score of each row after robust whitening.

    With whitened rows h and their covariance Σ, the score is hᵀ Q h / tr Q with Q = exp(α (Σ − I) / (‖Σ‖₂ − 1)), the
    exponential of a matrix. Outlying rows do not contribute to the whitening, so they enlarge Σ, and Q weighs the
    directions in which they do. α = 0 gives the Mahalanobis distance divided by D, α = ∞ the square of one direction.

    Args:
        rows: Features of a class, floating-point `(N, D)`.
        alpha: α, at least 0. Default: 4, as in the paper.
        support: Share of the rows by which they are whitened, in (0, 1). Default: .9.

    Returns:
        float64 `(N,)`, at least 0.

    Raises:
        ValueError: If there are fewer than D + 2 rows, or an argument is out of range.

    Example:
        >>> rows = torch.randn(1000, 4, generator=torch.Generator().manual_seed(0))
        >>> rows[:20, 1] += 9
        >>> quantum_entropy_scores(rows).topk(20).indices.sort().values.equal(torch.arange(20))
        True
    """
    if not 0 <= alpha < math.inf:
        raise invalid("alpha", "a finite number of at least 0", repr(alpha))
    mean, covariance = robust_moments(rows, support=support)
    whitened = (rows.detach().double().cpu() - mean) @ _inverse_root(covariance)
    centered = whitened - whitened.mean(0)
    return _entropy_scores(whitened, centered.T @ centered / len(centered), alpha)


def principal_sizes(count: int, size: int, *, largest: int = 64, per_component: int = 6) -> tuple[int, ...]:
    """Return the numbers of principal components to try: powers of two from 2 up to the largest that is supported.

    Args:
        count: Number of rows.
        size: Length of a row.
        largest: Largest number of components. Default: 64.
        per_component: Rows per component. Default: 6.

    Example:
        >>> principal_sizes(1000, 64, largest=16), principal_sizes(40, 64), principal_sizes(40, 1)
        ((2, 4, 8, 16), (2, 4, 6), (1,))
    """
    for name, value in (("count", count), ("size", size), ("largest", largest), ("per_component", per_component)):
        check_integer(name, value)
    most = max(1, min(size, largest, count // per_component))
    powers = [2**power for power in range(1, most.bit_length() + 1) if 2**power <= most]
    return tuple(sorted({*powers, most}))


def _entropy_scores(whitened: Tensor, covariance: Tensor, alpha: float) -> Tensor:
    identity = torch.eye(len(covariance), dtype=covariance.dtype)
    excess = float(torch.linalg.matrix_norm(covariance, 2)) - 1
    weights: Tensor = torch.linalg.matrix_exp(alpha * (covariance - identity) / max(excess, _MIN_EXCESS))
    scores: Tensor = torch.einsum("nd,de,ne->n", whitened, weights, whitened).clamp_min(0) / weights.trace()
    return scores


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    mean = rows.mean(0)
    covariance = (rows - mean).T @ (rows - mean) / (len(rows) - 1)
    ridge = _RIDGE * covariance.trace().clamp_min(1e-300) / len(covariance)
    return mean, covariance + ridge * torch.eye(len(covariance), dtype=rows.dtype)


def _distances(offsets: Tensor, covariance: Tensor) -> Tensor:
    distances: Tensor = (offsets * torch.linalg.solve(covariance, offsets.T).T).sum(1)
    return distances


def _inverse_root(covariance: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(covariance)
    root: Tensor = vectors @ torch.diag(values.clamp_min(values.max() * 1e-12).rsqrt()) @ vectors.T
    return root


def _chi_square_median(freedom: int) -> float:
    return float(2 * gammaincinv(freedom / 2, 0.5))
