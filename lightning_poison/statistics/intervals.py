"""Confidence intervals of counts."""

import torch
from torch import Tensor


def wilson_interval(count: Tensor, variance: Tensor, size: int, *, confidence: float = 0.95) -> tuple[Tensor, Tensor]:
    """Compute Wilson's score interval of counts out of `size`, widened to a measured variance.

    The formula of Wilson, *Probable Inference, the Law of Succession, and Statistical Inference*, JASA 1927, is applied
    at the sample size whose binomial variance equals the given one, but never above `size`. The interval is therefore
    at least as wide as that of a binomial count, and its upper end is positive even for a count of 0. The lower end is
    0 if the count, which may be fractional, is below one half.

    Args:
        count: Estimated counts in [0, size], float64, any shape.
        variance: Variances of the counts, of the same shape.
        size: Number of samples counted over, at least 1.
        confidence: Nominal coverage in (0, 1). Default: 0.95.

    Returns:
        Lower and upper ends, as counts, each of the shape of `count`.

    Example:
        >>> count = torch.tensor([0.0, 20.0], dtype=torch.float64)
        >>> low, high = wilson_interval(count, torch.zeros(2, dtype=torch.float64), 1000)
        >>> [f"{value:.1f}" for value in torch.cat([low, high]).tolist()]
        ['0.0', '13.0', '3.8', '30.7']
    """
    rate = count / size
    binomial = rate * (1 - rate)
    tiny = torch.finfo(torch.float64).tiny
    effective = (binomial * size**2 / variance.clamp_min(tiny)).clamp_max(float(size))
    effective = torch.where(effective > 0, effective, float(size))
    z = torch.special.ndtri(torch.tensor((1 + confidence) / 2, dtype=torch.float64))
    center = (rate + z**2 / (2 * effective)) / (1 + z**2 / effective)
    half = z * (binomial / effective + (z / (2 * effective)) ** 2).sqrt() / (1 + z**2 / effective)
    low = torch.where(count < 0.5, 0.0, size * (center - half).clamp_min(0))
    return low, size * (center + half).clamp_max(1)
