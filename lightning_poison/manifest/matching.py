"""Match rows of a manifest to samples of a data set, by content, label and path."""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.data.inputs import stack_inputs
from lightning_poison.data.labels import read_sample
from lightning_poison.data.packed_inputs import InputLayout
from lightning_poison.data.raw_images import read_raw, transform_owner
from lightning_poison.data.sample_files import listed_file
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.source import Source
from lightning_poison.data.source_labels import read_label, source_labels
from lightning_poison.data.views import locate
from lightning_poison.errors import UnreadableSampleError
from lightning_poison.manifest.cells import shortened_text
from lightning_poison.manifest.rows import ManifestRow
from lightning_poison.randomness import reseed, seeded_rng

_DIGITS = 32
"""Hexadecimal digits of a digest: 128 bits, enough to rule out forged collisions."""


def find_samples(
    rows: Collection[ManifestRow], source: Source, *, search: bool, positions: Tensor | None = None
) -> dict[int, int | None]:
    """Find the sample of each row, with the same content and label, each sample for one row only.

    The lookup tries the position `sample_id`, then samples with the same path, then, with `search`, all samples with
    the same label.

    Args:
        rows: Rows of one manifest.
        source: The data set, and how its samples are read.
        search: Whether to read all samples with the label of a row that is not found otherwise.
        positions: Positions of the samples that a loader can draw, int64 `(M,)`. The others are not searched, and may
            be unreadable. Default: all.

    Returns:
        Position of the sample of each row by `sample_id`; `None` if it is not found.

    Raises:
        UnreadableSampleError: If a sample cannot be read.
    """
    with seeded_rng(0):
        lookup = _Lookup(source, positions, {row.path for row in rows})
        found: dict[int, int | None] = {row.sample_id: lookup.first(row, [row.sample_id], set()) for row in rows}
        matched = {index for index in found.values() if index is not None}
        for row in rows:
            if found[row.sample_id] is not None:
                continue
            match = lookup.first(row, lookup.by_path[row.path] if row.path else [], matched)
            if match is None and search:
                match = next((index for index in lookup.by_content(row) if index not in matched), None)
            found[row.sample_id] = match
            matched |= {match} if match is not None else set()
    return found


def content_hash(dataset: Any, index: int, *, sample: SampleSpec) -> str:
    """Digest the content of a sample, without its label.

    The digest covers the image before the transform of the data set if accessible, so that random augmentation does
    not change it; otherwise the input as the data set returns it under a fixed random state.

    Args:
        dataset: Map-style data set.
        index: Position of the sample.
        sample: Location of the input in a sample.

    Returns:
        `raw:` or `input:`, depending on what was digested, and the first 32 hexadecimal digits of its SHA-256.

    Raises:
        UnreadableSampleError: If the sample cannot be read.

    Example:
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> content_hash(TinyImages(3), 0, sample=SampleSpec())
        'raw:...'
    """
    return content_hashes(Source(dataset, sample), [index])[0]


def content_hashes(source: Source, indices: Iterable[int]) -> list[str]:
    """Digest the content of samples of a source; see `content_hash`. Global random states are restored at the end."""
    with seeded_rng(0):
        return [_content_hash(source, index) for index in indices]


def file_of(dataset: Any, index: int) -> str:
    """Return the path of the file of a sample, poisoned or not, or an empty string if the data set has no paths.

    Args:
        dataset: Map-style data set.
        index: Position of the sample.
    """
    owner, position = locate(dataset, index)
    if isinstance(owner, PoisonedDataset):
        return file_of(owner.dataset, position) if position < len(owner.dataset) else ""
    return listed_file(owner, position)


def raw_image(dataset: Any, index: int) -> Tensor | None:
    """Return the image of a sample before the transform of the data set, or `None` if it is not accessible.

    Args:
        dataset: Map-style data set. Raw images of a `PoisonedDataset` are not accessible.
        index: Position of the sample.

    Returns:
        uint8 `(C, H, W)`.
    """
    with seeded_rng(0):
        return _raw_image(dataset, index)


class _Lookup:
    """Indexes of a data set for finding samples, built on first use."""

    def __init__(self, source: Source, positions: Tensor | None, paths: Collection[str]) -> None:
        self.source = source
        self.dataset = source.dataset
        self.positions = positions
        self.drawn = torch.ones(len(self.dataset), dtype=torch.bool)
        if positions is not None:
            self.drawn = torch.zeros_like(self.drawn).index_fill(0, positions, 1)
        self._paths = paths
        self._contents: dict[int, dict[str, list[int]]] = {}

    def first(self, row: ManifestRow, indices: Iterable[int], matched: Collection[int]) -> int | None:
        return next((index for index in indices if index not in matched and self._matches(index, row)), None)

    @cached_property
    def by_path(self) -> dict[str, list[int]]:
        indices = defaultdict(list)
        for index in range(len(self.dataset)):
            path = shortened_text(file_of(self.dataset, index))
            if path in self._paths:
                indices[path].append(index)
        return indices

    def by_content(self, row: ManifestRow) -> list[int]:
        if row.label not in self._contents:
            contents: dict[str, list[int]] = {}
            for index in self._labeled[1][self._labeled[0] == row.label].tolist():
                contents.setdefault(_content_hash(self.source, index), []).append(index)
            self._contents[row.label] = contents
        return self._contents[row.label].get(row.content_hash, [])

    @cached_property
    def _labeled(self) -> tuple[Tensor, Tensor]:
        """Labels of the samples that count, and their positions."""
        indices = self.drawn.nonzero().flatten()
        return source_labels(self.source, None if self.positions is None else indices), indices

    def _matches(self, index: int, row: ManifestRow) -> bool:
        if index >= len(self.dataset):
            return False
        try:
            return self._is_same(index, row)
        except (UnreadableSampleError, ValueError):
            if bool(self.drawn[index]):
                raise
            return False

    def _is_same(self, index: int, row: ManifestRow) -> bool:
        if read_label(self.source, index) != row.label:
            return False
        is_raw = row.content_hash.startswith("raw:")
        found = _raw_hash(self.dataset, index) if is_raw else _input_hash(self.source, index)
        return found == row.content_hash


def _content_hash(source: Source, index: int) -> str:
    """Digest the content of a sample. Call it inside `seeded_rng`, as the functions below."""
    return _raw_hash(source.dataset, index) or _input_hash(source, index)


def _raw_hash(dataset: Any, index: int) -> str | None:
    image = _raw_image(dataset, index)
    return None if image is None else f"raw:{_digest(image)}"


def _raw_image(dataset: Any, index: int) -> Tensor | None:
    try:
        owner, position = transform_owner(dataset, index)
        if isinstance(owner, PoisonedDataset):
            return None
        reseed(0)
        return read_raw(owner, position)
    except TypeError:
        return None


def _input_hash(source: Source, index: int) -> str:
    reseed(0)
    value = source.parts([read_sample(source.dataset, index)], [index])[0][0]
    return f"input:{_digest(value)}"


def _digest(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple) and InputLayout.of(value) is not None:
        value = stack_inputs([value], [0])[0].as_subclass(Tensor)
    if isinstance(value, Tensor):
        kind, shape = str(value.dtype).removeprefix("torch."), tuple(value.shape)
        content = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    else:
        array = np.ascontiguousarray(value)
        kind, shape, content = str(array.dtype), array.shape, array.tobytes()
    return hashlib.sha256(f"{kind}{shape}".encode() + content).hexdigest()[:_DIGITS]
