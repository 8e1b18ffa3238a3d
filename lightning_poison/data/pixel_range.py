"""`PixelRange`: the range of raw images, and the normalization of samples."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_poison.checks import describe, expected, plain_numbers

_ROUNDING_ERROR = 1e-6  # of float32, in units of the raw image: a value plus 8 / 255 may be slightly below its level


@dataclass(frozen=True)
class PixelRange:
    """The pixel domain of a data set.

    Raw images are in [0, 1], on a grid of `levels` values. A sample of the data set is `(raw − mean) / std` per
    channel, or the raw image without `mean` and `std`. Every radius in this library is in units of the raw image:
    `8 / 255` is eight gray levels, independent of the normalization.

    Args:
        mean: Mean per channel that the data set's transform subtracts. Default: no normalization.
        std: Standard deviation per channel by which it divides. Default: no normalization.
        levels: Number of values of a raw pixel, including both ends; `None` for a continuous range. Default: 256.

    Raises:
        ValueError: If only one of `mean` and `std` is given, they differ in length, a `std` is not above 0, or
            `levels` is below 2.

    Example:
        >>> pixels = PixelRange(mean=(0.5,), std=(0.25,))
        >>> pixels.to_raw(torch.tensor([[[-2.0, 2.0]]]))
        tensor([[[0., 1.]]])
        >>> PixelRange(levels=17).round(torch.tensor([0.51, 1.2]))
        tensor([0.5000, 1.0000])
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    levels: int | None = 256

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            missing = "std" if self.std is None else "mean"
            raise ValueError(f"Expected `mean` and `std` together, but got no `{missing}`.\nPass both or neither.")
        if self.mean is not None and self.std is not None:
            object.__setattr__(self, "mean", tuple(float(value) for value in self.mean))
            object.__setattr__(self, "std", tuple(float(value) for value in self.std))
            if len(self.mean) != len(self.std):
                raise ValueError(expected("std", f"as long as `mean` ({len(self.mean)})", len(self.std)))
            if min(self.std) <= 0:
                raise ValueError(expected("std", "above 0 for every channel", self.std))
        if self.levels is not None and self.levels < 2:
            raise ValueError(expected("levels", "at least 2, or None for a continuous range", self.levels))
        plain_numbers(self)

    def to_raw(self, inputs: Tensor) -> Tensor:
        """Undo the normalization of samples `(..., C, H, W)`. The result is in [0, 1] for valid samples."""
        return (
            inputs
            if self.mean is None
            else inputs * self._channels(self.std, inputs) + self._channels(self.mean, inputs)
        )

    def from_raw(self, images: Tensor) -> Tensor:
        """Normalize raw images `(..., C, H, W)` in [0, 1] as the data set's transform does."""
        return (
            images
            if self.mean is None
            else (images - self._channels(self.mean, images)) / self._channels(self.std, images)
        )

    def radius(self, epsilon: float, inputs: Tensor) -> Tensor:
        """Return an epsilon of the raw image in units of a sample, broadcastable over `inputs` `(..., C, H, W)`."""
        radius = torch.as_tensor(epsilon, dtype=inputs.dtype, device=inputs.device)
        return radius if self.std is None else radius / self._channels(self.std, inputs)

    def clamp(self, inputs: Tensor) -> Tensor:
        """Project samples onto the pixel range."""
        return self.from_raw(self.to_raw(inputs).clamp(0, 1))

    def round(self, inputs: Tensor) -> Tensor:
        """Project samples onto the pixel range and its grid of levels."""
        return self.from_raw(self.round_raw(self.to_raw(inputs)))

    def round_raw(self, images: Tensor, *, around: Tensor | None = None, epsilon: float | None = None) -> Tensor:
        """Project raw images onto the range, its grid of levels, and the L∞ ball around their originals.

        Args:
            images: Raw images `(...)`. No normalization is undone.
            around: Originals in [0, 1], of the same shape. Required with `epsilon`.
            epsilon: Radius of the ball, in units of the raw image. Default: no limit.

        Returns:
            `(...)`. A pixel with no level in its ball takes the value of its original.

        Raises:
            ValueError: If `epsilon` is given without `around`.

        Example:
            >>> originals = torch.tensor([0.5, 0.5, 1.0])
            >>> pixels = PixelRange(levels=11)
            >>> pixels.round_raw(originals + torch.tensor([0.34, -0.08, 0.3]), around=originals, epsilon=0.3)
            tensor([0.8000, 0.4000, 1.0000])
        """
        if epsilon is None:
            low, high = torch.zeros_like(images), torch.ones_like(images)
        elif around is None:
            hint = "Pass the original images."
            raise ValueError(expected("around", f"the original images, with `epsilon={epsilon:g}`", "None", hint))
        else:
            low, high = (around - epsilon).clamp(min=0), (around + epsilon).clamp(max=1)
        if self.levels is None:
            return images.clamp(low, high)
        top = self.levels - 1
        lowest = ((low - _ROUNDING_ERROR).clamp(min=0) * top).ceil()
        highest = ((high + _ROUNDING_ERROR).clamp(max=1) * top).floor()
        nearest = (images * top).round().clamp(lowest, highest) / top
        return nearest if around is None else torch.where(lowest > highest, around, nearest)

    def contains(self, inputs: Tensor, *, tolerance: float = 1e-4) -> bool:
        """Whether all samples are in the pixel range up to `tolerance`, in units of the raw image."""
        raw = self.to_raw(inputs)
        return bool(((raw >= -tolerance) & (raw <= 1 + tolerance)).all())

    def _channels(self, values: tuple[float, ...] | None, inputs: Tensor) -> Tensor:
        if values is None or inputs.ndim < 3 or len(values) not in (1, inputs.shape[-3]):
            count = 0 if values is None else len(values)
            raise ValueError(
                expected("inputs", f"images (..., C, H, W) with the {count} channels of `mean`", describe(inputs))
            )
        return torch.tensor(values, dtype=inputs.dtype, device=inputs.device).view(-1, 1, 1)
