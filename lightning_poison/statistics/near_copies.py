"""Pairs of samples that differ so little that one is a copy of the other, re-encoded or with a little noise."""

import math
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

NEAR_COPY_DISTANCE = 0.06
"""Distance of near copies in units of the typical distance of two samples, the root of twice the total variance.

JPEG of quality 95 is at .015, of quality 75 at .06, noise of two gray levels at .02. The nearest different images of
MNIST (60,000), CIFAR-10 (10,000) and scikit-learn's digits are farther apart than .08.
"""

_POOLED_SIDE = 8
_DIRECTIONS = 12
_FIT_ON = 2000
_FEWEST = 8
_VERIFIED_AT_ONCE = 4096
_POOLED_AT_ONCE = 256
_ASKED_AT_ONCE = 256
_PAIRS_OF_ONE = 50
_GRID = 1e-6


class Images(Protocol):
    """N images, which need not be in memory as float32. A tensor of all of them is such an object."""

    def __len__(self) -> int:
        """Return N."""
        ...

    def __getitem__(self, places: Tensor, /) -> Tensor:
        """Return the images at `places`, int64 `(B,)`: float32 `(B, C, H, W)`."""
        ...


def near_copies(images: Images, *, distance: float = NEAR_COPY_DISTANCE) -> Tensor:
    """Return the pairs of images that are near copies of each other.

    Candidates are found by a k-d tree in the first principal components of the images at a low resolution, in which no
    distance is larger than between the images themselves. So no pair is missed, and all are verified.

    Args:
        images: float32 `(N, C, H, W)`, or an object that returns some of them.
        distance: Largest distance of near copies, in units of the typical distance of two images.

    Returns:
        Positions of the two images of each pair, int64 `(P, 2)`, the smaller position first. Of exact copies, each is
        paired with the first. Of an image with more than 50 candidates after it, 50 pairs are verified.

    Example:
        >>> images = torch.rand(50, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> near_copies(torch.cat([images, images[:1] + 0.001]))
        tensor([[ 0, 50]])
    """
    if len(images) < _FEWEST:
        return torch.zeros(0, 2, dtype=torch.int64)
    sample = images[torch.arange(0, len(images), -(-len(images) // _FIT_ON))].flatten(1).double()
    limit = distance * float((2 * sample.var(0).sum()).sqrt())
    if not limit > 0:
        return torch.zeros(0, 2, dtype=torch.int64)
    low = _at_low_resolution(images).double()
    fitted = low[:: -(-len(images) // _FIT_ON)]
    center = fitted.mean(0)
    _, vectors = torch.linalg.eigh(torch.cov((fitted - center).T))
    projected = (low - center) @ vectors[:, -_DIRECTIONS:]
    grid = limit * _GRID  # products of equal rows may differ in the last bits, by their place in the matrix
    projected = (projected / grid).round() * grid
    return _verified(images, _candidates(projected, limit * (1 + 10 * _GRID)), limit)


def _at_low_resolution(images: Images) -> Tensor:
    """Return a projection of the images to a lower resolution, `(N, D)`, which makes no distance larger."""
    height, width = images[torch.zeros(1, dtype=torch.int64)].shape[2:]
    cell = (-(-height // _POOLED_SIDE), -(-width // _POOLED_SIDE))
    padding = (0, -width % cell[1], 0, -height % cell[0])
    blocks = torch.split(torch.arange(len(images)), _POOLED_AT_ONCE)
    pooled = [F.avg_pool2d(F.pad(images[block], padding), cell) for block in blocks]
    return torch.cat(pooled).flatten(1) * math.sqrt(cell[0] * cell[1])


def _candidates(points: Tensor, limit: float) -> Tensor:
    """Return pairs of distinct points within a distance, and for each point that occurs repeatedly its first place."""
    from sklearn.neighbors import KDTree

    unique, inverse = torch.unique(points, dim=0, return_inverse=True)
    places = torch.arange(len(points))
    first = torch.full((len(unique),), len(points)).scatter_reduce(0, inverse, places, "amin")
    same = torch.stack([first[inverse], places], 1)[first[inverse] != places]
    tree, between = KDTree(unique.numpy()), []
    for start in range(0, len(unique), _ASKED_AT_ONCE):
        asked = unique[start : start + _ASKED_AT_ONCE].numpy()
        found = tree.query_radius(asked, limit)
        lengths = torch.tensor([len(others) for others in found])
        place = torch.repeat_interleave(torch.arange(start, start + len(asked)), lengths)
        other = torch.cat([torch.from_numpy(others) for others in found])
        later = other > place
        between.append(_nearest_few(place[later], other[later]))
    pairs = torch.cat(between) if between else torch.zeros(0, 2, dtype=torch.int64)
    return torch.cat([same, first[pairs].sort(1).values])


def _nearest_few(place: Tensor, other: Tensor) -> Tensor:
    """Return pairs `(P, 2)`, at most the first 50 of each place: enough to connect many images that are alike."""
    starts = torch.ones(len(place), dtype=torch.bool)
    starts[1:] = place[1:] != place[:-1]
    first = torch.where(starts, torch.arange(len(place)), 0).cummax(0).values if len(place) else place
    return torch.stack([place, other], 1)[torch.arange(len(place)) - first < _PAIRS_OF_ONE]


def _verified(images: Images, pairs: Tensor, limit: float) -> Tensor:
    kept = []
    for part in torch.split(pairs, _VERIFIED_AT_ONCE):
        gap = (images[part[:, 0]] - images[part[:, 1]]).flatten(1).norm(dim=1)
        kept.append(part[gap <= limit])
    found = torch.cat(kept) if kept else pairs
    return found[(found[:, 0] * len(images) + found[:, 1]).argsort()]
