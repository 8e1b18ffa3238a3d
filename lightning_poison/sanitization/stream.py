"""`SanitizedStream`: any iterable data set without its suspicious samples, judged as they are read."""

import os
import secrets
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from lightning_poison.checks import (
    boolean,
    expected,
    fraction,
    instance,
    local_path,
    positive_int,
    positive_share,
    printable,
)
from lightning_poison.data.sample_spec import SampleSpec, check_sample_spec
from lightning_poison.sanitization.stream_filter import StreamFilter
from lightning_poison.sanitization.stream_progress import DRIFT, MAX_WORKERS, PASSES, StreamProgress, new_table
from lightning_poison.sanitization.stream_reader import StreamIterator, check_state
from lightning_poison.statistics.share_drift import ShareDrift

BLOCK_SIZE = 64
"""Number of samples that are read ahead and judged together, by default."""


class SanitizedStream(IterableDataset[Any]):
    """The samples of an iterable data set that a filter keeps, in their order.

    Samples are read ahead and judged in blocks, in the process that iterates: the workers of a loader. The data set
    distributes its samples among workers and ranks as it would without the filter. Its public attributes and setters,
    such as `set_epoch`, are reached through the stream. Methods that return another stream are not, since that would be
    unfiltered: shuffle, map or split the data set first. What is removed is written at once, to a file for each worker
    of each rank; `merge_removed` reads them.

    Counters are in memory that workers share with the main process, where `progress` reads them.

    Args:
        dataset: An iterable data set of single samples, such as a WebDataset, a litdata or a Hugging Face stream.
        stream_filter: Fitted and calibrated filter.
        sample: Paths of input and label in a sample. Default: detected in the first sample.
        remove: Whether suspicious samples are removed, and not only counted and written. Default: `True`.
        directory: Folder for the files. Default: nothing is written.
        block_size: Number of samples that are judged together, at least 1. Default: 64.
        max_removed: Largest share that may be removed, in (0, 1]. A larger one is an error as soon as it is certain.
        false_alarm_rate: Chance of an alarm, in all workers and ranks together, in a stream of any length whose
            removed share is constant, in (0, 1). Only the first pass counts. Default: 0.001.
        rank: Number of this rank and of ranks. Default: from `torch.distributed`, or the variables `RANK` and
            `WORLD_SIZE`, when the stream is read.
        warn: Whether the process that reads warns of a drift. Default: `True`.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If an argument is out of range.

    Example:
        >>> from lightning_poison.scorers.pixel_counting import PixelCountingScorer
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> stream_filter = StreamFilter.fit(PixelCountingScorer(), TinyImages(1200))
        >>> class Stream(IterableDataset):
        ...     def __iter__(self):
        ...         yield from (TinyImages(100)[index] for index in range(100))
        >>> stream = SanitizedStream(Stream(), stream_filter)
        >>> kept = list(stream)
        >>> len(kept) + stream.progress().removed, stream.progress().judged
        (100, 100)
    """

    def __init__(
        self,
        dataset: Any,
        stream_filter: StreamFilter,
        *,
        sample: SampleSpec | None = None,
        remove: bool = True,
        directory: str | os.PathLike[str] | None = None,
        block_size: int = BLOCK_SIZE,
        max_removed: float = 0.5,
        false_alarm_rate: float = 0.001,
        rank: tuple[int, int] | None = None,
        warn: bool = True,
    ) -> None:
        if isinstance(dataset, DataLoader) or not hasattr(dataset, "__iter__") or isinstance(dataset, type):
            hint = "Filter the data set, and pass the stream to the loader: `DataLoader(SanitizedStream(...))`."
            raise TypeError(expected("dataset", "an iterable data set", type(dataset).__name__, hint))
        self.dataset = dataset
        self.stream_filter = instance("stream_filter", stream_filter, StreamFilter)
        self.sample = check_sample_spec(sample)
        self.remove = boolean("remove", remove)
        self.directory = None if directory is None else local_path("directory", directory)
        self.block_size = positive_int("block_size", block_size)
        self.max_removed = positive_share("max_removed", max_removed)
        self.false_alarm_rate = fraction("false_alarm_rate", false_alarm_rate)
        self.rank = None if rank is None else _check_rank(rank)
        self.warn = boolean("warn", warn)
        self.run = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        """Name of the run in the written rows."""
        self._table = new_table(MAX_WORKERS)
        self._current: StreamIterator | None = None
        self._resumed: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        self._current = StreamIterator(self, self._resumed)
        self._resumed = None
        return self._current

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "dataset" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        value = getattr(self.dataset, name)
        is_data = name in getattr(self.dataset, "__dict__", ()) or not callable(value)
        if name.startswith("set_") or (is_data and not isinstance(value, Dataset | Iterator)):
            return value
        raise AttributeError(
            f"Expected an attribute or a setter of {printable(type(self.dataset).__name__)}, but got "
            f"`{printable(name)}`: what it returns would not be filtered.\nShuffle, map or split the data set first, "
            "and filter the result: `SanitizedStream(dataset.shuffle(...), ...)`. The data set is `stream.dataset`."
        )

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute of the inner data set, as a `worker_init_fn` does, or an own one of the stream."""
        own = self.__dict__
        is_own = "_resumed" not in own or name in own or hasattr(type(self), name)
        if is_own or name.startswith("__") or (name.startswith("_") and not hasattr(self.dataset, name)):
            super().__setattr__(name, value)
        else:
            setattr(self.dataset, name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes for another process, with the rank of this one, which a spawned worker cannot find."""
        return {**self.__dict__, "_current": None, "rank": self.place}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore the attributes. A copy in the same process has counters of its own."""
        self.__dict__.update(state)
        self._table.share_memory_()  # type: ignore[no-untyped-call]

    def __repr__(self) -> str:
        return f"SanitizedStream({type(self.dataset).__name__}, {printable(self.stream_filter.scorer.name, limit=40)})"

    @property
    def place(self) -> tuple[int, int]:
        """Number of this rank, and number of ranks."""
        if self.rank is not None:
            return self.rank
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        try:
            return _check_rank((int(os.environ.get("RANK", "")), int(os.environ.get("WORLD_SIZE", ""))))
        except ValueError:
            return 0, 1

    def progress(self) -> StreamProgress:
        """Return what the workers of this rank have judged so far. It can be called while they read."""
        table = self._table.clone()
        return StreamProgress.of(table, [self._detector(row) for row in table if row[PASSES]])

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the process that reads, for `StatefulDataLoader`: inside of an epoch, to the sample.

        It has the state of the inner data set, if that or its iterator has `state_dict`, before the block that is being
        yielded, and the number of samples of this block.
        """
        if self._current is not None:
            return self._current.state_dict()
        return dict(self._resumed) if self._resumed is not None else StreamIterator(self, None).state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Let the next iteration continue where `state_dict` was taken.

        If the inner data set has no state of its own, as many samples as were read are read again and skipped. Only the
        block that was being yielded is scored again; it is not counted or written again. A stream that ends earlier
        than when the state was taken is an error in the next iteration.

        Raises:
            ValueError: If it is no state of a stream, or one of another version.
        """
        self._resumed, self._current = check_state(state_dict), None

    def _detector(self, row: Tensor) -> ShareDrift:
        """Return the detector of a worker, with the state in its row if it has judged samples in its first pass."""
        info = get_worker_info()
        processes = (info.num_workers if info is not None else 1) * self.place[1]
        detector = ShareDrift(self.stream_filter.reference, false_alarm_rate=self.false_alarm_rate / processes)
        if row[DRIFT]:  # samples that it has taken into account
            detector.load(row[DRIFT:].tolist())
        return detector


def _check_rank(rank: Any) -> tuple[int, int]:
    """Return the number of a rank and that of ranks if they fit together."""
    what = "its number and the number of ranks, such as (0, 2)"
    if not isinstance(rank, tuple | list) or len(rank) != 2:
        raise ValueError(expected("rank", what, printable(repr(rank))))
    try:
        number, size = positive_int("rank", rank[0], minimum=0), positive_int("rank", rank[1])
    except ValueError:
        raise ValueError(expected("rank", what, printable(repr(rank)))) from None
    if number >= size:
        raise ValueError(expected("rank", what, printable(repr(rank))))
    return number, size
