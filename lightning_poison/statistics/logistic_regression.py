"""Multinomial logistic regression with an L2 penalty."""

from contextlib import suppress
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_poison.statistics.arguments import check_integer, check_label_vector, invalid
from lightning_poison.statistics.loss_curvature import LossCurvature
from lightning_poison.statistics.row_blocks import row_blocks

_MAX_STEPS = 200

_GRADIENT = 1e-4
"""Largest element of the gradient at which the fit ends."""

_HISTORY, _HELD = 100, 2**24
"""Largest number of earlier steps that L-BFGS remembers, and of elements of these: 64 MiB of each of two kinds."""

_TINY = 1e-30
"""Probability up to which its logarithm is computed from logits."""


def fit_logistic_regression(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    penalty: float,
    start: Tensor | None = None,
    curvature: LossCurvature | None = None,
) -> Tensor:
    """Minimize the mean cross-entropy plus `penalty` / 2 times the sum of the squared weights, by L-BFGS.

    With `curvature`, the fit begins with a step of Newton's method, and searches in coordinates in which the loss is
    about as curved in all directions. It then needs fewer steps, and approaches the same minimum.

    Args:
        features: Features, floating-point `(N, D)`, standardized.
        labels: Labels, int64 `(N,)`.
        num_classes: Number of classes C.
        penalty: Weight of the penalty, above 0. The bias is not penalized.
        start: Coefficients to start from, such as those of a similar fit, `(D + 1, C)`. Default: zeros, or with
            `curvature` its Newton step.
        curvature: Curvature of the loss of these samples. Default: unknown.

    Returns:
        Weights, and the bias as the last row, `(D + 1, C)`; see `logits_of`.

    Raises:
        ValueError: If a label is out of range, or the penalty is not above 0.

    Example:
        >>> points, labels = torch.tensor([[-1.0], [-0.9], [0.9], [1.0]]), torch.tensor([0, 0, 1, 1])
        >>> coefficients = fit_logistic_regression(points, labels, num_classes=2, penalty=0.01)
        >>> logits_of(coefficients, points).argmax(1)
        tensor([0, 0, 1, 1])
    """
    check_integer("num_classes", num_classes, minimum=2)
    check_label_vector("labels", labels, num_classes=num_classes)
    if not penalty > 0:
        raise invalid("penalty", "above 0", penalty)
    shape = (features.shape[1] + 1, num_classes)
    if start is None:
        start = features.new_zeros(shape) if curvature is None else curvature.newton_step(penalty)
    coordinates = None if curvature is None else curvature.coordinates(penalty)
    found = (start.clone() if coordinates is None else coordinates.of(start)).requires_grad_(True)
    optimizer = torch.optim.LBFGS(
        [found],
        max_iter=_MAX_STEPS,
        tolerance_grad=_GRADIENT if coordinates is None else 0,
        history_size=max(1, min(_HISTORY, _HELD // found.numel())),
        line_search_fn="strong_wolfe",
    )
    blocks = list(row_blocks(len(features), num_classes))
    compute = _cross_entropy_of_many
    if coordinates is None:
        truth = F.one_hot(labels, num_classes).T.to(features.dtype).contiguous() if len(blocks) == 1 else None
        compute = partial(_cross_entropy, truth=truth)
    buffers = features.new_empty(2, blocks[0].stop * num_classes)

    def loss() -> Tensor:
        current = found.detach() if coordinates is None else coordinates.coefficients(found.detach())
        weights = current[:-1]
        value, gradient = current.new_zeros(()), torch.zeros_like(current)
        for rows in blocks:
            held = buffers[:, : (rows.stop - rows.start) * num_classes]
            part = compute(current, features[rows], labels[rows], len(features), held)
            of_block, of_weights, of_bias = part
            value += of_block
            gradient[:-1] += of_weights
            gradient[-1] += of_bias
        gradient[:-1] += penalty * weights
        if coordinates is not None and bool(gradient.abs().max() <= _GRADIENT):
            raise _SmallGradientError
        found.grad = gradient if coordinates is None else coordinates.gradient(gradient)
        return value + penalty / 2 * weights.square().sum()

    with suppress(_SmallGradientError):
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return found.detach() if coordinates is None else coordinates.coefficients(found.detach())


class _SmallGradientError(Exception):
    """Ends a fit. L-BFGS would compare the derivative by coordinates, not by coefficients, and after a whole step."""


def _cross_entropy(
    coefficients: Tensor, features: Tensor, labels: Tensor, length: int, buffers: Tensor, *, truth: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the cross-entropy of a block, divided by the number of all samples, and its gradient by weights and bias.

    Matrices have a row for each class: with few classes, both products are two to five times faster than transposed.
    With `truth`, the labels as such a matrix of 0 and 1, the sum is over all elements: it rounds in another order.
    Memory for two matrices of a block is passed in, since new memory for each block would take a tenth of the time.
    """
    held = buffers.view(2, -1, len(features))
    logits = torch.addmm(coefficients[-1][:, None], coefficients[:-1].T, features.T, out=held[0])
    log_p = torch.log_softmax(logits, 0, out=held[1])
    value = -(log_p.gather(0, labels[None]) if truth is None else log_p * truth).sum() / length
    residuals = log_p.exp_()
    residuals[labels, torch.arange(len(labels), device=labels.device)] -= 1
    residuals /= length
    return value, (residuals @ features).T, residuals.sum(1)


def _cross_entropy_of_many(
    coefficients: Tensor, features: Tensor, labels: Tensor, length: int, buffers: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `_cross_entropy` does, without the logarithms of all probabilities: it takes a tenth less time."""
    held = buffers.view(2, len(features), -1)
    logits = torch.addmm(coefficients[-1], features, coefficients[:-1], out=held[0])
    residuals = torch.softmax(logits, 1, out=held[1])
    rows = torch.arange(len(labels), device=labels.device)
    own = residuals[rows, labels]
    unlikely = own <= _TINY
    value = -own.masked_fill(unlikely, 1).log().sum()
    if bool(unlikely.any()):
        value += F.cross_entropy(logits[unlikely], labels[unlikely], reduction="sum")
    residuals[rows, labels] -= 1
    return value / length, (features.T @ residuals).div_(length), residuals.sum(0) / length


def logits_of(coefficients: Tensor, features: Tensor) -> Tensor:
    """Return the logits of features `(N, D)` under coefficients `(D + 1, C)`.

    Example:
        >>> logits_of(torch.tensor([[1.0, 2.0], [0.0, 0.5]]), torch.tensor([[2.0]]))
        tensor([[2.0000, 4.5000]])
    """
    return torch.addmm(coefficients[-1], features, coefficients[:-1])
