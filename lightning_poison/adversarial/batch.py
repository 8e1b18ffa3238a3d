"""`AttackedBatch`: a training batch, and how to ask the model about changed inputs."""

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
from lightning_poison.data.sample_spec import SampleSpec

SampleLoss = Callable[[Tensor, Tensor], Tensor]
"""Maps logits `(B, C)` and labels to one loss each, `(B,)`."""


def sample_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the cross-entropy of each sample, `(B,)`; labels are class indices `(B,)` or probabilities `(B, C)`.

    Raises:
        ValueError: where logits and labels do not fit.

    Example:
        >>> sample_cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3])).exp()
        tensor([4., 4.])
    """
    if logits.ndim != 2 or len(logits) != len(labels):
        hint = "Name what returns them: `logits=` takes the name of a submodule or a method, or a function."
        raise ValueError(expected("logits", f"({len(labels)}, C), a row a sample", describe(logits), hint))
    if labels.shape != (logits.shape if labels.is_floating_point() else logits.shape[:1]):
        hint = "Name where labels stand, `sample=SampleSpec(labels=...)`, or give a `loss=` that takes these."
        what = f"class indices (B,), or probabilities {tuple(logits.shape)}"
        raise ValueError(expected("labels", what, describe(labels), hint))
    return F.cross_entropy(logits.float(), labels if labels.is_floating_point() else labels.long(), reduction="none")


def total_of_one(tensor: Tensor) -> Tensor:
    """Return the sum over ranks where there is one.

    Example:
        >>> total_of_one(torch.ones(2))
        tensor([1., 1.])
    """
    return tensor


@dataclass(frozen=True)
class AttackedBatch:
    """A batch as a recipe sees it.

    Args:
        batch: as the loader made it; never changed.
        sample: where inputs and labels stand in it.
        module: what is trained; in evaluation mode and frozen while inputs are looked for, and put back.
        logits: maps inputs to logits `(B, C)`.
        loss: what the adversary raises.
        adversary: how inputs are changed.
        pixels: how inputs are normalized; raw images in [0, 1] where it is `None`.
        strength: the share of its radius that the adversary has at this step, in [0, 1].
        epoch: how many epochs are done.
        index: the position of the batch in its epoch.
        generator: draws whatever is random.
        part: this rank, and how many there are.
        total: sums a tensor over the ranks, and leaves its argument alone; all ranks must call it alike.
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
    total: Callable[[Tensor], Tensor] = total_of_one

    @property
    def inputs(self) -> Tensor:
        """The inputs, `(B, ...)`."""
        found: Tensor = self.sample.inputs_in(self.batch)
        return found

    @property
    def labels(self) -> Tensor:
        """The labels, `(B,)`, or `(B, C)` where a transform has mixed them."""
        found: Tensor = self.sample.labels_in(self.batch)
        return found

    def with_inputs(self, inputs: Tensor) -> Any:
        """Return a copy of the batch with other inputs."""
        return self.sample.replace(self.batch, inputs=inputs)

    def perturbed(
        self, inputs: Tensor, loss: Loss, *, adversary: Adversary | None = None, parameters_frozen: bool = True
    ) -> Tensor:
        """Change inputs so that a loss of them grows.

        Args:
            inputs: `(B, ...)`.
            loss: maps inputs like these to one loss each.
            adversary: another one than the batch's.
            parameters_frozen: whether parameters have no gradient meanwhile; `False` where the loss needs theirs.

        Returns:
            `(B, ...)`, detached.
        """
        chosen = adversary or self.adversary
        with evaluating(self.module), frozen(self.module) if parameters_frozen else nullcontext():
            return chosen.perturb(
                inputs,
                loss,
                pixels=self.pixels,
                strength=self.strength,
                parameters_frozen=parameters_frozen,
                part=self.part,
                generator=self.generator,
            )

    def read(self, inputs: Tensor) -> Tensor:
        """Return the logits of inputs in evaluation mode, `(B, C)`, without gradients.

        Parameters are frozen too, or autocast might keep what it makes of them here, which has no gradient.
        """
        with torch.no_grad(), evaluating(self.module), frozen(self.module):
            return self.logits(inputs)

    def misleading(self, *, adversary: Adversary | None = None) -> Tensor:
        """Change the inputs so that the loss of their own labels grows; `(B, ...)`, detached.

        What the batch's own adversary finds is kept: figures of it and training on it need one search.
        """
        return self._misleading if adversary is None else self._misled(adversary)

    @cached_property
    def _misleading(self) -> Tensor:
        return self._misled(self.adversary)

    def _misled(self, adversary: Adversary) -> Tensor:
        labels = self.labels
        return self.perturbed(self.inputs, lambda inputs: self.loss(self.logits(inputs), labels), adversary=adversary)
