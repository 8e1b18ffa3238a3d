"""What the torchvision transforms of a data set do to its images."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torchvision.transforms as v1
import torchvision.transforms.v2 as v2
from torchvision.datasets.vision import StandardTransform

from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.views import as_view

_SEQUENCES = (v1.Compose, v2.Compose, torch.nn.Sequential)

_MODULES = ("torchvision.transforms.", "timm.data.")
"""Packages whose transforms are known."""

_DEPTH = 16
"""Number of data sets that wrap one another, views included."""

_RANDOM = (
    "Random", "ColorJitter", "AutoAugment", "RandAugment", "TrivialAugment", "AugMix", "ElasticTransform",
    "GaussianBlur", "GaussianNoise", "ScaleJitter", "JPEG",
)  # fmt: skip
"""What the names of transforms begin with that draw at random."""


def normalization_of(dataset: Any) -> PixelRange | None:
    """Return the normalization that the transform of a data set applies: a `Normalize` of torchvision.

    Args:
        dataset: Map-style data set with a transform in an attribute, or a view of one.

    Returns:
        Mean and standard deviation per channel; `None` if there is no `Normalize` that can be undone, or several that
        differ.

    Example:
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> dataset = TinyImages(3)
        >>> dataset.transform = v2.Compose([v2.ToImage(), v2.Normalize([0.5], [0.25])])
        >>> normalization_of(dataset)
        PixelRange(mean=(0.5,), std=(0.25,), levels=256)
    """
    used = [each for each in _transforms_of(dataset) if isinstance(each, v1.Normalize | v2.Normalize)]
    found = {_pixels_of(each.mean, each.std) for each in used} - {None}
    return found.pop() if len(found) == 1 else None


def random_transforms_of(dataset: Any) -> list[str]:
    """Return the names of the transforms of a data set that draw at random, in their order.

    Args:
        dataset: Map-style data set with a transform in an attribute, or a view of one.

    Example:
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> dataset = TinyImages(3)
        >>> dataset.transform = v1.Compose([v1.RandomHorizontalFlip(), v1.ToTensor()])
        >>> random_transforms_of(dataset)
        ['RandomHorizontalFlip']
    """
    names = [type(each).__name__ for each in _transforms_of(dataset) if type(each).__module__.startswith(_MODULES)]
    return list(dict.fromkeys(name for name in names if name.startswith(_RANDOM)))


def _transforms_of(dataset: Any) -> Iterator[Any]:
    """Yield the transforms in attributes of a data set and of all data sets below it, level by level."""
    owners, seen = [dataset], {id(dataset)}
    for _ in range(_DEPTH):
        below = []
        for owner in owners:
            yield from _flat(getattr(owner, "__dict__", {}).values())
            for part in _parts_of(owner):
                if id(part) not in seen:
                    seen.add(id(part))
                    below.append(part)
        owners = below


def _parts_of(dataset: Any) -> list[Any]:
    """Return the data sets directly below a view or a wrapper."""
    view = as_view(dataset)
    if view is None:
        return [part for name, part in getattr(dataset, "__dict__", {}).items() if name == "dataset"]
    return list(view.parts) if isinstance(view.parts, Sequence) else []  # attributes with another meaning


def _flat(transforms: Iterable[Any]) -> Iterator[Any]:
    for each in transforms:
        if isinstance(each, StandardTransform):
            yield from _flat([each.transform])
        elif isinstance(each, _SEQUENCES):
            yield from _flat(each if isinstance(each, torch.nn.Sequential) else each.transforms)
        else:
            yield each


def _pixels_of(mean: Any, std: Any) -> PixelRange | None:
    """Return what undoes a `Normalize`, one number of which may stand for all channels; `None` if nothing does."""
    try:
        means, stds = _numbers(mean), _numbers(std)
        count = max(len(means), len(stds))
        means, stds = (each * count if len(each) == 1 else each for each in (means, stds))
        return PixelRange(means, stds)
    except (TypeError, ValueError, RuntimeError):
        return None


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(torch.as_tensor(values).flatten().tolist())
