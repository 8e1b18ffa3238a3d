"""Copies and groups in a data set: found before cross-fitting; no model scores a copy of its data."""

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from lightning_poison.data.blocks import BLOCK_SIZE, MemoryDataset, index_blocks, read_blocks
from lightning_poison.data.copies import Copies, connected, first_places
from lightning_poison.data.labeled_data import LabeledData, digest_all
from lightning_poison.data.large_matrices import zeros_in_file
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.runtime import Runtime, all_ranks
from lightning_poison.sanitization.cache_folder import NEAR_COPIES
from lightning_poison.sanitization.units import open_units, package_code
from lightning_poison.statistics.near_copies import Images, near_copies

NEAR_COPY_LIMIT = 2**31
"""Bytes of images up to which near copies are looked for, whether or not the images are kept in memory: 2 GiB.

It must not depend on the free memory or the number of ranks, since near copies decide about folds.
"""

_LISTED = 3


def digest_of_groups(numbers: Tensor) -> str:
    """Return a digest of what `group_numbers` returned."""
    return hashlib.sha256(numbers.numpy().tobytes()).hexdigest()[:16]


def with_copies(
    data: LabeledData, groups: Tensor | None, runtime: Runtime, *, cache: str | Path | None = None
) -> LabeledData:
    """Return data that know which samples are copies of each other, and which belong to one group.

    Copies are found by the digests of the inputs, near copies of images by their distance if these have at most 2 GiB.
    Samples are read that have not been read yet.

    Args:
        data: The samples that may be judged.
        groups: Result of `group_numbers` for the whole data set.
        runtime: The same copies are found on every rank.
        cache: Folder that stores the near copies of the same samples. Default: nothing is stored.
    """
    digest_all(data, runtime)
    with all_ranks(runtime):
        found = _find(data, groups, runtime, cache)
    return replace(data, copies=runtime.broadcast(found))


def _find(data: LabeledData, groups: Tensor | None, runtime: Runtime, cache: str | Path | None) -> Copies:
    places = torch.arange(len(data))
    if not data.repeats:
        return Copies(places, places if groups is None else first_places(groups[data.positions]))
    digests = data.sample_digests
    first = first_places(torch.stack([digests, data.labels], 1))
    pairs = torch.stack([first_places(digests), places], 1)
    if len(data.source.shape) == 3 and 4 * math.prod(data.source.shape) * len(data) <= NEAR_COPY_LIMIT:
        pairs = torch.cat([pairs, _near_copies(data, runtime, cache)])
    group = places if groups is None else first_places(groups[data.positions])
    return Copies(first, connected(group, pairs[pairs[:, 0] != pairs[:, 1]]))


def _near_copies(data: LabeledData, runtime: Runtime, cache: str | Path | None) -> Tensor:
    """Return the near copies among images, from the cache if it has those of the same images."""
    if cache is None:
        return near_copies(_images_of(data))
    key = hashlib.sha256(data.sample_digests.numpy().tobytes() + package_code().encode()).hexdigest()
    units = open_units(cache, key, data.source.digests, runtime.rank)
    stored = units.load(NEAR_COPIES)
    if stored is not None and "pairs" in stored[0]:
        return stored[0]["pairs"]
    pairs = near_copies(_images_of(data))
    units.save(NEAR_COPIES, {"pairs": pairs}, {})
    return pairs


class _ImagesInMemory:
    """Images in memory, of which only those that are asked for become float32."""

    def __init__(self, dataset: MemoryDataset) -> None:
        self._dataset = dataset

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, places: Tensor) -> Tensor:
        return self._dataset.inputs_at(places)


def _images_of(data: LabeledData) -> Images:
    """Return all images: those in memory, or a file that is mapped into it."""
    if isinstance(data.dataset, MemoryDataset):
        return _ImagesInMemory(data.dataset)
    images = zeros_in_file((len(data), *data.source.shape), torch.float32, in_memory=0)
    blocks = index_blocks(data.indices, BLOCK_SIZE)
    for block in read_blocks(data.dataset, blocks, sample=SampleSpec(), seed=data.source.seed):
        images[block.indices] = block.inputs
    return images


def copy_notes(data: LabeledData) -> tuple[str, ...]:
    """Return sentences about the copies in a data set, for the verdict.

    Args:
        data: The samples that are judged.
    """
    copies = data.copies
    if copies is None or not copies.has_groups:
        return ()
    notes = []
    if (count := len(data) - len(copies.distinct)) > 0:
        notes.append(
            f"{count:,} of the samples repeat another one with the same label. Copies are judged as one, and counted "
            "once in estimates."
        )
    inputs = first_places(data.sample_digests) if data.repeats else data.indices
    conflicting = torch.unique(inputs[copies.distinct], return_counts=True)
    several = conflicting[0][conflicting[1] > 1]
    if len(several):
        listed = "; ".join(_labels_of(data, copies, inputs, int(place)) for place in several[:_LISTED])
        more = f"; and {len(several) - _LISTED:,} more" if len(several) > _LISTED else ""
        notes.append(f"{len(several):,} inputs occur with several labels: {listed}{more}.")
    if (count := len(torch.unique(inputs)) - len(torch.unique(copies.group))) > 0:
        notes.append(f"{count:,} of the samples are in the fold of a near copy or of another sample of their group.")
    return tuple(notes)


def _labels_of(data: LabeledData, copies: Copies, inputs: Tensor, place: int) -> str:
    same = (inputs == place) & (copies.first == data.indices)
    several = same.nonzero().flatten()[:_LISTED]
    return ", ".join(f"sample {int(data.positions[each])} labeled {int(data.labels[each])}" for each in several)
