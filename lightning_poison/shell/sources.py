"""What `scan` reads: folders, tables, arrays, and functions that return a data set."""

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_poison.checks import describe, describe_error, expected, printable
from lightning_poison.runtime import Runtime
from lightning_poison.shell.class_paths import add_working_directory
from lightning_poison.shell.hub_datasets import is_hub_source, open_hub_dataset
from lightning_poison.shell.image_files import Unreadable, find_images, read_images
from lightning_poison.shell.tables import (
    class_name,
    label_column,
    numeric_samples,
    path_column,
    read_arrays,
    read_table,
)

_FORMS = "Give a folder of images, a .csv, .parquet, .npz or .npy file, `hf:NAME`, or `package.module:function`."


@dataclass(frozen=True)
class OpenedSource:
    """A data set that was opened by its path or by the function that returns it.

    Args:
        dataset: Map-style data set.
        classes: Name of each class; empty if unknown. Untrusted text.
        unreadable: Files that were left out.
        notes: What else the user should know.
    """

    dataset: Any
    classes: Sequence[str] = ()
    unreadable: Sequence[Unreadable] = ()
    notes: Sequence[str] = field(default=())


def open_named_source(
    source: str,
    *,
    label: str | None = None,
    path: str | None = None,
    ids: str | None = None,
    image_size: int | None = None,
    runtime: Runtime | None = None,
    store: Path | None = None,
) -> OpenedSource:
    r"""Open a data set by its path or by the function that returns it.

    Args:
        source: A folder of images in the layout of torchvision's `ImageFolder`; a CSV or Parquet table of paths and
            labels, or of numbers and labels; an `.npz` archive with inputs and labels; an `.npy` file of embeddings; a
            folder that `save_to_disk` of Hugging Face's `datasets` wrote, or `hf:NAME`, which that library may
            download, both with `@SPLIT` behind them unless it is `train`; or `package.module:function`, called without
            arguments.
        label: Column or array of the labels, or the file of the labels of embeddings. Default: found by its name.
        path: Column of the paths in a table, relative to its folder, or of the images in a data set of Hugging Face.
            Default: found by its name.
        ids: Column, array or file of the names of samples that are no files. Default: of tables, found by its name.
        image_size: See `read_images`.
        runtime: See `read_images`.
        store: See `read_images`.

    Raises:
        ValueError: If there is nothing of this kind, or it cannot be read.

    Example:
        >>> from tempfile import mkdtemp
        >>> table = Path(mkdtemp()) / "table.csv"
        >>> _ = table.write_text("width,kind\n1,cat\n2,dog\n")
        >>> found = open_named_source(str(table), label="kind")
        >>> found.dataset[1], found.classes
        ((tensor([2.]), tensor(1)), ['cat', 'dog'])
    """
    place = Path(source)
    reading: dict[str, Any] = {"image_size": image_size, "runtime": runtime, "store": store}
    if is_hub_source(source):
        table = open_hub_dataset(source, label, path)
        if not table.files:
            return _from_numbers(table.columns, table.label, ids)
        images, left_out = read_images(table.files, open_file=table.open_file, **reading)
        return OpenedSource(images, images.classes, left_out)
    if place.is_dir():
        files, left_out = find_images(place)
        images, more = read_images(files, **reading)
        return OpenedSource(images, images.classes, [*left_out, *more])
    kind = place.suffix.lower()
    if kind in (".csv", ".parquet", ".npz", ".npy") and place.is_file():
        if kind in (".npz", ".npy"):
            dataset, classes = read_arrays(place, label, ids)
            return OpenedSource(dataset, classes)
        return _from_table(place, label, path, ids, reading)
    if ":" in source and not place.exists():
        return OpenedSource(_call(source))
    came = "nothing there" if not place.exists() else f"a {kind or 'file without an ending'} file"
    raise ValueError(expected(printable(source), "a data set", came, _FORMS))


def _from_table(
    place: Path, label: str | None, path: str | None, ids: str | None, reading: dict[str, Any]
) -> OpenedSource:
    columns = read_table(place)
    labels = label_column(columns, label)
    paths = path_column(columns, path)
    if paths is None:
        return _from_numbers(columns, labels, ids)
    files = [
        (str(place.parent / str(file)), class_name(name))
        for file, name in zip(columns[paths], columns[labels], strict=True)
    ]
    images, left_out = read_images(files, **reading)
    return OpenedSource(images, images.classes, left_out)


def _from_numbers(columns: Mapping[str, Sequence[Any]], label: str, ids: str | None) -> OpenedSource:
    dataset, classes, unused = numeric_samples(columns, label, ids)
    notes = [f"Unused columns: {printable(', '.join(unused))}."] if unused else []
    return OpenedSource(dataset, classes, notes=notes)


def _call(source: str) -> Any:
    """Return what a function of the user returns. Modules of the working directory are found."""
    name, _, function = source.partition(":")
    add_working_directory()
    try:
        target: Any = importlib.import_module(name)
        for part in function.split("."):
            target = getattr(target, part)
        dataset = target()
    except Exception as error:  # (the user's code)
        raise ValueError(f"{printable(source)} failed: {describe_error(error)}") from error
    if dataset is None or not hasattr(dataset, "__len__"):
        raise ValueError(expected(printable(source), "a function that returns a data set", describe(dataset)))
    return dataset
