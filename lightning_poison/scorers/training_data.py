"""What a scorer must know of the samples that it is fitted on before it can build a network for them."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from lightning_poison.checks import expected
from lightning_poison.data.blocks import BLOCK_SIZE, index_blocks, read_blocks
from lightning_poison.data.labels import labels_of, spec_of
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.sample_spec import SampleSpec


@dataclass(frozen=True)
class TrainingData:
    """Where input and label stand in a sample, the shape of an input, and how many classes there are.

    Args:
        sample: where input and label stand.
        shape: the shape of one input.
        labels: int64 `(N,)`.
        num_classes: the largest label plus 1.
    """

    sample: SampleSpec
    shape: tuple[int, ...]
    labels: torch.Tensor
    num_classes: int

    @classmethod
    def of(cls, dataset: Any, *, why: str = "") -> "TrainingData":
        """Look at a data set.

        Args:
            dataset: a map-style data set.
            why: a sentence on why one class is not enough, for the error.

        Raises:
            ValueError: where there are fewer than two classes.
            UnreadableSampleError: where a sample cannot be read.

        Example:
            >>> from torch.utils.data import TensorDataset
            >>> found = TrainingData.of(TensorDataset(torch.zeros(6, 1, 8, 8), torch.arange(6) % 3))
            >>> found.shape, found.num_classes
            ((1, 8, 8), 3)
        """
        sample = spec_of(dataset)
        labels = labels_of(dataset, sample)
        if len(torch.unique(labels)) < 2:
            raise ValueError(expected("trusted", "data of at least two classes", f"class {int(labels[0])} alone", why))
        first = next(read_blocks(dataset, [torch.zeros(1, dtype=torch.int64)], sample=sample, seed=0))
        return cls(sample, tuple(first.inputs.shape[1:]), labels, int(labels.max()) + 1)


_SMALLEST_SPREAD = 1e-6


@dataclass(frozen=True, eq=False)
class TrustedSamples:
    """A data set that is believed, and what was found in it.

    Args:
        dataset: a map-style data set.
        sample: where input and label stand in a sample.
        labels: int64 `(N,)`, of at least two classes.
        first: float32 `(B, ...)`, its first samples.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> samples = TrustedSamples.read(TensorDataset(torch.rand(6, 1, 8, 8), torch.arange(6) % 3))
        >>> samples.shape, samples.num_classes
        ((1, 8, 8), 3)
    """

    dataset: Any
    sample: SampleSpec
    labels: Tensor
    first: Tensor

    @classmethod
    def read(cls, dataset: Any) -> Self:
        """Look at a data set.

        Raises:
            UnreadableSampleError: where one of its first samples cannot be read.
            ValueError: where there are fewer than two classes.
        """
        data = TrainingData.of(dataset, why="A label is told from other labels.")
        beginning = torch.arange(min(len(data.labels), BLOCK_SIZE))
        first = next(read_blocks(dataset, [beginning], sample=data.sample, seed=0)).inputs
        return cls(dataset, data.sample, data.labels, first)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one sample."""
        return tuple(self.first.shape[1:])

    @property
    def num_classes(self) -> int:
        """One more than the largest label."""
        return int(self.labels.max()) + 1

    def check_range(self, pixels: PixelRange) -> None:
        """Refuse images outside the declared pixel range, as normalized ones are that are said to be raw.

        Raises:
            ValueError: where one of the first images lies outside.
        """
        if self.first.ndim != 4 or pixels.contains(self.first):
            return
        raw = pixels.to_raw(self.first)
        raise ValueError(
            expected("trusted", "images in the declared pixel range", f"raw values from {raw.min():g} to {raw.max():g}")
            + "\nSay how they are normalized: `pixels=PixelRange(mean=..., std=...)`."
        )

    def moments(self, num_workers: int) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each element of a sample, float32; constant elements have 1."""
        blocks = index_blocks(torch.arange(len(self.labels)), BLOCK_SIZE)
        sums, squares = torch.zeros(2, *self.shape, dtype=torch.float64)
        for block in read_blocks(self.dataset, blocks, sample=self.sample, seed=0, num_workers=num_workers):
            away = (block.inputs - self.first[0]).double()
            sums, squares = sums + away.sum(0), squares + away.square().sum(0)
        mean = sums / len(self.labels)
        spread = (squares / len(self.labels) - mean.square()).clamp_min(0).sqrt()
        spread = torch.where(spread > _SMALLEST_SPREAD, spread, torch.ones_like(spread))
        return (mean + self.first[0]).float(), spread.float()
