"""The iterator of a `SanitizedStream`: reads a block, judges it, writes what is removed, and yields the rest."""

import copy
import inspect
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from lightning_poison.checks import expected, printable
from lightning_poison.data.inputs import stack_inputs
from lightning_poison.data.label_forms import class_index
from lightning_poison.data.labels import as_labels
from lightning_poison.data.packed_inputs import PackedInputs
from lightning_poison.data.sample_digests import digest_samples
from lightning_poison.data.sample_parts import structure_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.errors import NothingKeptError, UnsupportedDataError
from lightning_poison.sanitization.stream_filter import Judgment, StreamFilter
from lightning_poison.sanitization.stream_parts import PartWriter, RemovedSample, key_of
from lightning_poison.sanitization.stream_progress import (
    COLUMNS,
    DRIFT,
    EMPTY,
    JUDGED,
    MAX_WORKERS,
    PASSES,
    READ,
    REMOVED,
    UNJUDGED,
    drift_message,
)
from lightning_poison.statistics.share_drift import ShareDrift, confidence_bounds

_SURE = 0.001
"""Chance that a share of at most `max_removed` is ever taken for a larger one."""

_STATE_VERSION = 2


class FilteredStream(Protocol):
    """What the iterator uses of a `SanitizedStream`, which describes it."""

    dataset: Any
    stream_filter: StreamFilter
    sample: SampleSpec | None
    remove: bool
    directory: Path | None
    block_size: int
    max_removed: float
    warn: bool
    run: str
    _table: Tensor

    @property
    def place(self) -> tuple[int, int]:
        """Number of the rank, and number of ranks."""
        ...

    def _detector(self, row: Tensor) -> ShareDrift: ...


class StreamIterator(Iterator[Any]):
    """Reads a stream in one process. Nothing is read, nor the inner iterator created, before the first sample."""

    def __init__(self, stream: FilteredStream, resumed: dict[str, Any] | None) -> None:
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
        self._read, self._length, self._taken = 0, 0, 0
        """Samples read in this pass, of which those of the current block, and how many of that were yielded."""

    def __next__(self) -> Any:
        if self._source is None:
            self._start()
        while not self._block:
            if self._ending is not None:
                self._raise_ending(self._ending)
            self._fill()
        self._taken += 1
        return self._block.popleft()

    def _raise_ending(self, ending: Exception) -> None:
        """Raise the end of the stream again and again, but an error once: the inner iterator may go on after it."""
        if not isinstance(ending, StopIteration):
            self._ending = None
        raise ending

    def _start(self) -> None:
        """Create the inner iterator, and restore or skip. A pass counts from its first block on, or from its end."""
        dataset, resumed = self._stream.dataset, self._resumed or {}
        owner, inner = resumed.get("inner", (None, None))
        if owner == "dataset":
            dataset.load_state_dict(copy.deepcopy(inner))
        self._source = iter(dataset)
        if owner == "iterator":
            self._source.load_state_dict(copy.deepcopy(inner))
        self._inner = (owner, inner)
        if resumed:
            self._stream.run = resumed["run"]
            self._row.copy_(torch.tensor(resumed["row"], dtype=torch.float64))
        self._writer = self._part_writer()
        self._drift = self._stream._detector(self._row)
        if resumed.get("block") or resumed.get("read"):
            self._continue(resumed, is_restored=owner is not None)

    def _continue(self, resumed: Mapping[str, Any], *, is_restored: bool) -> None:
        """Skip what was read before the block, and judge the block again, which was counted and written before.

        Its samples may be others, if the stream is shuffled anew, so that earlier decisions do not hold for them.
        """
        skipped, least = resumed["read"], resumed["read"] + resumed["block"]
        if not is_restored:
            nothing = object()
            skipped = sum(1 for _ in range(skipped) if next(self._source, nothing) is not nothing)
        samples = self._next_samples(resumed["block"])
        self._read = skipped
        if samples:
            self._hold(samples, self._judge(samples)[-1])
        if self._read < least and isinstance(self._ending or StopIteration(), StopIteration):
            self._block.clear()
            raise ValueError(
                f"Expected at least {least:,} samples in {self._name()}, as when the state was saved, but the stream "
                f"ended after {self._read:,}.\nResume with the same data, distributed among as many ranks and "
                "workers, or start anew without the state."
            )
        for _ in range(min(resumed["taken"], len(self._block))):
            self._block.popleft()
        self._taken = resumed["taken"]

    def _fill(self) -> None:
        """Read and judge the next block."""
        self._inner = self._inner_state()
        samples = self._next_samples(self._stream.block_size)
        self._length, self._taken = 0, 0
        if samples:
            self._hold(samples, self._decide(samples))
        elif self._read == 0 and isinstance(self._ending, StopIteration):
            self._check_empty()

    def _hold(self, samples: list[Any], found: Judgment) -> None:
        """Keep the samples of a block that are to be yielded."""
        removed = found.suspicious.tolist() if self._stream.remove else [False] * len(samples)
        self._block.extend(sample for sample, goes in zip(samples, removed, strict=True) if not goes)
        self._length = len(samples)
        self._read += len(samples)

    def _next_samples(self, count: int) -> list[Any]:
        """Read samples. An error of the stream, or its end, comes after those that were read before."""
        samples: list[Any] = []
        try:
            for _ in range(count):
                samples.append(next(self._source))  # noqa: PERF401 (those before an error count)
        except Exception as error:  # noqa: BLE001 (raised after the samples)
            self._ending = error
        return samples

    def _judge(self, samples: list[Any]) -> tuple[list[int], Tensor, Tensor, Judgment]:
        """Return positions, inputs and labels of the next samples, and what the filter finds."""
        positions = list(range(self._read, self._read + len(samples)))
        if self._spec is None:
            self._spec = self._detected(samples[0])
        given, carried = self._spec.split(samples, positions)
        labels = as_labels(carried, positions)
        inputs = stack_inputs(given, positions)
        found = self._stream.stream_filter.judge(inputs, labels, indices=torch.tensor(positions))
        return positions, inputs, labels, found

    def _decide(self, samples: list[Any]) -> Judgment:
        """Judge a new block, write what is suspicious, and count it. Only a first pass is evidence of a drift."""
        positions, inputs, labels, found = self._judge(samples)
        self._row[PASSES] += self._read == 0
        removed, judged = int(found.suspicious.sum()), int(found.judged.sum())
        self._write(samples, positions, inputs, labels, found.scores, found.suspicious)
        self._row[[READ, JUDGED, REMOVED, UNJUDGED]] += torch.tensor(
            [len(samples), judged, removed, len(samples) - judged], dtype=torch.float64
        )
        if self._row[PASSES] == 1:
            drift = self._drift.update(removed, judged)
            self._row[DRIFT:] = torch.tensor(self._drift.state(), dtype=torch.float64)
            if drift is not None and self._stream.warn:
                warnings.warn(drift_message(self._name(), [drift]), stacklevel=4)
        self._check_share()
        return found

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
        directory, run = self._stream.directory, self._stream.run
        return None if directory is None else PartWriter(directory, run, self._stream.place[0], self._worker)

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
        number = self._row[PASSES] + 1
        self._row[[PASSES, EMPTY]] = number
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
                if _is_stateful(value):
                    return owner, copy.deepcopy(value.state_dict())
        return None, None

    def state_dict(self) -> dict[str, Any]:
        """See `SanitizedStream.state_dict`."""
        if self._source is None and self._resumed is not None:
            return dict(self._resumed)
        return {
            "version": _STATE_VERSION,
            "inner": self._inner,
            "read": self._read - self._length,
            "block": self._length,
            "taken": self._taken,
            "row": self._row.tolist(),
            "run": self._stream.run,
        }


def check_state(state: Any) -> dict[str, Any]:
    """Return a copy of the state of a stream.

    Raises:
        ValueError: If it is no state of this version.
    """
    what = f"what `state_dict` of a stream returned, of version {_STATE_VERSION}"
    if not isinstance(state, Mapping):
        raise ValueError(expected("state_dict", what, printable(type(state).__name__)))
    if state.get("version") != _STATE_VERSION:
        found = printable(repr(state.get("version")))
        raise ValueError(expected("state_dict", what, f"one of the version {found}"))
    for name, is_valid in _FIELDS.items():
        if not is_valid(state.get(name)):
            found = printable(repr(state[name])) if name in state else "nothing"
            raise ValueError(expected("state_dict", what, f"one with {found} for {name!r}"))
    return dict(state)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_row(value: Any) -> bool:
    return isinstance(value, list) and len(value) == COLUMNS and all(isinstance(each, int | float) for each in value)


def _is_inner(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and value[0] in (None, "dataset", "iterator")


_FIELDS: dict[str, Callable[[Any], bool]] = {
    "inner": _is_inner,
    "read": _is_count,
    "block": _is_count,
    "taken": _is_count,
    "row": _is_row,
    "run": lambda value: isinstance(value, str),
}
"""Fields of a state, and whether a value is valid."""


def _is_stateful(value: Any) -> bool:
    """Whether an object has a state that is taken without arguments, unlike that of litdata's streams."""
    take, restore = getattr(value, "state_dict", None), getattr(value, "load_state_dict", None)
    if not callable(take) or not callable(restore):
        return False
    try:
        inspect.signature(take).bind()
    except (TypeError, ValueError):
        return False
    return True
