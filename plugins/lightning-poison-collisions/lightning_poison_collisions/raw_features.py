"""A surrogate's features as a function of raw images, and reading raw images from a data set."""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.checks import expected
from lightning_poison.features import FeatureExtractor
from lightning_poison.labels import read_sample
from lightning_poison.pixels import PixelRange
from lightning_poison.reading import index_blocks, read_blocks
from lightning_poison.samples import SampleSpec
from lightning_poison.threat import Surrogate
from lightning_poison_collisions.distance import squared_norm


class RawFeatures:
    """Maps raw images `(B, ...)` in [0, 1] to a surrogate's features `(B, D)`, on the surrogate's own device.

    Args:
        surrogate: a model and its feature layer.
        pixels: how samples are normalised.

    Raises:
        ValueError: where the model has no such layer.
    """

    def __init__(self, surrogate: Surrogate, pixels: PixelRange) -> None:
        self._extract = FeatureExtractor(surrogate.model, surrogate.feature_layer)
        self._pixels = pixels
        state = itertools.chain(surrogate.model.parameters(), surrogate.model.buffers())
        self.device = next((tensor.device for tensor in state), torch.device("cpu"))

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features, differentiable in the images."""
        return self._extract(self._pixels.from_raw(images.to(self.device)))


class RawReader:
    """Reads samples as raw images, at an unchanging state of the data set's random transforms.

    Args:
        pixels: how samples are normalised.
        seed: seeds random transforms; the global random state is put back.
        batch_size: how many samples are read and mapped at once.
    """

    def __init__(self, pixels: PixelRange, *, seed: int, batch_size: int) -> None:
        self._pixels = pixels
        self._seed = seed
        self._batch_size = batch_size

    def __call__(self, dataset: "Dataset[Any]", indices: Tensor) -> Tensor:
        """Return the raw images `(B, ...)` in [0, 1] at those positions.

        Raises:
            UnreadableSampleError: where a sample cannot be read or is not finite.
            ValueError: where images lie outside the pixel range.
        """
        return torch.cat(list(self._blocks(dataset, indices)))

    def features(self, dataset: "Dataset[Any]", indices: Tensor, maps: Sequence[RawFeatures]) -> list[Tensor]:
        """Return the features `(B, D)` of the samples at those positions, on the CPU, for each map."""
        with torch.no_grad():
            rows = [[extract(block).cpu() for extract in maps] for block in self._blocks(dataset, indices)]
        return [torch.cat(parts) for parts in zip(*rows, strict=True)]

    def _blocks(self, dataset: "Dataset[Any]", indices: Tensor) -> Iterator[Tensor]:
        sample = SampleSpec.detect(read_sample(dataset, 0))
        blocks = index_blocks(indices, self._batch_size)
        for block in read_blocks(dataset, blocks, sample=sample, seed=self._seed):
            yield self._raw(block.inputs)

    def _raw(self, inputs: Tensor) -> Tensor:
        raw = self._pixels.to_raw(inputs)
        if not self._pixels.contains(inputs):
            found = f"values from {float(raw.min()):.3g} to {float(raw.max()):.3g}"
            raise ValueError(
                expected("dataset", f"images that lie in [0, 1] once {self._pixels} is undone", found)
                + "\nSay how the data set normalises: `Threat(..., pixels=PixelRange(mean=..., std=...))`."
            )
        return raw.clamp(0, 1)


def distances_to_each(targets: Sequence[Tensor], known: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield, for each target, its squared feature distance to each known sample, `(M,)`.

    Args:
        targets: for each map, features `(T, D)`.
        known: for each map, features `(M, D)`. Each map's distances are taken relative to their mean, then added up.
    """
    for features in zip(*targets, strict=True):
        distances = [squared_norm(others - own) for own, others in zip(features, known, strict=True)]
        yield torch.stack([each / each.mean() for each in distances]).sum(0)
