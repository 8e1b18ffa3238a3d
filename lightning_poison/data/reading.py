"""How a data set is read: the settings of a DataLoader that worker processes need, and calls that run in a worker.

A data set may open a file on first access, or in `worker_init_fn`. If the main process read a sample before workers are
forked, they would share the open file and its position, and read garbage. So if a loader has workers, its samples are
read in workers only, and if it has none, what a data set opens while it is read is dropped again.
"""

import signal
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pickle import PicklingError
from typing import Any, Self, TypeVar, cast

import torch
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info
from torch.utils.data._utils import signal_handling

from lightning_poison.checks import describe_error, printable
from lightning_poison.errors import RankFailedError, UnreadableSampleError

ResultT = TypeVar("ResultT")

_REASONS = {
    "SIGBUS": ", as when shared memory runs out",
    "SIGKILL": ", as when memory runs out",
    "SIGSEGV": ", a fault of compiled code",
}
"""What usually ends a process with these signals."""


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

    def loader(
        self,
        reader: "Reader",
        *,
        num_workers: int | None = None,
        order: Iterable[int] | None = None,
        most_ahead: int | None = None,
    ) -> "DataLoader[Any]":
        """Return a loader of the items of a reader.

        Args:
            reader: Yields the items.
            num_workers: Number of worker processes. Default: that of the settings.
            order: Numbers of the items. Default: all.
            most_ahead: Largest number of items that workers read ahead, at least 1. Default: two for each worker.
        """
        workers = self.num_workers if num_workers is None else num_workers
        workers = workers if most_ahead is None else min(workers, most_ahead)
        return DataLoader(
            reader,
            sampler=order,
            batch_size=None,
            collate_fn=_unchanged,
            num_workers=workers,
            prefetch_factor=1 if workers and most_ahead is not None else None,
            worker_init_fn=_Guarded(self.worker_init_fn) if workers else None,
            multiprocessing_context=self.multiprocessing_context if workers else None,
            generator=torch.Generator().manual_seed(0),
        )

    def items(self, reader: "Reader", **options: Any) -> "Items":
        """Return the items of a reader; options are those of `loader`."""
        return Items(self.loader(reader, **options))


class Items:
    """The items of a loader of a `Reader`, one at a time.

    Args:
        loader: See `ReadSettings.loader`.

    Raises:
        UnreadableSampleError: If the data set cannot be sent to worker processes.
    """

    def __init__(self, loader: "DataLoader[Any]") -> None:
        self._workers: dict[int, Any] = {}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Got pickle error")  # said by the error below
                self._items: Iterator[Any] = iter(loader)
        except (AttributeError, TypeError, PicklingError) as error:
            if "pickle" not in str(error):
                raise
            raise UnreadableSampleError(
                "Expected a data set that can be sent to worker processes, but it raised "
                f"{describe_error(error)}.\nOpen files when a sample is first read, not in `__init__`, and use "
                "functions of a module in place of lambdas. Or start workers with `multiprocessing_context='fork'`."
            ) from error
        _report_when_read(self._items)

    def next(self, what: str) -> Any:
        """Return the next item.

        Args:
            what: What it contains, for the message if a worker process ends.

        Raises:
            StopIteration: If there is none.
            Exception: The item, if it is an error.
            UnreadableSampleError: If a worker process has ended.
        """
        try:
            item = next(self._items)
        except RankFailedError:  # raised while the next number was requested: no worker has ended
            self._items = iter(())
            raise
        except (RuntimeError, OSError, EOFError) as error:  # the last two if a connection to a worker breaks
            end = self._end_of_worker(error)
            if end is None:
                raise
            _without_frames(error)
            self._items = iter(())  # ends the other workers
            raise UnreadableSampleError(
                f"Expected worker processes to read {what}, but {end}.\nUse fewer workers or smaller samples if memory "
                "is short, or `num_workers=0` to see the error of the data set."
            ) from error
        if isinstance(item, Exception):
            self._items = iter(())  # ends the workers now: collected in a cycle, each waits for five seconds
            raise item
        return item

    def _end_of_worker(self, error: Exception) -> str | None:
        """Say how a worker process has ended, if one has."""
        for worker in getattr(self._items, "_workers", []):
            worker.join(timeout=1)
            code = worker.exitcode
            if code is not None and code < 0:
                name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
                return f"one was killed by {name}{_REASONS.get(name, '')}"
            if code:
                return f"one ended with the exit code {code}"
        is_end = type(error) is RuntimeError and str(error).startswith("DataLoader worker (pid")
        return f"one ended: {printable(error)}" if is_end else None


def _report_when_read(items: Any) -> None:
    """Make torch report the end of a worker when an item is read.

    By default, a signal handler of torch raises the error wherever the main process is at this moment, such as in a fit
    or in the code of the user. There is no public setting for this. Without the handler, workers that have ended are
    found within five seconds.
    """
    if getattr(items, "_worker_pids_set", False):
        signal_handling._remove_worker_pids(id(items))  # type: ignore[attr-defined]
        items._worker_pids_set = False


def _without_frames(error: BaseException | None) -> None:
    """Drop the frames of an error and its causes, which keep the workers of a loader alive."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def show_dataset(dataset: Any) -> None:
    """Let `get_worker_info().dataset` in this worker process be the user's data set, not a reader or view of it."""
    object.__setattr__(get_worker_info(), "dataset", dataset)


class _Guarded:
    """Calls a `worker_init_fn`. Its error becomes the items of the reader, since workers would reformat a raised one.

    The function, and the data set while it is read, find the user's data set in `get_worker_info()`, as in training.
    """

    def __init__(self, function: Callable[[int], None] | None) -> None:
        self.function = function

    def __call__(self, number: int) -> None:
        info = get_worker_info()
        assert info is not None  # noqa: S101 (torch calls it in workers only)
        reader: Any = info.dataset
        show_dataset(reader.dataset)
        if self.function is None:
            return
        try:
            self.function(number)
        except (Exception, SystemExit) as error:  # noqa: BLE001 (raised by the main process)
            reader.init_error = UnreadableSampleError(
                f"Expected `worker_init_fn` to prepare a worker process, but it raised {describe_error(error)}.\n"
                "It is called as in training. Correct it, or use `num_workers=0`."
            )


def _unchanged(item: Any) -> Any:
    return item


class Reader(Dataset[Any]):
    """Base of the data sets that workers get, and that read the user's.

    Args:
        dataset: The user's data set.
    """

    init_error: Exception | None = None

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset


class _Call(Reader):
    """Its only item is the result of a call, or the error, since workers would reformat a raised one."""

    def __init__(self, dataset: Any, call: Callable[[Any], Any]) -> None:
        super().__init__(dataset)
        self.call = call

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        if self.init_error is not None:
            return self.init_error
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
        UnreadableSampleError: If the worker process ends, or `worker_init_fn` raises an error.

    Example:
        >>> run_in_worker(len, ["a", "b"], ReadSettings(num_workers=2))
        2
    """
    items = settings.items(_Call(dataset, call), num_workers=min(1, settings.num_workers))
    return items.next("the first samples")  # type: ignore[no-any-return]


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
