"""Conjugate gradients: H⁻¹ g from products with H alone."""

from collections.abc import Callable

import torch
from torch import Tensor

Linear = Callable[[Tensor], Tensor]
"""Multiplies a tensor by a symmetric positive definite matrix."""


def conjugate_gradients(
    product: Linear, right: Tensor, *, steps: int, precondition: Linear | None = None, tolerance: float = 1e-4
) -> Tensor:
    """Solve H x = g for a symmetric positive definite H (Hestenes and Stiefel 1952).

    Args:
        product: multiplies a tensor of g's shape by H.
        right: g, of any shape.
        steps: how many products are taken at most.
        precondition: multiplies by something near H⁻¹, which saves products.
        tolerance: stop where ‖H x − g‖ is this small relative to ‖g‖.

    Returns:
        x, of g's shape.

    Example:
        >>> conjugate_gradients(lambda x: torch.tensor([2.0, 4.0]) * x, torch.ones(2), steps=2)
        tensor([0.5000, 0.2500])
    """
    solution = torch.zeros_like(right)
    residual, goal = right, tolerance * right.norm()
    direction = near = residual if precondition is None else precondition(residual)
    inner = (residual * near).sum()
    for _ in range(steps):
        if residual.norm() <= goal:
            break
        image = product(direction)
        length = inner / (direction * image).sum()
        solution = solution + length * direction
        residual = residual - length * image
        near = residual if precondition is None else precondition(residual)
        inner, before = (residual * near).sum(), inner
        direction = near + inner / before * direction
    return solution
