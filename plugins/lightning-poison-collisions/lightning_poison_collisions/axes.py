"""Linear heads on frozen features, and the axes along which moving their training samples turns them."""

import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from torch import Tensor

_ITERATIONS = 2000


@dataclass(frozen=True)
class LinearHead:
    """One row of weights for each class.

    Args:
        classes: int64 `(K,)`, ascending.
        weights: float32 `(K, D)`, against features in units of `scale`.
        scale: the mean length of the feature vectors that it was fitted on.
    """

    classes: Tensor
    weights: Tensor
    scale: float


def fit_head(features: Tensor, labels: Tensor, *, kind: Literal["svm", "logistic"], c: float, seed: int) -> LinearHead:
    """Fit scikit-learn's `LinearSVC` or `LogisticRegression` on features in units of their mean length.

    A head that has not converged after 2,000 iterations is taken as it is: only the direction of its rows matters.

    Args:
        features: `(N, D)`, on the CPU.
        labels: int64 `(N,)`, of two classes at least.
        kind: `"svm"` or `"logistic"`.
        c: scikit-learn's `C`, the weight of the data against the penalty, above 0.
        seed: for the solver's order of samples.

    Returns:
        The head; of two classes the rows are w / 2 and −w / 2.

    Example:
        >>> features = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.8, 0.0], [0.0, 1.8]])
        >>> head = fit_head(features, torch.tensor([3, 7, 3, 7]), kind="svm", c=10.0, seed=0)
        >>> head.classes, (head.weights > 0).tolist()
        (tensor([3, 7]), [[True, False], [False, True]])
    """
    scale = float(features.norm(dim=1).mean().clamp(min=torch.finfo(features.dtype).tiny))
    model = (
        LinearSVC(C=c, dual="auto", max_iter=_ITERATIONS, random_state=seed)
        if kind == "svm"
        else LogisticRegression(C=c, max_iter=_ITERATIONS)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit((features / scale).numpy(), labels.numpy())
    weights = torch.from_numpy(model.coef_).to(features.dtype)
    if len(weights) == 1:
        weights = torch.cat([-weights, weights]) / 2
    return LinearHead(torch.from_numpy(model.classes_), weights, scale)


def rotation_axes(weights: Tensor, shift: int) -> Tensor:
    """Return for each class c the unit axis of w_t − w_c, with t the class `shift` places on, cyclically.

    Args:
        weights: `(K, D)`, one row a class.
        shift: in [1, K − 1].

    Returns:
        `(K, D)`; a zero row where both classes have the same weights.

    Example:
        >>> rotation_axes(torch.tensor([[1.0, 0.0], [0.0, 0.0], [4.0, 4.0]]), 1)
        tensor([[-1.0000,  0.0000],
                [ 0.7071,  0.7071],
                [-0.6000, -0.8000]])
    """
    return torch.nn.functional.normalize(weights.roll(-shift, 0) - weights, dim=1)


def positions_along(features: Tensor, axes: Tensor, scale: float) -> Tensor:
    """Return where features `(P, D)` stand on their axes `(P, D)`, in units of a head's scale, `(P,)`.

    Example:
        >>> positions_along(torch.tensor([[4.0, 1.0]]), torch.tensor([[1.0, 0.0]]), 2.0)
        tensor([2.])
    """
    return (features * axes).sum(1) / scale
