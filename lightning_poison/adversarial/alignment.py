"""The gradient of a loss as one vector, and how well it is aligned with another: what gradient matching maximizes.

    cos(∇θ Σᵢ L(F(xᵢ, θ), yᵢ), g)      (Geiping, Fowl, Huang, Czaja, Taylor, Moeller, Goldstein, "Witches' Brew:
                                        Industrial Scale Data Poisoning via Gradient Matching", ICLR 2021, arXiv
                                        2009.02276, whose objective is one minus this)

Whoever trains on the samples xᵢ takes steps along g where the cosine is near 1.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def loss_gradient(loss: Tensor, parameters: Sequence[Tensor], *, create_graph: bool = False) -> Tensor:
    """Return the gradient of a loss with respect to parameters, as one vector.

    No `.grad` is written, and nothing that waits for one is called. A parameter that the loss does not depend on has
    zeros.

    Args:
        loss: a scalar.
        parameters: one or more, of D entries in all.
        create_graph: whether the result can be differentiated again.

    Returns:
        `(D,)`, float32 at least.

    Example:
        >>> weights = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> loss_gradient(weights.square().sum(), [weights, torch.zeros(1, requires_grad=True)])
        tensor([2., 4., 0.])
    """
    parts = torch.autograd.grad(
        loss, list(parameters), create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return torch.cat([part.flatten().to(torch.promote_types(part.dtype, torch.float32)) for part in parts])


def gradient_alignment(gradient: Tensor, goal: Tensor) -> Tensor:
    """Compute the cosine of the angle between two gradients, whatever their lengths.

    Args:
        gradient: `(D,)`.
        goal: `(D,)`.

    Returns:
        A scalar in [-1, 1], differentiable in both; 0 where one of them is 0.

    Example:
        >>> gradient_alignment(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 1e-30])).round(decimals=3)
        tensor(0.7070)
    """
    return F.cosine_similarity(_in_reach(gradient), _in_reach(goal), dim=0)


def _in_reach(vector: Tensor) -> Tensor:
    """Return the vector with its largest entry at 1: squares of small gradients would vanish."""
    largest = vector.detach().abs().amax()
    return vector / torch.where(largest > 0, largest.clamp_min(torch.finfo(vector.dtype).tiny), 1)
