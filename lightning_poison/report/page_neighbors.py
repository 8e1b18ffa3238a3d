"""Nearest kept samples and near-duplicates of the samples in the HTML report, by their pixels or values."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_poison.checks import describe, expected
from lightning_poison.data.copies import connected, first_places
from lightning_poison.errors import is_signal
from lightning_poison.report.page_pictures import Pictures, as_array, pixels_of
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.statistics.near_copies import NEAR_COPY_DISTANCE, near_copies

MAX_COMPARED = 10_000
"""Largest number of kept samples that are read to find the nearest ones; more are drawn at random, evenly by class."""

SIDE = 16
"""Height and width in pixels to which images are reduced before they are compared."""

_NEAREST = 4
"""Number of nearest samples."""

_MAX_VALUES = 4_096
"""Largest number of values of a sample that is no image and is compared."""

_MAX_VERIFIED = 2_000
"""Largest number of pairs of images that are compared at their full size."""

_TYPICAL = 500
"""Number of images of which the typical distance is estimated."""


class CopyGroup(NamedTuple):
    """Samples that are copies of each other, int, and how many labels they have."""

    members: list[int]
    labels: int


class Neighbors:
    """Nearest kept samples and near-duplicates.

    Images are reduced to 16 × 16 pixels and compared by their Euclidean distance, other samples by the distance of
    their values, each divided by its standard deviation. No network is used, so "near" means that samples look alike,
    not that they mean the same. If there are more than 10,000 kept samples, only so many are read.

    Args:
        verdict: Verdict on N samples.
        pictures: Reads the samples.
        asked: Positions of samples whose neighbors will be asked for. All removed samples among them are compared.
        features: Features to compare in place of pixels or values, `(N, D)`. Default: none.

    Attributes:
        method: How samples are compared, as a sentence; why they are not if `is_empty`.
        is_empty: Whether nothing can be compared.

    Example:
        >>> from lightning_poison.sanitization.evidence import Evidence
        >>> p_values, labels = torch.tensor([0.8, 0.7, 0.6, 0.001]).double(), torch.tensor([0, 0, 1, 0])
        >>> verdict = Verdict(
        ...     -p_values.log(), p_values, p_values > 0.01, labels, 1 - labels, torch.full((2,), 4.6).double(),
        ...     Evidence(True, 0.25, 0.05, 0.8, 0.95, 0.003), "trusted", 0.01, scorer="likelihood", fingerprint="5f0c",
        ... )
        >>> data = [(torch.tensor([float(value)]), 0) for value in (5, 1, 3, 2)]
        >>> neighbors = Neighbors(verdict, Pictures(data, None, limit=100), asked=[3])
        >>> neighbors.nearest(3, label=0), neighbors.nearest(3, label=1)
        ([1, 0], [2])
    """

    def __init__(
        self, verdict: Verdict, pictures: Pictures | None, *, asked: Sequence[int], features: Tensor | None = None
    ) -> None:
        self._verdict, self._pictures = verdict, pictures
        candidates = verdict.keep if verdict.judged is None else verdict.keep & verdict.judged
        self._candidates = candidates.nonzero().flatten()
        self._images: Tensor | None = None
        self._typical = 0.0
        self._given = None if features is None else _checked(features, len(verdict))
        self._places: dict[int, int] = {}
        self.method = "The data set is not available, so samples are not compared."
        self._vectors = torch.zeros(0, 0)
        compared = _drawn(self._candidates, verdict.labels)
        if pictures is not None:
            self._read([*asked, *compared.tolist()])
        if self._given is not None:
            self._vectors, self._places = _scaled(self._given), {index: index for index in range(len(verdict))}
            self.method = "Samples are compared by the features that the report was given."
        elif self._places and len(compared) < len(self._candidates):
            self.method += f" {len(compared):,} of {len(self._candidates):,} kept samples were compared."

    @property
    def is_empty(self) -> bool:
        """Whether nothing can be compared."""
        return not self._places

    def nearest(self, index: int, *, label: int) -> list[int]:
        """Return the positions of the kept samples with a label that are nearest to the sample at `index`."""
        if index not in self._places or label < 0:
            return []
        same = self._candidates[self._verdict.labels[self._candidates] == label].tolist()
        others = [each for each in same if each in self._places and each != index]
        if not others:
            return []
        rows = self._vectors[[self._places[each] for each in others]]
        distances = torch.cdist(self._vectors[self._places[index]][None], rows)[0]
        return [others[place] for place in distances.argsort(stable=True)[:_NEAREST].tolist()]

    def copies(self) -> list[CopyGroup]:
        """Return groups of copies and near copies, those with several labels first, then the largest.

        Exact copies are found among all samples that were judged, near copies among those that were compared.
        """
        length = len(self._verdict)
        digests, places = self._verdict.sample_digests, torch.arange(length)
        group = places if digests is None else torch.where(digests == 0, places, first_places(digests))
        group = connected(group, self._near_copies())
        by_first: dict[int, list[int]] = {}
        for index, first in enumerate(group.tolist()):
            by_first.setdefault(first, []).append(index)
        labels = self._verdict.labels.tolist()
        several = [members for members in by_first.values() if len(members) > 1]
        found = [CopyGroup(members, len({labels[each] for each in members})) for members in several]
        return sorted(found, key=lambda each: (each.labels == 1, -len(each.members), each.members))

    def _near_copies(self) -> Tensor:
        """Return pairs of near copies: images that are alike when reduced, and at their full size too."""
        if self._images is None or self._pictures is None or not self._typical > 0:
            return torch.zeros(0, 2, dtype=torch.int64)
        position = torch.tensor(list(self._image_places))
        pairs = position[near_copies(self._images)][:_MAX_VERIFIED]
        limit = NEAR_COPY_DISTANCE * self._typical
        alike = []
        for pair in pairs.tolist():
            first, second = (pixels_of(_value_at(self._pictures, index)) for index in pair)
            if first is None or second is None or first.shape != second.shape:
                continue
            if float(np.linalg.norm(np.subtract(first, second, dtype=np.float32))) <= limit:
                alike.append(pair)
        return torch.tensor(alike, dtype=torch.int64).view(-1, 2)

    def _read(self, indices: Sequence[int]) -> None:
        """Read samples, and store them as vectors. Those that cannot be read, or have another form, are left out."""
        assert self._pictures is not None  # noqa: S101 (checked by the caller)
        vectors: dict[int, Tensor] = {}
        shapes: list[np.ndarray] = []
        is_image: bool | None = None
        for index in dict.fromkeys(indices):
            value = _value_at(self._pictures, index)
            pixels = pixels_of(value)
            vector = _reduced(pixels) if pixels is not None else _values_of(value)
            if vector is None or (is_image is not None and is_image != (pixels is not None)):
                continue
            is_image = pixels is not None
            vectors[index] = vector
            if pixels is not None and len(shapes) < _TYPICAL and (not shapes or shapes[0].shape == pixels.shape):
                shapes.append(pixels)
        if is_image:
            channels = max(len(each) for each in vectors.values())
            self._images = torch.stack([each.expand(channels, -1, -1) for each in vectors.values()])
            self._image_places = vectors
            self._typical = float(np.sqrt(2 * np.var(np.stack(shapes), axis=0, dtype=np.float64).sum()))
            self._vectors = self._images.flatten(1)
            self.method = f"Images are compared by their pixels, reduced to {SIDE} \N{MULTIPLICATION SIGN} {SIDE}."
        elif vectors:
            length = next(iter(vectors.values())).shape
            vectors = {index: vector for index, vector in vectors.items() if vector.shape == length}
            self._vectors = _scaled(torch.stack(list(vectors.values())))
            self.method = "Samples are compared by their values, each divided by its standard deviation."
        else:
            self.method = "Samples are neither images nor vectors, so they are not compared."
        self._places = {index: place for place, index in enumerate(vectors)}


def _drawn(candidates: Tensor, labels: Tensor) -> Tensor:
    """Return at most `MAX_COMPARED` of the samples at `candidates`, evenly by class, in their order."""
    if len(candidates) <= MAX_COMPARED:
        return candidates
    shuffled = candidates[torch.randperm(len(candidates), generator=torch.Generator().manual_seed(0))]
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = torch.bincount(labels[by_class] + 1)
    counts = counts[counts > 0]
    starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    rank = torch.arange(len(by_class)) - starts
    drawn: Tensor = by_class[rank.argsort(stable=True)[:MAX_COMPARED]].sort().values
    return drawn


def _values_of(value: Any) -> Tensor | None:
    """Return the values of a sample that is no image, or `None` if they are no numbers, or too many."""
    array = as_array(value)
    if array is None or array.size > _MAX_VALUES:
        return None
    return torch.from_numpy(np.nan_to_num(array.astype(np.float32)).reshape(-1))


def _value_at(pictures: Pictures, index: int) -> Any:
    try:
        return pictures.read(index)
    except (Exception, SystemExit) as error:  # a data set may raise anything
        if is_signal(error):
            raise
        return None


def _reduced(pixels: np.ndarray) -> Tensor:
    """Return an image as float32 `(C, SIDE, SIDE)`."""
    image = torch.from_numpy(pixels.astype(np.float32))
    image = image[None] if image.ndim == 2 else image.permute(2, 0, 1)
    return F.adaptive_avg_pool2d(image[None], SIDE)[0]


def _scaled(vectors: Tensor) -> Tensor:
    """Return vectors `(M, D)` with a standard deviation of 1 in each column that varies."""
    deviation = vectors.std(0, correction=0)
    return (vectors - vectors.mean(0)) / torch.where(deviation > 0, deviation, 1)


def _checked(features: Any, length: int) -> Tensor:
    if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != length or not features.shape[1]:
        raise ValueError(expected("features", f"a tensor of shape ({length}, D)", describe(features)))
    values = features.detach().cpu().float()
    if not values.isfinite().all():
        raise ValueError(expected("features", "finite", "NaN or infinite values"))
    return values
