"""`SanitizedStream`: any iterable data set without its suspicious samples, judged as they are read."""

import copy
import os
import secrets
import time
import warnings
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lightning_poison.checks import boolean, expected, fraction, instance, local_path, positive_int, printable, share
from lightning_poison.data.inputs import stack_inputs
from lightning_poison.data.label_forms import class_index
from lightning_poison.data.labels import as_labels
from lightning_poison.data.packed_inputs import PackedInputs
from lightning_poison.data.sample_digests import digest_samples
from lightning_poison.data.sample_parts import structure_of
from lightning_poison.data.sample_spec import SampleSpec, check_sample_spec
from lightning_poison.errors import NothingKeptError, UnsupportedDataError
from lightning_poison.sanitization.stream_filter import StreamFilter
from lightning_poison.sanitization.stream_parts import PartWriter, RemovedSample, key_of
from lightning_poison.sanitization.stream_progress import (
    DRIFT,
    EMPTY,
    JUDGED,
    PASSES,
    READ,
    REMOVED,
    UNJUDGED,
    StreamProgress,
    drift_message,
    new_table,
)
from lightning_poison.statistics.share_drift import ShareDrift, confidence_bounds

BLOCK_SIZE = 64
"""Number of samples that are read ahead and judged together, by default."""

MAX_WORKERS = 256
"""Largest number of worker processes of a rank."""

_SURE = 0.001
"""Chance that a share of at most `max_removed` is ever taken for a larger one."""

_STATE_VERSION = 1


class SanitizedStream(IterableDataset[Any]):
    """The samples of an iterable data set that a filter keeps, in their order.

    Samples are read ahead and judged in blocks, in the process that iterates: the workers of a loader. The data set
    distributes its samples among workers and ranks as it would without the filter. Everything else, such as
    `set_epoch`, is delegated to it. What is removed is written at once, to a file for each worker of each rank;
    `merge_removed` reads them.

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
            removed share is constant, in (0, 1). Default: 0.001.
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
        self.max_removed = share("max_removed", max_removed)
        self.false_alarm_rate = fraction("false_alarm_rate", false_alarm_rate)
        self.rank = rank
        self.warn = boolean("warn", warn)
        self.run = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
        """Name of the run in the written rows."""
        self._table = new_table(MAX_WORKERS)
        self._current: _StreamIterator | None = None
        self._resumed: dict[str, Any] | None = None

    def __iter__(self) -> Iterator[Any]:
        self._current = _StreamIterator(self, self._resumed)
        self._resumed = None
        return self._current

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        return getattr(self.dataset, name)

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
        given = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
        return (int(given[0]), int(given[1])) if all(map(str.isdigit, given)) else (0, 1)

    def progress(self) -> StreamProgress:
        """Return what the workers of this rank have judged so far. It can be called while they read."""
        table = self._table.clone()
        return StreamProgress.of(table, [self._detector(row) for row in table if row[PASSES]])

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the process that reads, for `StatefulDataLoader`: inside of an epoch, to the sample.

        It has the state of the inner data set, if that or its iterator has `state_dict`, before the block that is being
        yielded, and the decisions about the samples of this block.
        """
        if self._current is not None:
            return self._current.state_dict()
        return dict(self._resumed) if self._resumed is not None else _StreamIterator(self, None).state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Let the next iteration continue where `state_dict` was taken.

        If the inner data set has no state of its own, as many samples as were read are read again and skipped; they are
        not scored again.

        Raises:
            ValueError: If the state is of another version.
        """
        if state_dict.get("version") != _STATE_VERSION:
            found = printable(repr(state_dict.get("version")))
            raise ValueError(expected("version", f"{_STATE_VERSION}, that of the state of a stream", found))
        self._resumed, self._current = dict(state_dict), None

    def _detector(self, row: Tensor) -> ShareDrift:
        """Return the detector of a worker, with the state in its row if it has judged samples."""
        info = get_worker_info()
        processes = (info.num_workers if info is not None else 1) * self.place[1]
        detector = ShareDrift(self.stream_filter.reference, false_alarm_rate=self.false_alarm_rate / processes)
        if row[JUDGED]:
            detector.load(row[DRIFT:].tolist())
        return detector


class _StreamIterator(Iterator[Any]):
    """Reads a stream in one process. Nothing is read, nor the inner iterator created, before the first sample."""

    def __init__(self, stream: SanitizedStream, resumed: dict[str, Any] | None) -> None:
        self._stream = stream
        self._resumed = resumed
        info = get_worker_info()
        self._worker, self._workers = (info.id, info.num_workers) if info is not None else (0, 1)
        if self._workers > MAX_WORKERS:
            raise ValueError(expected("num_workers", f"at most {MAX_WORKERS} for a filtered stream", self._workers))
        self._row = stream._table[self._worker]
        self._source: Any = None
        self._spec = stream.sample
        self._block: deque[Any] = deque()
        self._ending: Exception | None = None
        self._inner: tuple[str | None, Any] = (None, None)
        self._read, self._keep, self._taken = 0, list[bool](), 0

    def __next__(self) -> Any:
        if self._source is None:
            self._start()
        while not self._block:
            if self._ending is not None:
                raise self._ending
            self._fill()
        self._taken += 1
        return self._block.popleft()

    def _start(self) -> None:
        """Create the inner iterator, restore or skip, and count a new pass."""
        dataset, resumed = self._stream.dataset, self._resumed or {}
        owner, inner = resumed.get("inner", (None, None))
        if owner == "dataset":
            dataset.load_state_dict(inner)
        self._source = iter(dataset)
        if owner == "iterator":
            self._source.load_state_dict(inner)
        self._writer = self._part_writer()
        if resumed:
            self._stream.run = resumed["run"]
            self._row.copy_(torch.tensor(resumed["row"], dtype=torch.float64))
        self._drift = self._stream._detector(self._row)
        if not resumed.get("keep") and not resumed.get("read"):
            self._row[PASSES] += 1
            return
        self._read = resumed["read"]
        for _ in range(0 if owner else self._read):
            next(self._source, None)
        samples = self._next_samples(len(resumed["keep"]))
        self._keep, self._taken = list(resumed["keep"]), resumed["taken"]
        self._read += len(samples)
        kept = [sample for sample, stays in zip(samples, self._keep, strict=False) if stays]
        self._block.extend(kept[self._taken :])

    def _fill(self) -> None:
        """Read and judge the next block."""
        self._inner = self._inner_state()
        samples = self._next_samples(self._stream.block_size)
        self._keep, self._taken = [], 0
        if samples:
            self._keep = self._judge(samples)
            self._block.extend(sample for sample, stays in zip(samples, self._keep, strict=True) if stays)
            self._read += len(samples)
        elif self._read == 0 and isinstance(self._ending, StopIteration):
            self._check_empty()

    def _next_samples(self, count: int) -> list[Any]:
        """Read samples. An error of the stream, or its end, comes after those that were read before."""
        samples: list[Any] = []
        try:
            for _ in range(count):
                samples.append(next(self._source))  # noqa: PERF401 (those before an error count)
        except Exception as error:  # noqa: BLE001 (raised after the samples)
            self._ending = error
        return samples

    def _judge(self, samples: list[Any]) -> list[bool]:
        positions = list(range(self._read, self._read + len(samples)))
        if self._spec is None:
            self._spec = self._detected(samples[0])
        given, carried = self._spec.split(samples, positions)
        labels = as_labels(carried, positions)
        inputs = stack_inputs(given, positions)
        found = self._stream.stream_filter.judge(inputs, labels, indices=torch.tensor(positions))
        removed, judged = int(found.suspicious.sum()), int(found.judged.sum())
        self._write(samples, positions, inputs, labels, found.scores, found.suspicious)
        drift = self._drift.update(removed, judged)
        self._row[[READ, JUDGED, REMOVED, UNJUDGED]] += torch.tensor(
            [len(samples), judged, removed, len(samples) - judged], dtype=torch.float64
        )
        self._row[DRIFT:] = torch.tensor(self._drift.state(), dtype=torch.float64)
        if drift is not None and self._stream.warn:
            warnings.warn(drift_message(self._name(), [drift]), stacklevel=4)
        self._check_share()
        return (~found.suspicious).tolist() if self._stream.remove else [True] * len(samples)

    def _detected(self, sample: Any) -> SampleSpec:
        """Detect the parts of the first sample, and refuse a batch."""
        error: ValueError | None = None
        try:
            spec = SampleSpec.detect(sample)
            if class_index(spec.labels_in(sample)) is not None:
                return spec
        except ValueError as raised:
            error = raised
        try:
            SampleSpec.detect(sample, batched=True)
        except ValueError:
            if error is not None:
                raise error from None
            return spec
        raise UnsupportedDataError(
            f"Expected single samples in {self._name()}, but its items are batches:\n{structure_of(sample)}\n"
            "Filter the stream before it is batched, and let the loader batch what is kept: "
            "`DataLoader(stream, batch_size=64)`. If they are samples, name the parts: `sample=SampleSpec(...)`."
        )

    def _write(
        self, samples: list[Any], positions: list[int], inputs: Tensor, labels: Tensor, scores: Tensor, chosen: Tensor
    ) -> None:
        places = chosen.nonzero().flatten().tolist()
        if self._writer is None or not places:
            return
        plain = inputs.as_subclass(Tensor) if isinstance(inputs, PackedInputs) else inputs
        digests = digest_samples(plain[chosen]).tolist()
        stream, (rank, _) = self._stream, self._stream.place
        own = (stream.run, int(self._row[PASSES]), rank, self._worker)
        thresholds, word = stream.stream_filter.thresholds, "removed" if stream.remove else "flagged"
        self._writer.append(
            [
                RemovedSample(
                    *own,
                    position=positions[place],
                    label=int(labels[place]),
                    score=float(scores[place]),
                    threshold=float(thresholds[labels[place]]),
                    decision=word,
                    digest=f"{digest % 2**64:016x}",
                    key=key_of(samples[place]),
                )
                for place, digest in zip(places, digests, strict=True)
            ]
        )

    def _part_writer(self) -> PartWriter | None:
        directory = self._stream.directory
        return None if directory is None else PartWriter(directory, self._stream.place[0], self._worker)

    def _check_share(self) -> None:
        removed, judged, most = int(self._row[REMOVED]), int(self._row[JUDGED]), self._stream.max_removed
        if not self._stream.remove or removed <= most * judged:
            return
        if confidence_bounds(removed, judged, alpha=_SURE)[0] > most:
            raise NothingKeptError(
                f"Expected to remove at most {100 * most:g} % of {self._name()}, but {removed:,} of {judged:,} samples "
                "are suspicious.\nCompare its samples with those that the filter was calibrated on: if they are of "
                "another origin, transform or numbering, the decision means nothing. If so many should be removed, "
                "raise `max_removed`."
            )

    def _check_empty(self) -> None:
        """Raise if no worker of this rank has read a sample in this pass. With few shards, some may have none."""
        number = self._row[PASSES].clone()
        self._row[EMPTY] = number
        table = self._stream._table[: self._workers]
        if not bool(((table[:, EMPTY] == number) & (table[:, PASSES] == number)).all()):
            return
        way = "Check its source, and how it distributes its samples among ranks and workers."
        if number > 1:
            way = "It can be read only once. Let `__iter__` open its source anew."
        raise ValueError(f"Expected samples in {self._name()}, but it ended without any in pass {int(number)}.\n{way}")

    def _name(self) -> str:
        rank, size = self._stream.place
        of_rank = f" on rank {rank}" if size > 1 else ""
        return f"the stream {printable(type(self._stream.dataset).__name__)}{of_rank}"

    def _inner_state(self) -> tuple[str | None, Any]:
        """Return the owner of the inner state and the state, if there is one. Before the first sample it may be old."""
        if self._read:
            for owner, value in (("iterator", self._source), ("dataset", self._stream.dataset)):
                if callable(getattr(value, "state_dict", None)) and callable(getattr(value, "load_state_dict", None)):
                    return owner, copy.deepcopy(value.state_dict())
        return None, None

    def state_dict(self) -> dict[str, Any]:
        """See `SanitizedStream.state_dict`."""
        if self._source is None and self._resumed is not None:
            return dict(self._resumed)
        return {
            "version": _STATE_VERSION,
            "inner": self._inner,
            "read": self._read - len(self._keep),
            "keep": list(self._keep),
            "taken": self._taken,
            "row": self._row.tolist(),
            "run": self._stream.run,
        }
