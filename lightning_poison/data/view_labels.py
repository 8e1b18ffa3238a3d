"""Labels of a filtered view: copies of the kept ones that pass assignments on to the data set's own labels.

Selected entries of a tensor, an array or a list share no memory with it, so an assignment to the copy alone would be
lost.
"""

from collections.abc import Callable
from typing import Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lightning_poison.checks import describe, printable

_CONVERSIONS = (Tensor.long, Tensor.int, Tensor.to, Tensor.cpu, Tensor.contiguous, Tensor.type)
"""Methods whose result is a copy, although they return the tensor itself if there is nothing to convert."""


def are_listed(values: Any, length: int) -> bool:
    """Return whether values are a tensor, an array, a list or a tuple with one entry for each of `length` samples.

    Example:
        >>> are_listed([1, 0], 2), are_listed(torch.zeros(2), 3), are_listed("ab", 2)
        (True, False, False)
    """
    if isinstance(values, Tensor | np.ndarray):
        return values.ndim > 0 and len(values) == length
    return isinstance(values, list | tuple) and len(values) == length


def kept_labels(original: Any, positions: Tensor) -> Any:
    """Return the labels at some positions, as the same type of container.

    Assignments to items and slices of the result, and in-place operations on a tensor or an array, also change
    `original`. A tuple is read-only.

    Args:
        original: The labels of a data set, for which `are_listed` is true.
        positions: Positions in `original`, int64 `(M,)`.

    Example:
        >>> labels = torch.tensor([5, 6, 7, 8])
        >>> kept = kept_labels(labels, torch.tensor([0, 2, 3]))
        >>> kept[1:] = 0
        >>> kept.tolist(), labels.tolist()
        ([5, 0, 0], [5, 6, 0, 0])
    """
    if isinstance(original, Tensor):
        where = positions.to(original.device)
        plain = original.detach()[where]
        return LabelTensor.of(plain, _Changes(original, where, plain).write)
    if isinstance(original, np.ndarray):
        return _LabelArray.of(original, positions.numpy())
    selected = (original[position] for position in positions.tolist())
    if isinstance(original, list):
        return _LabelList(selected, original, positions.tolist())
    return tuple(selected)


def replaced_labels(original: Any, positions: Tensor, values: Any) -> Any:
    """Return a copy of labels with other values at some positions.

    Args:
        original: The labels of a data set of N samples, for which `are_listed` is true.
        positions: Positions in `original`, int64 `(M,)`.
        values: New labels, one for each position.

    Raises:
        ValueError: If values have another shape than the labels, or would be rounded.

    Example:
        >>> replaced_labels([5, 6, 7], torch.tensor([0, 2]), torch.tensor([1, 2]))
        [1, 6, 2]
    """
    if isinstance(original, list | tuple):
        changed = list(original)
        for position, value in zip(positions.tolist(), _items(values), strict=True):
            changed[position] = value
        return changed if isinstance(original, list) else tuple(changed)
    if isinstance(original, Tensor):
        new = torch.as_tensor(values)
        _check_same_kind(new, original, fits=torch.can_cast(new.dtype, original.dtype))
        cloned = original.detach().clone()
        cloned[positions.to(cloned.device)] = new.to(cloned)
        return cloned
    array = np.asarray(values)
    _check_same_kind(array, original, fits=np.can_cast(array.dtype, original.dtype, "same_kind"))
    copied = original.copy()
    copied[positions.numpy()] = array
    return copied


def _items(values: Any) -> list[Any]:
    return values.tolist() if isinstance(values, Tensor | np.ndarray) else list(values)


def _check_same_kind(new: Any, original: Any, *, fits: bool) -> None:
    if not fits or tuple(new.shape[1:]) != tuple(original.shape[1:]):
        wanted, got = describe_list(original), describe_list(new)
        raise ValueError(
            f"Expected new labels like those of the data set, {wanted}, but got {got}.\n"
            "Set labels of another kind on the data set itself, `.dataset`, one for each of its samples."
        )


def describe_list(values: Any) -> str:
    """Describe values by type and shape or length.

    Example:
        >>> describe_list(np.zeros(3)), describe_list([1, 2]), describe_list(None)
        ('an array of float64 of shape (3,)', 'a list of length 2', 'None')
    """
    if isinstance(values, np.ndarray):
        return f"an array of {printable(values.dtype)} of shape {values.shape}"
    if isinstance(values, list | tuple):
        return f"a {type(values).__name__} of length {len(values):,}"
    return describe(values)


class _Changes:
    """Passes changes of a copy of some labels on to the labels.

    Args:
        original: All labels.
        positions: Positions of the copied ones in `original`.
        copied: The copy.
    """

    def __init__(self, original: Any, positions: Any, copied: Any) -> None:
        self._original, self._positions, self.copied = original, positions, copied
        self._before = _cloned(copied)

    def write(self) -> None:
        """Write what has changed since the last call."""
        changed = (self.copied != self._before).reshape(len(self._before), -1).any(1)
        self._original[self._positions[changed]] = self.copied[changed]
        self._before = _cloned(self.copied)


def _cloned(values: Any) -> Any:
    return values.clone() if isinstance(values, Tensor) else values.copy()


class LabelTensor(Tensor):
    """A tensor that calls a function after each in-place operation on it or on a slice of it.

    Results of operations, copies and conversions are ordinary tensors.
    """

    _changed: Callable[[], None]

    @classmethod
    def of(cls, plain: Tensor, changed: Callable[[], None]) -> "LabelTensor":
        """Return a tensor that shares its memory with a plain one.

        Args:
            plain: The plain tensor.
            changed: Called after each change.
        """
        labels: LabelTensor = plain.as_subclass(cls)
        labels._changed = changed
        return labels

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation on plain tensors, then pass changes on."""
        with torch._C.DisableTorchFunctionSubclass():
            own = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, cls)]
            versions = [each._version for each in own]
            plain = {id(each): each.as_subclass(Tensor) for each in own}
            args, kwargs = tree_map(lambda leaf: plain.get(id(leaf), leaf), (tuple(args), dict(kwargs or {})))
            result = func(*args, **kwargs)
            changed = [each for each, version in zip(own, versions, strict=True) if each._version != version]
            itself = next((each for each in own if result is plain[id(each)]), None)
            if itself is None:
                result = _without_loss(func, result, own)
            elif func not in _CONVERSIONS:
                result = itself
            else:
                result = result.clone()
        for each in changed:
            each._changed()
        return result


def _without_loss(func: Any, result: Any, own: list[LabelTensor]) -> Any:
    """Make a result through which an assignment would be lost a tensor that passes it on, a copy, or read-only."""
    if isinstance(result, np.ndarray):
        if func is not Tensor.numpy:
            return np.array(result)
        result.flags.writeable = False
    if isinstance(result, Tensor) and result.layout == torch.strided:
        for each in own:
            if result.untyped_storage().data_ptr() == each.untyped_storage().data_ptr():
                is_part = result.ndim > 0 and func not in _CONVERSIONS
                return LabelTensor.of(result, each._changed) if is_part else result.clone()
    return result


class _LabelArray(np.ndarray[Any, Any]):
    """An array that passes changes of it, or of a slice of it, on. Results of operations are ordinary arrays."""

    _changes: "_Changes | None" = None

    @classmethod
    def of(cls, original: Any, positions: Any) -> "_LabelArray":
        """Return the entries of an array at some positions."""
        copied = np.asarray(original)[positions]
        labels: _LabelArray = copied.view(cls)
        labels._changes = _Changes(original, positions, copied)
        return labels

    def __array_finalize__(self, obj: Any) -> None:
        """Follow the changes of slices; arrays with memory of their own are independent."""
        changes = getattr(obj, "_changes", None)
        self._changes = changes if changes is not None and np.may_share_memory(self, changes.copied) else None

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return _on_plain_arrays(getattr(ufunc, method), inputs, kwargs)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        return _on_plain_arrays(func, args, kwargs)

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        if self._changes is not None:
            self._changes.write()

    def fill(self, value: Any) -> None:
        """Set all labels."""
        self[...] = value

    def put(self, ind: Any, v: Any, mode: Any = "raise") -> None:
        """Set the labels at some indices."""
        _on_plain_arrays(np.ndarray.put, (self, ind, v), {"mode": mode})

    def sort(self, *_: Any, **__: Any) -> None:
        """Raise: labels belong to samples."""
        _refuse_moves()

    partition = sort

    def __reduce__(self) -> Any:
        return np.array(self).__reduce__()

    def __deepcopy__(self, memo: Any) -> Any:
        return np.array(self)


def _on_plain_arrays(func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Call a function with ordinary arrays, then pass changes on."""
    own = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, _LabelArray)]
    plain = {id(each): each.view(np.ndarray) for each in own}
    args, kwargs = tree_map(lambda leaf: plain.get(id(leaf), leaf), (tuple(args), dict(kwargs)))
    result = func(*args, **kwargs)
    for each in own:
        if each._changes is not None:
            each._changes.write()
    return next((each for each in own if result is plain[id(each)]), result)


class _LabelList(list[Any]):
    """A list whose item assignments are passed on. Its length cannot change."""

    def __init__(self, selected: Any, original: list[Any], positions: list[int]) -> None:
        super().__init__(selected)
        self._original, self._positions = original, positions

    def __setitem__(self, key: SupportsIndex | slice, value: Any) -> None:
        if not isinstance(key, slice):
            super().__setitem__(key, value)
            self._original[self._positions[key]] = value
            return
        values, where = list(value), self._positions[key]
        if len(values) != len(where):
            _refuse_moves()
        super().__setitem__(key, values)
        for position, each in zip(where, values, strict=True):
            self._original[position] = each

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return list, (list(self),)

    def __deepcopy__(self, memo: Any) -> Any:
        return list(self)

    def _refuse(self, *_: Any, **__: Any) -> Any:
        _refuse_moves()

    append = extend = insert = pop = remove = clear = sort = reverse = _refuse
    __delitem__ = __iadd__ = __imul__ = _refuse


def _refuse_moves() -> None:
    raise TypeError(
        "Expected one label for each kept sample, in their order, but got an operation that moves, adds or removes "
        "labels.\nAssign to items, `targets[i] = label`, or change the data set itself, `.dataset`."
    )
