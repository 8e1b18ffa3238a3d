"""A data set as it is judged: where input and label stand, all labels, and its samples where they were read anyway."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_poison.checks import expected
from lightning_poison.data.blocks import BLOCK_SIZE, Block, MemoryDataset, SelectedDataset, index_blocks, read_blocks
from lightning_poison.data.labels import listed_labels
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.runtime import Runtime

MEMORY_LIMIT = 2 * 1024**3
"""Bytes up to which samples that are needed several times are kept in memory."""


@dataclass(frozen=True)
class Held:
    """A data set that was taken in.

    Args:
        dataset: as it came, or a `MemoryDataset` of its samples.
        sample: where input and label stand in a sample of it.
        labels: int64 `(N,)`.
    """

    dataset: Any
    sample: SampleSpec
    labels: Tensor

    def part(self, indices: Tensor) -> Any:
        """Return some of the samples, int64 `(M,)`, as a data set that lists its labels."""
        if isinstance(self.dataset, MemoryDataset):
            return self.dataset.subset(indices)
        return SelectedDataset(self.dataset, indices, self.sample, self.labels)


def take(dataset: Any, sample: SampleSpec, *, runtime: Runtime, seed: int, name: str) -> Held:
    """Return a data set with its labels.

    Where the data set lists no labels every sample must be read for its own; those of a set of at most `MEMORY_LIMIT`
    bytes are kept, so that nothing is read twice.

    Args:
        dataset: a map-style data set.
        sample: where input and label stand in a sample.
        runtime: who reads, and shows its progress.
        seed: seeds the random transforms of the data set.
        name: what the progress bar says.

    Raises:
        UnreadableSampleError: where a sample cannot be read.
        ValueError: where a label is no integer of at least 0.

    Example:
        >>> from lightning_poison.runtime import LocalRuntime
        >>> pairs = [(torch.full((2,), float(index)), index % 3) for index in range(10)]
        >>> held = take(pairs, SampleSpec(), runtime=LocalRuntime(), seed=0, name="pairs")
        >>> held.labels[:4], type(held.dataset).__name__
        (tensor([0, 1, 2, 0]), 'MemoryDataset')
    """
    if (labels := listed_labels(dataset, sample)) is not None:
        return Held(dataset, sample, labels)
    if _fits(dataset, sample, seed):
        return _in_memory(dataset, sample, runtime, seed, name)
    blocks = _all_blocks(dataset, sample, runtime, seed, f"the labels of {name}")
    return Held(dataset, sample, torch.cat([block.labels for block in blocks]))


def hold(held: Held, *, runtime: Runtime, seed: int, name: str) -> Held:
    """Return a data set in memory, or as it was where it is larger than `MEMORY_LIMIT`; see `take`."""
    if isinstance(held.dataset, MemoryDataset) or not _fits(held.dataset, held.sample, seed):
        return held
    return _in_memory(held.dataset, held.sample, runtime, seed, name)


def _in_memory(dataset: Any, sample: SampleSpec, runtime: Runtime, seed: int, name: str) -> Held:
    inputs, labels = [], []
    for block in _all_blocks(dataset, sample, runtime, seed, name):
        inputs.append(block.inputs)
        labels.append(block.labels)
        _check_shape(inputs)
    memory = MemoryDataset(torch.cat(inputs), torch.cat(labels))
    return Held(memory, SampleSpec(), memory.targets)


def _fits(dataset: Any, sample: SampleSpec, seed: int) -> bool:
    first = next(read_blocks(dataset, [torch.zeros(1, dtype=torch.int64)], sample=sample, seed=seed))
    return bool(first.inputs.nbytes * len(dataset) <= MEMORY_LIMIT)


def _all_blocks(dataset: Any, sample: SampleSpec, runtime: Runtime, seed: int, name: str) -> Iterator[Block]:
    blocks = index_blocks(torch.arange(len(dataset)), BLOCK_SIZE)
    with runtime.progress(len(blocks), f"reading {name}") as bar:
        for block in read_blocks(dataset, blocks, sample=sample, seed=seed, num_workers=runtime.num_workers):
            yield block
            bar.advance()


def _check_shape(inputs: list[Tensor]) -> None:
    first, last = inputs[0].shape[1:], inputs[-1].shape[1:]
    if first != last:
        raise ValueError(
            expected("inputs", f"samples of one shape {tuple(first)}", tuple(last))
            + f"\nSample {(len(inputs) - 1) * BLOCK_SIZE} is the first that differs; give a view that resizes: "
            "`score_dataset=`."
        )
