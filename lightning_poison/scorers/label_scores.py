"""−log p of every label under a softmax, precise also where a label is all but certain."""

import torch
from torch import Tensor
from torch.nn import functional as F


def margins_to_best_other(label_scores: Tensor) -> Tensor:
    """Subtract from each score the smallest that the sample has under any other label.

    Args:
        label_scores: larger is more suspicious, floating-point `(B, C)` with at least two columns.

    Returns:
        `(B, C)`; above 0 where another label is less suspicious, so that the least suspicious label is the only one
        that can be below 0.

    Example:
        >>> margins_to_best_other(torch.tensor([[1.0, 4.0, 2.0]]))
        tensor([[-1.,  3.,  1.]])
    """
    (lowest, second), least = label_scores.topk(2, dim=1, largest=False).values.unbind(1), label_scores.argmin(1)
    columns = torch.arange(label_scores.shape[1], device=label_scores.device)
    return label_scores - torch.where(columns == least[:, None], second[:, None], lowest[:, None])


def surprisals(logits: Tensor) -> Tensor:
    """Compute −log p(k | x) of each label.

    `-log_softmax` is exactly 0 for every sample about which a network is surer than rounding can tell, a third of the
    digits of MNIST among them. Here the likeliest label's is computed from the other labels, log(1 + Σ_{k ≠ y}
    exp(z_k − z_y)), so that such samples stay in order.

    Args:
        logits: floating-point `(B, C)` with at least two columns.

    Returns:
        `(B, C)`, at least 0; differentiable in `logits`.

    Example:
        >>> logits = torch.tensor([[40.0, 0.0]])
        >>> -logits.log_softmax(1), surprisals(logits)
        (tensor([[-0., 40.]]), tensor([[4.2484e-18, 4.0000e+01]]))
    """
    likeliest = F.one_hot(logits.argmax(1), logits.shape[1]).bool()
    others = logits.masked_fill(likeliest, -torch.inf).logsumexp(1, keepdim=True)
    sure = F.softplus(others - logits.amax(1, keepdim=True))
    return torch.where(likeliest, sure, -logits.log_softmax(1))
