"""The pixels that a poison may have: within the range, the ball and the grid."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_ROUNDING_ERROR = 1e-6  # of float32, in units of the raw image: a base plus 8 / 255 may lie a little below its level


@dataclass(frozen=True)
class PixelBox:
    """The lowest and the highest value of each pixel, and the grid that crafted images are rounded to in the end.

    Args:
        bases: `(P, ...)`, raw images in [0, 1], the centres.
        radius: how far each pixel may move, in units of the raw image.
        levels: how many values a pixel can take; `None` for any.

    Example:
        >>> box = PixelBox(torch.tensor([[0.2]]), radius=0.09, levels=11)
        >>> box.clamp(torch.tensor([[0.9]])), box.rounded(torch.tensor([[0.29]]))
        (tensor([[0.2900]]), tensor([[0.2000]]))
    """

    bases: Tensor
    radius: float
    levels: int | None

    def clamp(self, images: Tensor) -> Tensor:
        """Project images `(P, ...)` onto the range and the ball."""
        low, high = (self.bases - self.radius).clamp(min=0), (self.bases + self.radius).clamp(max=1)
        return torch.minimum(torch.maximum(images, low), high)

    def rounded(self, images: Tensor) -> Tensor:
        """Return the nearest images on the grid and within the ball; where a pixel has none, its base's value."""
        if self.levels is None:
            return self.clamp(images)
        top, reach = self.levels - 1, self.radius + _ROUNDING_ERROR
        low = ((self.bases - reach).clamp(min=0) * top).ceil()
        high = ((self.bases + reach).clamp(max=1) * top).floor()
        nearest = torch.minimum(torch.maximum((images * top).round(), low), high) / top
        return torch.where(low > high, self.bases, nearest)

    def rows(self, chosen: slice | Tensor) -> Self:
        """Return the box of some of the images."""
        return type(self)(self.bases[chosen], self.radius, self.levels)
