"""The ridge head: least squares on one-hot labels in closed form, and its gradient in the training features."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Sufficient statistics of weighted training samples for a ridge head.

    Args:
        gram: Σ w f fᵀ, `(D, D)`.
        cross: Σ w f yᵀ with one-hot y, `(D, C)`.
        count: Σ w.
    """

    gram: Tensor
    cross: Tensor
    count: float

    def __add__(self, other: "Moments") -> "Moments":
        return Moments(self.gram + other.gram, self.cross + other.cross, self.count + other.count)


def moments(features: Tensor, labels: Tensor, classes: int, *, weight: float = 1.0) -> Moments:
    """Return the moments of training samples.

    Args:
        features: Features, `(N, D)`.
        labels: Labels, int64 `(N,)`.
        classes: C.
        weight: Weight of each sample.

    Example:
        >>> moments(torch.tensor([[1.0], [2.0]]), torch.tensor([0, 1]), 2).cross
        tensor([[1., 2.]])
    """
    one_hot = F.one_hot(labels, classes).to(features.dtype)
    return Moments(weight * features.T @ features, weight * features.T @ one_hot, weight * len(labels))


def ridge_head(sums: Moments, penalty: float) -> Tensor:
    """Return W = (FᵀF / N + λI)⁻¹ FᵀY / N, differentiable in the moments.

    Args:
        sums: Moments of all training samples.
        penalty: λ, above 0.

    Returns:
        `(D, C)`; scores are `features @ W`.

    Example:
        >>> ridge_head(moments(torch.eye(2), torch.tensor([0, 1]), 2), penalty=0.5)
        tensor([[0.5000, 0.0000],
                [0.0000, 0.5000]])
    """
    return _solve(sums, penalty, sums.cross / sums.count)


def ridge_gradient(
    head: Tensor, sums: Moments, penalty: float, outer: Tensor, features: Tensor, labels: Tensor, *, weight: float = 1.0
) -> Tensor:
    """Return dL/dF of a loss L(W) for some of the training features, by implicit differentiation.

    W solves A W = B with A = FᵀF / N + λI and B = FᵀY / N. With V = A⁻¹ dL/dW and a row f of F with label y,
    dL/df = w (V (y − Wᵀf) − W (Vᵀf)) / N.

    Args:
        head: W from `ridge_head`, `(D, C)`.
        sums: Moments of all training samples, including those of `features`.
        penalty: λ.
        outer: dL/dW, `(D, C)`.
        features: Features of the samples that change, `(P, D)`.
        labels: Labels of these samples, int64 `(P,)`.
        weight: Weight of each of these samples.

    Returns:
        `(P, D)`.
    """
    adjoint = _solve(sums, penalty, outer)
    one_hot = F.one_hot(labels, head.shape[1]).to(features.dtype)
    residual = one_hot - features @ head
    return weight * (residual @ adjoint.T - (features @ adjoint) @ head.T) / sums.count


def _solve(sums: Moments, penalty: float, right: Tensor) -> Tensor:
    matrix = sums.gram / sums.count + penalty * torch.eye(len(sums.gram), dtype=right.dtype, device=right.device)
    return torch.cholesky_solve(right, torch.linalg.cholesky(matrix))
