"""Argument checks of this package, which imports nothing from the rest of the library."""

import torch
from torch import Tensor


def invalid(name: str, expected: str, value: object, hint: str = "") -> ValueError:
    """Return an error that names the argument, the expectation, the value and the way out."""
    return ValueError(f"Expected `{name}` to be {expected}, but got {value}." + (f"\n{hint}" if hint else ""))


def describe(value: object) -> str:
    """Describe a tensor by its dtype and shape, and any other object by its type."""
    if isinstance(value, Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    return type(value).__name__


def check_fraction(name: str, value: float) -> None:
    """Raise a `ValueError` unless the value is a number in (0, 1)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
        raise invalid(name, "a number in (0, 1)", repr(value))


def check_integer(name: str, value: int, *, minimum: int = 1) -> None:
    """Raise a `ValueError` unless the value is an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise invalid(name, f"an integer of at least {minimum}", repr(value))


def check_label_vector(name: str, labels: Tensor, *, num_classes: int | None = None) -> None:
    """Raise a `ValueError` unless labels are int64 `(N,)`, and in `[0, num_classes)` if that is given."""
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or labels.ndim != 1:
        raise invalid(name, "a one-dimensional int64 tensor", describe(labels))
    if num_classes is not None and len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise invalid(name, f"in [0, {num_classes})", f"labels from {int(labels.min())} to {int(labels.max())}")
