"""How a data set is read: the settings of a DataLoader that worker processes need, and calls that run in a worker.

A data set may open a file on first access, or in `worker_init_fn`. If the main process read a sample before workers are
forked, they would share the open file and its position, and read garbage. So if a loader has workers, its samples are
read in workers only, and if it has none, what a data set opens while it is read is dropped again.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from lightning_poison.data.views import as_view

ResultT = TypeVar("ResultT")

_OWN = frozenset({"dataset", "call", "_source", "_blocks", "_seed", "_digested", "_is_random"})
"""Attributes of readers. Any other that a `worker_init_fn` sets is set on the data set."""


@dataclass(frozen=True)
class ReadSettings:
    """Settings of a DataLoader that determine how its samples are read.

    Args:
        num_workers: Number of worker processes.
        worker_init_fn: Called in each worker with its number. Default: none.
        multiprocessing_context: How workers are started. Default: that of the platform.
        collate_fn: Makes a batch from samples; used if the samples themselves are no tensors. Default: none.

    Example:
        >>> loader = DataLoader([0, 1], num_workers=2, multiprocessing_context="fork")
        >>> settings = ReadSettings.of(loader)
        >>> settings.num_workers, settings.multiprocessing_context.get_start_method(), settings.collate_fn
        (2, 'fork', None)
    """

    num_workers: int = 0
    worker_init_fn: Callable[[int], None] | None = None
    multiprocessing_context: Any = None
    collate_fn: Callable[[list[Any]], Any] | None = None

    @classmethod
    def of(cls, loader: "DataLoader[Any]") -> Self:
        """Return the settings of a loader."""
        collate = loader.collate_fn if loader.batch_sampler is not None else None
        return cls(
            loader.num_workers,
            loader.worker_init_fn,
            loader.multiprocessing_context,
            None if collate is default_collate else collate,
        )

    def loader(self, reader: "Reader", *, num_workers: int | None = None) -> "DataLoader[Any]":
        """Return a loader of the items of a reader, in their order."""
        workers = self.num_workers if num_workers is None else num_workers
        return DataLoader(
            reader,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            worker_init_fn=self.worker_init_fn if workers else None,
            multiprocessing_context=self.multiprocessing_context if workers else None,
            generator=torch.Generator().manual_seed(0),
        )


def _unchanged(item: Any) -> Any:
    return item


class Reader(Dataset[Any]):
    """Base of the data sets that workers get: attributes that a `worker_init_fn` sets are set on the user's data set.

    Args:
        dataset: The user's data set.
    """

    dataset: Any

    def __init__(self, dataset: Any) -> None:
        object.__setattr__(self, "dataset", dataset)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.dataset, name, value)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        return getattr(self.dataset, name)


class _Call(Reader):
    """Its only item is the result of a call, or the error, since workers would reformat a raised one."""

    def __init__(self, dataset: Any, call: Callable[[Any], Any]) -> None:
        super().__init__(dataset)
        self.call = call

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        try:
            return self.call(self.dataset)
        except Exception as error:  # noqa: BLE001 (raised by the caller)
            return portable(error)


def run_in_worker(call: Callable[[Any], ResultT], dataset: Any, settings: ReadSettings) -> ResultT:
    """Call a function with a data set in a worker process, or in this process if the settings have no workers.

    Args:
        call: Function of the data set. Its result, and with the start method "spawn" the function itself, is pickled.
        dataset: Data set as the user passed it.
        settings: How it is read.

    Raises:
        Exception: What the call raises.

    Example:
        >>> run_in_worker(len, ["a", "b"], ReadSettings(num_workers=2))
        2
    """
    loader = settings.loader(_Call(dataset, call), num_workers=min(1, settings.num_workers))
    result = next(iter(loader))
    if isinstance(result, Exception):
        raise result
    return result  # type: ignore[no-any-return]


def portable(error: Exception) -> Exception:
    """Return an error that survives the way out of a worker: of the same kind if that is known here, with its text.

    In the main process, errors are returned as they are.

    Example:
        >>> portable(KeyError("label"))
        KeyError('label')
    """
    if get_worker_info() is None:
        return error
    known = ("builtins", "lightning_poison.errors")
    kind: Any = next(cls for cls in type(error).__mro__ if cls.__module__ in known)
    text = str(error.args[0]) if len(error.args) == 1 else str(error)
    if kind is not type(error) and not type(error).__module__.startswith("lightning_poison."):
        text = f"{type(error).__name__}: {text}"
    try:
        rebuilt = RuntimeError(text) if kind is Exception else kind(text)
    except Exception:  # noqa: BLE001 (an exception with other arguments)
        rebuilt = RuntimeError(f"{type(error).__name__}: {text}")
    return cast("Exception", rebuilt)


@contextmanager
def handles_dropped(dataset: Any) -> Iterator[None]:
    """Drop what a data set opens lazily: attributes that are `None` or missing before are so again on exit.

    This covers the data set and the data sets below views of it.

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
    owners = _owners(dataset)
    before = [{name for name, value in vars(owner).items() if value is not None} for owner in owners]
    missing = [set(vars(owner)) for owner in owners]
    try:
        yield
    finally:
        for owner, kept, known in zip(owners, before, missing, strict=True):
            for name in [name for name in vars(owner) if name not in kept]:
                if name in known:
                    vars(owner)[name] = None
                else:
                    del vars(owner)[name]


def _owners(dataset: Any) -> list[Any]:
    """Return the data set and those below it that have attributes of their own."""
    found: list[Any] = []
    pending = [dataset]
    while pending:
        each = pending.pop()
        if hasattr(each, "__dict__") and not any(each is known for known in found):
            found.append(each)
            view = as_view(each)
            pending += list(view.parts) if view is not None else []
    return found
