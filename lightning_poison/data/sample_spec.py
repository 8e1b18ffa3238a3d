"""`SampleSpec`: the paths of input and label in a sample, for any container."""

import copy
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lightning_poison.checks import describe, printable

INPUT_NAMES = ("image", "images", "img", "input", "inputs", "x", "pixel_values", "data", "features")
LABEL_NAMES = ("label", "labels", "target", "targets", "y", "class", "class_id", "category")
NAME_THEM = "Name the parts by their paths: `sample=SampleSpec(inputs=..., labels=...)`."


@dataclass(frozen=True)
class SampleSpec:
    """The paths of the input and of the label in a sample.

    A path is a position, a key or an attribute name. Nested ones are joined by dots: `"0"`, `"image"`, `"views.0"`.
    Samples may be tuples, lists, named tuples, dicts and dataclasses, nested; a collated batch of them has the same
    paths. Other objects with attributes, such as graphs of PyTorch Geometric, work if the paths are given.

    Args:
        inputs: Path of the input. Default: `"0"`.
        labels: Path of the label. Default: `"1"`.

    Example:
        >>> spec = SampleSpec(inputs="image", labels="meta.label")
        >>> sample = {"image": torch.zeros(1, 8, 8), "meta": {"label": 3, "id": "a"}}
        >>> spec.labels_in(sample)
        3
        >>> spec.replace(sample, labels=5)["meta"]
        {'label': 5, 'id': 'a'}
    """

    inputs: str = "0"
    labels: str = "1"

    def inputs_in(self, sample: Any) -> Any:
        """Return the input of a sample, or of a batch."""
        return _get(sample, self.inputs)

    def labels_in(self, sample: Any) -> Any:
        """Return the label of a sample, or of a batch."""
        return _get(sample, self.labels)

    def replace(self, sample: Any, **parts: Any) -> Any:
        """Return a copy of a sample with other `inputs` or `labels`. The sample itself is not changed.

        Raises:
            ValueError: If an attribute of an object cannot be set, or cannot be set on a copy without changing the
                original.
        """
        for part, value in parts.items():
            sample = _set(sample, getattr(self, part).split("."), value)
        return sample

    @classmethod
    def detect(cls, sample: Any, *, batched: bool = False, mixed: bool = False) -> "SampleSpec":
        """Detect the paths of the input and the label.

        They are unambiguous if a sequence starts with an input and a label, if there is exactly one of each, or if
        exactly one of each has a common name (`image`, `label`, `target`, …).

        Args:
            sample: One sample, or one collated batch.
            batched: Whether it is a batch.
            mixed: Whether probabilities `(B, C)`, such as the labels of mixup, also count as labels if they follow the
                input or have the name of a label.

        Raises:
            ValueError: If the paths are ambiguous. The message shows the structure and how to name the paths.
        """
        leaves = list(_leaves(sample))
        probabilities = [path for path, leaf in leaves if mixed and _is_named(path) and are_probabilities(leaf)]
        inputs = [path for path, leaf in leaves if _is_input(leaf, batched=batched) and path not in probabilities]
        labels = probabilities + [path for path, leaf in leaves if _is_label(leaf, batched=batched)]
        if "0" in inputs and "1" in labels:
            return cls("0", "1")
        chosen = _single(inputs, INPUT_NAMES), _single(labels, LABEL_NAMES)
        if chosen[0] is None or chosen[1] is None:
            raise ValueError(_undetected(sample, leaves, "batch" if batched else "sample"))
        return cls(chosen[0], chosen[1])


def _undetected(sample: Any, leaves: list[tuple[str, Any]], what: str) -> str:
    structure = "\n".join(f"    {printable(path)}: {_describe_leaf(leaf)}" for path, leaf in leaves[:20])
    structure = structure or f"    {_describe_leaf(sample)}"
    return (
        f"Expected a {what} with one input (an image or a vector) and one integer label, but got\n{structure}\n"
        "Name the two by their paths: `sample=SampleSpec(inputs=..., labels=...)`, as `SampleSpec('image', 'meta.y')`."
    )


def _describe_leaf(leaf: Any) -> str:
    return describe(leaf) if isinstance(leaf, Tensor) else type(leaf).__name__


def _single(paths: list[str], names: Sequence[str]) -> str | None:
    if len(paths) == 1:
        return paths[0]
    named = [path for path in paths if path.rsplit(".", 1)[-1].lower() in names]
    return named[0] if len(named) == 1 else None


def _is_input(leaf: Any, *, batched: bool) -> bool:
    if isinstance(leaf, Image.Image):
        return not batched
    if isinstance(leaf, np.ndarray | Tensor):
        return leaf.ndim >= 1 + batched
    return False


def _is_label(leaf: Any, *, batched: bool) -> bool:
    if isinstance(leaf, bool):
        return False
    if isinstance(leaf, int | np.integer):
        return not batched
    if isinstance(leaf, Tensor):
        return leaf.ndim == int(batched) and not leaf.is_floating_point() and leaf.dtype != torch.bool
    return False


def _is_named(path: str) -> bool:
    return path == "1" or path.rsplit(".", 1)[-1].lower() in LABEL_NAMES


def are_probabilities(leaf: Any) -> bool:
    """Whether a part of a batch is class probabilities, one row per sample."""
    if not isinstance(leaf, Tensor) or leaf.ndim != 2 or not leaf.is_floating_point() or not leaf.numel():
        return False
    return bool((leaf >= 0).all()) and bool(((leaf.sum(1) - 1).abs() < 1e-2).all())


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, child in _children(value):
        path = f"{prefix}.{key}" if prefix else str(key)
        if _children(child):
            yield from _leaves(child, path)
        else:
            yield path, child


def _children(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return []


def _get(value: Any, path: str) -> Any:
    for step in path.split("."):
        try:
            value = _step(value, step)
        except (KeyError, IndexError, AttributeError, TypeError, ValueError):
            leaves = ", ".join(printable(name) for name, _ in list(_leaves(value))[:20]) or type(value).__name__
            raise ValueError(
                f"Expected a sample with a part at `{path}`, but there is no {step!r} among: {leaves}.\n{NAME_THEM}"
            ) from None
    return value


def _step(value: Any, step: str) -> Any:
    if isinstance(value, Mapping):
        return value[step] if step in value else value[int(step)]
    if isinstance(value, list | tuple) and step.lstrip("-").isdigit():
        return value[int(step)]
    return getattr(value, step)


def _set(value: Any, steps: list[str], new: Any) -> Any:
    if not steps:
        return new
    step, rest = steps[0], steps[1:]
    old = _step(value, step)
    child = _set(old, rest, new)
    if isinstance(value, Mapping):
        changed = copy.copy(value)
        changed[step if step in value else int(step)] = child  # type: ignore[index]
        return changed
    if isinstance(value, list | tuple):
        return _set_item(value, step, child)
    if dataclasses.is_dataclass(value) and any(part.name == step and part.init for part in dataclasses.fields(value)):
        return dataclasses.replace(value, **{step: child})  # type: ignore[type-var]
    return _set_attribute(value, step, old, child)


def _set_attribute(value: Any, name: str, old: Any, new: Any) -> Any:
    what = f"Expected a sample whose `{printable(name)}` can be set on a copy, but got {type(value).__name__}"
    way = "Return samples as tuples, dicts or dataclasses."
    try:
        changed = copy.copy(value)
        setattr(changed, name, new)
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{what}: {printable(error)}.\n{way}") from error
    if new is not old and getattr(value, name) is new:
        setattr(value, name, old)
        raise ValueError(f"{what}, which shares it with its copies.\n{way}")
    return changed


def _set_item(value: list[Any] | tuple[Any, ...], step: str, child: Any) -> Any:
    named = hasattr(value, "_fields")
    position = int(step) if step.lstrip("-").isdigit() else value._fields.index(step)  # type: ignore[union-attr]
    items = list(value)
    items[position] = child
    return type(value)(*items) if named else type(value)(items)
