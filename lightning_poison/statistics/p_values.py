"""Several filters' p-values in one score."""

import math
from typing import Literal

import torch
from torch import Tensor


def share_at_least_as_suspicious(keys: Tensor, right: Tensor) -> Tensor:
    """Compute for each sample the share of a weight that lies on samples at least as suspicious.

    Args:
        keys: what samples are ordered by, the first column ruling and larger more suspicious, `(N, K)`.
        right: weight of each sample, such as its probability of being rightly labeled, float64 `(N,)`, at least 0.

    Returns:
        Shares in (0, 1], `(N,)`; equal for samples of equal keys, and at least the smallest normal number.

    Example:
        >>> keys = torch.tensor([[3.0], [1.0], [2.0], [1.0]])
        >>> share_at_least_as_suspicious(keys, torch.ones(4, dtype=torch.float64)).tolist()
        [0.25, 1.0, 0.5, 1.0]
    """
    order = torch.arange(len(keys), device=keys.device)
    for key in keys.T.flip(0):
        order = order[key[order].sort(descending=True, stable=True).indices]
    ordered = keys[order]
    starts = (ordered[1:] != ordered[:-1]).any(1)
    group = torch.cat([starts.new_zeros(1), starts]).cumsum(0)
    weights = torch.zeros(len(keys), dtype=right.dtype, device=keys.device).index_add(0, group, right[order])
    share = torch.empty_like(right)
    share[order] = (weights.cumsum(0) / right.sum().clamp_min(torch.finfo(right.dtype).tiny))[group]
    return share.clamp(torch.finfo(right.dtype).tiny, 1)


Combination = Literal["max", "sum"]


def combine_log_p(log_p: Tensor, how: Combination = "max") -> Tensor:
    """Combine the p-values of several filters.

    `"max"` of −log10 p asks for one filter that is sure: Tippett's smallest p-value (*The Methods of Statistics*, 1931,
    section 6.3). `"sum"` asks for agreement: Fisher's (*Statistical Methods for Research Workers*, 4th edition, 1932,
    section 21.1), up to a factor. Neither is read as a p-value here, since filters of the same samples depend on each
    other: what comes out is a score, and is calibrated again.

    Args:
        log_p: natural logarithms of p-values, `(K, ...)` of K filters.
        how: `"max"` or `"sum"`.

    Returns:
        `(...)`, larger is more suspicious, in decades.

    Example:
        >>> log_p = torch.tensor([[0.1, 0.5], [0.01, 0.5]]).log()
        >>> combine_log_p(log_p), combine_log_p(log_p, "sum")
        (tensor([2.0000, 0.3010]), tensor([3.0000, 0.6021]))
    """
    decades = -log_p / math.log(10)
    return decades.amax(0) if how == "max" else decades.sum(0)


def p_values_from_log(log_p: Tensor) -> Tensor:
    """Return p-values from their natural logarithms; underflow gives the smallest normal number."""
    return log_p.exp().clamp_min(torch.finfo(torch.float64).tiny)


def suggested_by(log_p: Tensor, suggestions: Tensor) -> Tensor:
    """Take for each sample the suggestion of the filter that accuses it most, among those that suggest anything.

    Args:
        log_p: natural logarithms of p-values, `(K, N)`.
        suggestions: int64 `(K, N)`, the label that each filter reads, or −1.

    Returns:
        int64 `(N,)`, or −1 where no filter suggests anything.

    Example:
        >>> log_p = torch.tensor([[-9.0, -1.0], [-2.0, -3.0], [-1.0, -4.0]])
        >>> suggested_by(log_p, torch.tensor([[-1, -1], [4, 5], [6, -1]]))
        tensor([4, 5])
    """
    open_to = torch.where(suggestions >= 0, log_p, torch.inf)
    return suggestions.gather(0, open_to.argmin(0, keepdim=True))[0]
