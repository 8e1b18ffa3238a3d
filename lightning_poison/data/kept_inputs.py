"""`KeptInputs`: inputs in memory, float32, or one byte for each pixel of 8-bit images.

A pixel of an 8-bit image is a level k from 0 to 255, scaled to k / 255 (`ToTensor`) or k · (1 / 255) (transforms of
torchvision's version 2), which differ in the last bit. Whether all pixels of a block are such numbers is tested bit by
bit, so nothing is lost: a computation with the images that come back is the same computation.
"""

from collections.abc import Callable, Iterable
from functools import cache

import torch
from torch import Tensor

_AT_ONCE = 256
"""Number of images that are converted at once."""

Scaling = Callable[[Tensor], Tensor]
"""Maps levels, uint8, to pixels, float32 of the same shape."""


def _divided(levels: Tensor) -> Tensor:
    return levels.float().div_(255)


def _multiplied(levels: Tensor) -> Tensor:
    return levels.float().mul_(1 / 255)


SCALINGS: tuple[Scaling, ...] = (_divided, _multiplied)


def levels_of(inputs: Tensor, scalings: Iterable[Scaling] = SCALINGS) -> tuple[Tensor, tuple[Scaling, ...]]:
    """Return the levels of 8-bit images, and the scalings that lead from them to exactly these images.

    Args:
        inputs: float32 `(B, ...)`.
        scalings: The scalings to try.

    Returns:
        uint8 `(B, ...)`, and the scalings: none if these are no 8-bit images; the levels then mean nothing.

    Example:
        >>> images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1) / 255
        >>> levels, found = levels_of(images)
        >>> levels.flatten(), len(found)
        (tensor([  0,  51, 255], dtype=torch.uint8), 1)
        >>> levels_of(images + 1e-7)[1], levels_of(-images)[1]
        ((), ())
    """
    levels = _levels(inputs[:1])
    found: tuple[Scaling, ...] = ()
    if inputs.ndim >= 4 and type(inputs) is Tensor:
        found = tuple(each for each in scalings if _have_same_bits(each(levels), inputs[:1]))
    if found:
        levels = _levels(inputs)
        found = tuple(each for each in found if _have_same_bits(each(levels), inputs))
    return levels, found


def are_levels(blocks: Iterable[Tensor]) -> bool:
    """Return whether all of some inputs can be kept as levels: one scaling leads to all of them.

    Args:
        blocks: Inputs, float32 `(B, ...)`.

    Example:
        >>> images = torch.arange(256).view(-1, 1, 1, 1)
        >>> are_levels([images / 255, (images > 99).float()]), are_levels([images / 255, images * (1 / 255)])
        (True, False)
    """
    found = SCALINGS
    for block in blocks:
        found = levels_of(block, found)[1]
    return bool(found)


def _levels(inputs: Tensor) -> Tensor:
    return (inputs * 255).round_().clamp_(0, 255).to(torch.uint8)


def _have_same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two float32 tensors are equal, and so are the signs of their zeros."""
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


class KeptInputs:
    """Inputs of M samples in memory. They are never changed.

    Args:
        values: Inputs, float32 `(M, ...)`, or levels of 8-bit images, uint8 `(M, C, H, W)`.
        scaling: How levels become pixels. Default: the values are the inputs.

    Example:
        >>> levels, (scaling,) = levels_of(torch.arange(256).view(-1, 1, 1, 1) / 255)
        >>> kept = KeptInputs(levels, scaling)
        >>> kept.at(torch.tensor([51, 255])).flatten(), kept.num_bytes
        (tensor([0.2000, 1.0000]), 256)
    """

    def __init__(self, values: Tensor, scaling: Scaling | None = None) -> None:
        self.values = values
        self.scaling = scaling

    def __len__(self) -> int:
        return len(self.values)

    @property
    def num_bytes(self) -> int:
        """Size of the values in bytes."""
        return self.values.numel() * self.values.element_size()

    def scaled(self, values: Tensor) -> Tensor:
        """Return some of the values as inputs, float32 of the same shape, on their device."""
        if self.scaling is None:
            return values
        if values.device.type == "cpu":
            return self.scaling(values)
        return looked_up(values, _pixels(self.scaling, values.device))

    def rows(self, places: Tensor) -> Tensor:
        """Return copies of the values at `places`, int64 `(B,)` on the device of the values."""
        return self.values.index_select(0, places)

    def at(self, places: Tensor) -> Tensor:
        """Return the inputs at `places`, int64 `(B,)` on the device of the values: copies, float32 `(B, ...)`."""
        return self.scaled(self.rows(places))

    def one(self, place: int) -> Tensor:
        """Return the input at a place, float32 `(...)`."""
        return self.scaled(self.values[place])

    def all(self) -> Tensor:
        """Return all inputs, float32 `(M, ...)`; a copy if they are kept as levels."""
        return self.scaled(self.values)

    def select(self, places: Tensor) -> "KeptInputs":
        """Return copies of the inputs at `places`, int64 `(B,)`, kept in the same way."""
        return KeptInputs(self.rows(places), self.scaling)

    def followed_by(self, other: "KeptInputs") -> "KeptInputs":
        """Return copies of these inputs and of others, in the same way if both are kept in one way."""
        if self.scaling is other.scaling:
            return KeptInputs(torch.cat([self.values, other.values]), self.scaling)
        return KeptInputs(torch.cat([self.all(), other.all()]))

    def to(self, device: torch.device) -> "KeptInputs":
        """Return the same inputs on a device."""
        return KeptInputs(self.values.to(device), self.scaling)


def looked_up(levels: Tensor, pixels: Tensor) -> Tensor:
    """Return the pixel of each level: on other devices than the CPU, which may round a division in another way.

    Args:
        levels: uint8 `(...)`.
        pixels: Pixels of levels 0 to 255, `(256,)`, on the same device.

    Example:
        >>> looked_up(torch.tensor([[0, 255]], dtype=torch.uint8), torch.linspace(0, 1, 256))
        tensor([[0., 1.]])
    """
    return pixels.index_select(0, levels.reshape(-1).int()).view(levels.shape)


@cache
def _pixels(scaling: Scaling, device: torch.device) -> Tensor:
    """Return the pixel of each level, float32 `(256,)`, as the CPU computes it."""
    return scaling(torch.arange(256, dtype=torch.uint8)).to(device)


class InputCollector:
    """Collects the inputs of samples as they are read, in a limited number of bytes.

    Images are kept as levels as long as all of them are 8-bit images, and otherwise as float32.

    Args:
        count: Number of samples.
        limit: Largest number of bytes. Nothing is kept if the inputs need more.

    Example:
        >>> collector = InputCollector(count=4, limit=16)
        >>> collector.add(0, torch.zeros(2, 1, 1, 1))
        >>> collector.add(2, torch.full((2, 1, 1, 1), 0.3))  # no 8-bit images: all become float32
        >>> collector.result().all().flatten()
        tensor([0.0000, 0.0000, 0.3000, 0.3000])
    """

    def __init__(self, count: int, limit: int) -> None:
        self.is_open = True
        """Whether the inputs fit so far."""
        self._count = count
        self._limit = limit
        self._scalings = SCALINGS
        self._values: Tensor | None = None

    def add(self, start: int, inputs: Tensor) -> None:
        """Add the inputs of the samples from position `start` on, float32 `(B, ...)`; all before have been added."""
        if not self.is_open:
            return
        former, values = self._scalings, inputs
        if former:
            levels, self._scalings = levels_of(inputs, former)
            values = levels if self._scalings else inputs
        if self._values is None:
            self._values = self._room_for(values)
        elif former and not self._scalings:
            self._values = self._as_float(self._values, start, former[0])
        if self._values is not None:
            self._values[start : start + len(inputs)] = values
        self.is_open = self._values is not None

    def result(self) -> KeptInputs | None:
        """Return the inputs, or `None` if they do not fit."""
        if self._values is None:
            return None
        return KeptInputs(self._values, self._scalings[0] if self._scalings else None)

    def _room_for(self, values: Tensor) -> Tensor | None:
        """Return a tensor for the inputs of all samples, kept like the values of some of them, if it fits."""
        if self._count * values[0].numel() * values.element_size() > self._limit:
            return None
        return values.new_empty((self._count, *values.shape[1:]))

    def _as_float(self, levels: Tensor, stop: int, scaling: Scaling) -> Tensor | None:
        """Return the first samples as float32, if they fit."""
        inputs = self._room_for(scaling(levels[:1]))
        if inputs is not None:
            for start in range(0, stop, _AT_ONCE):
                part = slice(start, min(start + _AT_ONCE, stop))
                inputs[part] = scaling(levels[part])
        return inputs
