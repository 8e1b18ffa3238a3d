"""`AttackedBatch`: a training batch with the operations of adversarial training, and its robustness metrics."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison.adversarial.adversaries import Adversary, Loss
from lightning_poison.checks import describe, expected
from lightning_poison.contexts import evaluating, frozen
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.sample_spec import SampleSpec, are_probabilities

SampleLoss = Callable[[Tensor, Tensor], Tensor]
"""Maps logits `(B, C)` and labels to one loss each, `(B,)`."""


def sample_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute the cross-entropy of each sample.

    Args:
        logits: Logits, `(B, C)`.
        labels: Class indices, `(B,)`, or probabilities, `(B, C)`.

    Returns:
        Losses, `(B,)`.

    Raises:
        ValueError: If logits and labels do not match, or there are fewer than two classes.

    Example:
        >>> sample_cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3])).exp()
        tensor([4., 4.])
    """
    way = _loss_of(logits, labels)
    if logits.ndim != 2 or len(logits) != len(labels):
        hint = way or "Set `logits=` to the submodule or method that returns logits, by name, or to a function."
        raise ValueError(expected("logits", f"({len(labels)}, C), one row per sample", describe(logits), hint))
    if logits.shape[1] < 2:
        raise ValueError(expected("logits", f"({len(labels)}, C) of at least two classes", describe(logits), way))
    if labels.shape != (logits.shape if labels.is_floating_point() else logits.shape[:1]):
        hint = way or "Set the path to the labels, `sample=SampleSpec(labels=...)`, or pass a `loss=` for these labels."
        what = f"class indices (B,), or probabilities {tuple(logits.shape)}"
        raise ValueError(expected("labels", what, describe(labels), hint))
    return F.cross_entropy(logits.float(), labels if labels.is_floating_point() else labels.long(), reduction="none")


def _loss_of(logits: Tensor, labels: Tensor) -> str:
    """Return which `loss=` fits outputs that are not logits of exclusive classes; empty if unknown."""
    if not logits.is_floating_point():
        return ""
    if not labels.is_floating_point() and logits.ndim > 2 and labels.shape == logits.shape[:1] + logits.shape[2:]:
        return _SEGMENTATION
    if logits.ndim == 1 or logits.shape[1:] == (1,) or (labels.is_floating_point() and labels.shape == logits.shape):
        return _BINARY if bool(torch.isin(labels, labels.new_tensor([0, 1])).all()) else _REGRESSION
    return ""


def _way(task: str, loss: str) -> str:
    return f"For {task} pass the loss of each sample: `loss=lambda {loss}`."


_REGRESSION = _way(
    "regression",
    "outputs, targets: F.mse_loss(outputs, targets, reduction='none').reshape(len(outputs), -1).mean(1)",
)
_SEGMENTATION = _way(
    "segmentation", "logits, masks: F.cross_entropy(logits, masks, reduction='none').flatten(1).mean(1)"
)
_BINARY = _way(
    "binary and multi-label classification",
    "logits, labels: F.binary_cross_entropy_with_logits(logits, labels.float(), reduction='none')"
    ".reshape(len(logits), -1).mean(1)",
)


def check_probabilities(labels: Tensor) -> None:
    """Check that float labels `(B, C)` are class probabilities. Softmax assumes that classes exclude each other.

    Raises:
        ValueError: If a row does not sum to 1, as in multi-label classification, or there is one column.

    Example:
        >>> check_probabilities(torch.tensor([[1.0, 0.0, 1.0]]))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: Expected `labels` to be class indices (B,), or probabilities (B, C), but got several classes in ...
        For binary and multi-label classification pass the loss of each sample: ...
    """
    if labels.ndim != 2 or not labels.is_floating_point() or (labels.shape[1] > 1 and are_probabilities(labels)):
        return
    is_binary = bool(torch.isin(labels, labels.new_tensor([0, 1])).all())
    found = "one column of numbers" if labels.shape[1] == 1 else "rows with another sum than 1"
    if is_binary and labels.shape[1] > 1:
        found = "several classes in a row, or none, as in multi-label classification"
    way = _BINARY if is_binary else _REGRESSION
    raise ValueError(expected("labels", "class indices (B,), or probabilities (B, C)", found, way))


def sum_of_one_rank(tensor: Tensor) -> Tensor:
    """Return the tensor itself: its sum over the ranks of a single-process run."""
    return tensor


@dataclass(frozen=True)
class AttackedBatch:
    """A training batch, as a `Recipe` receives it.

    Args:
        batch: The batch of the data loader. Never modified.
        sample: Location of inputs and labels in the batch.
        module: The module in training. In evaluation mode and frozen during the search for perturbations, then
            restored.
        logits: Maps inputs to logits `(B, C)`.
        loss: The loss that the adversary maximizes.
        adversary: Method that perturbs the inputs.
        pixels: Normalization of the inputs. `None` for raw images in [0, 1].
        strength: Current share of the adversary's radius, in [0, 1].
        epoch: Number of completed epochs.
        index: Index of the batch in its epoch.
        generator: Source of randomness.
        part: Rank and world size. Default: `(0, 1)`.
        sum_over_ranks: Returns the sum of a tensor over the ranks, out of place. All ranks must call it in the same
            order. Default: a single rank.
    """

    batch: Any
    sample: SampleSpec
    module: nn.Module
    logits: Callable[[Tensor], Tensor]
    loss: SampleLoss
    adversary: Adversary
    pixels: PixelRange | None
    strength: float
    epoch: int
    index: int
    generator: torch.Generator
    part: tuple[int, int] = (0, 1)
    sum_over_ranks: Callable[[Tensor], Tensor] = sum_of_one_rank

    @property
    def inputs(self) -> Tensor:
        """Inputs, `(B, ...)`."""
        inputs: Tensor = self.sample.inputs_in(self.batch)
        return inputs

    @property
    def labels(self) -> Tensor:
        """Labels, `(B,)`, or mixed labels, `(B, C)`."""
        labels: Tensor = self.sample.labels_in(self.batch)
        return labels

    def with_inputs(self, inputs: Tensor) -> Any:
        """Return a copy of the batch with other inputs."""
        return self.sample.replace(self.batch, inputs=inputs)

    def perturb(
        self, inputs: Tensor, loss: Loss, *, adversary: Adversary | None = None, parameters_frozen: bool = True
    ) -> Tensor:
        """Perturb inputs to maximize a loss.

        Args:
            inputs: Inputs, `(B, ...)`.
            loss: Maps inputs to one loss each, `(B,)`.
            adversary: Method that perturbs the inputs. Default: the adversary of the batch.
            parameters_frozen: Whether to freeze the parameters. Set to `False` if the loss needs their gradients.
                Default: `True`.

        Returns:
            Perturbed inputs `(B, ...)`, detached.
        """
        method = adversary or self.adversary
        with evaluating(self.module), frozen(self.module) if parameters_frozen else nullcontext():
            return method.perturb(
                inputs,
                loss,
                pixels=self.pixels,
                strength=self.strength,
                parameters_frozen=parameters_frozen,
                part=self.part,
                generator=self.generator,
            )

    def evaluate(self, inputs: Tensor) -> Tensor:
        """Return the logits `(B, C)` of inputs in evaluation mode, without gradients.

        The parameters are frozen as well, since autocast might otherwise cache casts of them without a gradient.
        """
        with torch.no_grad(), evaluating(self.module), frozen(self.module):
            return self.logits(inputs)

    def adversarial_inputs(self, *, adversary: Adversary | None = None) -> Tensor:
        """Return inputs perturbed to maximize the loss of their labels, `(B, ...)`, detached.

        The result of the batch's own adversary is cached, so that metrics and training share one search.
        """
        return self._adversarial_inputs if adversary is None else self._search(adversary)

    @cached_property
    def _adversarial_inputs(self) -> Tensor:
        return self._search(self.adversary)

    def _search(self, adversary: Adversary) -> Tensor:
        labels = self.labels
        return self.perturb(self.inputs, lambda inputs: self.loss(self.logits(inputs), labels), adversary=adversary)


def is_correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Return which samples are classified correctly, bool `(B,)`.

    The class of mixed labels is the one with the largest share. Samples with NaN logits are not correct.

    Example:
        >>> is_correct(torch.tensor([[1.0, 0.0], [0.0, 1.0], [torch.nan, 0.0]]), torch.tensor([0, 0, 0]))
        tensor([ True, False, False])
    """
    correct = logits.argmax(1) == (labels.argmax(1) if labels.is_floating_point() else labels)
    return correct & ~logits.isnan().any(1)


def has_classes(attacked: AttackedBatch, logits: Tensor) -> bool:
    """Return whether logits and labels both refer to classes, so that an accuracy is defined.

    The result depends on shapes and dtypes only, and is therefore the same for all batches and ranks.
    """
    labels = attacked.labels
    if logits.ndim < 2 or logits.shape[1] < 2:
        return False
    if labels.is_floating_point():
        return attacked.loss is sample_cross_entropy and labels.shape == logits.shape
    return labels.shape == logits.shape[:1] + logits.shape[2:]


def robustness_metrics(attacked: AttackedBatch) -> dict[str, Tensor]:
    """Compute loss and accuracy of clean and perturbed inputs, in evaluation mode.

    There is no accuracy if logits and labels do not refer to classes.

    Raises:
        FloatingPointError: If a gradient is NaN or infinite.
    """
    clean = _metrics(attacked, "clean", attacked.inputs)
    return {**clean, **_metrics(attacked, "robust", attacked.adversarial_inputs())}


def validation_metrics(attacked: AttackedBatch) -> dict[str, Tensor]:
    """Compute `robustness_metrics`, with NaN for perturbed inputs if a gradient is NaN or infinite.

    A module that has diverged does not abort a validation run.
    """
    try:
        return robustness_metrics(attacked)
    except FloatingPointError:
        clean = _metrics(attacked, "clean", attacked.inputs)
        robust = {name.replace("clean", "robust"): torch.full_like(value, torch.nan) for name, value in clean.items()}
        return {**clean, **robust}


def _metrics(attacked: AttackedBatch, prefix: str, inputs: Tensor) -> dict[str, Tensor]:
    logits = attacked.evaluate(inputs)
    with torch.no_grad():
        metrics = {f"{prefix}_loss": attacked.loss(logits, attacked.labels).mean()}
        if has_classes(attacked, logits):
            metrics[f"{prefix}_accuracy"] = is_correct(logits, attacked.labels).float().mean()
    return metrics
