"""Whether an attacker got what it wanted, item by item."""

import torch
from torch import Tensor

ANY_OTHER = -1
"""The wanted label of an attacker who is content with any label but the true one."""


def attacker_succeeds(predictions: Tensor, true: Tensor, wanted: Tensor, *, reference: Tensor | None = None) -> Tensor:
    """Judge each item: is the prediction what the attacker wants?

    Args:
        predictions: int64 `(N,)`, the labels that a model predicts.
        true: int64 `(N,)`, the true labels.
        wanted: int64 `(N,)`, the labels that the attacker wants; −1 for any other than the true one.
        reference: int64 `(N,)`, what a model that was trained without poison predicts. Where it is given, an item on
            which that model fails the same way is no success: the attack did not cause it.

    Returns:
        bool `(N,)`.

    Example:
        >>> attacker_succeeds(torch.tensor([1, 2, 3]), torch.tensor([0, 2, 0]), torch.tensor([1, 1, -1]))
        tensor([ True, False,  True])
    """
    met = torch.where(wanted == ANY_OTHER, predictions != true, predictions == wanted)
    if reference is None:
        return met
    return met & ~torch.where(wanted == ANY_OTHER, reference != true, reference == wanted)
