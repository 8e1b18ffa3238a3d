"""`LabeledData`: the samples that are judged or trusted, with their labels, in memory if they fit."""

import itertools
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_poison.checks import expected
from lightning_poison.data.blocks import (
    BLOCK_SIZE,
    Block,
    MemoryDataset,
    SelectedDataset,
    index_blocks,
    read_blocks,
)
from lightning_poison.data.copies import Copies
from lightning_poison.data.free_memory import free_memory
from lightning_poison.data.inputs import check_one_scale, check_scale, check_variation, peaks_of, shape_hint
from lightning_poison.data.kept_inputs import InputCollector, are_levels
from lightning_poison.data.labels import UNLABELED
from lightning_poison.data.sample_digests import SampleDigests
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.source import Source
from lightning_poison.randomness import derived_seed
from lightning_poison.runtime import Runtime, SingleRank, all_ranks, section

MEMORY_LIMIT = 2 * 1024**3
"""Largest size in bytes of samples that are kept in memory for repeated use."""

SHARE_OF_FREE = 0.25
"""Largest share of the free memory that they take."""

_SHARE_OF_RUN = 0.02
"""Share of the time of a decision that reading is expected to take."""

_REPEATED_BLOCKS = 4
"""Number of blocks that are read a second time to test whether samples stay the same."""


@dataclass(frozen=True)
class LabeledData:
    """Samples of a data set and their labels.

    Args:
        source: The whole data set, and how it is read.
        positions: Positions of the samples in it, int64 `(N,)`, ascending.
        dataset: The samples, in memory or to be read.
        repeats: Whether a sample has the same input each time that it is read under the same random state.
        copies: Which samples are copies of each other or belong to one group. Default: not looked for.
        is_random: Whether reading drew from the global random states, as random transforms do.
    """

    source: Source
    positions: Tensor
    dataset: MemoryDataset | SelectedDataset
    repeats: bool = True
    copies: Copies | None = None
    is_random: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def labels(self) -> Tensor:
        """Labels, int64 `(N,)`."""
        return self.dataset.targets

    @property
    def indices(self) -> Tensor:
        """Positions of all samples in `dataset`, int64 `(N,)`."""
        return torch.arange(len(self.labels))

    def subset(self, indices: Tensor) -> MemoryDataset | SelectedDataset:
        """Return the samples at `indices`, int64 `(M,)`, positions in `dataset`."""
        return self.dataset.subset(indices)

    def select(self, places: Tensor) -> "LabeledData":
        """Return the samples at `places`, int64 `(M,)`, positions in `dataset`, as data of their own."""
        copies = None if self.copies is None else self.copies.select(places)
        return replace(self, positions=self.positions[places], dataset=self.dataset.subset(places), copies=copies)

    def relabeled(self, labels: Tensor) -> "LabeledData":
        """Return the data with their classes numbered differently, int64 `(N,)`."""
        return replace(self, dataset=self.dataset.relabeled(labels))

    def first_inputs(self) -> Tensor:
        """Return the inputs of the first block, float32 `(B, ...)`."""
        first = [torch.arange(min(len(self), BLOCK_SIZE))]
        return next(read_blocks(self.dataset, first, sample=SampleSpec(), seed=self.source.seed)).inputs

    @property
    def absent(self) -> Tensor:
        """Which samples are `None`, as a `collate_fn` leaves them out of its batches, bool `(N,)`."""
        return self.source.digests.absent(self.positions)

    @property
    def sample_digests(self) -> Tensor:
        """Digests of the samples, int64 `(N,)`; 0 for those not read yet."""
        return self.source.digests.values[self.positions]


def memory_limit(runtime: Runtime) -> int:
    """Return the largest size in bytes of samples to keep in memory: the same on every rank, since decisions must be.

    It is `MEMORY_LIMIT`, and at most `SHARE_OF_FREE` of the free memory, shared by the ranks, where that is least.
    Collective: every rank must call it.

    Example:
        >>> from lightning_poison.runtime import LocalRuntime
        >>> 0 < memory_limit(LocalRuntime()) <= MEMORY_LIMIT
        True
    """
    free = free_memory()
    own = MEMORY_LIMIT if free is None else min(MEMORY_LIMIT, int(SHARE_OF_FREE * free / runtime.world_size))
    if runtime.world_size == 1:
        return own
    limits = torch.zeros(runtime.world_size, dtype=torch.int64)
    limits[runtime.rank] = own
    return int(runtime.reduce_sum(limits).min())


def read_labeled(
    source: Source, *, positions: Tensor | None = None, runtime: Runtime, name: str, limit: int | None = None
) -> LabeledData:
    """Find the labels of a data set, and read its samples into memory if they fit.

    8-bit images take one byte for each pixel in memory, other samples four bytes for each element.

    Labels that samples carry take precedence over those that the data set lists. If the samples do not fit into memory,
    listed labels are used if they agree with the samples of a few blocks; otherwise every sample is read.

    Args:
        source: The whole data set, and how it is read.
        positions: Positions of the samples in it, int64 `(N,)`, ascending. Default: all.
        runtime: Shows progress.
        name: Name of the data in the progress bar.
        limit: Largest size in bytes of samples to keep in memory. Default: `memory_limit` of a single rank.

    Raises:
        UnreadableSampleError: If a sample cannot be read.
        ValueError: If a label is not an integer of at least 0, or the label of a sample changes between reads.

    Example:
        >>> from lightning_poison.data.source import open_source
        >>> from lightning_poison.runtime import LocalRuntime
        >>> pairs = [(torch.full((2,), float(index)), index % 3) for index in range(10)]
        >>> data = read_labeled(open_source(pairs, sample=None), runtime=LocalRuntime(), name="pairs")
        >>> data.labels[:4], type(data.dataset).__name__
        (tensor([0, 1, 2, 0]), 'MemoryDataset')
    """
    positions = torch.arange(len(source.dataset)) if positions is None else positions
    listed = None if source.listed is None else source.listed[positions]
    raw = SelectedDataset(source, positions, torch.zeros(len(positions), dtype=torch.int64))
    blocks = index_blocks(torch.arange(len(positions)), BLOCK_SIZE)
    count = min(len(blocks), _REPEATED_BLOCKS)
    repeated = [blocks[number * (len(blocks) - 1) // max(1, count - 1)] for number in range(count)]
    limit = memory_limit(SingleRank(runtime)) if limit is None else limit
    size = math.prod(source.shape) * len(positions)
    may_fit = 4 * size <= limit or (size <= limit and len(source.shape) >= 3)
    if 4 * size > limit and listed is not None:
        first = [_probed(block, positions) for block in _blocks(raw, [*repeated, *repeated])]
        repeats = _check_repeats(first[:count], first[count:], positions)
        is_random = _check_drawn_labels(raw, first[:count])
        inputs, places = [block.inputs for block in first[:count]], [block.indices for block in first[:count]]
        check_one_scale(torch.cat([peaks_of(each) for each in inputs]), positions[torch.cat(places)], inputs[0])
        check_variation(inputs)
        may_fit = may_fit and are_levels(inputs)
        if not may_fit and all(torch.equal(block.labels, listed[block.indices]) for block in first):
            dataset = _selected(raw, _checked(listed, positions))
            return LabeledData(source, positions, dataset, repeats, is_random=is_random)
    what = name if may_fit else f"the labels of {name}"
    read, repeats, is_random = _read_all(raw, blocks, repeated, runtime, what, limit=limit if may_fit else 0)
    if listed is not None:
        _warn_of_listed(source, listed, read.targets, positions)
    return LabeledData(source, positions, read, repeats, is_random=is_random)


def _read_all(
    raw: SelectedDataset, blocks: list[Tensor], repeated: list[Tensor], runtime: Runtime, name: str, *, limit: int
) -> tuple[MemoryDataset | SelectedDataset, bool, bool]:
    """Read all blocks, and some of them again.

    Returns:
        The samples, in memory if they take at most `limit` bytes; whether they repeat; and whether reading drew random
        numbers.
    """
    collector = InputCollector(len(raw), limit)
    labels, peaks, first = [], [], []
    starts = {int(block[0]) for block in repeated}
    read = _blocks(raw, [*blocks, *repeated])
    with section(0, _SHARE_OF_RUN), runtime.progress(len(blocks), f"Reading {name}") as bar:
        for block in itertools.islice(read, len(blocks)):
            labels.append(block.labels)
            peaks.append(peaks_of(block.inputs))
            if int(block.indices[0]) in starts:
                first.append(_probed(block, raw.indices))
            if collector.is_open:
                _check_shape(first[0].inputs.shape[1:], block, raw.indices)
                collector.add(int(block.indices[0]), block.inputs)
            bar.advance()
    repeats = _check_repeats(first, list(read), raw.indices)
    is_random = _check_drawn_labels(raw, first)
    check_one_scale(torch.cat(peaks), raw.indices, first[0].inputs)
    check_variation([block.inputs for block in first])
    carried = _checked(torch.cat(labels), raw.indices)
    inputs = collector.result()
    return _selected(raw, carried) if inputs is None else MemoryDataset(inputs, carried), repeats, is_random


def _probed(block: Block, positions: Tensor) -> Block:
    check_scale(block.inputs, positions[block.indices].tolist())
    return block


def _selected(raw: SelectedDataset, labels: Tensor) -> SelectedDataset:
    return SelectedDataset(raw.source, raw.indices, labels, labels)


def _checked(labels: Tensor, positions: Tensor) -> Tensor:
    if int(labels.min()) < UNLABELED:
        place = int(labels.argmin())
        what = f"integers of at least 0, or {UNLABELED} for samples without a label"
        raise ValueError(expected("labels", what, f"{int(labels[place])} at sample {int(positions[place])}"))
    return labels


def _blocks(data: SelectedDataset, blocks: list[Tensor]) -> Iterator[Block]:
    return read_blocks(data, blocks, sample=SampleSpec(), seed=data.source.seed)


def _check_repeats(first: list[Block], second: list[Block], positions: Tensor) -> bool:
    """Return whether blocks that were read twice have the same inputs. They must have the same labels."""
    for before, after in zip(first, second, strict=True):
        changed = (before.labels != after.labels).nonzero().flatten()
        if len(changed):
            place = int(changed[0])
            raise ValueError(
                f"Expected each sample to have the same label whenever it is read, but sample "
                f"{int(positions[before.indices[place]])} had {int(before.labels[place])} and then "
                f"{int(after.labels[place])}.\nMake the label of a sample depend on its index alone."
            )
    return all(torch.equal(before.inputs, after.inputs) for before, after in zip(first, second, strict=True))


def _check_drawn_labels(raw: SelectedDataset, first: list[Block]) -> bool:
    """Return whether reading draws random numbers. Labels must not depend on them: some are read under another seed."""
    if not any(block.is_random for block in first):
        return False
    places, labels = (torch.cat([getattr(block, part) for block in first]) for part in ("indices", "labels"))
    chosen = torch.linspace(0, len(places) - 1, min(len(places), BLOCK_SIZE)).long()
    seed = derived_seed(raw.source.seed, "labels")
    again = next(read_blocks(raw, [places[chosen]], sample=SampleSpec(), seed=seed))
    changed = (again.labels != labels[chosen]).nonzero().flatten()
    if len(changed):
        place = int(changed[0])
        raise ValueError(
            f"Expected each sample to have the same label whenever it is read, but that of sample "
            f"{int(raw.indices[again.indices[place]])} is drawn at random: {int(labels[chosen[place]])}, and "
            f"{int(again.labels[place])} under another seed.\nDraw the labels once, when the data set is built."
        )
    return True


def _warn_of_listed(source: Source, listed: Tensor, carried: Tensor, positions: Tensor) -> None:
    differs = listed != carried
    if source.settings.collate_fn is not None:
        differs &= carried != UNLABELED  # samples that are `None`, which it leaves out of its batches
    if not bool(differs.any()):
        return
    changed = differs.nonzero().flatten()
    place = int(changed[0])
    warnings.warn(
        f"The data set lists other labels than its samples carry: {len(changed):,} of {len(carried):,} differ, the "
        f"first at sample {int(positions[place])} (listed {int(listed[place])}, carried {int(carried[place])}). The "
        "carried labels are used. Correct `targets` or `labels` of the data set if they should be the same.",
        stacklevel=2,
    )


def _check_shape(first: tuple[int, ...], block: Block, positions: Tensor) -> None:
    last = block.inputs.shape[1:]
    if first != last:
        raise ValueError(
            expected("inputs", f"samples of one shape {tuple(first)}", tuple(last))
            + f"\nSample {int(positions[block.indices[0]])} is the first that differs. "
            + shape_hint(first, last)
        )


def digest_all(data: LabeledData, runtime: Runtime) -> None:
    """Complete the digests of the samples on every rank; those that no rank has read yet are read, each by one rank.

    Raises:
        UnreadableSampleError: If a sample cannot be read.
    """
    digests, positions = data.source.digests, data.positions
    if runtime.world_size > 1:
        _share(digests, positions, runtime)
    missing = digests.missing[torch.isin(digests.missing, positions)]
    if not len(missing):
        return
    blocks = index_blocks(torch.arange(len(missing)), BLOCK_SIZE)[runtime.rank :: runtime.world_size]
    comparing = runtime.progress(len(blocks), "Comparing the samples")
    with all_ranks(runtime), section(0, _SHARE_OF_RUN), comparing as bar:
        rest = SelectedDataset(data.source, missing, torch.zeros(len(missing), dtype=torch.int64))
        for _ in _blocks(rest, blocks):
            bar.advance()
    if runtime.world_size > 1:
        _share(digests, positions, runtime)


def _share(digests: SampleDigests, positions: Tensor, runtime: Runtime) -> None:
    """Give every rank the digests that any rank has; for each sample, the first rank that has it contributes."""
    seen = torch.zeros(len(positions), dtype=torch.bool)
    owned = ~torch.isin(positions, digests.missing)
    total = torch.zeros(len(positions), dtype=torch.int64)
    for rank in range(runtime.world_size):
        of_rank = runtime.reduce_sum((owned if rank == runtime.rank else seen & False).long()) > 0
        if rank == runtime.rank:
            total = torch.where(of_rank & ~seen, digests.values[positions], total)
        seen |= of_rank
    digests.add(positions[seen], runtime.reduce_sum(total)[seen])
