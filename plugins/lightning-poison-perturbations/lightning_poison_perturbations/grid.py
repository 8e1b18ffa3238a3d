"""Rounding changed images to the grey levels of a data set, within the ball around their originals."""

import torch
from torch import Tensor

from lightning_poison import checks

_ROUNDING = 1e-3  # of a grey level: float32 does not hold 8 / 255 exactly


def to_levels(images: Tensor, originals: Tensor, *, epsilon: float, levels: int | None) -> Tensor:
    """Project raw images onto the ball, the range, and the grid of grey levels.

    Args:
        images: `(P, ...)`, raw images.
        originals: `(P, ...)`, the centres, in [0, 1].
        epsilon: the L∞ radius, in units of the raw image.
        levels: how many values a pixel can take; `None` for a continuous range.

    Returns:
        `(P, ...)`. A pixel in whose ball there is no level keeps its value.

    Raises:
        ValueError: where epsilon is less than one level, so that no pixel could change.

    Example:
        >>> originals = torch.tensor([[0.5, 0.5, 1.0]])
        >>> to_levels(originals + torch.tensor([[0.3, -0.1, 0.3]]), originals, epsilon=0.3, levels=11)
        tensor([[0.8000, 0.4000, 1.0000]])
    """
    low, high = (originals - epsilon).clamp(min=0), (originals + epsilon).clamp(max=1)
    if levels is None:
        return images.clamp(low, high)
    top = levels - 1
    if epsilon * top < 1 - _ROUNDING:
        hint = "Raise it, or declare the grid that the data have: `PixelRange(levels=...)`."
        raise ValueError(checks.expected("epsilon", f"at least one grey level, 1 / {top}", epsilon, hint))
    lowest, highest = (low * top - _ROUNDING).ceil(), (high * top + _ROUNDING).floor()
    nearest = (images * top).round().clamp(lowest, highest) / top
    return torch.where(lowest > highest, originals, nearest)
