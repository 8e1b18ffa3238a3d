"""The logistic head: softmax regression with an L2 penalty, and its gradient in the training features."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

LinearMap = Callable[[Tensor], Tensor]
"""Multiplies a tensor by a symmetric positive definite matrix."""

_MAX_HALVINGS = 20
_MAX_PRODUCTS = 40


@dataclass(frozen=True)
class HeadProblem:
    """Minimize Σ w CE(Wᵀf, y) / Σ w + λ/2 ‖W‖² over W.

    Args:
        features: Features of the training samples, `(N, D)`.
        labels: Labels, int64 `(N,)`.
        classes: C.
        penalty: λ, above 0.
        weights: Weight w of each sample, `(N,)`. Default: 1.
    """

    features: Tensor
    labels: Tensor
    classes: int
    penalty: float
    weights: Tensor | None = None

    @property
    def shares(self) -> Tensor:
        """The weight of each sample divided by the total weight, `(N,)`."""
        weights = self.features.new_ones(len(self.features)) if self.weights is None else self.weights
        return weights / weights.sum()

    def value(self, head: Tensor) -> Tensor:
        """Return the objective at a head `(D, C)`."""
        losses = F.cross_entropy(self.features @ head, self.labels, reduction="none")
        return self.shares @ losses + self.penalty / 2 * head.square().sum()

    def gradient(self, head: Tensor) -> Tensor:
        """Return the gradient of the objective, `(D, C)`."""
        errors = (self.features @ head).softmax(1) - F.one_hot(self.labels, self.classes).to(head.dtype)
        return self.features.T @ (self.shares[:, None] * errors) + self.penalty * head

    def hessian(self, head: Tensor) -> LinearMap:
        """Return the product of the Hessian with tensors `(D, C)`."""
        probabilities, shares = (self.features @ head).softmax(1), self.shares[:, None]

        def product(values: Tensor) -> Tensor:
            changes = softmax_jacobian_product(probabilities, self.features @ values)
            return self.features.T @ (shares * changes) + self.penalty * values

        return product

    def preconditioner(self, head: Tensor) -> LinearMap:
        """Return the product with the inverse of the diagonal blocks of the Hessian, one block for each class."""
        probabilities = (self.features @ head).softmax(1)
        curvature = self.shares[:, None] * probabilities * (1 - probabilities)
        blocks = torch.stack([(self.features * column[:, None]).T @ self.features for column in curvature.T])
        eye = torch.eye(blocks.shape[-1], dtype=blocks.dtype, device=blocks.device)
        factors = torch.linalg.cholesky(blocks + self.penalty * eye)
        return lambda values: torch.cholesky_solve(values.T[..., None], factors)[..., 0].T


def logistic_head(
    problem: HeadProblem,
    *,
    start: Tensor | None = None,
    steps: int = 50,
    tolerance: float = 1e-5,
    precondition: LinearMap | None = None,
) -> Tensor:
    """Minimize by Newton's method with conjugate gradients and backtracking.

    Args:
        problem: Problem to solve.
        start: Starting point, `(D, C)`; the head of similar samples saves time. Default: zero.
        steps: Maximum number of Newton steps.
        tolerance: Stop when no entry of the gradient is larger in absolute value.
        precondition: See `HeadProblem.preconditioner`. That of a similar head works too. Default: none.

    Returns:
        W, detached, `(D, C)`.

    Example:
        >>> features = torch.tensor([[1.0], [-1.0]])
        >>> logistic_head(HeadProblem(features, torch.tensor([0, 1]), 2, penalty=0.5)).round(decimals=3)
        tensor([[ 0.5210, -0.5210]])
    """
    with torch.no_grad():
        head = problem.features.new_zeros(problem.features.shape[1], problem.classes) if start is None else start
        value = problem.value(head)
        for _ in range(steps):
            gradient = problem.gradient(head)
            if gradient.abs().max() <= tolerance:
                break
            step = conjugate_gradients(
                problem.hessian(head), gradient, steps=_MAX_PRODUCTS, precondition=precondition, tolerance=0.1
            )
            accepted = _backtrack(problem, head, step, value, float((step * gradient).sum()))
            if accepted is None:
                break
            head, value = accepted
    return head


def _backtrack(
    problem: HeadProblem, head: Tensor, step: Tensor, value: Tensor, slope: float
) -> tuple[Tensor, Tensor] | None:
    """Halve the step until the Armijo condition holds; return `None` if only rounding errors remain."""
    length = 1.0
    for _ in range(_MAX_HALVINGS):
        proposed = head - length * step
        if (proposed_value := problem.value(proposed)) <= value - 1e-4 * length * slope:
            return proposed, proposed_value
        length /= 2
    return None


def logistic_gradient(
    problem: HeadProblem,
    head: Tensor,
    outer: Tensor,
    changing: slice,
    *,
    precondition: LinearMap | None = None,
    steps: int = 25,
) -> Tensor:
    """Return dL/dF of a loss L(W) for some of the training features, by implicit differentiation.

    At the minimum, the gradient of the training loss is zero for any features. So, with V = H⁻¹ dL/dW and the
    probabilities p of a row f with label y, dL/df = −s (V (p − y) + W (p ⊙ Vᵀf − p pᵀVᵀf)), where s is the row's share
    of the total weight.

    Args:
        problem: Training problem of the head.
        head: W, the minimum, `(D, C)`.
        outer: dL/dW, `(D, C)`.
        changing: The P rows for which the gradient is computed.
        precondition: As for `logistic_head`.
        steps: Maximum number of products with the Hessian to compute V.

    Returns:
        `(P, D)`.
    """
    adjoint = conjugate_gradients(problem.hessian(head), outer, steps=steps, precondition=precondition)
    rows, labels = problem.features[changing], problem.labels[changing]
    probabilities = (rows @ head).softmax(1)
    errors = probabilities - F.one_hot(labels, problem.classes).to(head.dtype)
    inner = errors @ adjoint.T + softmax_jacobian_product(probabilities, rows @ adjoint) @ head.T
    return -problem.shares[changing, None] * inner


def softmax_jacobian_product(probabilities: Tensor, values: Tensor) -> Tensor:
    """Multiply rows u `(B, C)` by the Jacobian of the softmax at probabilities p `(B, C)`: p ⊙ (u − pᵀu)."""
    return probabilities * (values - (probabilities * values).sum(1, keepdim=True))


def conjugate_gradients(
    product: LinearMap, right: Tensor, *, steps: int, precondition: LinearMap | None = None, tolerance: float = 1e-4
) -> Tensor:
    """Solve H x = g for a symmetric positive definite H by conjugate gradients (Hestenes and Stiefel 1952).

    Args:
        product: Multiplies a tensor of the shape of g by H.
        right: g, of any shape.
        steps: Maximum number of products.
        precondition: Multiplies by an approximation of H⁻¹, which saves products. Default: none.
        tolerance: Stop when ‖H x − g‖ is at most this share of ‖g‖.

    Returns:
        x, of the shape of g.

    Example:
        >>> conjugate_gradients(lambda x: torch.tensor([2.0, 4.0]) * x, torch.ones(2), steps=2)
        tensor([0.5000, 0.2500])
    """
    solution = torch.zeros_like(right)
    residual, limit = right, tolerance * right.norm()
    direction = preconditioned = residual if precondition is None else precondition(residual)
    inner = (residual * preconditioned).sum()
    for _ in range(steps):
        if residual.norm() <= limit:
            break
        image = product(direction)
        length = inner / (direction * image).sum()
        solution = solution + length * direction
        residual = residual - length * image
        preconditioned = residual if precondition is None else precondition(residual)
        inner, previous = (residual * preconditioned).sum(), inner
        direction = preconditioned + inner / previous * direction
    return solution
