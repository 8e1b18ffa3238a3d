"""Losses of single images, and their gradients with respect to the images."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_poison import checks

_HALF_LOSS_SCALE = 2.0**14
"""Loss scale that keeps gradients from underflowing in float16. Signs and directions do not depend on it."""


class SampleLosses:
    """Computes losses and gradients at points in float32 or higher, regardless of the precision of the loss.

    Args:
        loss: Maps images `(B, ...)` to one loss each, `(B,)`.
        like: Images of the dtype that `loss` expects, on the device whose autocast setting applies.
        parameters_frozen: Whether the images are the only input of `loss` that requires a gradient. The gradient can
            then be computed by `backward`, which reentrant gradient checkpointing requires. Default: `False`.

    Example:
        >>> losses = SampleLosses(lambda images: images.square().sum(1), torch.zeros(2, 3, dtype=torch.bfloat16))
        >>> losses.gradient(torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, -4.0]]))
        tensor([[ 2.,  4.,  6.],
                [ 0.,  0., -8.]])
    """

    def __init__(self, loss: Callable[[Tensor], Tensor], like: Tensor, *, parameters_frozen: bool = False) -> None:
        self._loss = loss
        self._parameters_frozen = parameters_frozen
        self._reentrant = False
        self._dtype = like.dtype
        device = like.device.type
        self._half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16

    def values(self, points: Tensor) -> Tensor:
        """Return the losses `(B,)`, detached, in the dtype of the points `(B, ...)`."""
        with torch.no_grad():
            return self._losses(points).to(points.dtype)

    def gradient(self, points: Tensor) -> Tensor:
        """Return the gradient at points `(B, ...)`, times a positive factor if float16 is involved.

        No `.grad` is written. It works under `torch.no_grad`.

        Raises:
            RuntimeError: If reentrant checkpoints need a backward pass, and the parameters are not frozen.
            ValueError: If the loss has no gradient, or is not one per image.
        """
        gradient, scale = self._gradient(points, _HALF_LOSS_SCALE)
        if scale == 1 or bool(gradient.isfinite().all()):
            return gradient
        return self._gradient(points, 1.0)[0]

    def _gradient(self, points: Tensor, half_scale: float) -> tuple[Tensor, float]:
        """Return the gradient of the loss, times `half_scale` if float16 is involved, and that factor."""
        with torch.enable_grad():
            leaf = points.detach().requires_grad_()
            losses = self._losses(leaf)
            scale = half_scale if self._half or torch.float16 in (losses.dtype, self._dtype) else 1.0
            if losses.requires_grad:
                total = losses.to(points.dtype).sum() * scale
                gradient = self._differentiate(total, leaf)
                if gradient is not None:
                    return gradient, scale
        hint = "Remove operations without a gradient: `detach`, `argmax`, `torch.no_grad`, `torch.inference_mode`."
        raise ValueError(checks.expected("loss", "differentiable in the images", "one that is not", hint))

    def _differentiate(self, total: Tensor, leaf: Tensor) -> Tensor | None:
        """Return d total / d leaf, or `None` if the total does not depend on the leaf."""
        if self._reentrant:
            total.backward()  # type: ignore[no-untyped-call]
            return leaf.grad
        try:
            return torch.autograd.grad(total, leaf, allow_unused=True)[0]
        except RuntimeError as error:
            if "checkpoint" not in str(error):
                raise
        if not self._parameters_frozen:
            raise RuntimeError(
                "Expected a model that supports `torch.autograd.grad`, but got one with reentrant checkpoints.\n"
                "Write `checkpoint(..., use_reentrant=False)`, or freeze the parameters and set `parameters_frozen`."
            )
        self._reentrant = True
        return self._gradient(leaf, 1.0)[0]

    def _losses(self, points: Tensor) -> Tensor:
        losses: object = self._loss(points.to(self._dtype))
        if not isinstance(losses, Tensor) or losses.shape != points.shape[:1]:
            what = f"a function that returns a loss for each of the {len(points)} images"
            hint = 'Do not average over the batch: `reduction="none"`.'
            raise ValueError(checks.expected("loss", what, checks.describe(losses), hint))
        return losses
