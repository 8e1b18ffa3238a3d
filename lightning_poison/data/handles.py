"""Handles that a data set opens while it is read, such as files: found wherever it keeps them, and dropped again.

A process that is forked later would share an open file and its position, and read garbage.
"""

import functools
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import PurePath
from types import CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from lightning_poison.data.views import as_view

_ATOMS = (type(None), bool, int, float, complex, str, bytes, bytearray, range, slice, PurePath)
_VALUES = (*_ATOMS, torch.Tensor, np.ndarray, np.generic, torch.dtype, torch.device)
"""Types of values that hold nothing open and are not searched."""

_CONTAINERS = (dict, list, tuple, set, frozenset)

_FOREIGN = sys.stdlib_module_names | {"torch", "numpy", "lightning", "pytorch_lightning", "lightning_poison"}
"""Packages whose objects are not searched: their state is their own."""

_STORES = (threading.local, SimpleNamespace)
"""Classes of the standard library whose objects are searched, since others store attributes in them."""

_MOST_OBJECTS = 20_000
"""Number of objects after which the search ends."""

_LONG = 1_000
"""Number of items from which those of a container are searched after everything else."""


@contextmanager
def handles_dropped(dataset: Any) -> Iterator[None]:
    """Drop what a data set opens while it is read: on exit, what was missing or empty before is so again.

    This covers the data set, the data sets below views of it, the objects and containers in their attributes, their
    classes, and the global variables and caches (`functools.lru_cache`) that their methods name. An attribute that was
    `None` or missing is so again. Elsewhere, numbers, texts and tensors stay, such as those of a counter. So does
    everything that was open before.

    Example:
        >>> class Lazy:
        ...     file = None
        ...     def __getitem__(self, index):
        ...         self.file = self.file or "open"
        >>> data = Lazy()
        >>> with handles_dropped(data):
        ...     data[0]
        ...     data.file
        'open'
        >>> data.file is None
        True
    """
    states = _states_below(_data_sets(dataset))
    try:
        yield
    finally:
        for state in states:
            with suppress(Exception):  # such as an attribute that cannot be set
                state.restore()


class _State:
    """Values by name, as they were when this object was created.

    Args:
        read: Returns the values by name.
        put: Sets a value.
        drop: Removes a value.
        is_object: Whether these are attributes of an object, where any value takes the place of `None`.
    """

    def __init__(
        self,
        read: Callable[[], dict[Any, Any]],
        put: Callable[[Any, Any], object],
        drop: Callable[[Any], object],
        *,
        is_object: bool = False,
    ) -> None:
        self._read, self._put, self._drop, self._is_object = read, put, drop, is_object
        self.before = read()

    def restore(self) -> None:
        """Remove what was added, and put back what was replaced, if it may hold something open."""
        for name, value in reversed(self._read().items()):
            was = self.before.get(name)
            if was is value or (name in self.before and was is not None and _may_be_open(was)):
                continue
            if not _may_be_open(value) and not (self._is_object and was is None):
                continue
            if name in self.before:
                self._put(name, was)
            else:
                self._drop(name)


class _CachedCalls:
    """A function with `functools.lru_cache`. Its cache is cleared if a call was added."""

    before: dict[Any, Any] = {}  # noqa: RUF012 (never changed)

    def __init__(self, function: Any) -> None:
        self._function, self._misses = function, function.cache_info().misses

    def restore(self) -> None:
        if self._function.cache_info().misses != self._misses:
            self._function.cache_clear()


def _may_be_open(value: Any) -> bool:
    if isinstance(value, (*_VALUES, type, FunctionType, ModuleType)):
        return False
    if type(value) in _CONTAINERS:
        items = value.values() if isinstance(value, dict) else value
        return any(map(_may_be_open, islice(items, _LONG)))
    return True


def _data_sets(dataset: Any) -> list[Any]:
    """Return the data set and those below views of it."""
    view = as_view(dataset)
    return [dataset] + [each for part in (view.parts if view is not None else []) for each in _data_sets(part)]


def _states_below(roots: list[Any]) -> list[Any]:
    """Return the states of what can be reached, near objects first and items of long containers last."""
    found_states: list[Any] = []
    pending, later = deque((each, True) for each in roots), deque[tuple[Any, bool]]()
    known: dict[int, Any] = {}  # with the objects, so that no number is used again
    while (pending or later) and len(known) < _MOST_OBJECTS:
        found, is_root = pending.popleft() if pending else later.popleft()
        if id(found) in known or isinstance(found, _VALUES):
            continue
        known[id(found)] = found
        states = _states_of(found, is_root=is_root)
        found_states += states
        kept = chain.from_iterable(state.before.values() for state in states)
        children = list(islice(chain([type(found)], _parts_of(found), kept), _MOST_OBJECTS))
        (later if len(children) > _LONG else pending).extend((each, False) for each in children)
    return found_states


def _states_of(found: Any, *, is_root: bool) -> list[Any]:
    """Return the states of an object, or none if it is not the user's."""
    states: list[Any] = []
    if isinstance(found, dict):
        states.append(_State(lambda: dict(dict.items(found)), found.__setitem__, found.__delitem__))
    elif isinstance(found, list | deque):
        states.append(_State(lambda: dict(enumerate(found)), found.__setitem__, found.__delitem__))
    elif isinstance(found, set):
        states.append(_State(lambda: {each: each for each in found}, lambda *_: None, found.discard))
    elif isinstance(found, functools._lru_cache_wrapper):
        return [_CachedCalls(found)]
    elif isinstance(found, type):
        return [_class_state(found)] if _is_of_user(found.__module__) else []
    elif isinstance(found, FunctionType):
        return _function_states(found) if _is_of_user(found.__module__) else []
    if is_root or _is_searched(found):
        states += _attribute_states(found)
    return states


def _is_searched(found: Any) -> bool:
    """Whether the attributes of an object are searched."""
    if isinstance(found, Dataset) or type(found) in _STORES:
        return True
    roots = {str(base.__module__).partition(".")[0] for base in type(found).__mro__}
    is_hosted = bool(roots & {"lightning", "pytorch_lightning"})
    return _root(type(found).__module__) not in _FOREIGN and not is_hosted and not isinstance(found, nn.Module)


def _root(module: Any) -> str:
    return str(module).partition(".")[0]


def _is_of_user(module: Any) -> bool:
    """Whether a module is neither part of a package that is installed nor of Python."""
    file = getattr(sys.modules.get(str(module)), "__file__", None) or ""
    return _root(module) not in _FOREIGN and not {"site-packages", "dist-packages"} & set(PurePath(file).parts)


def _attribute_states(found: Any) -> list[_State]:
    states = []
    own = vars(found) if hasattr(type(found), "__dict__") and _has_attributes(found) else None
    if own is not None:
        states.append(_State(lambda: dict(own), own.__setitem__, own.__delitem__, is_object=True))
    slots = {
        name: member
        for base in type(found).__mro__
        for name, member in vars(base).items()
        if type(member).__name__ == "member_descriptor" and _root(base.__module__) not in _FOREIGN
    }
    if slots:

        def read() -> dict[str, Any]:
            values = {}
            for name, member in slots.items():
                with suppress(AttributeError):
                    values[name] = member.__get__(found)
            return values

        put, drop = functools.partial(object.__setattr__, found), functools.partial(object.__delattr__, found)
        states.append(_State(read, put, drop, is_object=True))
    return states


def _has_attributes(found: Any) -> bool:
    try:
        return isinstance(vars(found), dict)
    except TypeError:
        return False


def _class_state(found: type) -> _State:
    def read() -> dict[str, Any]:
        return {name: value for name, value in vars(found).items() if not name.startswith("__")}

    return _State(read, functools.partial(setattr, found), functools.partial(delattr, found))


def _function_states(found: FunctionType) -> list[_State]:
    """Return the states of what a function can keep something in: attributes, closures and the globals it names."""
    names = _names_in(found.__code__)
    spaces = [found.__globals__]
    for name in names:
        module = found.__globals__.get(name)
        if isinstance(module, ModuleType) and _is_of_user(module.__name__):
            spaces.append(vars(module))
    states = [_State(lambda: dict(vars(found)), vars(found).__setitem__, vars(found).__delitem__)]
    states += [_named_state(space, names) for space in spaces]
    return states + [_cell_state(cell) for cell in found.__closure__ or ()]


def _named_state(space: dict[str, Any], names: set[str]) -> _State:
    return _State(lambda: {name: space[name] for name in names if name in space}, space.__setitem__, space.__delitem__)


def _cell_state(cell: Any) -> _State:
    def read() -> dict[str, Any]:
        try:
            return {"cell_contents": cell.cell_contents}
        except ValueError:  # it is empty
            return {}

    return _State(read, functools.partial(setattr, cell), functools.partial(delattr, cell))


def _names_in(code: CodeType) -> set[str]:
    inner = [_names_in(each) for each in code.co_consts if isinstance(each, CodeType)]
    return set(code.co_names).union(*inner)


def _parts_of(found: Any) -> Iterable[Any]:
    """Return what an object refers to other than by its state."""
    if isinstance(found, tuple | frozenset):
        return found
    if isinstance(found, MethodType):
        return found.__self__, found.__func__
    if isinstance(found, functools.partial):
        return found.func, found.args, found.keywords
    if isinstance(found, property | functools.cached_property):
        return (found.fget,) if isinstance(found, property) else (found.func,)
    if isinstance(found, staticmethod | classmethod):
        return (found.__func__,)
    if isinstance(found, functools._lru_cache_wrapper):
        return (found.__wrapped__,)
    if isinstance(found, type) and _is_of_user(found.__module__):
        return *found.__bases__, *vars(found).values()
    return ()
