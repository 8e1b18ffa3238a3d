"""Finding the samples that the rows of a manifest speak of, in a data set that may have changed since."""

from collections import defaultdict
from collections.abc import Collection, Iterable
from functools import cached_property
from typing import Any

from torch import Tensor

from lightning_poison._manifest.identity import content_hash, file_of, has_content
from lightning_poison._manifest.rows import ManifestRow
from lightning_poison.labels import as_label, labels_of, read_sample
from lightning_poison.samples import SampleSpec
from lightning_poison.scopes import seeded_rng


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
