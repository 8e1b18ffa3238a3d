"""The loss in the output of a `training_step`."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lightning_poison.checks import describe, expected


def loss_in(output: Any) -> Tensor:
    """Return the loss in the output of a step.

    Raises:
        TypeError: If the output is neither a tensor nor a mapping with the key `"loss"`.

    Example:
        >>> import torch
        >>> loss_in({"loss": torch.tensor(2.0), "preds": None})
        tensor(2.)
    """
    loss = output.get("loss") if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):
        found = f"a dict with the keys {list(output)}" if isinstance(output, Mapping) else describe(output)
        raise TypeError(expected("training_step", "a function that returns its loss, or a dict with `loss`", found))
    return loss


def with_loss(output: Any, loss: Tensor) -> Any:
    """Return the output of a step with another loss.

    Example:
        >>> import torch
        >>> with_loss({"loss": torch.tensor(2.0), "preds": 1}, torch.tensor(3.0))
        {'loss': tensor(3.), 'preds': 1}
    """
    return {**output, "loss": loss} if isinstance(output, Mapping) else loss
