"""Forms in which data sets give labels: which of them are class indices, and what the others are."""

import math
import operator
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_poison.checks import describe, printable

_LIMIT = 2.0**53
"""Floats from here on do not represent every integer, and are no class indices."""

_INTEGERS = frozenset({torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8})

_SHOWN = 6
"""Largest number of values of a label that an error message shows."""


def class_index(value: Any) -> int | None:
    """Return the class index that a label stands for, or `None` if it stands for none.

    Integers, booleans, floats without a fractional part, tensors and arrays of one such value, of shape `()` or `(1,)`,
    and one-hot vectors of at least two classes stand for a class index.

    Args:
        value: Label of one sample.

    Example:
        >>> class_index(3.0), class_index(torch.tensor([2])), class_index([0, 0, 1]), class_index(True)
        (3, 2, 2, 1)
        >>> class_index(0.5) is None, class_index([0, 1, 1]) is None, class_index("cat") is None
        (True, True, True)
    """
    if type(value) is int and abs(value) < _LIMIT:
        return value
    if isinstance(value, Tensor) and value.ndim == 0 and value.dtype in _INTEGERS and not value.is_meta:
        return int(value)
    if isinstance(value, Real):  # Python's and NumPy's numbers and booleans
        return _whole(value)
    if is_masked(value):
        return None
    array = as_array(value)
    if array is None:
        return _index_of(value)
    if array.size == 1 and array.ndim <= 1:
        return _whole(array.reshape(-1)[0])
    return int(array.argmax()) if array.ndim == 1 and _are_one_hot(array[None]) else None


def class_indices(values: Any, length: int) -> Tensor | None:
    """Return the class indices that a column of labels stands for, or `None` if it does not stand for any.

    Args:
        values: A list, tensor, array or column of a frame, of whatever form. Columns of shape `(N,)` and `(N, 1)`
            contain numbers, columns of shape `(N, C)` one-hot vectors.
        length: Number of samples N.

    Returns:
        int64 `(N,)`, or `None`.

    Example:
        >>> class_indices([0.0, 2.0], 2), class_indices(torch.eye(2), 2), class_indices(["cat", "dog"], 2)
        (tensor([0, 2]), tensor([0, 1]), None)
    """
    if not (isinstance(values, Sequence | Tensor) or hasattr(values, "__array__")) or isinstance(values, str | bytes):
        return None
    if is_masked(values) or (isinstance(values, list | tuple) and any(map(is_masked, values))):
        return None
    is_array = isinstance(values, list | tuple | Tensor) or hasattr(values, "__array__")
    array = as_array(values if is_array else list(values))
    if array is not None and array.dtype.kind == "O":
        array = as_array(array.tolist())  # a column of objects that are numbers
    if array is None or array.ndim not in (1, 2) or len(array) != length or array.dtype.kind not in "biuf":
        return None
    if array.ndim == 2 and array.shape[1] != 1:
        return torch.from_numpy(array.argmax(1)) if _are_one_hot(array) else None
    flat = array.reshape(-1)
    if flat.dtype.kind == "f":
        flat = flat.astype(np.float64)  # the limit below exceeds the range of float16
    if flat.dtype.kind == "f" and not bool(((flat == np.floor(flat)) & (np.abs(flat) < _LIMIT)).all()):
        return None
    if flat.dtype.kind == "u" and bool((flat > np.iinfo(np.int64).max).any()):
        return None
    return torch.from_numpy(np.array(flat, dtype=np.int64))


def as_array(value: Any) -> np.ndarray | None:
    """Return a tensor, an array or a list of numbers as an array; `None` for any other value."""
    try:
        if isinstance(value, list | tuple) and value and all(isinstance(each, Tensor) for each in value):
            value = torch.stack([each.detach() for each in value])
        if isinstance(value, Tensor):
            dense = value.detach().to_dense() if value.layout != torch.strided else value.detach()
            return (dense.float() if dense.dtype == torch.bfloat16 else dense).cpu().numpy()
        if isinstance(value, list | tuple) or (hasattr(value, "__array__") and not isinstance(value, Image.Image)):
            return np.asarray(value)
    except Exception:  # noqa: BLE001 (an object of unknown kind, or rows of different lengths)
        return None
    return None


def is_masked(value: Any) -> bool:
    """Return whether a value is a masked array with missing values, or `np.ma.masked`, whose data are meaningless.

    Example:
        >>> is_masked(np.ma.masked), is_masked(np.ma.array([1, 2], mask=[False, True])), is_masked(np.ma.array([1, 2]))
        (True, True, False)
    """
    return isinstance(value, np.ma.MaskedArray) and bool(np.ma.getmaskarray(value).any())


def odd_label(value: Any) -> tuple[str, str]:
    """Describe a label that stands for no class index.

    Returns:
        What it is, and how to convert it.

    Example:
        >>> odd_label([0, 1, 1])
        ('the vector [0, 1, 1], as in multi-label classification', 'This library judges one class per sample. ...')
    """
    if is_masked(value) or type(value).__name__ in ("NAType", "NaTType"):
        return f"{type(value).__name__ if not is_masked(value) else 'a masked value'}, as for a missing label", _MISSING
    if value is None:
        return "None", "Give samples without a label the label -1, or leave them out: `Subset(dataset, indices)`."
    if isinstance(value, str | bytes):
        return f"the text {printable(repr(value[:80]), limit=80)}", _NAMES
    if isinstance(value, Image.Image):
        return f"a PIL image of mode {value.mode}, as in segmentation", _MASKS
    if isinstance(value, dict):
        keys = printable(", ".join(str(key) for key in list(value)[:_SHOWN]))
        return f"a dict with the keys {keys}, as in detection", _PARTS
    if isinstance(value, Real):
        return _odd_number(value)
    array = as_array(value)
    if array is None:
        return describe(value), _CONVERT
    return _odd_array(value, array)


def _odd_array(value: Any, array: np.ndarray) -> tuple[str, str]:
    kind = array.dtype.kind
    shown = _described(value, array)
    if array.size == 1 and array.ndim <= 1:
        only = array.reshape(-1)[0]
        return odd_label(only.item() if isinstance(only, np.generic) else only)
    if kind in "US":
        return shown, _NAMES
    if not array.size or kind not in "biuf":
        return shown, _CONVERT
    if array.ndim > 1:
        return f"{shown}, as in segmentation", _MASKS
    if kind == "f" and np.isnan(array).any():
        return f"{shown}, which contains NaN", _MISSING
    if np.isin(array, (0, 1)).all():
        return f"{shown}, as in multi-label classification", _SEVERAL
    if kind == "f" and (array >= 0).all() and abs(float(array.sum()) - 1) < 1e-2:
        return f"{shown}, probabilities of {len(array)} classes (a soft label)", _SOFT
    return (f"{shown}, as in regression", _NUMBERS) if kind == "f" else (f"{shown}, as for several labels", _CONVERT)


def _odd_number(number: Any) -> tuple[str, str]:
    try:
        value = float(number)
    except OverflowError:
        value = math.inf
    if math.isnan(value):
        return "NaN", _MISSING
    if math.isinf(value) or value == math.floor(value):
        return f"{value:.4g}, which is too large for a class index", "Number the classes from 0."
    return f"the number {value:.6g}, as in regression", _NUMBERS


def _described(value: Any, array: np.ndarray) -> str:
    if array.ndim == 1 and array.size <= _SHOWN and array.dtype.kind in "biuf":
        return f"the vector {[round(each, 4) if isinstance(each, float) else each for each in array.tolist()]}"
    return describe(value) if isinstance(value, Tensor) else f"{_typed(array)} of shape {array.shape}"


def _typed(array: np.ndarray) -> str:
    return "texts" if array.dtype.kind in "US" else f"{array.dtype} values"


def _whole(value: Any) -> int | None:
    """Return a number as an int if it is one without a fractional part, within the range of int64."""
    if isinstance(value, np.generic) and value.dtype.kind not in "biuf":
        return None
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if isinstance(value, float | np.floating) and abs(float(value)) >= _LIMIT:
        return None
    return number if number == value and -(2**63) <= number < 2**63 else None


def _index_of(value: Any) -> int | None:
    """Return the index of an object that defines `__index__`."""
    index: Callable[[Any], int] = operator.index
    try:
        return index(value)
    except Exception:  # noqa: BLE001 (an object of unknown kind)
        return None


def _are_one_hot(rows: np.ndarray) -> bool:
    """Whether each row `(N, C)` has exactly one 1 and is 0 elsewhere, and there are at least two classes."""
    if rows.dtype.kind not in "biuf" or rows.shape[1] < 2:
        return False
    ones = rows == 1
    return bool((ones | (rows == 0)).all()) and bool((ones.sum(1) == 1).all())


_CONVERT = (
    "Convert it to a class index with a `target_transform` or `sample=SampleSpec(labels=function)`, or name another "
    "part of the sample: `sample=SampleSpec(labels='path')`."
)
_MISSING = (
    "Correct the label, give the sample the label -1 if it has none, or leave it out: `Subset(dataset, indices)`."
)
_NAMES = (
    "Map names to numbers from 0. Of an array or a column: `classes, y = np.unique(y, return_inverse=True)`. Of a data "
    "set, with a list `classes` of the names: `target_transform=classes.index`, or "
    "`sample=SampleSpec(labels=lambda sample: classes.index(sample[1]))`."
)
_NUMBERS = (
    "This library judges class labels. For a regression, divide the values into classes with a `target_transform`, or "
    "`sample=SampleSpec(labels=lambda sample: int(sample[1] > limit))`."
)
_PARTS = "Name the part with one class index per sample: `sample=SampleSpec(labels=...)`, a path or a function."
_SEVERAL = (
    "This library judges one class per sample. Judge one label at a time with a `target_transform`, or "
    "`sample=SampleSpec(labels=lambda sample: int(sample[1][0]))`."
)
_SOFT = (
    "Use the most probable class, with a `target_transform` or "
    "`sample=SampleSpec(labels=lambda sample: int(sample[1].argmax()))`."
)
_MASKS = (
    "This library judges one class per sample, not masks. Reduce a mask to a class with a `target_transform`, or "
    "`sample=SampleSpec(labels=lambda sample: int(sample[1].max()))`."
)
