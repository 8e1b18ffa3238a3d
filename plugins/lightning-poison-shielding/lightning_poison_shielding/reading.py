"""Reading raw images from a data set, block by block."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.checks import expected
from lightning_poison.labels import spec_of
from lightning_poison.pixels import PixelRange
from lightning_poison.reading import index_blocks, read_blocks


class RawReader:
    """Reads samples as raw images, at one state of the data set's random transforms.

    Args:
        dataset: a map-style data set.
        pixels: how samples are normalised.
        seed: seeds random transforms; the global random states are put back.
        batch_size: how many samples are read at once.
    """

    def __init__(self, dataset: "Dataset[Any]", pixels: PixelRange, *, seed: int, batch_size: int) -> None:
        self._dataset, self._pixels, self._seed, self._batch_size = dataset, pixels, seed, batch_size
        self._sample = spec_of(dataset)

    def __call__(self, indices: Tensor) -> Tensor:
        """Return the raw images at those positions, float32 `(B, ...)` in [0, 1].

        Raises:
            UnreadableSampleError: where a sample cannot be read or is not finite.
            ValueError: where images lie outside the pixel range.
        """
        return torch.cat(list(self.blocks(indices)))

    def blocks(self, indices: Tensor) -> Iterator[Tensor]:
        """Yield them a block at a time; an index may come several times."""
        for block in index_blocks(indices, self._batch_size):
            (read,) = read_blocks(self._dataset, [block], sample=self._sample, seed=self._seed)
            yield self._checked(read.inputs)

    def _checked(self, inputs: Tensor) -> Tensor:
        raw = self._pixels.to_raw(inputs)
        if not self._pixels.contains(inputs):
            found = f"values from {float(raw.min()):.3g} to {float(raw.max()):.3g}"
            raise ValueError(
                expected("dataset", f"images that lie in [0, 1] once {self._pixels} is undone", found)
                + "\nSay how the data set normalises: `Threat(..., pixels=PixelRange(mean=..., std=...))`."
            )
        return raw.clamp(0, 1)
