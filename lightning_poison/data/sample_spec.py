"""`SampleSpec`: the paths of input and label in a sample, for any container."""

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from lightning_poison.checks import describe_error, expected, printable
from lightning_poison.data.sample_parts import NO_SAMPLE, detect_paths, is_label_place, leaves_of, structure_of
from lightning_poison.errors import UnreadableSampleError

NAME_THEM = "Name the parts by their paths: `sample=SampleSpec(inputs=..., labels=...)`."


@dataclass(frozen=True, repr=False)
class SampleSpec:
    """The paths of the input and of the label in a sample.

    A path is a position, a key or an attribute name. Nested ones are joined by dots: `"0"`, `"image"`, `"views.0"`.
    Keys may contain dots. An input may be a dict or a tuple of arrays, such as token ids and a mask, which reaches a
    `backbone=` of the user as it is; a function can build one: `lambda sample: {"ids": sample["ids"], ...}`.
    Samples may be tuples, lists, named tuples, dicts and dataclasses, nested; a collated batch of them has the same
    paths. Other objects with attributes, such as graphs of PyTorch Geometric, work if the paths are given.

    A function of the sample can take the place of a path if the part is only read, not replaced. It is applied to
    batches as well where a callback reads batches.

    Args:
        inputs: Path of the input, or a function that returns it. Default: `"0"`.
        labels: Path of the label, or a function that returns it. Default: `"1"`.

    Raises:
        TypeError: If one of them is neither a path nor a function.

    Example:
        >>> import torch
        >>> spec = SampleSpec(inputs="image", labels="meta.label")
        >>> sample = {"image": torch.zeros(1, 8, 8), "meta": {"label": 3, "id": "a"}}
        >>> spec.labels_in(sample)
        3
        >>> spec.replace(sample, labels=5)["meta"]
        {'label': 5, 'id': 'a'}
        >>> SampleSpec("image", lambda sample: sample["meta"]["label"] % 2).labels_in(sample)
        1
    """

    inputs: str | int | Callable[[Any], Any] = "0"
    labels: str | int | Callable[[Any], Any] = "1"

    def __post_init__(self) -> None:
        for part in ("inputs", "labels"):
            object.__setattr__(self, part, _checked_path(part, getattr(self, part)))

    def __repr__(self) -> str:
        return f"SampleSpec(inputs={_shown(self.inputs)}, labels={_shown(self.labels)})"

    def inputs_in(self, sample: Any) -> Any:
        """Return the input of a sample, or of a batch."""
        return _part(sample, self.inputs, "inputs")

    def labels_in(self, sample: Any) -> Any:
        """Return the label of a sample, or of a batch."""
        return _part(sample, self.labels, "labels")

    def split(self, samples: Sequence[Any], positions: Sequence[int]) -> tuple[list[Any], list[Any]]:
        """Return the inputs and the labels of samples of a data set.

        Args:
            samples: Samples.
            positions: Their positions in the data set, for error messages.

        Raises:
            UnreadableSampleError: If a sample is `None`, or has another structure than the others.
            ValueError: If a sample has no such parts.

        Example:
            >>> SampleSpec("x", "y").split([{"x": 0.5, "y": 1}, {"x": 0.7, "y": 0}], [7, 8])
            ([0.5, 0.7], [1, 0])
        """
        is_plain = (self.inputs, self.labels) == ("0", "1") and set(map(type, samples)) == {tuple}
        if is_plain and min(map(len, samples)) > 1:
            return [sample[0] for sample in samples], [sample[1] for sample in samples]
        inputs, labels = [], []
        for sample, position in zip(samples, positions, strict=True):
            try:
                where = f"sample {position}"
                inputs.append(_part(sample, self.inputs, "inputs", where))
                labels.append(_part(sample, self.labels, "labels", where))
            except ValueError as error:
                if sample is None:
                    raise UnreadableSampleError(
                        f"Expected sample {position} with an input and a label, but got None.\n{NO_SAMPLE}"
                    ) from error
                known = next((place for place, each in enumerate(samples) if self._has_parts(each)), None)
                if known is None:
                    raise
                raise UnreadableSampleError(
                    f"Expected sample {position} to have the structure of sample {positions[known]},\n"
                    f"{structure_of(samples[known])}\nbut got\n{structure_of(sample)}\n"
                    "Return samples of one structure, or name both parts by functions: `SampleSpec(labels=function)`."
                ) from error
        return inputs, labels

    def _has_parts(self, sample: Any) -> bool:
        try:
            self.inputs_in(sample), self.labels_in(sample)
        except ValueError:
            return False
        return True

    def replace(self, sample: Any, **parts: Any) -> Any:
        """Return a copy of a sample with other `inputs` or `labels`. The sample itself is not changed.

        Raises:
            ValueError: If an attribute of an object cannot be set, or cannot be set on a copy without changing the
                original, or the part is the result of a function.
        """
        for part, value in parts.items():
            path = getattr(self, part)
            if callable(path):
                way = f"Name a path, such as `SampleSpec({part}='{'image' if part == 'inputs' else 'label'}')`."
                raise ValueError(
                    expected(part, "a path, to replace what is there", f"the function {_shown(path)}", way)
                )
            sample = _set(sample, path, value)
        return sample

    @classmethod
    def detect(cls, sample: Any, *, batched: bool = False, mixed: bool = False) -> "SampleSpec":
        """Detect the paths of the input and the label.

        They are unambiguous if there is exactly one input and one possible label, or if exactly one of each has a
        common name (`image`, `label`, `target`, …). Possible labels are

        - the part that follows the input in a tuple or list, whatever its form: the label of a pair
        - integers, booleans, one-hot vectors, and floats without a fractional part. If an integer follows the input,
          floats are none

        Texts elsewhere, and parts named `index`, `id`, `weight` or similar, are not labels.

        Args:
            sample: One sample, or one collated batch.
            batched: Whether it is a batch.
            mixed: Whether probabilities `(B, C)`, such as the labels of mixup, also count as labels if they follow the
                input or have the name of a label.

        Raises:
            ValueError: If the paths are ambiguous. The message shows the structure and how to name the paths.

        Example:
            >>> import torch
            >>> SampleSpec.detect((torch.zeros(1, 8, 8), 3, "cat.png"))
            SampleSpec(inputs='0', labels='1')
            >>> SampleSpec.detect((torch.zeros(1, 8, 8), 3, 7))
            Traceback (most recent call last):
            lightning_poison.data.sample_parts.AmbiguousLabelError: Expected a sample with one input (an image or a
            vector) and one integer label, but got
                0: a float32 tensor of shape (1, 8, 8)
                1: int 3
                2: int 7
            `1` and `2` could each be the label.
            Name the two by their paths: `sample=SampleSpec(inputs=..., labels=...)`, as `SampleSpec('0', '1')`
            or `SampleSpec('0', '2')`.
        """
        probable = [
            leaf.path for leaf in leaves_of(sample) if mixed and is_label_place(leaf) and are_probabilities(leaf.value)
        ]
        return cls(*detect_paths(sample, batched=batched, probabilities=probable))


def check_sample_spec(value: Any, *, name: str = "sample") -> SampleSpec | None:
    """Return the value of an argument that is a `SampleSpec` or `None`.

    Raises:
        TypeError: If it is neither.

    Example:
        >>> check_sample_spec(("image", "label"))
        Traceback (most recent call last):
        TypeError: Expected `sample` to be a `SampleSpec`, but got ('image', 'label').
        Write `sample=SampleSpec('image', 'label')`.
    """
    if value is None or isinstance(value, SampleSpec):
        return value
    way = f"Write `{name}=SampleSpec(inputs='image', labels='label')`, with the paths in your samples."
    parts = value
    if isinstance(value, Mapping) and set(value) == {"inputs", "labels"}:
        parts = (value["inputs"], value["labels"])
    if isinstance(parts, list | tuple) and len(parts) == 2 and all(isinstance(part, str | int) for part in parts):
        way = f"Write `{name}=SampleSpec({printable(repr(parts[0]))}, {printable(repr(parts[1]))})`."
    came = "the class SampleSpec" if value is SampleSpec else printable(repr(value), limit=80)
    raise TypeError(expected(name, "a `SampleSpec`", came, way))


def _checked_path(part: str, value: Any) -> Any:
    if isinstance(value, str) or callable(value):
        return value
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return str(int(value))
    way = "Join nested keys by dots, such as 'views.0'."
    if isinstance(value, list | tuple) and value:
        way = f"Join nested keys by dots: {printable(repr('.'.join(str(step) for step in value)))}."
    what = "a path in the sample, such as 'image' or '0', or a function of the sample"
    raise TypeError(expected(part, what, printable(repr(value), limit=80), way))


def _shown(path: Any) -> str:
    return getattr(path, "__qualname__", type(path).__name__) if callable(path) else repr(path)


def are_probabilities(leaf: Any) -> bool:
    """Whether a part of a batch is class probabilities, one row per sample."""
    if not isinstance(leaf, Tensor) or leaf.ndim != 2 or not leaf.is_floating_point() or not leaf.numel():
        return False
    return bool((leaf >= 0).all()) and bool(((leaf.sum(1) - 1).abs() < 1e-2).all())


def _part(sample: Any, path: Any, name: str, where: str = "a sample") -> Any:
    """Return the part of a sample at a path, or what a function returns for it."""
    if not callable(path):
        return _get(sample, path, where)
    try:
        return path(sample)
    except Exception as error:
        raise ValueError(
            f"Expected the function `{name}={_shown(path)}` to return the {name} of {where}, but it raised "
            f"{describe_error(error)} for\n{structure_of(sample)}\nCorrect the function."
        ) from error


def _get(value: Any, path: str, where: str) -> Any:
    rest: str | None = path
    while rest is not None:
        step, rest = _next_step(value, rest)
        try:
            value = _step(value, step)
        except (KeyError, IndexError, AttributeError, TypeError, ValueError):
            leaves = ", ".join(printable(leaf.path) for leaf in list(leaves_of(value))[:20]) or type(value).__name__
            raise ValueError(
                f"Expected {where} with a part at `{path}`, but there is no {step!r} among: {leaves}.\n{NAME_THEM}"
            ) from None
    return value


def _next_step(value: Any, path: str) -> tuple[str, str | None]:
    """Return the first step of a path and the rest, if any. Keys may contain dots: the longest one that is there."""
    steps = path.split(".")
    longest = len(steps) if isinstance(value, Mapping) else 1
    count = next((each for each in range(longest, 1, -1) if ".".join(steps[:each]) in value), 1)
    return ".".join(steps[:count]), ".".join(steps[count:]) if count < len(steps) else None


def _step(value: Any, step: str) -> Any:
    if isinstance(value, Mapping):
        return value[step] if step in value else value[int(step)]
    if isinstance(value, list | tuple) and step.lstrip("-").isdigit():
        return value[int(step)]
    return getattr(value, step)


def _set(value: Any, path: str | None, new: Any) -> Any:
    if path is None:
        return new
    step, rest = _next_step(value, path)
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
