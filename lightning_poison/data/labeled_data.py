"""`LabeledData`: a data set with the paths of input and label and all labels, in memory if it fits."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_poison.checks import expected
from lightning_poison.data.blocks import BLOCK_SIZE, Block, MemoryDataset, SelectedDataset, index_blocks, read_blocks
from lightning_poison.data.labels import listed_labels
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.runtime import Runtime

MEMORY_LIMIT = 2 * 1024**3
"""Largest size in bytes of samples that are kept in memory for repeated use."""


@dataclass(frozen=True)
class LabeledData:
    """A data set and its labels.

    Args:
        dataset: Map-style data set, or a `MemoryDataset` of its samples.
        sample: Paths of input and label in a sample of `dataset`.
        labels: Labels, int64 `(N,)`.
    """

    dataset: Any
    sample: SampleSpec
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def indices(self) -> Tensor:
        """Positions of all samples, int64 `(N,)`."""
        return torch.arange(len(self.labels))

    def subset(self, indices: Tensor) -> Any:
        """Return the samples at `indices`, int64 `(M,)`, as a data set that lists its labels."""
        if isinstance(self.dataset, MemoryDataset):
            return self.dataset.subset(indices)
        return SelectedDataset(self.dataset, indices, self.sample, self.labels)

    def first_shape(self, seed: int) -> tuple[int, ...]:
        """Return the shape of the first input. Random transforms are seeded with `seed`."""
        return tuple(_first(self.dataset, self.sample, seed).inputs.shape[1:])

    def in_memory(self, *, runtime: Runtime, seed: int, name: str) -> "LabeledData":
        """Read all samples into memory if they fit into `MEMORY_LIMIT`. Arguments and errors as in `with_labels`."""
        if isinstance(self.dataset, MemoryDataset) or not _fits(self.dataset, self.sample, seed):
            return self
        return replace(_read_all(self.dataset, self.sample, runtime, seed, name), labels=self.labels)


def with_labels(dataset: Any, sample: SampleSpec, *, runtime: Runtime, seed: int, name: str) -> LabeledData:
    """Find all labels of a data set.

    If the data set does not list its labels, every sample is read. Samples that fit into `MEMORY_LIMIT` are then kept,
    so that none is read twice.

    Args:
        dataset: Map-style data set.
        sample: Paths of input and label in a sample.
        runtime: Reads, and shows progress.
        seed: Seed of random transforms.
        name: Name of the data in the progress bar.

    Raises:
        UnreadableSampleError: If a sample cannot be read.
        ValueError: If a label is not an integer of at least 0.

    Example:
        >>> from lightning_poison.runtime import LocalRuntime
        >>> pairs = [(torch.full((2,), float(index)), index % 3) for index in range(10)]
        >>> data = with_labels(pairs, SampleSpec(), runtime=LocalRuntime(), seed=0, name="pairs")
        >>> data.labels[:4], type(data.dataset).__name__
        (tensor([0, 1, 2, 0]), 'MemoryDataset')
    """
    if (labels := listed_labels(dataset, sample)) is not None:
        return LabeledData(dataset, sample, labels)
    if _fits(dataset, sample, seed):
        return _read_all(dataset, sample, runtime, seed, name)
    blocks = _all_blocks(dataset, sample, runtime, seed, f"the labels of {name}")
    return LabeledData(dataset, sample, torch.cat([block.labels for block in blocks]))


def _read_all(dataset: Any, sample: SampleSpec, runtime: Runtime, seed: int, name: str) -> LabeledData:
    inputs, labels = [], []
    for block in _all_blocks(dataset, sample, runtime, seed, name):
        inputs.append(block.inputs)
        labels.append(block.labels)
        _check_shape(inputs)
    memory = MemoryDataset(torch.cat(inputs), torch.cat(labels))
    return LabeledData(memory, SampleSpec(), memory.targets)


def _first(dataset: Any, sample: SampleSpec, seed: int) -> Block:
    return next(read_blocks(dataset, [torch.zeros(1, dtype=torch.int64)], sample=sample, seed=seed))


def _fits(dataset: Any, sample: SampleSpec, seed: int) -> bool:
    return bool(_first(dataset, sample, seed).inputs.nbytes * len(dataset) <= MEMORY_LIMIT)


def _all_blocks(dataset: Any, sample: SampleSpec, runtime: Runtime, seed: int, name: str) -> Iterator[Block]:
    blocks = index_blocks(torch.arange(len(dataset)), BLOCK_SIZE)
    with runtime.progress(len(blocks), f"Reading {name}") as bar:
        for block in read_blocks(dataset, blocks, sample=sample, seed=seed, num_workers=runtime.num_workers):
            yield block
            bar.advance()


def _check_shape(inputs: list[Tensor]) -> None:
    first, last = inputs[0].shape[1:], inputs[-1].shape[1:]
    if first != last:
        raise ValueError(
            expected("inputs", f"samples of one shape {tuple(first)}", tuple(last))
            + f"\nSample {(len(inputs) - 1) * BLOCK_SIZE} is the first that differs. Pass a view of the data set that "
            "resizes its samples: `score_dataset=`."
        )
