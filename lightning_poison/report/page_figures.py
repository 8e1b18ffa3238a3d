"""Figures of the HTML report: counts of each class, and the histogram of the scores."""

from collections import Counter
from typing import NamedTuple

import numpy as np
import torch

from lightning_poison.report.frame import Frame
from lightning_poison.sanitization.reasons import finder_of
from lightning_poison.sanitization.verdict import Verdict

_BINS = 40
"""Number of bins of the histogram."""

_FRAME = Frame(640, 240, left=52, right=628, top=12, base=200)

_TAIL = 0.05
"""Share of scores at either end that may be outside of the range of the bins."""

_BY_HAND = "by hand"
"""What found the samples that only the user removed."""

_MAX_LINES = 12
"""Largest number of different thresholds that are drawn."""


class ClassRow(NamedTuple):
    """Counts of one class: its label (−1 for none), samples that were judged, those removed, and by what."""

    label: int
    samples: int
    removed: int
    finders: dict[str, int]


class Bin(NamedTuple):
    """A bin of the histogram: its range, its counts, and the geometry of its two bars."""

    low: float
    high: float
    kept: int
    removed: int
    x: float
    width: float
    kept_height: float
    removed_height: float


class Histogram(NamedTuple):
    """Histogram of the scores, with the geometry of its drawing.

    Args:
        bins: The bins. The first and the last one contain all scores beyond.
        count_ticks: Counts at the vertical axis, and where they are.
        score_ticks: Scores at the horizontal axis, and where they are.
        thresholds: Where finite thresholds are.
        frame: Size of the drawing, and its axes.
    """

    bins: list[Bin]
    count_ticks: list[tuple[int, float]]
    score_ticks: list[tuple[float, float]]
    thresholds: list[float]
    frame: Frame = _FRAME


def class_rows(verdict: Verdict) -> list[ClassRow]:
    """Count the samples of each class that were judged, and those that were removed, by scorer or by hand.

    A class that was not judged is listed if samples of it were removed by hand.

    Example:
        >>> from lightning_poison.sanitization.evidence import Evidence
        >>> scores, evidence = torch.tensor([0.2, 9.1, 0.4]).double(), Evidence(True, 0.3, 0.1, 0.8, 0.95, 0.003)
        >>> verdict = Verdict(
        ...     scores, torch.full((3,), 0.5).double(), scores <= 4, torch.tensor([0, 2, 2]), torch.zeros(3).long(),
        ...     torch.full((3,), 4.0).double(), evidence, "trusted", 0.01, scorer="likelihood", fingerprint="5f0c",
        ... )
        >>> [tuple(row) for row in class_rows(verdict)]
        [(0, 1, 0, {}), (2, 2, 1, {'likelihood': 1})]
    """
    judged = judged_of(verdict)
    samples = Counter(verdict.labels[judged].tolist())
    finders: dict[int, Counter[str]] = {label: Counter() for label in samples}
    is_suspicious = verdict.removed_by_rule
    for index in verdict.removed.tolist():
        finder = finder_of(verdict, index) if is_suspicious[index] else _BY_HAND
        finders.setdefault(int(verdict.labels[index]), Counter())[finder] += 1
    return [
        ClassRow(label, samples[label], finders[label].total(), dict(finders[label].most_common()))
        for label in sorted(finders, key=lambda label: (label < 0, label))
    ]


def judged_of(verdict: Verdict) -> torch.Tensor:
    """Return the boolean mask `(N,)` of the samples that were judged."""
    return torch.ones(len(verdict), dtype=torch.bool) if verdict.judged is None else verdict.judged


def histogram_of(verdict: Verdict) -> Histogram | None:
    """Return the histogram of the scores of the samples that were judged, or `None` if none was.

    Example:
        >>> from lightning_poison.sanitization.evidence import Evidence
        >>> scores, evidence = torch.tensor([0.2, 9.1, 0.4]).double(), Evidence(True, 0.3, 0.1, 0.8, 0.95, 0.003)
        >>> verdict = Verdict(
        ...     scores, torch.full((3,), 0.5).double(), scores <= 4, torch.arange(3), torch.zeros(3).long(),
        ...     torch.full((3,), 4.0).double(), evidence, "trusted", 0.01, scorer="likelihood", fingerprint="5f0c",
        ... )
        >>> drawn = histogram_of(verdict)
        >>> sum(each.kept for each in drawn.bins), sum(each.removed for each in drawn.bins), len(drawn.thresholds)
        (2, 1, 1)
    """
    judged = judged_of(verdict).numpy()
    if not judged.any():
        return None
    scores, keep = verdict.scores.numpy()[judged], verdict.keep.numpy()[judged]
    low, high = _range_of(scores)
    edges = _position(np.arange(_BINS + 1) / _BINS, low, high)
    counts = [_counts(scores[keep], low, high), _counts(scores[~keep], low, high)]
    scale = np.log1p(max(each.max() for each in counts))
    width = round((_FRAME.right - _FRAME.left) / _BINS / 2 - 0.5, 2)
    bins = [
        Bin(
            float(edges[place]),
            float(edges[place + 1]),
            int(kept),
            int(removed),
            _FRAME.x(place / _BINS),
            width,
            _FRAME.bar(np.log1p(kept) / scale),
            _FRAME.bar(np.log1p(removed) / scale),
        )
        for place, (kept, removed) in enumerate(zip(*counts, strict=True))
    ]
    powers = [0, *(10**power for power in range(16) if np.log1p(10**power) <= scale)]
    count_ticks = [(count, _FRAME.y(np.log1p(count) / scale)) for count in powers]
    score_ticks = [(float(edges[place]), _FRAME.x(place / _BINS)) for place in range(0, _BINS + 1, _BINS // 4)]
    shares = _share(np.array(finite_thresholds(verdict)[:_MAX_LINES]), low, high)
    return Histogram(bins, count_ticks, score_ticks, [_FRAME.x(share) for share in shares if 0 <= share <= 1])


def finite_thresholds(verdict: Verdict) -> list[float]:
    """Return the different finite score thresholds of the classes, ascending."""
    return sorted({float(each) for each in verdict.thresholds if each.isfinite()})


def _range_of(scores: np.ndarray) -> tuple[float, float]:
    """Return the range of the bins: that of nearly all scores, and as much around it where there are more."""
    smallest, low, high, largest = np.quantile(scores, [0, _TAIL, 1 - _TAIL, 1], method="nearest").tolist()
    if low == high:
        low, high = smallest, largest
    if low == high:
        return low - 0.5, high + 0.5
    span = high - low
    return max(smallest, low - span), min(largest, high + span)


def _share(scores: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return where scores are in a range, from 0 to 1 inside of it, without an overflow."""
    if not high / 2 - low / 2 > 0:  # scores so large that the range around a single one is empty
        return np.full(scores.shape, 0.5)
    return np.asarray((scores / 2 - low / 2) / (high / 2 - low / 2))


def _position(shares: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.asarray(low * (1 - shares) + high * shares)


def _counts(scores: np.ndarray, low: float, high: float) -> np.ndarray:
    numbers = np.floor(_share(scores, low, high) * _BINS).clip(0, _BINS - 1).astype(int)
    return np.bincount(numbers, minlength=_BINS)
