"""Which sample is it? A digest of what it shows, and the file that it comes from."""

import bisect
import hashlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.data.labels import as_label, labels_of, read_sample
from lightning_poison.data.raw_images import read_raw
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.manifest.rows import ManifestRow
from lightning_poison.randomness import seeded_rng

_DIGITS = 32
"""Hexadecimal digits of a digest; 128 bits, so that nobody makes another sample of the same digest."""


def content_hash(dataset: Any, index: int, *, sample: SampleSpec) -> str:
    """Digest the content of a sample, its label not included.

    The image before the data set's transform is digested where it can be reached, since random augmentation leaves it
    alone; else the input as the data set returns it under a fixed random state, which is put back afterwards.

    Args:
        dataset: a map-style data set.
        index: the position of the sample.
        sample: where the input stands in a sample.

    Returns:
        What was digested, `raw:` or `input:`, and the first 32 hexadecimal digits of its SHA-256.

    Raises:
        UnreadableSampleError: where the sample cannot be read.

    Example:
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> content_hash(TinyImages(3), 0, sample=SampleSpec())
        'raw:...'
    """
    return _raw_hash(dataset, index) or _input_hash(dataset, index, sample)


def has_content(dataset: Any, index: int, expected_hash: str, *, sample: SampleSpec) -> bool:
    """Tell whether a sample still has the content that `content_hash` digested; arguments as there.

    Raises:
        UnreadableSampleError: where the sample cannot be read.
    """
    if expected_hash.startswith("raw:"):
        return _raw_hash(dataset, index) == expected_hash
    return _input_hash(dataset, index, sample) == expected_hash


def file_of(dataset: Any, index: int) -> str:
    """Return the path of the file that a sample was read from, or an empty string where the data set knows none.

    Data sets that are laid out as torchvision's `ImageFolder` know it (`samples` or `imgs`); subsets, concatenations
    and the views of this library are followed. The path is whatever the data set says: text that is not to be trusted.

    Args:
        dataset: a map-style data set.
        index: the position of the sample.
    """
    owner, position = _owner(dataset, index)
    if isinstance(owner, PoisonedDataset):
        return file_of(owner.dataset, position) if position < len(owner.dataset) else ""
    for name in ("samples", "imgs"):
        listed = getattr(owner, name, None)
        if isinstance(listed, list | tuple) and len(listed) == len(owner):
            entry = listed[position]
            path = entry[0] if isinstance(entry, list | tuple) and entry else entry
            if isinstance(path, str | os.PathLike):
                return str(os.fspath(path))
    return ""


def raw_image(dataset: Any, index: int) -> Tensor | None:
    """Return the image of a sample before the data set's transform, or `None` where it cannot be reached.

    Args:
        dataset: a map-style data set; of one with poison in it, the raw images are not reached.
        index: the position of the sample.

    Returns:
        uint8 `(C, H, W)`.
    """
    owner, position = _owner(dataset, index)
    if isinstance(owner, PoisonedDataset):
        return None
    try:
        with seeded_rng(0):
            return read_raw(owner, position)
    except TypeError:
        return None


def _owner(dataset: Any, index: int) -> tuple[Any, int]:
    """Follow subsets and concatenations by what they hold themselves, since views answer for the data set within."""
    held = getattr(dataset, "__dict__", {})
    if "cumulative_sizes" in held and "datasets" in held:
        part = bisect.bisect_right(dataset.cumulative_sizes, index)
        start = dataset.cumulative_sizes[part - 1] if part else 0
        return _owner(dataset.datasets[part], index - start)
    if "dataset" in held and "indices" in held:
        return _owner(dataset.dataset, int(dataset.indices[index]))
    return dataset, index


def _raw_hash(dataset: Any, index: int) -> str | None:
    image = raw_image(dataset, index)
    return None if image is None else f"raw:{_digest(image)}"


def _input_hash(dataset: Any, index: int, sample: SampleSpec) -> str:
    with seeded_rng(0):
        value = sample.inputs_in(read_sample(dataset, index))
    return f"input:{_digest(value)}"


def _digest(value: Any) -> str:
    if isinstance(value, Tensor):
        kind, shape = str(value.dtype).removeprefix("torch."), tuple(value.shape)
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    else:
        array = np.ascontiguousarray(value)
        kind, shape, content = str(array.dtype), array.shape, array.tobytes()
    return hashlib.sha256(f"{kind}{shape}".encode() + content).hexdigest()[:_DIGITS]


def find_samples(
    rows: Collection[ManifestRow], dataset: Any, *, sample: SampleSpec, search: bool
) -> dict[int, int | None]:
    """Find the sample of each row: one of the same content and label, and of no other row.

    A row is looked for at its `sample_id`, then under its path where the data set knows paths, then, if asked for,
    among all samples of its label.

    Args:
        rows: rows of one manifest.
        dataset: a map-style data set.
        sample: where input and label stand in a sample.
        search: whether to read all samples of a row's label where nothing else finds it.

    Returns:
        The position of each row's sample by its `sample_id`; `None` where there is none.

    Raises:
        UnreadableSampleError: where a sample cannot be read.
    """
    with seeded_rng(0):
        lookup = _Lookup(dataset, sample)
        found: dict[int, int | None] = {row.sample_id: lookup.first(row, [row.sample_id], set()) for row in rows}
        taken = {place for place in found.values() if place is not None}
        for row in rows:
            if found[row.sample_id] is not None:
                continue
            place = lookup.first(row, lookup.by_path[row.path] if row.path else [], taken)
            if place is None and search:
                place = next((each for each in lookup.by_content(row) if each not in taken), None)
            found[row.sample_id] = place
            taken |= {place} if place is not None else set()
    return found


class _Lookup:
    """A data set with what is needed to find samples in it, gathered when it is first asked for."""

    def __init__(self, dataset: Any, sample: SampleSpec) -> None:
        self.dataset = dataset
        self.sample = sample
        self._contents: dict[int, dict[str, list[int]]] = {}

    def first(self, row: ManifestRow, places: Iterable[int], taken: Collection[int]) -> int | None:
        return next((place for place in places if place not in taken and self._holds(place, row)), None)

    @cached_property
    def by_path(self) -> dict[str, list[int]]:
        places = defaultdict(list)
        for index in range(len(self.dataset)):
            places[file_of(self.dataset, index)].append(index)
        return places

    def by_content(self, row: ManifestRow) -> list[int]:
        if row.label not in self._contents:
            contents: dict[str, list[int]] = {}
            for index in (self._labels == row.label).nonzero().flatten().tolist():
                contents.setdefault(content_hash(self.dataset, index, sample=self.sample), []).append(index)
            self._contents[row.label] = contents
        return self._contents[row.label].get(row.content_hash, [])

    @cached_property
    def _labels(self) -> Tensor:
        return labels_of(self.dataset, self.sample)

    def _holds(self, index: int, row: ManifestRow) -> bool:
        if index >= len(self.dataset):
            return False
        label = as_label(self.sample.labels_in(read_sample(self.dataset, index)), index)
        return label == row.label and has_content(self.dataset, index, row.content_hash, sample=self.sample)
