"""Reading a data set in blocks of indices.

If reading draws random numbers, as random transforms do, each sample is read under a random state that depends only on
the seed and its index. The result therefore does not depend on the number of workers or ranks, nor on the blocks.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset

from lightning_poison.checks import expected
from lightning_poison.data.inputs import stack_inputs
from lightning_poison.data.kept_inputs import KeptInputs
from lightning_poison.data.labels import LabeledPairs, as_labels, read_sample, read_samples
from lightning_poison.data.packed_inputs import InputLayout, PackedInputs
from lightning_poison.data.reading import Reader, ReadSettings, portable
from lightning_poison.data.sample_digests import digest_samples
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.source import Source
from lightning_poison.errors import UnreadableSampleError, is_signal
from lightning_poison.randomness import reseed, seeded_rng

BLOCK_SIZE = 256
"""Number of samples per block. It does not depend on the number of workers or ranks, so neither does what is read."""


@dataclass(frozen=True)
class Block:
    """Samples that were read together.

    Args:
        indices: Positions in the data set that was read, int64 `(B,)`.
        inputs: Inputs, float32 `(B, ...)`.
        labels: Labels, int64 `(B,)`.
        is_random: Whether reading drew from the global random states, as random transforms do.
    """

    indices: Tensor
    inputs: Tensor
    labels: Tensor
    is_random: bool = False


def index_blocks(indices: Tensor, size: int) -> list[Tensor]:
    """Split indices into consecutive blocks of at most `size`.

    Example:
        >>> index_blocks(torch.arange(5), 2)
        [tensor([0, 1]), tensor([2, 3]), tensor([4])]
    """
    return list(torch.split(indices, size))


class MemoryDataset(LabeledPairs):
    """Samples in memory: all rows of a tensor, or some of them.

    Args:
        stored: Inputs, float32 `(M, ...)`, or `KeptInputs`.
        labels: Labels, int64 `(N,)`.
        rows: Row of `stored` with the input of each sample, int64 `(N,)`. Default: all rows in order, N = M.

    Example:
        >>> MemoryDataset(torch.eye(3), torch.tensor([4, 5, 6])).subset(torch.tensor([2, 0])).targets
        tensor([6, 4])
    """

    def __init__(self, stored: Tensor | KeptInputs, labels: Tensor, rows: Tensor | None = None) -> None:
        self.stored = KeptInputs(stored) if isinstance(stored, Tensor) else stored
        self.targets = labels
        self.rows = rows

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.stored.one(index if self.rows is None else int(self.rows[index])), self.targets[index]

    @property
    def inputs(self) -> Tensor:
        """Inputs, float32 `(N, ...)`; a copy if these are some of the rows, or kept as 8-bit images."""
        return self.stored.all() if self.rows is None else self.stored.at(self.rows)

    def rows_at(self, indices: Tensor) -> Tensor:
        """Return the rows of `stored` with the inputs at `indices`, both int64 `(B,)`."""
        return indices if self.rows is None else self.rows[indices]

    def inputs_at(self, indices: Tensor) -> Tensor:
        """Return copies of the inputs at `indices`, int64 `(B,)`."""
        return self.stored.at(self.rows_at(indices))

    def subset(self, indices: Tensor) -> "MemoryDataset":
        """Return the samples at `indices`, in that order. At least half of the rows are not copied."""
        rows = self.rows_at(indices)
        if 2 * len(rows) < len(self.stored):
            return MemoryDataset(self.stored.select(rows), self.targets[indices])
        return MemoryDataset(self.stored, self.targets[indices], rows)

    def relabeled(self, targets: Tensor) -> "MemoryDataset":
        """Return the same samples with their classes numbered differently, int64 `(N,)`."""
        return MemoryDataset(self.stored, targets, self.rows)

    def followed_by(self, other: "MemoryDataset") -> "MemoryDataset":
        """Return copies of these samples and of others."""
        one, two = (each.stored if each.rows is None else each.stored.select(each.rows) for each in (self, other))
        return MemoryDataset(one.followed_by(two), torch.cat([self.targets, other.targets]))


class SelectedDataset(LabeledPairs):
    """Some samples of a data set, as `(input, label)`. Errors name a sample by its index in the whole data set.

    Args:
        source: The whole data set, and how it is read.
        indices: Positions of the samples, int64 `(M,)`.
        targets: Their labels, int64 `(M,)`.
        carried: The labels that they carry, if known, int64 `(M,)`; `targets` may number the same classes differently.
            Default: `targets` are unknown, and reading returns the carried labels.
    """

    def __init__(self, source: Source, indices: Tensor, targets: Tensor, carried: Tensor | None = None) -> None:
        self.source = source
        self.indices = indices
        self.targets = targets
        self.carried = carried

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        position = int(self.indices[index])
        inputs, _ = self.source.parts([read_sample(self.source.dataset, position)], [position])
        return inputs[0], self.targets[index]

    def subset(self, indices: Tensor) -> "SelectedDataset":
        """Return the samples at `indices`, positions in this data set, in that order."""
        carried = None if self.carried is None else self.carried[indices]
        return SelectedDataset(self.source, self.indices[indices], self.targets[indices], carried)

    def relabeled(self, targets: Tensor) -> "SelectedDataset":
        """Return the same samples with their classes numbered differently, int64 `(M,)`."""
        return SelectedDataset(self.source, self.indices, targets, self.carried)

    def labels_read(self, places: Tensor, labels: Tensor) -> Tensor:
        """Return the labels of samples at `places` in this data set, given those that were read.

        Raises:
            ValueError: If a sample carries another label than is known.
        """
        if self.carried is None:
            return labels
        changed = (labels != self.carried[places]).nonzero().flatten()
        if len(changed):
            place = int(places[int(changed[0])])
            raise ValueError(
                f"Expected sample {int(self.indices[place])} to carry the label {int(self.carried[place])} that its "
                f"data set lists, but it carries {int(labels[int(changed[0])])}.\nCorrect the `targets` or `labels` of "
                "the data set, or remove them."
            )
        return self.targets[places]


def read_blocks(
    dataset: Any,
    blocks: Sequence[Tensor],
    *,
    sample: SampleSpec,
    seed: int,
    num_workers: int = 0,
    order: Iterable[int] | None = None,
    most_ahead: int | None = None,
) -> Iterator[Block]:
    """Read blocks of samples, in the order given.

    Args:
        dataset: Map-style data set.
        blocks: Indices of each block, int64 `(B,)`.
        sample: Paths of input and label in a sample.
        seed: Seed of the data set's random transforms. The random states of Python, NumPy and torch are restored.
        num_workers: Number of worker processes. The result does not depend on it. A `SelectedDataset`, on which
            `sanitize` fits scorers, has settings of its own, which take precedence over it and over `sample`.
        order: Numbers of the blocks to read, requested one by one; workers read a few ahead. Default: all blocks.
        most_ahead: Largest number of blocks that workers read ahead, at least 1. Default: two for each worker.

    Yields:
        One block at a time. uint8 images are scaled to [0, 1].

    Raises:
        UnreadableSampleError: If a sample cannot be read, is not finite, or differs from its neighbors in shape.
        ValueError: If a label is not an integer of at least 0.

    Example:
        >>> pairs = [(torch.full((2,), float(index)), index % 3) for index in range(10)]
        >>> block = next(read_blocks(pairs, [torch.tensor([7, 2])], sample=SampleSpec(), seed=0))
        >>> block.inputs[:, 0], block.labels
        (tensor([7., 2.]), tensor([1, 2]))
    """
    numbers = range(len(blocks)) if order is None else order
    if isinstance(dataset, MemoryDataset):
        for block in (blocks[number] for number in numbers):
            yield Block(block, dataset.inputs_at(block), dataset.targets[block])
        return
    source, positions = Source(dataset, sample, ReadSettings(num_workers)), list(blocks)
    if isinstance(dataset, SelectedDataset):
        source, positions = dataset.source, [dataset.indices[block] for block in blocks]
    for number, read in _read(source, positions, seed, numbers, most_ahead):
        block = blocks[number]
        if isinstance(dataset, SelectedDataset):
            yield Block(block, read.inputs, dataset.labels_read(block, read.labels), read.is_random)
            continue
        if int(read.labels.min()) < 0:
            place = int(read.labels.argmin())
            what, hint = "integers of at least 0", "Remove unlabeled samples from the data set."
            raise ValueError(expected("labels", what, f"{int(read.labels[place])} at sample {int(block[place])}", hint))
        yield Block(block, read.inputs, read.labels, read.is_random)


def _read(
    source: Source, positions: list[Tensor], seed: int, order: Iterable[int], most_ahead: int | None
) -> Iterator[tuple[int, "_Read"]]:
    """Read blocks of positions in the data set of a source, and record the digests of samples read the first time.

    Yields:
        The number of a block, and what was read.
    """
    recorded = source.digests
    digested = len(recorded) > 0 and len(recorded.missing) > 0
    reader = _BlockReader(source, positions, seed, digested=digested)
    requested: deque[int] = deque()

    def noted() -> Iterator[int]:
        for number in order:
            requested.append(number)
            yield number

    items = source.settings.items(reader, order=noted(), most_ahead=most_ahead)
    while True:
        try:
            read = items.next(f"samples from {int(positions[requested[0]][0])} on" if requested else "samples")
        except StopIteration:
            return
        number = requested.popleft()
        indices = positions[number]
        if read.layout is not None:
            read = read._replace(inputs=PackedInputs.of(read.inputs, read.layout))
        recorded.add_absent(indices[read.absent])
        if read.digests is not None and (seed == source.seed or not read.is_random):
            recorded.add(indices, read.digests)
        yield number, read


class _Read(NamedTuple):
    inputs: Tensor
    labels: Tensor
    digests: Tensor | None
    is_random: bool
    layout: InputLayout | None
    absent: list[int]


class _BlockReader(Reader):
    """Item `b` is block `b`, or the error of reading it, since workers would reformat the message of a raised error."""

    def __init__(self, source: Source, blocks: list[Tensor], seed: int, *, digested: bool) -> None:
        super().__init__(source.dataset)
        self._source = source
        self._blocks = blocks
        self._seed = seed
        self._digested = digested
        self._is_random = False
        self._is_plain = source.settings.collate_fn is None and is_plain(source.dataset)

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, position: int) -> "_Read | Exception":
        if self.init_error is not None:
            return self.init_error
        try:
            return self._read(self._blocks[position].tolist())
        except (UnreadableSampleError, ValueError) as error:
            return portable(error)

    def _read(self, positions: list[int]) -> "_Read":
        inputs, carried = self._parts(positions)
        labels = as_labels(carried, positions)
        stacked = self._stacked(inputs, positions)
        layout = stacked.structure if isinstance(stacked, PackedInputs) else None
        values = stacked.as_subclass(Tensor)
        digests = digest_samples(values) if self._digested else None
        absent = [place for place, value in enumerate(inputs) if value is None]
        return _Read(values, labels, digests, self._is_random, layout, absent)

    def _stacked(self, inputs: list[Any], positions: list[int]) -> Tensor:
        """Return the inputs as one tensor, with zeros for samples that are `None`."""
        present = [place for place, value in enumerate(inputs) if value is not None]
        if len(present) == len(inputs) or self._source.settings.collate_fn is None:
            return stack_inputs(inputs, positions, dtype=self._source.dtype, layout=self._source.layout)
        stacked: Tensor = torch.zeros(len(inputs), *self._source.shape)
        if present:
            own = [inputs[place] for place in present]
            of_present = [positions[place] for place in present]
            read = stack_inputs(own, of_present, dtype=self._source.dtype, layout=self._source.layout)
            stacked[present] = read.as_subclass(Tensor)
        return stacked if self._source.layout is None else PackedInputs.of(stacked, self._source.layout)

    def _parts(self, positions: list[int]) -> tuple[list[Any], list[Any]]:
        """Return inputs and labels. If reading draws random numbers, each sample has a random state of its own."""
        if self._is_plain:
            return self._source.parts(_read_samples(self.dataset, positions), positions)
        if not self._is_random:
            with seeded_rng(self._seed, positions[0]) as drew:
                parts = self._source.parts(_read_samples(self.dataset, positions), positions)
                self._is_random = drew()
            if not self._is_random:
                return parts
        inputs, labels = [], []
        with seeded_rng(self._seed, positions[0]):
            for index in positions:
                reseed(self._seed, index)
                own = self._source.parts([read_sample(self.dataset, index)], [index])
                inputs.append(own[0][0])
                labels.append(own[1][0])
        return inputs, labels


def is_plain(dataset: Any) -> bool:
    """Return whether samples are parts of tensors, so that reading them draws no random numbers.

    Example:
        >>> data = TensorDataset(torch.zeros(3, 2), torch.arange(3))
        >>> is_plain(data), is_plain(Subset(data, [2])), is_plain(list(data))
        (True, True, False)
    """
    while type(dataset) is Subset:
        dataset = dataset.dataset
    return type(dataset) is TensorDataset and all(type(each) is Tensor for each in dataset.tensors)


def _read_samples(dataset: Any, indices: list[int]) -> list[Any]:
    batched = getattr(dataset, "__getitems__", None)
    if batched is None:
        return read_samples(dataset, indices)
    try:
        return list(batched(indices))
    except (Exception, SystemExit) as error:  # the samples are then read one by one, which names the faulty one
        if is_signal(error):
            raise
        return read_samples(dataset, indices)
