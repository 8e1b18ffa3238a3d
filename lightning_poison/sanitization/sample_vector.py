"""The check of a tensor that has one value for each sample."""

from typing import Any

import torch
from torch import Tensor

from lightning_poison.checks import describe, expected


def sample_vector(
    name: str, value: Any, dtype: torch.dtype = torch.float64, *, shape: torch.Size | None = None
) -> Tensor:
    """Return `value` if it is a vector of at least one number, of a data type, and of the shape of `scores` if given.

    Raises:
        TypeError: If it is no tensor.
        ValueError: If it has another shape or data type.

    Example:
        >>> sample_vector("keep", torch.tensor([0.5]), torch.bool)
        Traceback (most recent call last):
        ValueError: Expected `keep` to be a boolean mask, but got ...
    """
    if not isinstance(value, Tensor):
        raise TypeError(expected(name, "a tensor", describe(value)))
    if shape is not None and value.shape != shape:
        raise ValueError(expected(name, f"of shape {tuple(shape)}, as `scores`", describe(value)))
    if value.ndim != 1 or not len(value):
        raise ValueError(expected(name, "one-dimensional and not empty", describe(value)))
    if value.dtype != dtype:
        kind = "a boolean mask" if dtype == torch.bool else str(dtype).removeprefix("torch.")
        hint = "" if dtype == torch.bool else f"Convert it: `.to({dtype})`."
        raise ValueError(expected(name, kind, describe(value), hint))
    return value
