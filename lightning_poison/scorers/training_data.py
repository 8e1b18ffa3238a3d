"""`TrainingData`: a known-clean data set as scorers are fitted on it."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from lightning_poison.checks import expected
from lightning_poison.data.blocks import BLOCK_SIZE, Block, index_blocks, read_blocks
from lightning_poison.data.inference import score_set
from lightning_poison.data.labels import labels_of, spec_of
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.models.backbones import moments
from lightning_poison.runtime import LocalRuntime, Runtime


@dataclass(frozen=True, eq=False)
class TrainingData:
    """A data set, and what a scorer needs to know to build a network for it.

    Args:
        dataset: Map-style data set.
        sample: Location of input and label in a sample.
        shape: Shape of one input.
        labels: int64 `(N,)`, of at least two classes.
        first: Input of the first sample, float32 `(1, ...)`.
    """

    dataset: Any
    sample: SampleSpec
    shape: tuple[int, ...]
    labels: Tensor
    first: Tensor

    @classmethod
    def of(cls, dataset: Any, *, why: str = "") -> Self:
        """Inspect a data set.

        Args:
            dataset: Map-style data set.
            why: Sentence for the error message on why one class is not enough. Default: none.

        Raises:
            ValueError: If there are fewer than two classes.
            UnreadableSampleError: If a sample cannot be read.

        Example:
            >>> from torch.utils.data import TensorDataset
            >>> data = TrainingData.of(TensorDataset(torch.zeros(6, 1, 8, 8), torch.arange(6) % 3))
            >>> data.shape, data.num_classes
            ((1, 8, 8), 3)
        """
        sample = spec_of(dataset)
        labels = labels_of(dataset, sample)
        if len(torch.unique(labels)) < 2:
            raise ValueError(expected("trusted", "data of at least two classes", f"class {int(labels[0])} alone", why))
        first = next(read_blocks(dataset, [torch.zeros(1, dtype=torch.int64)], sample=sample, seed=0))
        return cls(dataset, sample, tuple(first.inputs.shape[1:]), labels, first.inputs)

    @property
    def num_classes(self) -> int:
        """The largest label plus 1."""
        return int(self.labels.max()) + 1

    def compute(
        self,
        function: Callable[[Block], Tensor],
        *,
        runtime: Runtime | None,
        generator: torch.Generator,
        description: str,
        dtype: torch.dtype = torch.float64,
    ) -> Tensor:
        """Apply a function to all blocks, in order, on every rank.

        Args:
            function: Maps a block of B samples to `(B, ...)`.
            runtime: Device, precision and workers. Default: `LocalRuntime()`, the CPU.
            generator: Seeds the random transforms of the data set.
            description: Label of the progress bar.
            dtype: Data type of the result. Default: float64.

        Returns:
            `(N, ...)`.
        """
        return score_set(
            self.dataset,
            torch.arange(len(self.labels)),
            function,
            sample=self.sample,
            runtime=runtime or LocalRuntime(),
            seed=int(torch.randint(2**31, (1,), generator=generator)),
            labels=self.labels,
            description=description,
            dtype=dtype,
        )

    def check_range(self, pixels: PixelRange) -> None:
        """Raise if images are outside the declared pixel range, as normalized images declared as raw are.

        Raises:
            ValueError: If one of the first images is outside.
        """
        if self._first_inputs.ndim != 4 or pixels.contains(self._first_inputs):
            return
        raw = pixels.to_raw(self._first_inputs)
        raise ValueError(
            expected("trusted", "images in the declared pixel range", f"raw values from {raw.min():g} to {raw.max():g}")
            + "\nDeclare how they are normalized: `pixels=PixelRange(mean=..., std=...)`."
        )

    def moments(self, num_workers: int) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation of each element of a sample, float32; 1 for constant elements."""
        blocks = index_blocks(torch.arange(len(self.labels)), BLOCK_SIZE)
        read = read_blocks(self.dataset, blocks, sample=self.sample, seed=0, num_workers=num_workers)
        return moments(block.inputs for block in read)

    @functools.cached_property
    def _first_inputs(self) -> Tensor:
        first = torch.arange(min(len(self.labels), BLOCK_SIZE))
        return next(read_blocks(self.dataset, [first], sample=self.sample, seed=0)).inputs
