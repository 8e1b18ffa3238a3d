"""`Augmentation`: random shifts and mirror images that are differentiable in the images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_poison import checks

Augment = Callable[[Tensor, Tensor], Tensor]
"""Maps raw images `(B, C, H, W)` and their positions in the draw, int64 `(B,)`, to augmented images."""


@dataclass(frozen=True)
class Augmentation:
    """Random shifts with repeated edges, and random mirror images.

    An attacker applies it while crafting if the victim augments its training images. This is the differentiable
    augmentation of Geiping et al., ICLR 2021, arXiv 2009.02276, with shifts by whole pixels instead of bilinear ones.

    Args:
        shift: Maximum shift in each direction, in pixels, at least 0.
        flip: Whether half of the images are mirrored.

    Raises:
        ValueError: If `shift` is not an integer of at least 0, or `flip` is not a boolean.

    Example:
        >>> image = torch.arange(4.0).view(1, 1, 2, 2)
        >>> augment = Augmentation(shift=1).draw(1, torch.Generator().manual_seed(0))
        >>> augment(image, torch.tensor([0])).flatten().tolist()
        [2.0, 2.0, 2.0, 2.0]
    """

    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        checks.positive_int("shift", self.shift, minimum=0)
        checks.boolean("flip", self.flip)

    def __bool__(self) -> bool:
        return bool(self.shift or self.flip)

    def draw(self, count: int, generator: torch.Generator) -> Augment:
        """Draw the augmentation of `count` images.

        Returns:
            A function that augments images at given positions of the draw, so that they can be augmented in batches. It
            raises a `ValueError` if the inputs are not images.
        """
        if not self:
            return lambda images, _positions: images
        rows, columns = (torch.randint(2 * self.shift + 1, (count, 1), generator=generator) for _ in range(2))
        mirrored = torch.randint(2, (count, 1), generator=generator).bool() & self.flip

        def augment(images: Tensor, positions: Tensor) -> Tensor:
            if images.ndim != 4:
                what, hint = "images (B, C, H, W)", "Set `shift=0` and `flip=False` for other inputs."
                raise ValueError(checks.expected("dataset", what, checks.describe(images), hint))
            height, width = images.shape[-2:]
            padded = F.pad(images, (self.shift,) * 4, mode="replicate") if self.shift else images
            row = rows[positions] + torch.arange(height)
            ahead = torch.arange(width)
            column = columns[positions] + torch.where(mirrored[positions], width - 1 - ahead, ahead)
            picture = torch.arange(len(images))[:, None, None]
            parts = (each.to(images.device) for each in (picture, row[:, :, None], column[:, None, :]))
            first, second, third = parts
            return padded[first, :, second, third].permute(0, 3, 1, 2)

        return augment
