"""Validates the `dataset` and `trusted` arguments, which may be loaders, arrays or tables."""

import os
from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from lightning_poison.checks import describe, describe_error, expected, printable
from lightning_poison.data.sample_parts import LABEL_NAMES
from lightning_poison.errors import UnsupportedDataError, is_signal

_LISTS = (list, tuple, range, Tensor, np.ndarray)
"""What users pass as `sampler` or, nested, as `batch_sampler`."""

_OWN_INDICES = (DistributedSampler, RandomSampler, SequentialSampler, SubsetRandomSampler, WeightedRandomSampler)
"""Samplers whose positions are known. `indices` of other classes may be something else."""

_MOST_SAMPLES = 2**33
"""Length above which a data set is refused: its labels alone would need 64 GiB."""

_MOST_COLUMNS = 6
"""Number of arrays or lists up to which they are taken for columns, such as `(X, y, weights)`, and not for samples."""

_MAP_STYLE = "a map-style data set, with `__len__` and `__getitem__`"


class LabeledArrays(Dataset[tuple[Any, Any]]):
    """Arrays of inputs and labels as a data set of pairs.

    Args:
        inputs: Tensor or array, `(N, ...)`.
        labels: Labels in any form that `as_label` converts, of length N.

    Example:
        >>> LabeledArrays(np.eye(2), [0, 1])[1]
        (array([0., 1.]), 1)
    """

    def __init__(self, inputs: Any, labels: Any) -> None:
        self.inputs = inputs
        self.targets = labels

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return self.inputs[index], self.targets[index]


def map_style(data: Any, name: str) -> Any:
    """Return the map-style data set of an argument: a data set, a loader of one, arrays or a table.

    Of a loader, these are the samples that its sampler can draw, in the order of the data set. Arrays are a pair
    `(X, y)` of inputs and labels. A table is a frame of pandas or Polars, or a dict of columns, of which one is named
    like a label (`label`, `target`, `y`, …) and the others are numeric features.

    Args:
        data: Map-style data set, a loader of one, a pair of arrays, or a table.
        name: Name of the argument, for errors.

    Raises:
        UnsupportedDataError: If there are no samples to read by their index and no labels, or the sampler of the loader
            does not determine a set of samples.
        ValueError: If there are no samples, or arrays differ in length.

    Example:
        >>> loader = DataLoader(list(range(10)), sampler=SubsetRandomSampler([7, 2]))
        >>> list(map_style(loader, "trusted"))
        [2, 7]
        >>> map_style((np.eye(2), np.array([1, 0])), "dataset")[0]
        (array([1., 0.]), np.int64(1))
    """
    if isinstance(data, DataLoader):
        data = _drawn_by(data, name)
    elif (columns := _columns_of(data)) is not None:
        data = _from_table(columns, name)
    elif _are_arrays(data):
        data = _from_arrays(data, name)
    if (reason := _refusal(data)) is not None:
        raise UnsupportedDataError(expected(name, _MAP_STYLE, *reason))
    check_length(data, f"`{name}`")
    return data


def check_length(data: Any, what: str) -> int:
    """Return the number of samples of a map-style data set.

    Args:
        data: Map-style data set.
        what: What it is, for errors.

    Raises:
        UnsupportedDataError: If `len` fails or is too large.
        ValueError: If there are no samples.

    Example:
        >>> check_length([], "`dataset`")
        Traceback (most recent call last):
        ValueError: Expected `dataset` to have at least one sample, but it is empty.
    """
    try:
        length = len(data)
    except (Exception, SystemExit) as error:
        if is_signal(error):
            raise
        raise UnsupportedDataError(
            f"Expected {what} to be a data set with a length, but got a {type(data).__name__} whose `__len__` raised "
            f"{describe_error(error)}.\nReturn the number of samples from `__len__`."
        ) from error
    if length > _MOST_SAMPLES:
        raise UnsupportedDataError(
            f"Expected {what} to be a data set of at most {_MOST_SAMPLES:,} samples, but got a length of {length:,}.\n"
            "Return the number of samples from `__len__`, or pass a part of the data: `Subset(dataset, indices)`."
        )
    if not length:
        raise ValueError(f"Expected {what} to have at least one sample, but it is empty.")
    return length


def drawn_positions(loader: "DataLoader[Any]") -> Tensor | None:
    """Return the positions in `loader.dataset` that its sampler can draw.

    Args:
        loader: Loader of a map-style data set.

    Returns:
        int64 `(M,)`, ascending, or `None` if it can draw all samples or is of unknown kind.

    Raises:
        ValueError: If the sampler draws nothing, or positions that the data set does not have.

    Example:
        >>> drawn_positions(DataLoader(list(range(10)), sampler=SubsetRandomSampler([7, 2])))
        tensor([2, 7])
        >>> drawn_positions(DataLoader(list(range(3)), sampler=WeightedRandomSampler([0.5, 0.0, 2.0], 8)))
        tensor([0, 2])
        >>> drawn_positions(DataLoader(list(range(10)), batch_sampler=[[7, 2], [2, 3]]))
        tensor([2, 3, 7])
        >>> drawn_positions(DataLoader(list(range(10)), shuffle=True)) is None
        True
    """
    if not hasattr(loader.dataset, "__len__") or not hasattr(loader.dataset, "__getitem__"):
        return None
    length, sampler = len(loader.dataset), _sampler_of(loader)
    drawn = _positions_of(sampler)
    if drawn is None:
        return None
    drawn = torch.unique(torch.where(drawn < 0, drawn + length, drawn))
    if not len(drawn) or int(drawn[0]) < 0 or int(drawn[-1]) >= length:
        if not isinstance(sampler, (*_OWN_INDICES, *_LISTS)):
            return None
        kind = type(sampler).__name__
        if not len(drawn):
            raise ValueError(f"Expected the sampler to draw at least one sample, but a {kind} draws none.")
        odd = int(drawn[-1]) if int(drawn[-1]) >= length else int(drawn[0]) - length
        raise ValueError(
            f"Expected the sampler to draw positions below {length:,}, the length of the data set, but a {kind} draws "
            f"{odd}.\nBuild it for this data set, or pass the data set that it is for."
        )
    return drawn if len(drawn) < length else None


def _sampler_of(loader: "DataLoader[Any]") -> Any:
    """Return what draws the positions of a loader."""
    sampler = loader.sampler if loader.batch_sampler is None else loader.batch_sampler
    return sampler.sampler if isinstance(sampler, BatchSampler) else sampler


def _positions_of(sampler: Any) -> Tensor | None:
    """Return the positions that a sampler draws, in any order, or `None` if its kind is unknown."""
    if type(sampler) is WeightedRandomSampler:
        return torch.as_tensor(sampler.weights).gt(0).nonzero().flatten()
    if type(sampler) in (RandomSampler, SequentialSampler):
        return torch.arange(len(sampler.data_source))
    if type(sampler) is DistributedSampler:
        return torch.arange(len(sampler.dataset))  # type: ignore[arg-type]
    try:
        listed = sampler if isinstance(sampler, _LISTS) else sampler.indices
        if isinstance(listed, list | tuple) and listed and all(isinstance(each, _LISTS) for each in listed):
            listed = [position for batch in listed for position in batch]
        positions = torch.as_tensor(np.asarray(listed)) if len(listed) else torch.zeros(0, dtype=torch.int64)
    except Exception:  # noqa: BLE001 (no indices, or others than numbers)
        return None
    is_whole = positions.ndim == 1 and not positions.is_floating_point() and positions.dtype != torch.bool
    return positions.long() if is_whole else None


def _drawn_by(loader: "DataLoader[Any]", name: str) -> Any:
    """Return the samples that a loader can draw."""
    dataset, sampler = loader.dataset, _sampler_of(loader)
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        return dataset
    if _positions_of(sampler) is None:
        raise UnsupportedDataError(
            expected(name, "a loader whose sampler draws known samples", f"one with a {type(sampler).__name__}")
            + "\nThis sampler does not determine a set of samples. Pass them as a data set: `Subset(dataset, indices)`."
        )
    drawn = drawn_positions(loader)
    return dataset if drawn is None else Subset(dataset, drawn.tolist())


def _refusal(data: Any) -> tuple[str, str] | None:
    """Return what data is, and how to pass its samples, if they cannot be read by their index with their labels."""
    kind = type(data).__name__
    if isinstance(data, type):
        return f"the class {data.__name__}", f"Create the data set: `{data.__name__}(...)`."
    if isinstance(data, str | os.PathLike):
        path = printable(os.fspath(data), limit=80)
        return f"the path {path!r}", f"Read the files, such as with torchvision's `ImageFolder({path!r}, transform)`."
    if isinstance(data, Tensor | np.ndarray) or _comes_from(data, "pandas", "polars"):
        what = describe(data) if isinstance(data, Tensor | np.ndarray) else f"a {kind}"
        way = "Pass inputs and labels as a pair: `(X, y)`."
        return f"{what} without labels", "Pass `frame.collect()`." if callable(getattr(data, "collect", None)) else way
    if _comes_from(data, "datasets") and isinstance(data, dict):
        splits = ", ".join(printable(repr(split), limit=40) for split in list(data)[:5])
        first = printable(repr(next(iter(data), "train")), limit=40)
        return f"a {kind} with the splits {splits}", f"Pass one split: `data[{first}]`."
    if callable(getattr(data, "train_dataloader", None)):
        way = "Wrap it for training, `SanitizedDataModule(datamodule, scorer)`, or pass its data set after "
        return kind, way + "`datamodule.setup('fit')`: `datamodule.train_dataloader().dataset`."
    if _is_sparse(data):
        return f"a {kind} without labels", "Pass inputs and labels as a pair of arrays: `(X.toarray(), y)`."
    if (reason := _refusal_of_members(data, kind)) is not None:
        return reason
    if isinstance(data, IterableDataset) or not hasattr(data, "__getitem__") or not hasattr(data, "__len__"):
        way = "Samples are removed by their index. Write the stream to files first and read them by index, or pass a "
        way += (
            "finite part of it as a list. To filter the stream itself as it is read, use `StreamFilter`, described in "
        )
        return kind, way + "docs/streams.md."
    return None


def _refusal_of_members(data: Any, kind: str) -> tuple[str, str] | None:
    """Return the same for a list, tuple or dict."""
    members = list(data.values()) if isinstance(data, dict) else data if isinstance(data, list | tuple) else []
    if members and all(isinstance(each, DataLoader | Dataset) for each in members):
        what = "loaders" if isinstance(members[0], DataLoader) else "data sets"
        return f"a {kind} of {len(members)} {what}", "Pass one at a time, or all of them as one: `ConcatDataset`."
    if type(data) in (list, tuple) and (for_columns := _way_for_columns(data)) is not None:
        return f"a {kind} of {', '.join(map(_describe_column, data))}", for_columns
    if members and isinstance(data, list | tuple) and isinstance(members[0], str | os.PathLike):
        way = "Read the files in a data set that returns `(image, label)`, such as torchvision's `ImageFolder`."
        return f"a {kind} of texts", way
    if isinstance(data, Mapping) and set(data) != set(range(len(data))):
        keys = ", ".join(printable(key, limit=40) for key in list(data)[:5])
        way = "Pass a pair of arrays, `(X, y)`, or a column named like a label (`label`, `target`, `y`, …)."
        return f"a {kind} with the keys {keys}", way
    return None


def _way_for_columns(data: Sequence[Any]) -> str | None:
    """Return how to pass inputs and labels that are given as a list or tuple of columns; `None` for samples."""
    pair = "Pass inputs and labels as a pair of arrays, in this order: `(X, y)`."
    if not data or len(data) > _MOST_COLUMNS:
        return None
    if all(_are_arrays(each) for each in data):
        return "Pass one pair of inputs and labels, `(X, y)`, such as those for training."
    lengths = {len(each) if type(each) in (list, tuple) else 0 for each in data}
    are_lists = len(data) > 1 and len(lengths) == 1 and min(lengths) > _MOST_COLUMNS
    if not are_lists and not any(_is_column(each) for each in data):
        return None
    first = data[0]
    if any(map(_is_sparse, data)):
        return f"{pair} Of a sparse matrix: `(X.toarray(), y)`."
    if len(data) > 2:
        return f"{pair} Weights and other columns are not used."
    if type(first) in (list, tuple):
        if isinstance(first[0], str | os.PathLike):
            return "Read the files in a data set that returns `(image, label)`, such as torchvision's `ImageFolder`."
        return f"{pair} Of lists: `(np.asarray(X), y)` for numbers, or `list(zip(X, y))` for images."
    is_flat = len(getattr(first, "shape", ())) == 1
    is_column = is_flat and len(data) == 2 and len(getattr(data[1], "shape", ())) <= 1
    return f"{pair} Inputs that are one number each are a column: `(X[:, None], y)`." if is_column else pair


def _is_column(value: Any) -> bool:
    """Whether a value has an entry for each sample."""
    return _is_array(value) or _is_sparse(value) or _comes_from(value, "pandas", "polars")


def _is_sparse(value: Any) -> bool:
    return _comes_from(value, "scipy") and callable(getattr(value, "toarray", None))


def _describe_column(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return describe(value)
    size = f"shape {tuple(value.shape)}" if hasattr(value, "shape") else f"length {len(value)}"
    return f"a {type(value).__name__} of {size}"


def _comes_from(data: Any, *packages: str) -> bool:
    """Whether an object is of a class of one of these packages, which are not imported for that."""
    return any(base.__module__.split(".")[0] in packages for base in type(data).__mro__)


def _columns_of(data: Any) -> dict[Any, Any] | None:
    """Return the columns of a frame of pandas or Polars or of a dict of columns by name, or `None` for other data."""
    if _comes_from(data, "pandas", "polars"):
        if not hasattr(data, "columns") or not hasattr(data, "__len__"):  # a column, or a lazy frame
            return None
        return {name: data[name].to_numpy() for name in data.columns}
    if type(data) is not dict or not data or set(data) == set(range(len(data))):
        return None
    are_columns = all(_is_array(each) or isinstance(each, list) for each in data.values())
    return {name: each if _is_array(each) else np.asarray(each) for name, each in data.items()} if are_columns else None


def _from_table(columns: dict[Any, Any], name: str) -> LabeledArrays:
    named = [key for key in columns if str(key).lower() in LABEL_NAMES]
    listed = ", ".join(printable(key, limit=40) for key in list(columns)[:8])
    if len(named) != 1:
        raise UnsupportedDataError(
            expected(name, "a table with one column of labels (`label`, `target`, `y`, …)", f"columns {listed}")
            + "\nRename the column of labels to `label`, or pass inputs and labels as a pair: `(X, y)`."
        )
    features = {key: value for key, value in columns.items() if key != named[0]}
    if len(features) == 1 and np.ndim(next(iter(features.values()))) > 1:
        return _from_arrays((next(iter(features.values())), columns[named[0]]), name)
    odd = [printable(key, limit=40) for key, value in features.items() if not _is_numeric_column(value)]
    if odd or not features:
        raise UnsupportedDataError(
            expected(name, "a table of numeric features and one label", f"features {', '.join(odd[:8]) or 'missing'}")
            + "\nDrop these columns or encode them as numbers, or pass inputs and labels as a pair: `(X, y)`."
        )
    rows = np.stack([np.asarray(value, dtype=np.float32) for value in features.values()], axis=1)
    return _from_arrays((rows, columns[named[0]]), name)


def _is_numeric_column(values: Any) -> bool:
    array = np.asarray(values)
    return array.ndim == 1 and array.dtype.kind in "biuf"


def _are_arrays(data: Any) -> bool:
    """Whether data is a pair of inputs `(N, ...)` and labels, and not a data set of two samples."""
    if not isinstance(data, list | tuple) or len(data) != 2 or hasattr(data, "_fields"):
        return False
    inputs, labels = data
    if not (_is_array(inputs) or _comes_from(inputs, "pandas", "polars")) or len(getattr(inputs, "shape", ())) < 2:
        return False
    return _is_array(labels) or isinstance(labels, list | tuple) or _comes_from(labels, "pandas", "polars")


def _is_array(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) and value.ndim > 0


def _from_arrays(data: Sequence[Any], name: str) -> LabeledArrays:
    inputs, labels = (each.to_numpy() if _comes_from(each, "pandas", "polars") else each for each in data)
    if len(inputs) != len(labels):
        raise ValueError(
            expected(
                name, "a pair of inputs and labels of one length", f"{len(inputs):,} inputs, {len(labels):,} labels"
            )
        )
    return LabeledArrays(inputs, labels)
