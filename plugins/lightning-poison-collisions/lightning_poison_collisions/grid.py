"""Rounding crafted images to the grey levels that a data set can hold."""

import torch
from torch import Tensor

_ROUNDING_ERROR = 1e-6  # of float32, in units of the raw image: a base plus 8 / 255 may lie a little below its level


def to_grid(images: Tensor, *, levels: int | None, bases: Tensor, epsilon: float | None = None) -> Tensor:
    """Round raw images to a grid of levels without leaving the L∞ ball around their bases.

    Args:
        images: `(P, ...)`, raw images in [0, 1].
        levels: how many values a pixel can take; `None` returns the images as they are.
        bases: `(P, ...)`, the centres of the ball. A pixel in whose ball there is no level takes its base's value.
        epsilon: the radius, in units of the raw image; `None` for no limit.

    Returns:
        `(P, ...)`.

    Example:
        >>> to_grid(torch.tensor([[0.29]]), levels=11, bases=torch.tensor([[0.2]]), epsilon=0.09)
        tensor([[0.2000]])
    """
    if levels is None:
        return images
    top = levels - 1
    if epsilon is None:
        return (images * top).round() / top
    low = ((bases - epsilon - _ROUNDING_ERROR).clamp(min=0) * top).ceil()
    high = ((bases + epsilon + _ROUNDING_ERROR).clamp(max=1) * top).floor()
    rounded = (images * top).round().clamp(low, high) / top
    return torch.where(low > high, bases, rounded)
