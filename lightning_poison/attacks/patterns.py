"""Patterns of triggers: images that users pass as tensors or nested lists of gray levels."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_poison import checks

Pattern = Tensor | Sequence[Any]
"""uint8 `(C, h, w)`, or nested lists of gray levels: rows, or channels of rows."""


def as_pattern(name: str, value: Pattern) -> Tensor:
    """Return a pattern as uint8 `(C, h, w)`.

    Raises:
        ValueError: If it is not an image of gray levels from 0 to 255.

    Example:
        >>> as_pattern("pattern", [[0, 255]]).shape
        torch.Size([1, 1, 2])
    """
    what = "an image of integer gray levels from 0 to 255, (h, w) or (C, h, w)"
    hint = "Convert an image in [0, 1] with `(255 * image).round().to(torch.uint8)`."
    try:
        image = value if isinstance(value, Tensor) else torch.tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(checks.expected(name, what, type(value).__name__, hint)) from None
    integral = not image.is_floating_point() and not image.is_complex() and image.dtype != torch.bool
    if not integral or image.ndim not in (2, 3) or not image.numel():
        raise ValueError(checks.expected(name, what, checks.describe(image), hint))
    if int(image.min()) < 0 or int(image.max()) > 255:
        raise ValueError(checks.expected(name, what, f"levels from {int(image.min())} to {int(image.max())}"))
    image = image.detach().cpu().to(torch.uint8).clone()
    return image if image.ndim == 3 else image[None]
