"""What is handed in to be judged or to be believed: data sets, loaders of them, and the labels that they carry."""

from collections.abc import Sized
from typing import Any

import torch
from torch import Tensor
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

from lightning_poison.checks import expected, printable
from lightning_poison.errors import UnsupportedDataError

MOST_CLASSES = 10_000
"""Class indices from here on, in a data set of fewer samples, are taken for something else than classes."""

_GAP = 10
"""How far class indices may reach beyond twice the number of classes that occur, where none are listed."""


def map_style(data: Any, name: str) -> Any:
    """Return the data set that a person means, which may come as a loader of it.

    Of a loader with a `SubsetRandomSampler` these are the samples that it draws, in the order of the data set.

    Args:
        data: a map-style data set, or a loader of one.
        name: the argument's name, for errors.

    Raises:
        UnsupportedDataError: where the data set has no length or is read by iteration only, or the loader draws by a
            sampler of which nobody can say which samples it means.
        ValueError: where there are no samples.

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
            + "\nSamples are kept out by their index. Write the stream to files first and read it by index, or judge a "
            "finite part of it as a list."
        )
    if not len(data):
        raise ValueError(f"Expected `{name}` to have at least one sample, but it is empty.")
    return data


def check_labels(labels: Tensor, data: Any) -> None:
    """Check that labels can be those of a data set's classes.

    Args:
        labels: int64 `(N,)`, each at least 0.
        data: whose they are; where it lists its `classes`, no label lies beyond them.

    Raises:
        ValueError: where a label lies beyond the classes that the data set lists or far beyond those that occur, or
            there are fewer than two classes.

    Example:
        >>> check_labels(torch.tensor([0, 1, 255]), [])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: Expected class indices without a wide gap, ...
        Mend or leave out the sample; or number the classes from 0 on, or list them in the data set's `classes`.
    """
    _check_range(labels, getattr(data, "classes", None))
    if len(torch.unique(labels)) < 2:
        raise ValueError(expected("dataset", "data of at least two classes", f"class {int(labels[0])} alone"))


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
        + "\nIt cannot be told which samples it stands for: pass them as a data set, `Subset(dataset, indices)`."
    )


def _check_range(labels: Tensor, classes: Any) -> None:
    largest, place = int(labels.max()), int(labels.argmax())
    if largest >= max(MOST_CLASSES, len(labels)):
        raise ValueError(
            f"Expected class indices below {MOST_CLASSES:,}, but sample {place} has the label {largest:,}.\n"
            "Number the classes from 0 on."
        )
    listed = len(classes) if isinstance(classes, Sized) and not isinstance(classes, str) else 0
    if listed and largest >= listed:
        names = printable(", ".join(str(each) for each in list(classes)[:5]))
        more = ", …" if listed > 5 else ""
        raise ValueError(
            f"Expected labels below {listed}, the number of classes that the data set lists ({names}{more}), but "
            f"sample {place} has the label {largest}.\nMend or leave out the sample, or list its class in `classes`."
        )
    present = len(torch.unique(labels))
    if not listed and largest > 2 * present + _GAP:
        raise ValueError(
            f"Expected class indices without a wide gap, but sample {place} has the label {largest} where only "
            f"{present} classes occur.\nMend or leave out the sample; or number the classes from 0 on, or list them in "
            "the data set's `classes`."
        )
