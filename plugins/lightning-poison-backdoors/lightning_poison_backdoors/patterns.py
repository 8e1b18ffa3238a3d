"""Patterns of triggers: what is given, checked, or the one that is used where none is."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_poison import checks

Pattern = Tensor | Sequence[Any]
"""uint8 `(C, h, w)`, or nested lists of gray levels: rows, or channels of rows."""


def checkerboard(size: int = 3) -> Tensor:
    """Return a checkerboard with white corners, uint8 `(1, size, size)`.

    Example:
        >>> checkerboard(3)[0].tolist()
        [[255, 0, 255], [0, 255, 0], [255, 0, 255]]
    """
    places = torch.arange(checks.positive_int("size", size))
    return ((places[:, None] + places + 1) % 2 * 255).to(torch.uint8)[None]


def white_square(height: int, width: int) -> Tensor:
    """Return a white square for a corner of an image: 5 pixels wide at 28, in proportion at other sizes, 2 at least.

    Args:
        height: of the image.
        width: of the image; the shorter of both counts.

    Returns:
        uint8 `(1, side, side)`.

    Example:
        >>> [white_square(size, size).shape[-1] for size in (8, 28, 32, 224)]
        [2, 5, 6, 40]
    """
    side = max(2, round(min(height, width) * 5 / 28))
    return torch.full((1, side, side), 255, dtype=torch.uint8)


def as_pattern(name: str, value: Pattern) -> Tensor:
    """Return a pattern as uint8 `(C, h, w)`.

    Raises:
        ValueError: where it is no image of gray levels from 0 to 255.

    Example:
        >>> as_pattern("pattern", [[0, 255]]).shape
        torch.Size([1, 1, 2])
    """
    what = "an image of whole gray levels from 0 to 255, (h, w) or (C, h, w)"
    hint = "Write an image in [0, 1] as `(255 * image).round().to(torch.uint8)`."
    try:
        image = value if isinstance(value, Tensor) else torch.tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(checks.expected(name, what, type(value).__name__, hint)) from None
    whole = not image.is_floating_point() and not image.is_complex() and image.dtype != torch.bool
    if not whole or image.ndim not in (2, 3) or not image.numel():
        raise ValueError(checks.expected(name, what, checks.describe(image), hint))
    if int(image.min()) < 0 or int(image.max()) > 255:
        raise ValueError(checks.expected(name, what, f"levels from {int(image.min())} to {int(image.max())}"))
    image = image.detach().cpu().to(torch.uint8).clone()
    return image if image.ndim == 3 else image[None]
