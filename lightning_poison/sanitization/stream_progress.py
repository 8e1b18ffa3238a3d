"""What the workers of a stream have judged: the table that they share with the main process, and its summary."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_poison.statistics.intervals import wilson_interval
from lightning_poison.statistics.share_drift import STATE_SIZE, Drift, ShareDrift

PASSES, READ, JUDGED, REMOVED, UNJUDGED, EMPTY, DRIFT = range(7)
"""Columns of the table: number of the pass, counts over all passes, and the last pass that ended without a sample.

The state of the worker's `ShareDrift` begins at the last one.
"""


def new_table(workers: int) -> Tensor:
    """Return a table of zeros in shared memory, with a row for each worker, float64 `(workers, columns)`."""
    table = torch.zeros(workers, DRIFT + STATE_SIZE, dtype=torch.float64)
    table.share_memory_()  # type: ignore[no-untyped-call]
    return table


@dataclass(frozen=True)
class StreamProgress:
    """What has been judged so far on this rank, by all of its workers, which are ahead of the training.

    Args:
        read: Samples that were read, in all epochs.
        judged: Samples that were judged.
        removed: Samples that were suspicious.
        unjudged: Samples that were kept without a judgment: without a label, or with one that has no threshold.
        low: Lower end of the 95 % interval of the removed share, in [0, 1].
        high: Its upper end.
        alarms: Number of alarms.
        drifts: The last alarm of each worker whose share has changed and is not as calibrated again.
    """

    read: int
    judged: int
    removed: int
    unjudged: int
    low: float
    high: float
    alarms: int
    drifts: tuple[Drift, ...]

    @classmethod
    def of(cls, table: Tensor, detectors: Sequence[ShareDrift]) -> "StreamProgress":
        """Return the progress in the table of a stream, with the detectors of the workers that have read."""
        read, judged, removed, unjudged = (int(table[:, each].sum()) for each in (READ, JUDGED, REMOVED, UNJUDGED))
        low, high = 0.0, 1.0
        if judged:
            count = torch.tensor([float(removed)], dtype=torch.float64)
            low, high = (float(end) / judged for end in wilson_interval(count, torch.zeros_like(count), judged))
        drifts = tuple(each.last for each in detectors if each.is_drifting and each.last is not None)
        return cls(read, judged, removed, unjudged, low, high, sum(each.alarms for each in detectors), drifts)

    @property
    def share(self) -> float:
        """Removed share of the judged samples, in [0, 1]; 0 if there are none."""
        return self.removed / self.judged if self.judged else 0.0

    def __str__(self) -> str:
        text = f"{self.judged:,} samples judged, {self.removed:,} suspicious ({100 * self.share:.2f} %, "
        text += f"{100 * self.low:.2f} to {100 * self.high:.2f} %, 95 % interval)"
        if self.unjudged:
            text += f"; {self.unjudged:,} not judged: no label, or one that the filter was not calibrated for"
        return "\n".join([text, *(f"drift: {each}" for each in self.drifts)])


def drift_message(name: str, drifts: list[Drift]) -> str:
    """Return a warning about a drift: the change, and what it may mean.

    Args:
        name: Name of the stream.
        drifts: Changes that workers have found, at least one.
    """
    others = f"\n{len(drifts) - 1} more workers have found a change." if len(drifts) > 1 else ""
    if drifts[0].is_back:
        return f"In {name}, {drifts[0]}.{others}"
    return (
        f"In {name}, {drifts[0]}.{others}\nEither the stream contains more or less poison than before, or its samples "
        "differ from those that the filter was calibrated on. Look at what is removed; if it is clean, calibrate a new "
        "filter on recent samples."
    )
