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

COLUMNS = DRIFT + STATE_SIZE
"""Number of columns."""

MAX_WORKERS = 256
"""Largest number of worker processes of a rank."""


def new_table(workers: int) -> Tensor:
    """Return a table of zeros in shared memory, with a row for each worker, float64 `(workers, columns)`."""
    table = torch.zeros(workers, COLUMNS, dtype=torch.float64)
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
        low: Lower end of the 95 % interval of the removed share, in [0, 1]. Samples of later epochs do not narrow it,
            since they may be those of the first.
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
            size = int(distinct_samples(judged, sum(each.judged for each in detectors)))
            count = torch.tensor([removed / judged * size], dtype=torch.float64)
            low, high = (float(end) / size for end in wilson_interval(count, torch.zeros_like(count), size))
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


def distinct_samples(judged: int, first: int) -> float:
    """Return the number of independent samples with which a share over several passes is known as well.

    If the passes repeat the same n samples, and the last one may be incomplete, some samples count k times and others
    k + 1 times. Their mean is as precise as that of `(sum w)^2 / sum w^2` samples with weights w (Kish, *Survey
    Sampling*, 1965).

    Args:
        judged: Samples judged in all passes, at least 1.
        first: Samples n judged in the first pass. If 0, nothing is known of repetitions, and 1 is returned.

    Returns:
        Number in [1, n].

    Example:
        >>> distinct_samples(100, 100), distinct_samples(300, 100), distinct_samples(150, 100)
        (100.0, 100.0, 90.0)
    """
    if not first:
        return 1.0
    whole, more = divmod(judged, first)
    return max(1.0, judged**2 / (first * whole**2 + more * (2 * whole + 1)))


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
