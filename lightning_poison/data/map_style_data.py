"""Validates the `dataset` and `trusted` arguments, which may be loaders."""

from collections.abc import Sized
from typing import Any

from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
)

from lightning_poison.checks import expected
from lightning_poison.errors import UnsupportedDataError


def map_style(data: Any, name: str) -> Any:
    """Return the map-style data set of an argument that is a data set or a loader of one.

    For a loader with a `SubsetRandomSampler`, these are the samples that it draws, in the order of the data set.

    Args:
        data: Map-style data set, or a loader of one.
        name: Name of the argument, for errors.

    Raises:
        UnsupportedDataError: If the data set has no length or can only be iterated over, or the sampler of the loader
            does not determine a set of samples.
        ValueError: If there are no samples.

    Example:
        >>> loader = DataLoader(list(range(10)), sampler=SubsetRandomSampler([7, 2]))
        >>> list(map_style(loader, "trusted"))
        [2, 7]
    """
    if isinstance(data, DataLoader):
        data = _drawn_by(data, name)
    if isinstance(data, IterableDataset) or not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        raise UnsupportedDataError(
            expected(name, "a map-style data set, with `__len__` and `__getitem__`", type(data).__name__)
            + "\nSamples are removed by their index. Write the stream to files first and read them by index, or pass a "
            "finite part of it as a list."
        )
    if not len(data):
        raise ValueError(f"Expected `{name}` to have at least one sample, but it is empty.")
    return data


def _drawn_by(loader: "DataLoader[Any]", name: str) -> Any:
    batches, dataset = loader.batch_sampler, loader.dataset
    sampler = loader.sampler if batches is None else batches
    if type(sampler) is BatchSampler:
        sampler = sampler.sampler
    whole = isinstance(dataset, IterableDataset) or type(sampler) in (SequentialSampler, DistributedSampler)
    drawn = sampler.num_samples if type(sampler) is RandomSampler and not sampler.replacement else 0
    if whole or (isinstance(dataset, Sized) and drawn == len(dataset)):
        return dataset
    if type(sampler) is SubsetRandomSampler:
        return Subset(dataset, sorted(int(index) for index in sampler.indices))
    raise UnsupportedDataError(
        expected(name, "a loader that draws every sample of its data set", f"one with a {type(sampler).__name__}")
        + "\nThis sampler does not determine a set of samples. Pass them as a data set: `Subset(dataset, indices)`."
    )
