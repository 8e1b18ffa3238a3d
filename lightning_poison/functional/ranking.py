"""Ranks of suspicion as shares of a weighted population."""

import torch
from torch import Tensor


def share_at_least_as_suspicious(keys: Tensor, right: Tensor) -> Tensor:
    """Compute for each sample the share of a weight that lies on samples at least as suspicious.

    Args:
        keys: what samples are ordered by, the first column ruling and larger more suspicious, `(N, K)`.
        right: weight of each sample, such as its probability of being rightly labelled, float64 `(N,)`, at least 0.

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
