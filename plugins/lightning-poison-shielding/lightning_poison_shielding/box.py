"""The pixels that a poison may have: within the range, the ball and the grid."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_poison import PixelRange


@dataclass(frozen=True)
class PixelBox:
    """The lowest and the highest value of each pixel, and the grid that crafted images are rounded to in the end.

    Args:
        bases: `(P, ...)`, raw images in [0, 1], the centers.
        radius: how far each pixel may move, in units of the raw image.
        pixels: says which values a pixel can take.

    Example:
        >>> box = PixelBox(torch.tensor([[0.2]]), radius=0.09, pixels=PixelRange(levels=11))
        >>> box.clamp(torch.tensor([[0.9]])), box.rounded(torch.tensor([[0.29]]))
        (tensor([[0.2900]]), tensor([[0.2000]]))
    """

    bases: Tensor
    radius: float
    pixels: PixelRange

    def clamp(self, images: Tensor) -> Tensor:
        """Project images `(P, ...)` onto the range and the ball."""
        low, high = (self.bases - self.radius).clamp(min=0), (self.bases + self.radius).clamp(max=1)
        return torch.minimum(torch.maximum(images, low), high)

    def rounded(self, images: Tensor) -> Tensor:
        """Return the nearest images on the grid and within the ball; where a pixel has none, its base's value."""
        return self.pixels.round_raw(images, around=self.bases, epsilon=self.radius)
