"""Samples with several inputs, such as token ids and a mask: packed into one vector, and unpacked for a network."""

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from lightning_poison.checks import printable

MOST_EXACT = 2**24
"""Integers from here on are not exact in float32."""


@dataclass(frozen=True)
class InputLayout:
    """The inputs of a sample, and how they are packed into one vector.

    Args:
        names: Keys of a dict; `None` for a tuple.
        shapes: Shape of each input.
        dtypes: Data type of each input as a network gets it: float32, int64 or bool.

    Example:
        >>> layout = InputLayout.of({"ids": torch.tensor([7, 9]), "mask": torch.tensor([True, False])})
        >>> print(layout, layout.size)
        a dict of ids (2,), mask (2,) 4
        >>> InputLayout.of(torch.zeros(3)) is None
        True
    """

    names: tuple[str, ...] | None
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]

    @classmethod
    def of(cls, value: Any) -> Self | None:
        """Return the layout of the input of a sample, or `None` if it is not a dict or a tuple of arrays."""
        parts = _parts_of(value)
        arrays = None if parts is None else [_array(part) for part in parts]
        if not arrays or any(array is None for array in arrays):
            return None
        names = tuple(str(key) for key in value) if isinstance(value, Mapping) else None
        found = [array for array in arrays if array is not None]
        return cls(names, tuple(tuple(each.shape) for each in found), tuple(_kept_dtype(each) for each in found))

    def __str__(self) -> str:
        if self.names is None:
            return f"a tuple of shapes {', '.join(map(str, self.shapes))}"
        parts = zip(self.names, self.shapes, strict=True)
        return f"a dict of {', '.join(f'{printable(name, limit=40)} {shape}' for name, shape in parts)}"

    @property
    def sizes(self) -> list[int]:
        """Number of elements of each input."""
        return [math.prod(shape) for shape in self.shapes]

    @property
    def size(self) -> int:
        """Length of the vector."""
        return sum(self.sizes)


class PackedInputs(Tensor):
    """Samples with several inputs as one float32 tensor `(B, P)`, with the layout of a sample.

    Results of operations with the same columns keep it as `structure`.

    Example:
        >>> layout = InputLayout.of((torch.tensor([7, 9]), torch.zeros(3)))
        >>> packed = PackedInputs.of(torch.tensor([[7.0, 9, 0, 0, 0]]), layout)
        >>> unpacked(packed[:1].clone())
        (tensor([[7, 9]]), tensor([[0., 0., 0.]]))
        >>> type(packed.sum(1)).__name__
        'Tensor'
    """

    structure: InputLayout

    @classmethod
    def of(cls, values: Tensor, layout: InputLayout) -> Self:
        """Return a tensor `(B, P)` with a layout."""
        packed = values.as_subclass(cls)
        packed.structure = layout
        return packed

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Return a copy with the same structure."""
        return type(self).of(copy.deepcopy(self.as_subclass(Tensor), memo), self.structure)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation, and give its results the layout if they have the same columns."""
        result = super().__torch_function__(func, types, args, kwargs or {})  # type: ignore[no-untyped-call]
        return _kept(result, _layout_in(args))


def unpacked(inputs: Tensor) -> Any:
    """Return inputs as a network gets them: a dict or a tuple for packed samples, otherwise the tensor itself."""
    if not isinstance(inputs, PackedInputs):
        return inputs
    layout = inputs.structure
    columns = torch.split(inputs.as_subclass(Tensor), layout.sizes, dim=1)
    parts = [
        column.reshape(len(column), *shape).to(dtype)
        for column, shape, dtype in zip(columns, layout.shapes, layout.dtypes, strict=True)
    ]
    return tuple(parts) if layout.names is None else dict(zip(layout.names, parts, strict=True))


def _parts_of(value: Any) -> list[Any] | None:
    """Return the parts of a dict, or of a list or tuple of arrays."""
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple) and all(isinstance(each, Tensor | np.ndarray) for each in value):
        return list(value)
    return None


def _array(part: Any) -> Tensor | np.ndarray | None:
    if isinstance(part, Tensor):
        return part
    if isinstance(part, Real) or (isinstance(part, Sequence) and not isinstance(part, str | bytes)):
        try:
            part = np.asarray(part)
        except Exception:  # noqa: BLE001 (an object of unknown kind, or rows of different lengths)
            return None
    return part if isinstance(part, np.ndarray) and part.dtype.kind in "biuf" and part.size else None


def _kept_dtype(array: Tensor | np.ndarray) -> torch.dtype:
    """Return the type of an input as a network gets it: integers stay integers, except for the pixels of images."""
    name = str(array.dtype).removeprefix("torch.")
    if name == "bool":
        return torch.bool
    return torch.int64 if "int" in name and name != "uint8" else torch.float32


def _layout_in(values: Any) -> InputLayout | None:
    for value in values:
        if isinstance(value, PackedInputs) and "structure" in value.__dict__:
            return value.structure
        if isinstance(value, list | tuple) and (found := _layout_in(value)) is not None:
            return found
    return None


def _kept(result: Any, layout: InputLayout | None) -> Any:
    if isinstance(result, PackedInputs):
        fits = layout is not None and result.ndim == 2 and result.shape[1] == layout.size
        if not fits or layout is None or not result.is_floating_point():
            return result.as_subclass(Tensor)
        result.structure = layout
    elif isinstance(result, list | tuple):  # such as the pair of `aminmax`
        return type(result)([_kept(each, layout) for each in result])
    return result
