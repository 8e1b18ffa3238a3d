"""Projected gradient descent against a model: images that it misreads, or reads as it is wanted."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison import checks
from lightning_poison.functional.pgd import Norm, perturb_samples
from lightning_poison.pixels import PixelRange
from lightning_poison.scopes import evaluating, frozen


def perturb_against(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    steps: int,
    step_size: float | Tensor | None = None,
    norm: Norm = "linf",
    targeted: bool = False,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    random_start: bool = True,
    restarts: int = 1,
    pixels: PixelRange | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Change images so that a model misreads them, or reads them as the labels given.

    The model runs in evaluation mode with its parameters frozen, and is given back as it was, after errors too.

    Args:
        model: maps a batch to logits `(B, C)`, on the device of the images.
        images: `(B, ...)`, as the model takes them.
        labels: int64 `(B,)`, the true ones; the wanted ones where `targeted`.
        epsilon: the radius in units of the raw [0, 1] image, whatever the normalisation; `(B,)` for one an image.
        steps: as for `perturb`.
        step_size: in the same units.
        norm: of the raw image.
        targeted: lower the loss of `labels`, and not raise it.
        loss: maps logits `(B, C)` and labels `(B,)` to losses `(B,)`; cross-entropy where it is `None`.
        random_start: as for `perturb`.
        restarts: as for `perturb`.
        pixels: how the model's inputs are normalised; raw [0, 1] images where it is `None`. Its grid is left alone.
        mask: as for `perturb`.
        generator: as for `perturb`.

    Returns:
        `(B, ...)`, as the model takes them, detached.

    Raises:
        FloatingPointError: as `perturb`.
        RuntimeError: as `perturb`.
        ValueError: as `perturb`, and where labels and logits do not fit the images.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.eye(2))
        >>> labels = torch.tensor([0])
        >>> perturb_against(model, torch.tensor([[0.6, 0.4]]), labels, epsilon=0.2, steps=10, step_size=0.1)
        tensor([[0.4000, 0.6000]])
    """
    if len(checks.index_vector("labels", labels)) != len(images):
        raise ValueError(checks.expected("labels", f"as long as `images` ({len(images)})", len(labels)))
    criterion = _cross_entropy if loss is None else loss
    sign = -1 if targeted else 1
    with evaluating(model), frozen(model):
        return perturb_samples(
            images,
            lambda inputs: sign * criterion(model(inputs), labels),
            epsilon=epsilon,
            steps=steps,
            step_size=step_size,
            norm=norm,
            random_start=random_start,
            restarts=restarts,
            pixels=pixels,
            mask=mask,
            parameters_frozen=True,
            generator=generator,
        )


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.ndim != 2 or len(logits) != len(labels):
        what = f"a model that returns logits ({len(labels)}, C)"
        raise ValueError(checks.expected("model", what, checks.describe(logits)))
    return F.cross_entropy(logits, labels, reduction="none")
