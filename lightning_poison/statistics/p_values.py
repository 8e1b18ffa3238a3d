"""p-values from rankings, and the combination of the p-values of several filters."""

import math
from typing import Literal

import torch
from torch import Tensor

Combination = Literal["max", "sum"]


def share_at_least_as_suspicious(keys: Tensor, weights: Tensor) -> Tensor:
    """Compute, for each sample, the share of the total weight that samples at least as suspicious have.

    Args:
        keys: Sort keys, `(N, K)`, larger is more suspicious. Later columns break the ties of earlier ones.
        weights: Weight of each sample, such as the probability that its label is correct, float64 `(N,)`, at least 0.

    Returns:
        Shares in (0, 1], `(N,)`, at least the smallest normal number. Samples with equal keys have equal shares.

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
    totals = torch.zeros(len(keys), dtype=weights.dtype, device=keys.device).index_add(0, group, weights[order])
    share = torch.empty_like(weights)
    share[order] = (totals.cumsum(0) / weights.sum().clamp_min(torch.finfo(weights.dtype).tiny))[group]
    return share.clamp(torch.finfo(weights.dtype).tiny, 1)


def combine_log_p(log_p: Tensor, how: Combination = "max") -> Tensor:
    """Combine the p-values of several filters into one score.

    `"max"` takes the largest −log10 p, that is, the smallest p-value: one confident filter is enough (Tippett, *The
    Methods of Statistics*, 1931, section 6.3). `"sum"` rewards agreement: Fisher's method (*Statistical Methods for
    Research Workers*, 4th edition, 1932, section 21.1), up to a factor. Filters of the same samples are not
    independent, so neither result is a valid p-value: it is a score, and must be calibrated again.

    Args:
        log_p: Natural logarithms of the p-values of K filters, `(K, ...)`.
        how: `"max"` or `"sum"`. Default: `"max"`.

    Returns:
        Scores `(...)`, in powers of ten. Larger is more suspicious.

    Example:
        >>> log_p = torch.tensor([[0.1, 0.5], [0.01, 0.5]]).log()
        >>> combine_log_p(log_p), combine_log_p(log_p, "sum")
        (tensor([2.0000, 0.3010]), tensor([3.0000, 0.6021]))
    """
    decades = -log_p / math.log(10)
    return decades.amax(0) if how == "max" else decades.sum(0)


def p_values_from_log(log_p: Tensor) -> Tensor:
    """Return p-values from their natural logarithms. Underflow gives the smallest normal number."""
    return log_p.exp().clamp_min(torch.finfo(torch.float64).tiny)


def select_suggestions(log_p: Tensor, suggestions: Tensor) -> Tensor:
    """Select, for each sample, the suggested label of the filter with the smallest p-value.

    Filters that suggest no label for a sample are ignored.

    Args:
        log_p: Natural logarithms of the p-values of K filters, `(K, N)`.
        suggestions: Label that each filter suggests, int64 `(K, N)`; −1 for none.

    Returns:
        Suggested labels, int64 `(N,)`; −1 if no filter suggests one.

    Example:
        >>> log_p = torch.tensor([[-9.0, -1.0], [-2.0, -3.0], [-1.0, -4.0]])
        >>> select_suggestions(log_p, torch.tensor([[-1, -1], [4, 5], [6, -1]]))
        tensor([4, 5])
    """
    available = torch.where(suggestions >= 0, log_p, torch.inf)
    return suggestions.gather(0, available.argmin(0, keepdim=True))[0]
