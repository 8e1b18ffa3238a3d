"""What the torchvision transforms of a data set do to its images."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torchvision.transforms as v1
import torchvision.transforms.v2 as v2
from torchvision.datasets.vision import StandardTransform

from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.views import locate

_SEQUENCES = (v1.Compose, v2.Compose, torch.nn.Sequential)

_MODULES = ("torchvision.transforms.", "timm.data.")
"""Packages whose transforms are known."""

_DEPTH = 8
"""Number of data sets that wrap one another."""

_RANDOM = ("Random", "ColorJitter", "AutoAugment", "RandAugment", "TrivialAugment", "AugMix", "ElasticTransform")
"""What the names of transforms begin with that draw at random."""


def normalization_of(dataset: Any) -> PixelRange | None:
    """Return the normalization that the transform of a data set applies: a `Normalize` of torchvision.

    Args:
        dataset: Map-style data set with a transform in an attribute, or a view of one.

    Returns:
        Mean and standard deviation per channel; `None` if there is no `Normalize`, or several that differ.

    Example:
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> dataset = TinyImages(3)
        >>> dataset.transform = v2.Compose([v2.ToImage(), v2.Normalize([0.5], [0.25])])
        >>> normalization_of(dataset)
        PixelRange(mean=(0.5,), std=(0.25,), levels=256)
    """
    found = {
        (_numbers(each.mean), _numbers(each.std))
        for each in _transforms_of(dataset)
        if isinstance(each, v1.Normalize | v2.Normalize)
    }
    if len(found) != 1:
        return None
    mean, std = found.pop()
    return PixelRange(mean, std)


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
    """Yield the transforms in attributes of the data sets that the first and the last sample come from."""
    try:
        owners = [locate(dataset, index)[0] for index in {0, max(0, len(dataset) - 1)}]
    except (TypeError, ValueError, LookupError):  # attributes of these names with another meaning
        owners = [dataset]
    for _ in range(_DEPTH):
        attributes = [getattr(owner, "__dict__", {}) for owner in {id(each): each for each in owners}.values()]
        for each in attributes:
            yield from _flat(each.values())
        owners = [each["dataset"] for each in attributes if each.get("dataset") is not None]


def _flat(transforms: Iterable[Any]) -> Iterator[Any]:
    for each in transforms:
        if isinstance(each, StandardTransform):
            yield from _flat([each.transform])
        elif isinstance(each, _SEQUENCES):
            yield from _flat(each if isinstance(each, torch.nn.Sequential) else each.transforms)
        else:
            yield each


def _numbers(values: Any) -> tuple[float, ...]:
    return tuple(torch.as_tensor(values).flatten().tolist())
