"""`Recipe`, the interface of adversarial training methods, and `Madry`, which trains on perturbed inputs."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from lightning_poison.adversarial.batch import AttackedBatch
from lightning_poison.checks import fraction

Step = Callable[[Any], Any]
"""Runs the user's `training_step` on a batch."""


class Recipe(Protocol):
    """A method of adversarial training, as a wrapper around the user's `training_step`."""

    def step(self, attacked: AttackedBatch, call_next: Step) -> Any:
        """Train on one batch.

        Args:
            attacked: The batch.
            call_next: Runs the user's step on a batch and returns its output.

        Returns:
            Output of the step: the loss, or a mapping with the key `"loss"`.
        """


class Madry:
    """Trains on perturbed inputs instead of clean ones.

    Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards deep learning models resistant to adversarial attacks", ICLR 2018,
    arXiv 1706.06083, eq. 2.1.

    Args:
        share: Share of each batch to perturb, in (0, 1]: its first samples, rounded, at least one. The others stay
            clean. Default: 1.

    Raises:
        ValueError: If `share` is out of range.

    Example:
        >>> Madry(share=0.5)
        Madry(share=0.5)
    """

    def __init__(self, share: float = 1.0) -> None:
        self.share = 1.0 if share == 1 else fraction("share", share)

    def __repr__(self) -> str:
        return f"Madry(share={self.share:g})"

    def step(self, attacked: AttackedBatch, call_next: Step) -> Any:
        """Train on the perturbed batch."""
        count = max(1, round(self.share * len(attacked.inputs)))
        if count == len(attacked.inputs):
            return call_next(attacked.with_inputs(attacked.adversarial_inputs()))
        labels = attacked.labels[:count]
        perturbed = attacked.perturb(
            attacked.inputs[:count], lambda inputs: attacked.loss(attacked.logits(inputs), labels)
        )
        return call_next(attacked.with_inputs(torch.cat([perturbed, attacked.inputs[count:]])))
