"""`Case`: what a change gets to know about the images that it changes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_poison import PixelRange, Surrogate


@dataclass(frozen=True)
class Case:
    """The chosen images, and what may be done to them.

    Args:
        images: `(P, ...)`, raw images in [0, 1].
        labels: int64 `(P,)`, which they keep.
        movable: bool `(P, ...)`, where pixels may change.
        epsilon: the L∞ radius, in units of the raw image.
        classes: how many classes the data set has.
        pixels: how samples are normalized.
        surrogates: models that may be asked.
        generator: the only source of randomness.
    """

    images: Tensor
    labels: Tensor
    movable: Tensor
    epsilon: float
    classes: int
    pixels: PixelRange
    surrogates: Sequence[Surrogate]
    generator: torch.Generator


class Change(Protocol):
    """A way to change images; a frozen dataclass, whose fields are settings that JSON can hold."""

    def __call__(self, case: Case) -> Tensor:
        """Return changed raw images `(P, ...)`; what leaves the ball, the range or the mask is cut off afterwards."""


def added(case: Case, change: Tensor) -> Tensor:
    """Add a change, in units of epsilon and broadcastable, to the images of a case."""
    return case.images + case.epsilon * change
