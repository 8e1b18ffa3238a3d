"""What is trained on: the changed inputs (`Madry`), or a part of them; and what any recipe must offer."""

from collections.abc import Callable
from typing import Any, Protocol

import torch

from lightning_poison.adversarial.batch import AttackedBatch
from lightning_poison.checks import fraction

Step = Callable[[Any], Any]
"""The user's own `training_step`, given a batch."""


class Recipe(Protocol):
    """One way to train adversarially, as a step around the user's own."""

    def step(self, attacked: AttackedBatch, call_next: Step) -> Any:
        """Train on one batch.

        Args:
            attacked: the batch.
            call_next: runs the user's step on a batch and returns what it returned.

        Returns:
            What the user's step would: the loss, or a mapping that holds it.
        """


class Madry:
    """Trains on changed inputs in the place of the clean ones.

    Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards deep learning models resistant to adversarial attacks", ICLR 2018,
    arXiv 1706.06083, eq. 2.1.

    Args:
        share: of each batch, in (0, 1], its first samples, rounded, but one at least; the rest stays clean.

    Raises:
        ValueError: where the share is out of its range.

    Example:
        >>> Madry(share=0.5)
        Madry(share=0.5)
    """

    def __init__(self, share: float = 1.0) -> None:
        self.share = 1.0 if share == 1 else fraction("share", share)

    def __repr__(self) -> str:
        return f"Madry(share={self.share:g})"

    def step(self, attacked: AttackedBatch, call_next: Step) -> Any:
        """Train on the changed batch."""
        count = max(1, round(self.share * len(attacked.inputs)))
        if count == len(attacked.inputs):
            return call_next(attacked.with_inputs(attacked.misleading()))
        first = attacked.inputs[:count]
        labels = attacked.labels[:count]
        changed = attacked.perturbed(first, lambda inputs: attacked.loss(attacked.logits(inputs), labels))
        return call_next(attacked.with_inputs(torch.cat([changed, attacked.inputs[count:]])))
