"""Data sets of Hugging Face's `datasets`, on disk or by name, as files of images or as columns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from lightning_poison.checks import describe_error, expected, printable
from lightning_poison.shell.tables import class_name, label_column

_PREFIX = "hf:"
_ON_DISK = (("dataset_dict.json",), ("dataset_info.json", "state.json"))
_SPLIT = "train"


@dataclass(frozen=True)
class HubTable:
    """One split of a data set of Hugging Face.

    Args:
        columns: Columns of numbers, of vectors and of texts. Empty for images.
        label: Column of the labels.
        files: Name and class of each image, `None` for a missing label. Empty for other data.
        open_file: Returns an image by its name, as a path or a binary stream.
    """

    columns: Mapping[str, Sequence[Any]]
    label: str
    files: Sequence[tuple[str, str | None]]
    open_file: Callable[[str], Any] = str


def is_hub_source(source: str) -> bool:
    """Return whether a source is a data set of Hugging Face: `hf:NAME`, or a folder that `save_to_disk` wrote.

    Example:
        >>> is_hub_source("hf:mnist"), is_hub_source("photos/")
        (True, False)
    """
    return source.startswith(_PREFIX) or any(
        all((_parts(source)[0] / name).is_file() for name in names) for names in _ON_DISK
    )


def open_hub_dataset(source: str, label: str | None, image: str | None) -> HubTable:
    """Open a data set of Hugging Face. Code of the data set is never run.

    Args:
        source: `hf:NAME`, or a folder that `save_to_disk` wrote; with `@SPLIT` behind it, unless that is `train`.
        label: Column of the labels. Default: one with a usual name, otherwise the only one with classes.
        image: Column of the images. Default: the only one with images.

    Raises:
        ValueError: If `datasets` is not installed or cannot open it, or columns are not found.
    """
    try:
        import datasets
    except ImportError as error:
        hint = "pip install 'lightning-poison[hf]'"
        raise ValueError(f"Reading {printable(source)} needs the package datasets: {hint}") from error
    try:
        loaded = _load(datasets, source)
    except Exception as error:
        raise ValueError(f"{printable(source)} cannot be opened: {describe_error(error, limit=500)}") from error
    table = _split_of(loaded, source)
    features = table.features
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    if label is None and len(classes) == 1:
        label = classes[0]
    label = label_column(dict.fromkeys(features, ()), label)
    labels = list(table[label])
    if label in classes:
        labels = _names_of(labels, features[label].names)
    image = _image_column(image, images, features)
    if image is None:
        kept = [name for name in features if name != label]
        return HubTable({**{name: list(table[name]) for name in kept}, label: labels}, label, ())
    return _images_in(table.cast_column(image, datasets.Image(decode=False)), image, labels, label)


def _names_of(numbers: Sequence[int | None], names: Sequence[str]) -> list[str | None]:
    return [names[number] if number is not None and 0 <= number < len(names) else None for number in numbers]


def _images_in(stored: Any, image: str, labels: Sequence[Any], label: str) -> HubTable:
    """Return the images of a column that is not decoded."""
    rows = {f"row {number}": number for number in range(len(labels))}

    def open_file(name: str) -> Any:
        found = stored[rows[name]][image]
        return BytesIO(found["bytes"]) if found["bytes"] is not None else found["path"]

    return HubTable({}, label, [(name, class_name(labels[number])) for name, number in rows.items()], open_file)


def _parts(source: str) -> tuple[Path, str]:
    """Return a path and the split behind it."""
    place, at, split = source.rpartition("@")
    return (Path(place), split) if at and not Path(source).exists() else (Path(source), _SPLIT)


def _load(datasets: Any, source: str) -> Any:
    if source.startswith(_PREFIX):
        name, _, split = source.removeprefix(_PREFIX).partition("@")
        return datasets.load_dataset(name, split=split or _SPLIT)
    return datasets.load_from_disk(str(_parts(source)[0]))


def _split_of(loaded: Any, source: str) -> Any:
    """Return the split that a source names, of what was loaded from disk."""
    if not isinstance(loaded, Mapping):
        return loaded
    place, split = _parts(source)
    if split not in loaded:
        there, way = printable(", ".join(loaded), limit=300), f"Write `{printable(place)}@SPLIT`."
        raise ValueError(expected("the split", f"one of {there}", repr(printable(split)), way))
    return loaded[split]


def _image_column(image: str | None, images: Sequence[str], features: Mapping[str, Any]) -> str | None:
    if image is not None and image not in images:
        there = printable(", ".join(images) or "none", limit=300)
        raise ValueError(
            expected("path", f"a column of images of {printable(', '.join(features))}", repr(image), there)
        )
    if image is None and len(images) > 1:
        there = printable(", ".join(images), limit=300)
        raise ValueError(expected("the data set", "one column of images", there, "Name it: `--path COLUMN`."))
    return image or next(iter(images), None)
