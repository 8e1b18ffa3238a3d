"""Samples in tables and arrays: CSV and Parquet files, `.npz` archives, and `.npy` embeddings."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

from lightning_poison.checks import expected, printable
from lightning_poison.data.labels import UNLABELED
from lightning_poison.manifest.parquet_table import parquet_module

LABEL_COLUMNS = ("label", "labels", "target", "targets", "class", "y")
PATH_COLUMNS = ("path", "file", "filename", "file_name", "image")
ID_COLUMNS = ("id", "ids", "sample_id", "index", "", "unnamed: 0")
_INPUT_ARRAYS = ("x", "inputs", "images", "data", "features", "embeddings", "arr_0")
_LABEL_ARRAYS = (*LABEL_COLUMNS, "arr_1")


class NamedVectors(TensorDataset):
    """Inputs and labels, with the name of each sample.

    Args:
        inputs: Inputs `(N, ...)`.
        labels: Labels, int64 `(N,)`.
        names: Name of each sample, such as its number in the user's database. Untrusted text.

    Raises:
        ValueError: If there is not one name for each sample.

    Example:
        >>> NamedVectors(torch.zeros(2, 3), torch.tensor([0, 1]), ["a7", "b1"]).samples
        [('a7', 0), ('b1', 1)]
    """

    def __init__(self, inputs: torch.Tensor, labels: torch.Tensor, names: Sequence[Any]) -> None:
        super().__init__(inputs, labels)
        if len(names) != len(labels):
            raise ValueError(expected("the ids", f"one for each of the {len(labels):,} samples", f"{len(names):,}"))
        self.samples = [(str(name), int(label)) for name, label in zip(names, labels.tolist(), strict=True)]


def read_table(path: Path) -> dict[str, list[Any]]:
    r"""Read a CSV or Parquet file as columns.

    Args:
        path: The file. CSV files are UTF-8, with the names of the columns in the first line.

    Raises:
        ValueError: If there are no rows, columns have the same name, a row has another number of columns, or `pyarrow`
            is not installed for Parquet.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "table.csv"
        >>> _ = path.write_text("a,label\n1,cat\n")
        >>> read_table(path)
        {'a': ['1'], 'label': ['cat']}
    """
    if path.suffix.lower() == ".parquet":
        columns: dict[str, list[Any]] = parquet_module("Reading").read_table(path).to_pydict()
    else:
        columns = _read_csv(path)
    if not columns or not next(iter(columns.values())):
        raise ValueError(expected(str(path), "a table with rows", "none"))
    return columns


def label_column(columns: Mapping[str, Sequence[Any]], name: str | None) -> str:
    """Return the column of the labels: the one that is named, or the first with a usual name."""
    return _column("label", columns, name, LABEL_COLUMNS)


def path_column(columns: Mapping[str, Sequence[Any]], name: str | None) -> str | None:
    """Return the column of the paths: the one that is named, the first with a usual name and texts in it, or none."""
    if name is not None:
        return _column("path", columns, name, PATH_COLUMNS)
    usual = (each for each in columns if each.lower() in PATH_COLUMNS)
    return next((each for each in usual if _numbers(columns[each]) is None), None)


def numeric_samples(
    columns: Mapping[str, Sequence[Any]], label: str, ids: str | None = None
) -> tuple[TensorDataset, list[str], list[str]]:
    """Return the samples of a table of numbers, the names of the classes, and the columns that are left out.

    Args:
        columns: The table. A column has numbers, or vectors of one length, such as embeddings.
        label: Column of the labels. Columns with anything but numbers are left out.
        ids: Column of the names of the samples. Default: the first with a usual name (`id`, `index`), if there is one.

    Raises:
        ValueError: If no column has numbers, or there is no column `ids`.

    Example:
        >>> columns = {"id": ["a7", "b1"], "embedding": [[1.0, 2.0], [3.0, 4.0]], "label": ["cat", "dog"]}
        >>> dataset, classes, left_out = numeric_samples(columns, "label")
        >>> dataset.tensors[0].tolist(), dataset.samples, classes, left_out
        ([[1.0, 2.0], [3.0, 4.0]], [('a7', 0), ('b1', 1)], ['cat', 'dog'], [])
    """
    if ids is not None:
        ids = _column("id", columns, ids, ID_COLUMNS)
    names = ids or next((each for each in columns if each != label and each.lower() in ID_COLUMNS), None)
    inputs_of = {
        name: values
        for name, values in columns.items()
        if name not in (label, names) and name.lower() not in ID_COLUMNS
    }
    blocks = {name: block for name, values in inputs_of.items() if (block := _numbers(values)) is not None}
    if not blocks:
        raise ValueError(expected("the table", "columns of numbers beside the labels", "none", _PATHS))
    inputs = torch.from_numpy(np.concatenate(list(blocks.values()), axis=1))
    labels, classes = class_numbers(columns[label])
    left_out = [name for name in columns if name not in (label, names) and name not in blocks]
    if names is None:
        return TensorDataset(inputs, labels), classes, left_out
    return NamedVectors(inputs, labels, columns[names]), classes, left_out


def read_arrays(path: Path, label: str | None, ids: str | None = None) -> tuple[TensorDataset, list[str]]:
    """Return the samples of an `.npz` archive or `.npy` embeddings, and the names of the classes.

    Args:
        path: The file. Nothing pickled is loaded. Images are uint8 or floating point, `(N, H, W)`, `(N, H, W, C)` or
            `(N, C, H, W)`; anything else with N rows is a vector.
        label: Name of the array of labels in an archive, or the `.npy` or text file of the labels of embeddings.
        ids: Name of the array, or the file, of the names of the samples. A text file has one for each line. Default:
            samples have no names.

    Raises:
        ValueError: If there are no such arrays, or their lengths differ.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        arrays = {"inputs": loaded} if isinstance(loaded, np.ndarray) else {name: loaded[name] for name in loaded.files}
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(expected(str(path), "a NumPy file without pickled objects", printable(error))) from error
    if path.suffix.lower() == ".npy":
        if label is None:
            raise ValueError(f"Expected the labels of {path} in a separate file.\nWrite `--label labels.npy`.")
        inputs, labels = arrays["inputs"], _lines_of(Path(label))
        names = None if ids is None else _lines_of(Path(ids))
    else:
        by_name = {name.lower(): name for name in arrays}
        inputs = arrays[_array("inputs", by_name, None, _INPUT_ARRAYS)]
        labels = arrays[_array("labels", by_name, label, _LABEL_ARRAYS)]
        names = None if ids is None else arrays[_array("ids", by_name, ids, ID_COLUMNS)]
    if labels.ndim != 1 or inputs.ndim < 2 or len(inputs) != len(labels):
        came = f"shapes {inputs.shape} and {labels.shape}"
        raise ValueError(expected(str(path), "inputs (N, ...) and one label for each of them", came))
    numbers, classes = class_numbers(labels.tolist())
    if names is None:
        return TensorDataset(_inputs(inputs), numbers), classes
    return NamedVectors(_inputs(inputs), numbers, names.tolist()), classes


def class_numbers(values: Sequence[Any]) -> tuple[torch.Tensor, list[str]]:
    """Number the classes in the order of their names, or of their numbers if all are integers; −1 for a missing label.

    Example:
        >>> class_numbers(["10", "9", "9", ""])
        (tensor([ 1,  0,  0, -1]), ['9', '10'])
    """
    names = [class_name(value) for value in values]
    distinct = {name for name in names if name is not None}
    try:
        ordered = sorted(distinct, key=int)
    except ValueError:
        ordered = sorted(distinct)
    number: dict[str | None, int] = {name: position for position, name in enumerate(ordered)}
    return torch.tensor([number.get(name, UNLABELED) for name in names]), ordered


_PATHS = "For a table of files, name the column of their paths: `--path COLUMN`."


def class_name(value: Any) -> str | None:
    """Return the name of a class, or `None` for a missing label: nothing, an empty text or NaN.

    Example:
        >>> class_name(" cat "), class_name(2.0), class_name(float("nan")), class_name("")
        ('cat', '2', None, None)
    """
    if isinstance(value, float):
        return None if math.isnan(value) else str(int(value)) if value.is_integer() else str(value)
    return None if value is None else str(value).strip() or None


def _read_csv(path: Path) -> dict[str, list[Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            names = next(rows, [])
            if len(set(names)) != len(names):
                raise ValueError(expected(str(path), "columns with different names", printable(", ".join(names))))
            columns: dict[str, list[Any]] = {name: [] for name in names}
            for row in rows:
                if not row:
                    continue
                if len(row) != len(names):
                    what = f"{len(names)} columns in line {rows.line_num}"
                    raise ValueError(expected(str(path), what, f"{len(row)}"))
                for name, value in zip(names, row, strict=True):
                    columns[name].append(value)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(expected(str(path), "a CSV file in UTF-8", printable(error))) from error
    return columns


def _numbers(values: Sequence[Any]) -> np.ndarray | None:
    """Return a column as float32 `(N, D)`, or `None` if it has anything but finite numbers or vectors of one length."""
    try:
        array = np.asarray(values, dtype=np.float32)
    except (TypeError, ValueError):
        return None
    array = array.reshape(len(array), -1)
    return array if array.shape[1] and np.isfinite(array).all() else None


def _column(option: str, columns: Mapping[str, Any], name: str | None, usual: Sequence[str]) -> str:
    if name is not None and name in columns:
        return name
    found = next((each for each in columns if name is None and each.lower() in usual), None)
    if found is None:
        what = f"a column {name!r}" if name is not None else f"a column of the {option}s, such as {usual[0]!r}"
        there = printable(", ".join(columns), limit=300)
        raise ValueError(expected("the table", what, f"{there}", f"Name it: `--{option} COLUMN`."))
    return found


def _array(what: str, by_name: Mapping[str, str], name: str | None, usual: Sequence[str]) -> str:
    wanted = (name.lower(),) if name is not None else usual
    found = next((by_name[each] for each in wanted if each in by_name), None)
    if found is None:
        there = printable(", ".join(by_name.values()), limit=300)
        hint = "Name the array of the labels: `--label NAME`." if what == "labels" else ""
        raise ValueError(expected("the archive", f"an array of {what}, such as {usual[0]!r}", there, hint))
    return found


def _lines_of(path: Path) -> np.ndarray:
    """Return the array of a `.npy` file, or the lines of a text file."""
    if path.suffix.lower() == ".npy":
        values: np.ndarray = np.load(path, allow_pickle=False)
        return values
    return np.array(path.read_text(encoding="utf-8").splitlines())


def _inputs(array: np.ndarray) -> torch.Tensor:
    """Return images in [0, 1] with channels first, or vectors, float32."""
    if array.dtype.kind not in "biuf":
        raise ValueError(expected("the inputs", "numbers", f"{array.dtype}"))
    is_bytes = array.dtype == np.uint8
    values = torch.from_numpy(array.astype(np.float32))
    if values.ndim == 3 and is_bytes:
        values = values[:, None]
    elif values.ndim == 4 and values.shape[3] in (1, 3) and values.shape[1] not in (1, 3):
        values = values.permute(0, 3, 1, 2).contiguous()
    return values / 255 if is_bytes and values.ndim == 4 else values
