"""What is measured of a module on one batch: loss and accuracy of clean and of changed inputs."""

import torch
from torch import Tensor

from lightning_poison.adversarial.batch import AttackedBatch, sample_cross_entropy
from lightning_poison.adversarial.guard import is_read


def robust_figures(attacked: AttackedBatch) -> dict[str, Tensor]:
    """Return loss and accuracy of clean and of changed inputs, in evaluation mode.

    Losses of another kind may have no classes that could be read; then there is no accuracy.

    Raises:
        FloatingPointError: where a gradient is NaN or infinite.
    """
    return {**_measured(attacked, "clean", attacked.inputs), **_measured(attacked, "robust", attacked.misleading())}


def evaluation_figures(attacked: AttackedBatch) -> dict[str, Tensor]:
    """Return `robust_figures`; NaN for those of changed inputs where none can be found.

    A module that has diverged is no reason to stop a validation.
    """
    try:
        return robust_figures(attacked)
    except FloatingPointError:
        clean = _measured(attacked, "clean", attacked.inputs)
        unknown = {name.replace("clean", "robust"): torch.full_like(value, torch.nan) for name, value in clean.items()}
        return {**clean, **unknown}


def names_classes(attacked: AttackedBatch, logits: Tensor) -> bool:
    """Tell whether logits and labels name one class each, so that they can be compared.

    It depends on shapes and types alone, so that it is the same for all batches, on all ranks.
    """
    labels = attacked.labels
    if logits.ndim < 2 or logits.shape[1] < 2:
        return False
    if labels.is_floating_point():
        return attacked.loss is sample_cross_entropy and labels.shape == logits.shape
    return labels.shape == logits.shape[:1] + logits.shape[2:]


def _measured(attacked: AttackedBatch, name: str, inputs: Tensor) -> dict[str, Tensor]:
    logits = attacked.read(inputs)
    with torch.no_grad():
        figures = {f"{name}_loss": attacked.loss(logits, attacked.labels).mean()}
        if names_classes(attacked, logits):
            figures[f"{name}_accuracy"] = is_read(logits, attacked.labels).float().mean()
    return figures
