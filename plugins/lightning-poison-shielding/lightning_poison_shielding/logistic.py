"""The logistic head: softmax regression with an L2 penalty, and its gradient in the training features."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_poison_shielding.conjugate import Linear, conjugate_gradients

_HALVINGS = 20
_PRODUCTS = 40


@dataclass(frozen=True)
class HeadProblem:
    """Minimize Σ w CE(Wᵀf, y) / Σ w + λ/2 ‖W‖² over W.

    Args:
        features: `(N, D)`, of the training samples.
        labels: int64 `(N,)`.
        classes: C.
        penalty: λ, above 0.
        weights: `(N,)`, how many samples each stands for; one where it is `None`.
    """

    features: Tensor
    labels: Tensor
    classes: int
    penalty: float
    weights: Tensor | None = None

    @property
    def shares(self) -> Tensor:
        """The share of each sample in the whole weight, `(N,)`."""
        weights = self.features.new_ones(len(self.features)) if self.weights is None else self.weights
        return weights / weights.sum()

    def value(self, head: Tensor) -> Tensor:
        """Return what is minimized, at a head `(D, C)`."""
        losses = F.cross_entropy(self.features @ head, self.labels, reduction="none")
        return self.shares @ losses + self.penalty / 2 * head.square().sum()

    def gradient(self, head: Tensor) -> Tensor:
        """Return its gradient `(D, C)`."""
        errors = (self.features @ head).softmax(1) - F.one_hot(self.labels, self.classes).to(head.dtype)
        return self.features.T @ (self.shares[:, None] * errors) + self.penalty * head

    def hessian(self, head: Tensor) -> Linear:
        """Return the product with its Hessian, for tensors `(D, C)`."""
        probabilities, shares = (self.features @ head).softmax(1), self.shares[:, None]

        def product(values: Tensor) -> Tensor:
            moved = centerd(probabilities, self.features @ values)
            return self.features.T @ (shares * moved) + self.penalty * values

        return product

    def near_inverse(self, head: Tensor) -> Linear:
        """Return the product with the inverse of the Hessian's diagonal blocks, one a class; a preconditioner."""
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
    precondition: Linear | None = None,
) -> Tensor:
    """Minimize by Newton's method, its steps found by conjugate gradients and halved until they descend.

    Args:
        problem: what is minimized.
        start: `(D, C)`, where to start from; zero where it is `None`. A head of nearly the same samples saves time.
        steps: how many Newton steps are taken at most.
        tolerance: stop where no entry of the gradient is larger.
        precondition: see `HeadProblem.near_inverse`; one of nearly the same head serves too.

    Returns:
        W `(D, C)`, detached.

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
                problem.hessian(head), gradient, steps=_PRODUCTS, precondition=precondition, tolerance=0.1
            )
            descended = _descend(problem, head, step, value, float((step * gradient).sum()))
            if descended is None:
                break
            head, value = descended
    return head


def _descend(
    problem: HeadProblem, head: Tensor, step: Tensor, value: Tensor, slope: float
) -> tuple[Tensor, Tensor] | None:
    """Halve the step until Armijo's rule holds; `None` where rounding errors are all that is left."""
    length = 1.0
    for _ in range(_HALVINGS):
        moved = head - length * step
        if (new := problem.value(moved)) <= value - 1e-4 * length * slope:
            return moved, new
        length /= 2
    return None


def logistic_gradient(
    problem: HeadProblem,
    head: Tensor,
    outer: Tensor,
    changing: slice,
    *,
    precondition: Linear | None = None,
    steps: int = 25,
) -> Tensor:
    """Return dL/dF of a loss L(W) in some of the training features, by implicit differentiation.

    At the minimum the gradient of the training loss is zero, whatever the features. So, with V = H⁻¹ dL/dW and the
    probabilities p of a row f of label y, dL/df = −s (V (p − y) + W (p ⊙ Vᵀf − p pᵀVᵀf)), where s is the row's share
    of the total weight.

    Args:
        problem: what the head minimizes.
        head: W `(D, C)`, the minimum.
        outer: dL/dW `(D, C)`.
        changing: which rows the gradient is asked for, P of them.
        precondition: as in `logistic_head`.
        steps: how many products with the Hessian are spent on V at most.

    Returns:
        `(P, D)`.
    """
    adjoint = conjugate_gradients(problem.hessian(head), outer, steps=steps, precondition=precondition)
    rows, labels = problem.features[changing], problem.labels[changing]
    probabilities = (rows @ head).softmax(1)
    errors = probabilities - F.one_hot(labels, problem.classes).to(head.dtype)
    inner = errors @ adjoint.T + centerd(probabilities, rows @ adjoint) @ head.T
    return -problem.shares[changing, None] * inner


def centerd(probabilities: Tensor, values: Tensor) -> Tensor:
    """Multiply rows by the softmax's Jacobian, p ⊙ (u − pᵀu).

    Args:
        probabilities: `(B, C)`.
        values: u `(B, C)`.

    Returns:
        `(B, C)`.
    """
    return probabilities * (values - (probabilities * values).sum(1, keepdim=True))
