"""Transforms of scores under every label: margins, and −log p with the full precision of small values."""

import torch
from torch import Tensor
from torch.nn import functional as F


def margins_to_best_other(label_scores: Tensor) -> Tensor:
    """Subtract from each score the smallest score of the sample under any other label.

    Args:
        label_scores: Larger is more suspicious, floating-point `(B, C)` with at least two columns.

    Returns:
        `(B, C)`. Above 0 if another label is less suspicious, so only the least suspicious label can be below 0.

    Example:
        >>> margins_to_best_other(torch.tensor([[1.0, 4.0, 2.0]]))
        tensor([[-1.,  3.,  1.]])
    """
    (lowest, second), least = label_scores.topk(2, dim=1, largest=False).values.unbind(1), label_scores.argmin(1)
    columns = torch.arange(label_scores.shape[1], device=label_scores.device)
    return label_scores - torch.where(columns == least[:, None], second[:, None], lowest[:, None])


def surprisals(logits: Tensor) -> Tensor:
    """Compute −log p(k | x) of each label.

    `-log_softmax` is exactly 0 for samples whose label is certain up to rounding, such as a third of the digits of
    MNIST. Here the value of the likeliest label is computed from the other labels, log(1 + Σ_{k ≠ y} exp(z_k − z_y)),
    so that such samples keep their order.

    Args:
        logits: Floating-point `(B, C)` with at least two columns.

    Returns:
        `(B, C)`, at least 0; differentiable in `logits`.

    Example:
        >>> logits = torch.tensor([[40.0, 0.0]])
        >>> -logits.log_softmax(1), surprisals(logits)
        (tensor([[-0., 40.]]), tensor([[4.2484e-18, 4.0000e+01]]))
    """
    likeliest = F.one_hot(logits.argmax(1), logits.shape[1]).bool()
    others = logits.masked_fill(likeliest, -torch.inf).logsumexp(1, keepdim=True)
    of_likeliest = F.softplus(others - logits.amax(1, keepdim=True))
    return torch.where(likeliest, of_likeliest, -logits.log_softmax(1))
