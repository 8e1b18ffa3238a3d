"""A check of classes that an attack is told to attack."""

from torch import Tensor

from lightning_poison.checks import expected


def known_class(name: str, value: int, labels: Tensor, *, where: str = "training set") -> int:
    """Return a class that occurs in `labels`, int64 `(N,)`.

    Example:
        >>> import torch
        >>> known_class("base_class", 7, torch.tensor([0, 2, 2]))
        Traceback (most recent call last):
        ValueError: Expected `base_class` to be a class of the training set (0, 2), but got 7.
    """
    present = sorted(set(labels.tolist()))
    if value not in present:
        listed = ", ".join(map(str, present[:20])) + (", …" if len(present) > 20 else "")
        raise ValueError(expected(name, f"a class of the {where} ({listed})", value))
    return value
