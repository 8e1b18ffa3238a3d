"""Reading a data set in blocks of indices.

Each block is read by one process, under a random state that depends only on the seed and the block. The result of
random transforms therefore does not depend on the number of workers or ranks.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lightning_poison.checks import describe
from lightning_poison.data.labels import as_label, read_sample
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.errors import UnreadableSampleError
from lightning_poison.randomness import seeded_rng

BLOCK_SIZE = 256
"""Number of samples per block. It does not depend on the number of workers or ranks, so neither does what is read."""


@dataclass(frozen=True)
class Block:
    """Samples that were read together.

    Args:
        indices: Positions in the data set, int64 `(B,)`.
        inputs: Inputs, float32 `(B, ...)`.
        labels: Labels, int64 `(B,)`.
    """

    indices: Tensor
    inputs: Tensor
    labels: Tensor


def index_blocks(indices: Tensor, size: int) -> list[Tensor]:
    """Split indices into consecutive blocks of at most `size`.

    Example:
        >>> index_blocks(torch.arange(5), 2)
        [tensor([0, 1]), tensor([2, 3]), tensor([4])]
    """
    return list(torch.split(indices, size))


class MemoryDataset(Dataset[tuple[Tensor, Tensor]]):
    """Samples in memory.

    Args:
        inputs: Inputs, float32 `(N, ...)`.
        labels: Labels, int64 `(N,)`.

    Example:
        >>> MemoryDataset(torch.eye(3), torch.tensor([4, 5, 6])).subset(torch.tensor([2, 0])).targets
        tensor([6, 4])
    """

    def __init__(self, inputs: Tensor, labels: Tensor) -> None:
        self.inputs = inputs
        self.targets = labels

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]

    def subset(self, indices: Tensor) -> "MemoryDataset":
        """Return a copy with the samples at `indices`, in that order."""
        return MemoryDataset(self.inputs[indices], self.targets[indices])


class SelectedDataset(Dataset[tuple[Any, Any]]):
    """Some samples of a data set, as `(input, label)`. Errors name a sample by its index in the whole data set.

    Args:
        dataset: Map-style data set of N samples.
        indices: Positions of the samples, int64 `(M,)`.
        sample: Paths of input and label in a sample.
        labels: Labels of the whole data set, int64 `(N,)`.
    """

    def __init__(self, dataset: Any, indices: Tensor, sample: SampleSpec, labels: Tensor) -> None:
        self.dataset = dataset
        self.indices = indices
        self.sample = sample
        self.targets = labels[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        sample = read_sample(self.dataset, int(self.indices[index]))
        return self.sample.inputs_in(sample), self.sample.labels_in(sample)


def read_blocks(
    dataset: Any, blocks: Sequence[Tensor], *, sample: SampleSpec, seed: int, num_workers: int = 0
) -> Iterator[Block]:
    """Read blocks of samples, in the order given.

    Args:
        dataset: Map-style data set.
        blocks: Indices of each block, int64 `(B,)`.
        sample: Paths of input and label in a sample.
        seed: Seed of the data set's random transforms. The random states of Python, NumPy and torch are restored.
        num_workers: Number of worker processes. The result does not depend on it.

    Yields:
        One block at a time. uint8 images are scaled to [0, 1]. Blocks of a `SelectedDataset` have the indices of the
        whole data set.

    Raises:
        UnreadableSampleError: If a sample cannot be read, is not finite, or differs from its neighbors in shape.
        ValueError: If a label is not an integer of at least 0.

    Example:
        >>> pairs = [(torch.full((2,), float(index)), index % 3) for index in range(10)]
        >>> block = next(read_blocks(pairs, [torch.tensor([7, 2])], sample=SampleSpec(), seed=0))
        >>> block.inputs[:, 0], block.labels
        (tensor([7., 2.]), tensor([1, 2]))
    """
    if isinstance(dataset, MemoryDataset):
        for block in blocks:
            yield Block(block, dataset.inputs[block], dataset.targets[block])
        return
    if isinstance(dataset, SelectedDataset):
        blocks, sample, dataset = [dataset.indices[block] for block in blocks], dataset.sample, dataset.dataset
    reader = _BlockReader(dataset, list(blocks), sample, seed)
    loader = DataLoader(
        reader,
        batch_size=None,
        num_workers=num_workers,
        persistent_workers=False,
        generator=torch.Generator().manual_seed(seed),
    )
    for block in loader:
        if isinstance(block, Exception):
            raise block
        yield block


class _BlockReader(Dataset[Any]):
    """Item `b` is block `b`, or the error of reading it, since workers would reformat the message of a raised error."""

    def __init__(self, dataset: Any, blocks: list[Tensor], sample: SampleSpec, seed: int) -> None:
        self.dataset = dataset
        self.blocks = blocks
        self.sample = sample
        self.seed = seed

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, position: int) -> Block | Exception:
        try:
            with seeded_rng(self.seed, int(self.blocks[position][0])):
                return self._read(self.blocks[position])
        except (UnreadableSampleError, ValueError) as error:
            return error

    def _read(self, indices: Tensor) -> Block:
        positions = indices.tolist()
        inputs, carried = _parts(_read_samples(self.dataset, positions), self.sample)
        labels = [as_label(value, index) for value, index in zip(carried, positions, strict=True)]
        if min(labels) < 0:
            index = positions[labels.index(min(labels))]
            raise ValueError(f"Expected labels of at least 0, but sample {index} has {min(labels)}.")
        return Block(indices, _stack(inputs, positions), torch.tensor(labels))


def _read_samples(dataset: Any, indices: list[int]) -> list[Any]:
    batched = getattr(dataset, "__getitems__", None)
    if batched is None:
        return [read_sample(dataset, index) for index in indices]
    try:
        return list(batched(indices))
    except Exception:  # noqa: BLE001 (the samples are then read one by one, which names the faulty one)
        return [read_sample(dataset, index) for index in indices]


def _parts(samples: list[Any], spec: SampleSpec) -> tuple[list[Any], list[Any]]:
    """Return inputs and labels, with a fast path for plain pairs."""
    if spec == SampleSpec("0", "1") and all(type(sample) is tuple and len(sample) > 1 for sample in samples):
        return [sample[0] for sample in samples], [sample[1] for sample in samples]
    return [spec.inputs_in(sample) for sample in samples], [spec.labels_in(sample) for sample in samples]


def _stack(inputs: list[Any], positions: list[int]) -> Tensor:
    tensors = [_as_float(value, index) for value, index in zip(inputs, positions, strict=True)]
    shape = tensors[0].shape
    for tensor, index in zip(tensors, positions, strict=True):
        if tensor.shape != shape:
            raise UnreadableSampleError(
                f"Expected samples of one shape, but sample {index} has {tuple(tensor.shape)} and sample "
                f"{positions[0]} has {tuple(shape)}.\n"
                "Pass a view of the data set that resizes them: `score_dataset=`."
            )
    stacked = torch.stack(tensors)
    if not torch.isfinite(stacked.sum()):  # one pass over the block; the sum of huge numbers may overflow
        odd = (~torch.isfinite(stacked.reshape(len(stacked), -1))).any(1).nonzero().flatten()
        if len(odd):
            raise UnreadableSampleError(
                f"Expected finite inputs, but sample {positions[int(odd[0])]} contains NaN or infinite values.\n"
                "Repair or remove the sample."
            )
    return stacked


def _as_float(value: Any, index: int) -> Tensor:
    if isinstance(value, Tensor) and value.dtype == torch.float32:
        return value
    if isinstance(value, Image.Image):
        raise UnreadableSampleError(
            f"Expected a tensor as the input of sample {index}, but got a PIL image.\n"
            "Add torchvision's `ToImage()` and `ToDtype(torch.float32, scale=True)` to the data set's transform."
        )
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        value = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))
    if not isinstance(value, Tensor) or value.is_complex():
        raise UnreadableSampleError(
            f"Expected a tensor as the input of sample {index}, but got {describe(value)}.\n"
            "Name the input's path: `sample=SampleSpec(inputs=..., labels=...)`."
        )
    return value.float() / 255 if value.dtype == torch.uint8 else value.float()
