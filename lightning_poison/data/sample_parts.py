"""The parts of a sample of any structure, and which of them are the input and the label."""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_poison.checks import describe, printable
from lightning_poison.data.label_forms import class_index
from lightning_poison.data.packed_inputs import InputLayout

INPUT_NAMES = ("image", "images", "img", "input", "inputs", "x", "pixel_values", "data", "features")
LABEL_NAMES = ("label", "labels", "target", "targets", "y", "class", "class_id", "category")

_OTHER_NAMES = ("id", "idx", "index", "uid", "sample_id", "image_id", "weight", "sample_weight")
"""Names of numbers that identify or weight the samples, and are no labels."""

_WEAKER = {"integer": ("float", "boolean"), "boolean": ("float",)}
"""Kinds of numbers that are no labels beside a part of some kind that follows the input."""

_NUMBERS = (int, float, np.number)

NO_SAMPLE = "Repair the sample, or leave it out: `Subset(dataset, indices)`."
"""What to do with a sample that is `None`."""


class AmbiguousLabelError(ValueError):
    """Several parts of a sample could be its label.

    Args:
        message: What was expected, and what came.
        inputs: Path of the input.
        candidates: Paths of the parts that could be the label.
    """

    def __init__(self, message: str, inputs: str, candidates: Sequence[str]) -> None:
        super().__init__(message)
        self.inputs = inputs
        self.candidates = candidates


class Leaf(NamedTuple):
    """A part of a sample that has no parts itself."""

    path: str
    name: str
    value: Any


def detect_paths(sample: Any, *, batched: bool, probabilities: Sequence[str] = ()) -> tuple[str, str]:
    """Detect the paths of the input and the label of a sample; see `SampleSpec.detect`.

    Args:
        sample: One sample, or one collated batch.
        batched: Whether it is a batch.
        probabilities: Paths of class probabilities, which may be the label.

    Raises:
        ValueError: If the paths are ambiguous.

    Example:
        >>> detect_paths({"pixels": torch.zeros(1, 8, 8), "index": 17, "kind": 3}, batched=False)
        ('pixels', 'kind')
    """
    leaves = list(leaves_of(sample))
    found = [leaf for leaf in leaves if leaf.path not in probabilities and _is_input(leaf.value, batched=batched)]
    labels = [leaf for leaf in leaves if leaf.path in probabilities]
    others = _possible_labels(leaves, _part_after_input(sample, leaves, found, batched=batched), batched=batched)
    labels += [leaf for leaf in others if leaf.path not in probabilities]
    is_pair = isinstance(sample, list | tuple) and len(sample) == 2 and not batched
    is_pair = is_pair and not isinstance(sample[1], list | tuple)
    inputs = _input_of(found, labels, is_pair=is_pair)
    if inputs is None and is_pair and InputLayout.of(sample[0]) is not None and class_index(sample[1]) is not None:
        return "0", "1"
    if inputs is not None:
        if inputs == "0" and "1" in probabilities:
            return "0", "1"
        labels = [leaf for leaf in labels if leaf.path != inputs]
        others = [] if batched else [leaf for leaf in leaves if leaf.path != inputs]
        chosen = _named(labels, LABEL_NAMES) or _named(others, LABEL_NAMES)
        if chosen is None and len(labels) == 1:
            chosen = labels[0].path
        if chosen is None and not labels and is_pair and inputs == "0":
            chosen = "1"
        if chosen is not None:
            return inputs, chosen
    what = "batch" if batched else "sample"
    if inputs is not None and len(labels) > 1:
        raise ambiguous_label(sample, inputs, labels, what)
    raise ValueError(_undetected(sample, labels, inputs or [leaf.path for leaf in found], what))


def ambiguous_label(sample: Any, inputs: str, candidates: Sequence[Leaf], what: str = "sample") -> AmbiguousLabelError:
    """Return the error for a sample or a batch of which several parts could be the label.

    Args:
        sample: The sample, or the batch.
        inputs: Path of its input.
        candidates: The parts that could be the label, at least two.
        what: `"sample"` or `"batch"`.
    """
    paths = [leaf.path for leaf in candidates]
    return AmbiguousLabelError(_undetected(sample, list(candidates), inputs, what), inputs, paths)


def _input_of(found: list[Leaf], labels: list[Leaf], *, is_pair: bool) -> str | None:
    """Return the path of the input among the parts that may be one."""
    if len(found) == 1:
        return found[0].path
    if (named := _named(found, INPUT_NAMES)) is not None:
        return named
    paths, possible = [leaf.path for leaf in found], [leaf.path for leaf in labels]
    if "0" in paths and ("1" in possible or is_pair):
        return "0"
    others = [path for path in paths if path not in possible]
    return others[0] if len(others) == 1 else None


def _named(leaves: list[Leaf], names: Sequence[str]) -> str | None:
    named = [leaf.path for leaf in leaves if leaf.name.lower() in names]
    return named[0] if len(named) == 1 else None


def _undetected(sample: Any, labels: list[Leaf], inputs: str | list[str], what: str) -> str:
    """Return the message for a sample whose input or label is unclear; `inputs` is the input, or what may be one."""
    way = "Name the two by their paths: `sample=SampleSpec(inputs=..., labels=...)`"
    if sample is None:
        return f"Expected a {what} with one input and one integer label, but got None.\n{NO_SAMPLE}"
    if isinstance(inputs, list) and isinstance(sample, Mapping) and 1 < len(inputs) <= 4 and len(labels) == 1:
        listed, label = printable(repr(tuple(inputs))), printable(repr(labels[0].path))
        way = (
            f"{way}, as {_spec_text(inputs[0], labels[0].path)}. Or pass all inputs to a `backbone=` of yours: "
            f"`SampleSpec(lambda sample: {{name: sample[name] for name in {listed}}}, {label})`."
        )
    elif len(labels) > 1 and isinstance(inputs, str):
        paths = [f"`{printable(leaf.path)}`" for leaf in labels]
        shown = [_spec_text(inputs, leaf.path) for leaf in sorted(labels, key=lambda leaf: not is_label_place(leaf))]
        way = f"{', '.join(paths[:-1])} and {paths[-1]} could each be the label.\n{way}, as {' or '.join(shown[:2])}."
    else:
        way = f"{way}{_example(sample, labels, inputs)}."
    return (
        f"Expected a {what} with one input (an image or a vector) and one integer label, but got\n"
        f"{structure_of(sample)}\n{way}"
    )


def _spec_text(inputs: str, label: str) -> str:
    return f"`SampleSpec({printable(repr(inputs))}, {printable(repr(label))})`"


def _example(sample: Any, labels: list[Leaf], inputs: str | list[str]) -> str:
    """Return an example with paths of the sample, if some part of it may be the input and another one the label."""
    leaves = list(leaves_of(sample))
    may_be_inputs = [inputs] if isinstance(inputs, str) else inputs or [leaf.path for leaf in leaves][:1]
    own = next((leaf for leaf in leaves if leaf.path in may_be_inputs), None)
    if own is None:
        return ""
    rank = getattr(own.value, "ndim", None)
    usual = [leaf for leaf in leaves if is_label_place(leaf) and getattr(leaf.value, "ndim", 0) != rank]
    label = next((leaf for leaf in [*usual, *labels] if leaf.path != own.path), None)
    return "" if label is None else f", as {_spec_text(own.path, label.path)}"


def structure_of(sample: Any) -> str:
    """Describe the parts of a sample, one per line.

    Example:
        >>> print(structure_of({"image": torch.zeros(1, 8, 8), "meta": {"y": 3, "name": "a"}}))
            image: a float32 tensor of shape (1, 8, 8)
            meta.y: int 3
            meta.name: str
    """
    leaves = list(leaves_of(sample))[:20]
    lines = [f"    {printable(leaf.path)}: {_describe_leaf(leaf.value)}" for leaf in leaves]
    return "\n".join(lines) or f"    {_describe_leaf(sample)}"


def _describe_leaf(leaf: Any) -> str:
    if isinstance(leaf, bool | int | float | np.number):
        return f"{type(leaf).__name__} {printable(leaf, limit=40)}"
    return describe(leaf) if isinstance(leaf, Tensor | np.ndarray) else type(leaf).__name__


def _is_input(leaf: Any, *, batched: bool) -> bool:
    if isinstance(leaf, Image.Image) or _is_vector(leaf):
        return not batched
    if isinstance(leaf, np.ndarray | Tensor):
        return leaf.ndim >= 1 + batched
    return False


def _part_after_input(sample: Any, leaves: list[Leaf], found: list[Leaf], *, batched: bool) -> Leaf | None:
    """Return part 1 of a tuple or list that starts with an input: the usual place of a label.

    It may be a number, a text, `None`, or an array of one number; in a batch, one of these for each sample. `None` if
    it is anything else, looks like the path of a file, or has a name of numbers that are no labels.
    """
    inputs = [leaf.path for leaf in found]
    if not isinstance(sample, list | tuple) or not any(path.split(".")[0] == "0" for path in inputs):
        return None
    part = next((leaf for leaf in leaves if leaf.path == "1"), None)
    if part is None and len(sample) > 1 and _are_texts(sample[1]):
        part = Leaf("1", "1", sample[1])  # the texts of a batch
    if part is None or part.name.lower() in _OTHER_NAMES:
        return None
    if batched and not _are_texts(part.value) and not getattr(part.value, "ndim", 0):
        return None
    if class_index(part.value) is not None or _is_one_number(part.value):
        return part
    return part if "1" not in inputs and (part.value is None or _may_be_label(part.value)) else None


def _may_be_label(value: Any) -> bool:
    """Whether a value is a number, a text that is no path, or a vector or list of these for a batch."""
    if _are_texts(value):
        return not looks_like_path(value[0])
    if isinstance(value, str | bytes):
        return not looks_like_path(value)
    if isinstance(value, np.ndarray | Tensor):
        return value.ndim <= 1 and (isinstance(value, Tensor) or value.dtype.kind in "biuf")
    return isinstance(value, _NUMBERS)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(each, str | bytes) for each in value)


def looks_like_path(text: str | bytes) -> bool:
    """Whether a text contains a separator of folders, or ends as the name of a file.

    Example:
        >>> [looks_like_path(text) for text in ("cat.png", "train/0017", "cat", "e.g. a cat")]
        [True, True, False, False]
    """
    plain = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    return re.search(r"[/\\]|\w\.[a-zA-Z]\w{1,4}$", plain) is not None


def _is_one_number(value: Any) -> bool:
    """Whether a part is an array of one number, or a column of a batch."""
    return isinstance(value, np.ndarray | Tensor) and (tuple(value.shape) == (1,) or tuple(value.shape[1:]) == (1,))


def _possible_labels(leaves: list[Leaf], follows: Leaf | None, *, batched: bool) -> list[Leaf]:
    """Return the parts that may be the label.

    These are the part that follows the input and all others that stand for a class index. Beside an integer that
    follows the input, floats are weights or targets of another task, and beside a vector `(B,)` there, columns `(B, 1)`
    are. Whether a part of a batch may be the label depends on its place, shape and type only, so it is the same
    in all batches; but if it has a text for each sample, on whether these are paths. Texts elsewhere are paths or ids,
    unless they repeat, which one sample does not show: see `data/label_choice.py`.

    Args:
        leaves: All parts.
        follows: The part that follows the input. `None`: none does.
        batched: Whether they are parts of a batch.
    """
    kind_of = _kind_in_batch if batched else _kind
    dropped = () if follows is None else _WEAKER.get(kind_of(follows.value), ())
    leaves = [leaf for leaf in leaves if leaf.name.lower() not in _OTHER_NAMES]
    possible = [leaf for leaf in leaves if (kind := kind_of(leaf.value)) and kind not in dropped]
    if batched and follows is not None and getattr(follows.value, "ndim", 0) == 1:
        possible = [leaf for leaf in possible if leaf.value.ndim == 1]
    if follows is None or any(leaf.path == follows.path for leaf in possible):
        return possible
    return [follows, *possible]


def _kind(value: Any) -> str:
    """Return the kind of number of a part that stands for a class index; an empty text for other parts."""
    if isinstance(value, str) or class_index(value) is None:
        return ""
    return "float" if _is_float(value) else "integer"


def _kind_in_batch(value: Any) -> str:
    if not isinstance(value, Tensor) or not (value.ndim == 1 or value.shape[1:] == (1,)):
        return ""
    return "float" if value.is_floating_point() else "boolean" if value.dtype == torch.bool else "integer"


def _is_float(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point()
    return isinstance(value, float | np.floating) or (isinstance(value, np.ndarray) and value.dtype.kind == "f")


def is_label_place(leaf: Leaf) -> bool:
    """Whether a part follows the input or has the name of a label."""
    return is_usual_label(leaf.path) or leaf.name.lower() in LABEL_NAMES


def is_usual_label(path: str) -> bool:
    """Whether a path is that of part 1, or ends in a usual name of a label.

    Example:
        >>> [is_usual_label(path) for path in ("1", "meta.label", "site")]
        [True, True, False]
    """
    return path == "1" or path.rsplit(".", 1)[-1].lower() in LABEL_NAMES


def _is_vector(value: Any) -> bool:
    """Whether a list contains numbers, at least two, or lists of numbers, as the rows of an image."""
    if not isinstance(value, list | tuple) or hasattr(value, "_fields"):
        return False
    if isinstance(value, list) and value and all(isinstance(each, list) for each in value):
        return all(_is_vector(each) or (len(each) == 1 and isinstance(each[0], _NUMBERS)) for each in value)
    return len(value) >= 2 and all(isinstance(each, _NUMBERS) for each in value)


def leaves_of(value: Any, prefix: str = "") -> Iterator[Leaf]:
    """Yield the parts of a sample that have no parts themselves. Lists of numbers inside of a sample are vectors."""
    names = getattr(value, "_fields", None) if isinstance(value, tuple) else None
    for key, child in _children(value):
        path = f"{prefix}.{key}" if prefix else str(key)
        if _children(child) and not _is_vector(child):
            yield from leaves_of(child, path)
        else:
            yield Leaf(path, str(names[key] if names else key), child)


def _children(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return []
