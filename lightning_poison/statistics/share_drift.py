"""An alarm when the share of removed samples in an endless stream changes, valid at all times.

Notation: k of n samples were removed so far, θ is an odds ratio, δ the chance of a false alarm.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import islice
from typing import Literal, NamedTuple, Self

import torch

from lightning_poison.statistics.arguments import check_fraction, invalid
from lightning_poison.statistics.intervals import wilson_interval

_TILTS = (1.5, 2.0, 4.0, 8.0, 16.0, 64.0, 1 / 1.5, 1 / 2, 1 / 4, 1 / 16)
"""Odds ratios of the changes that are looked for; changes between them are found nearly as fast."""

_HALVINGS = 50
"""Steps of the bisection for an end of a confidence interval."""


@dataclass(frozen=True)
class ReferenceCounts:
    """Samples on which a share is known, and how many of them would be removed.

    Args:
        judged: Number of samples, at least 0.
        fewest: Removed samples, at least; a rising share is compared with `most`, a falling one with this.
        most: Removed samples, at most. The two differ if a threshold is estimated from the samples themselves.
    """

    judged: int
    fewest: float
    most: float

    def __post_init__(self) -> None:
        if not 0 <= self.fewest <= self.most <= self.judged:
            raise invalid("fewest", "at most `most`, which is at most `judged`", f"{self}")

    @property
    def share(self) -> float:
        """The removed share at most, in [0, 1]; 0 without samples."""
        return self.most / self.judged if self.judged else 0.0


@dataclass(frozen=True)
class Drift:
    """A change of the removed share.

    Args:
        direction: `"rose"` or `"fell"`, compared with the samples before.
        at: Number of judged samples in the stream at the alarm.
        since: Number of judged samples in the stream at which the change probably began.
        share: Removed share since then, in [0, 1].
        low: Lower end of its 95 % interval.
        high: Upper end of its 95 % interval.
        before: Removed share before, calibration included.
        is_back: Whether the interval contains the calibrated share: the stream is as calibrated again.
    """

    direction: Literal["rose", "fell"]
    at: int
    since: int
    share: float
    low: float
    high: float
    before: float
    is_back: bool

    def __str__(self) -> str:
        text = (
            f"since about judged sample {self.since:,}, {100 * self.share:.2f} % of the samples are suspicious "
            f"({100 * self.low:.2f} to {100 * self.high:.2f} %, 95 % interval); before, {100 * self.before:.2f} % were"
        )
        return f"{text}, so the share is as calibrated again" if self.is_back else text


class _Start(NamedTuple):
    """Where a change probably began, and what came before and since.

    Args:
        began: Number of judged samples in the stream.
        most: Removed samples before, at most.
        known: Judged samples before, those of the reference included.
        removed: Removed samples since.
        judged: Judged samples since.
    """

    began: int = 0
    most: float = 0.0
    known: int = 0
    removed: int = 0
    judged: int = 0

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Return the start that the fields are, as they are in a state."""
        began, most, known, removed, judged = values
        return cls(int(began), most, int(known), int(removed), int(judged))


def confidence_bounds(removed: float, judged: int, *, alpha: float) -> tuple[float, float]:
    """Compute bounds of a share that hold at all numbers of samples at once.

    The prior-posterior-ratio confidence sequence (Waudby-Smith and Ramdas, *Confidence sequences for sampling without
    replacement*, NeurIPS 2020, arXiv:2006.04347) with a uniform prior: the shares whose posterior density exceeds
    `alpha`. For samples with a constant share, the chance that it is ever outside is at most `alpha`.

    Args:
        removed: Number of removed samples k, in [0, n]; may be fractional.
        judged: Number of samples n, at least 0.
        alpha: Chance in (0, 1) that the bounds ever miss the share.

    Returns:
        Lower and upper bound in [0, 1].

    Example:
        >>> [round(bound, 4) for bound in confidence_bounds(50, 5000, alpha=0.001)]
        [0.0045, 0.0188]
        >>> confidence_bounds(0, 0, alpha=0.001)
        (0.0, 1.0)
    """
    check_fraction("alpha", alpha)
    kept = judged - removed
    if not judged:
        return 0.0, 1.0
    constant = math.lgamma(judged + 2) - math.lgamma(removed + 1) - math.lgamma(kept + 1) - math.log(alpha)

    def is_inside(share: float) -> bool:
        terms = (removed * math.log(share) if removed else 0.0) + (kept * math.log1p(-share) if kept else 0.0)
        return terms + constant > 0

    def end(inside: float, outside: float) -> float:
        for _ in range(_HALVINGS):
            middle = (inside + outside) / 2
            inside, outside = (middle, outside) if is_inside(middle) else (inside, middle)
        return outside

    mode = removed / judged
    return end(mode, 0.0) if removed else 0.0, end(mode, 1.0) if kept else 1.0


class ShareDrift:
    """Detects that the share of removed samples in a stream rises or falls, looking after every block of samples.

    The null hypothesis is one constant share in the reference and in all of the stream. It is known only within the
    `confidence_bounds` of the earlier samples, with α = δ / 2, which hold at all times at once, so that the narrowest
    count and samples after a change do not widen them. For a share of at most r, `θ^k / (1 − r + θ r)^n` has an
    expectation of at most 1 for every θ > 1, and for a share of at least r for every θ < 1. So, with r the upper or
    lower bound, the product over the blocks from any start is an e-process. Those of all starts are mixed with weights
    `1 / (t (t + 1))`, and those of several θ equally, in the manner of Shiryaev and Roberts (Shin, Ramdas and Rinaldo,
    *E-detectors: A nonparametric framework for sequential change detection*, NEJSDS 2024, arXiv:2203.03532, which
    bounds the average run length instead). By Ville's inequality, the chance that the mixture ever reaches `2 / δ` is
    at most δ / 2. Together, the chance of an alarm, in a stream of any length with a constant share, is at most δ.

    Samples must be independent, so a finite stream that is read several times may only be counted once.

    After an alarm, samples are compared with those since the alarm, and with the reference again once the share is as
    calibrated. So every change gives one alarm, and the bound of δ holds for the time until the next change as well.

    Args:
        reference: Samples before the stream. The fewer there are, the larger a change must be to be noticed.
        false_alarm_rate: δ in (0, 1). Default: 0.001.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> drift = ShareDrift(ReferenceCounts(5000, 50, 50))
        >>> [drift.update(1, 100) for _ in range(20)] == [None] * 20
        True
        >>> alarms = [drift.update(6, 100) for _ in range(20)]
        >>> print(next(alarm for alarm in alarms if alarm))
        since about judged sample 2,000, 6.00 % of the samples are suspicious (4.23 to 8.44 %, 95 % interval); before,
        1.00 % were
    """

    def __init__(self, reference: ReferenceCounts, *, false_alarm_rate: float = 0.001) -> None:
        check_fraction("false_alarm_rate", false_alarm_rate)
        self.reference = reference
        self.false_alarm_rate = false_alarm_rate
        self.judged = 0
        """Number of judged samples in the stream."""
        self.alarms = 0
        """Number of alarms."""
        self.last: Drift | None = None
        """The last alarm."""
        self._known, self._blocks = 0, 0
        self._fewest, self._most, self._low, self._high = 0.0, 0.0, 0.0, 1.0
        self._evidence: list[float] = []
        self._excess: list[float] = []
        self._since: list[_Start] = []
        self._restart(reference)

    @property
    def is_drifting(self) -> bool:
        """Whether the share has changed and is not as calibrated again."""
        return self.last is not None and not self.last.is_back

    def update(self, removed: int, judged: int) -> Drift | None:
        """Take the next block of samples into account; return an alarm, or `None`.

        Args:
            removed: Removed samples in the block, in `[0, judged]`.
            judged: Samples in the block, at least 0.
        """
        if not 0 <= removed <= judged:
            raise invalid("removed", f"in [0, {judged}]", removed)
        if not judged:
            return None
        self._blocks += 1
        low, high = self._narrowed_bounds()
        start = -math.log(self._blocks * (self._blocks + 1))
        for number, tilt in enumerate(_TILTS):
            bound = high if tilt > 1 else low
            gain = removed * math.log(tilt) - judged * math.log1p((tilt - 1) * bound)
            self._evidence[number] = _log_add(self._evidence[number], start) + gain
            if self._excess[number] <= 0:
                self._excess[number], self._since[number] = 0.0, _Start(self.judged, self._most, self._known)
            since = self._since[number]
            self._since[number] = since._replace(removed=since.removed + removed, judged=since.judged + judged)
            self._excess[number] += gain
        self.judged += judged
        self._known, self._fewest, self._most = self._known + judged, self._fewest + removed, self._most + removed
        total = math.log(sum(math.exp(min(700.0, each)) for each in self._evidence) / len(_TILTS) or 5e-324)
        return self._alarm() if total >= math.log(2 / self.false_alarm_rate) else None

    def _narrowed_bounds(self) -> tuple[float, float]:
        """Return the highest lower bound and the lowest upper bound so far, which hold together."""
        alpha = self.false_alarm_rate / 2
        self._low = max(self._low, confidence_bounds(self._fewest, self._known, alpha=alpha)[0])
        self._high = min(self._high, confidence_bounds(self._most, self._known, alpha=alpha)[1])
        return self._low, self._high

    def _alarm(self) -> Drift:
        number = max(range(len(_TILTS)), key=self._evidence.__getitem__)
        since = self._since[number]
        counts = torch.tensor([since.removed, 0.0], dtype=torch.float64)
        ends = wilson_interval(counts, torch.zeros_like(counts), since.judged)
        low, high = (float(end[0]) / since.judged for end in ends)
        direction: Literal["rose", "fell"] = "rose" if _TILTS[number] > 1 else "fell"
        before = since.most / since.known if since.known else 0.0
        is_back = self.is_drifting and low <= self.reference.share <= high
        self.last = Drift(
            direction,
            at=self.judged,
            since=since.began,
            share=since.removed / since.judged,
            low=low,
            high=high,
            before=before,
            is_back=is_back,
        )
        self.alarms += 1
        self._restart(self.reference if is_back else ReferenceCounts(0, 0, 0))
        return self.last

    def _restart(self, known: ReferenceCounts) -> None:
        self._known, self._fewest, self._most, self._blocks = known.judged, known.fewest, known.most, 0
        self._low, self._high = 0.0, 1.0
        self._evidence = [-math.inf] * len(_TILTS)
        self._excess = [0.0] * len(_TILTS)
        self._since = [_Start()] * len(_TILTS)

    def state(self) -> list[float]:
        """Return the state as numbers, always equally many, for `load`."""
        last = self.last
        event = [getattr(last, name) if last else 0 for name in _EVENT]
        sign = 0 if last is None else 1 if last.direction == "rose" else -1
        own = [
            self.judged,
            self.alarms,
            self._known,
            self._fewest,
            self._most,
            self._blocks,
            self._low,
            self._high,
            sign,
        ]
        since = [value for each in self._since for value in each]
        return [float(value) for value in (*own, *event, *self._evidence, *self._excess, *since)]

    def load(self, state: list[float]) -> None:
        """Restore what `state` of a detector with the same reference returned.

        Raises:
            ValueError: If there are more or fewer numbers.
        """
        if len(state) != STATE_SIZE:
            raise invalid("state", f"{STATE_SIZE} numbers", len(state))
        numbers = iter(state)
        self.judged, self.alarms, self._known = (int(value) for value in islice(numbers, 3))
        self._fewest, self._most = islice(numbers, 2)
        self._blocks = int(next(numbers))
        self._low, self._high, sign = islice(numbers, 3)
        event = dict(zip(_EVENT, islice(numbers, len(_EVENT)), strict=True))
        last = Drift(
            "rose" if sign > 0 else "fell",
            at=int(event.pop("at")),
            since=int(event.pop("since")),
            is_back=bool(event.pop("is_back")),
            **event,
        )
        self.last = last if sign else None
        self._evidence, self._excess = (list(islice(numbers, len(_TILTS))) for _ in range(2))
        self._since = [_Start.of(list(islice(numbers, len(_Start._fields)))) for _ in _TILTS]


_EVENT = tuple(each.name for each in fields(Drift) if each.name != "direction")
"""Fields of the last alarm in the order of the state, in which its direction is a sign."""

_COUNTERS = 9
"""Numbers in the state before those of the last alarm."""

STATE_SIZE = _COUNTERS + len(_EVENT) + (2 + len(_Start._fields)) * len(_TILTS)
"""Length of the state of a `ShareDrift`."""


def _log_add(first: float, second: float) -> float:
    high, low = max(first, second), min(first, second)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))
