"""`ScoreSummary`: how the scores of a defense rank poison, in a few numbers. Needs no torch."""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from lightning_poison.checks import describe, expected, printable

FALSE_POSITIVE_RATES = tuple(10 ** (step / 10 - 4) for step in range(41))
"""False-positive rates at which ROC curves are stored: 41, from 0.01 % to 100 %, ten for each decade."""

BINS = 40
"""Number of bins of the histograms."""

_TAIL = 0.05
"""Share of the clean scores at either end that may be outside of the range of the bins."""


@dataclass(frozen=True)
class ScoreSummary:
    """ROC curve and histograms of the scores of a defense on one poisoned data set.

    It is computed by the evaluator, who knows the ground truth; the defense does not see it.

    Args:
        auroc: Area under the ROC curve with poison as the positive class, in [0, 1].
        true_positive_rates: Largest true-positive rate at a false-positive rate of at most each of
            `FALSE_POSITIVE_RATES`, in [0, 1].
        low: Score at which the first bin of the histograms begins.
        high: Score at which the last one ends. The first and the last bin contain all scores beyond.
        clean: Number of clean samples in each of `BINS` bins of equal width.
        poison: The same of the poison.
    """

    auroc: float
    true_positive_rates: tuple[float, ...]
    low: float
    high: float
    clean: tuple[int, ...]
    poison: tuple[int, ...]

    @classmethod
    def of(
        cls, suspicion: Sequence[float], scores: Sequence[float], is_poison: Sequence[bool], is_clean: Sequence[bool]
    ) -> Self | None:
        """Summarize scores by the ground truth; `None` if no poison or no clean sample has one.

        Args:
            suspicion: What samples are ranked by, for the ROC curve; larger is more suspicious. Samples for which it is
                not finite are left out, as those that were not judged.
            scores: Scores of which the histograms are made.
            is_poison: Which samples are poison.
            is_clean: Which samples are clean. Others, such as cover, are left out.

        Example:
            >>> suspicion = [0.1, 0.4, 0.3, 0.9]
            >>> poison, clean = [False, False, True, True], [True, True, False, False]
            >>> summary = ScoreSummary.of(suspicion, suspicion, poison, clean)
            >>> summary.auroc, summary.true_positive_rates[0], sum(summary.clean), sum(summary.poison)
            (0.75, 0.5, 2, 2)
        """
        rows = [
            row
            for row in zip(suspicion, scores, is_poison, is_clean, strict=True)
            if math.isfinite(row[0]) and math.isfinite(row[1])
        ]
        poison = sorted(row[0] for row in rows if row[2])
        clean = sorted(row[0] for row in rows if row[3])
        if not poison or not clean:
            return None
        above = sum(bisect_left(clean, value) + bisect_right(clean, value) for value in poison) / 2
        low, high = _range_of(sorted(row[1] for row in rows if row[2] or row[3]))
        return cls(
            above / (len(poison) * len(clean)),
            tuple(_true_positive_rate(poison, clean, rate) for rate in FALSE_POSITIVE_RATES),
            low,
            high,
            _counts([row[1] for row in rows if row[3]], low, high),
            _counts([row[1] for row in rows if row[2]], low, high),
        )

    def to_json(self) -> dict[str, Any]:
        """Return JSON values, with shares of six digits."""
        shares = [round(rate, 6) for rate in self.true_positive_rates]
        return asdict(self) | {
            "true_positive_rates": shares,
            "clean": list(self.clean),
            "poison": list(self.poison),
        }

    @classmethod
    def from_json(cls, values: Any) -> Self:
        """Build a summary from its JSON values.

        Raises:
            ValueError: If a value is missing or not valid.
        """
        name = "`scores` of a cell"
        if not isinstance(values, Mapping):
            raise ValueError(expected(name, "a JSON object", printable(describe(values))))
        parts: dict[str, Any] = {key: values.get(key) for key in ("auroc", "low", "high")}
        if not all(_is_number(value) for value in parts.values()) or not parts["low"] < parts["high"]:
            raise ValueError(expected(name, "with numbers `auroc` and `low` < `high`", printable(parts)))
        lengths = {"true_positive_rates": len(FALSE_POSITIVE_RATES), "clean": BINS, "poison": BINS}
        for key, length in lengths.items():
            found = values.get(key)
            kind: Any = int | float if key == "true_positive_rates" else int
            if not isinstance(found, list) or len(found) != length:
                raise ValueError(expected(f"`{key}` in {name}", f"a list of {length}", printable(describe(found))))
            if not all(isinstance(each, kind) and _is_number(each) and each >= 0 for each in found):
                raise ValueError(expected(f"`{key}` in {name}", "of numbers of at least 0", printable(found)))
            parts[key] = tuple(found)
        return cls(**parts)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf


def _true_positive_rate(poison: Sequence[float], clean: Sequence[float], rate: float) -> float:
    """Return the share of the poison above the lowest threshold that few enough clean samples exceed."""
    allowed = int(rate * len(clean) * (1 + 1e-9))
    if allowed >= len(clean):
        return 1.0
    return 1 - bisect_right(poison, clean[-1 - allowed]) / len(poison)


def _range_of(ordered: Sequence[float]) -> tuple[float, float]:
    """Return the range of the bins: that of nearly all scores, and as much around it where there are more."""
    last = len(ordered) - 1
    smallest, low, high, largest = (ordered[round(last * share)] for share in (0, _TAIL, 1 - _TAIL, 1))
    if low == high:
        low, high = smallest, largest
    if low == high:
        return low - max(0.5, abs(low) / 2), low + max(0.5, abs(low) / 2)
    span = high - low
    return max(smallest, low - span), min(largest, high + span)


def _counts(scores: Sequence[float], low: float, high: float) -> tuple[int, ...]:
    counts = [0] * BINS
    width = high / BINS - low / BINS
    for score in scores:
        place = (score - low) / width if width > 0 else 0.0
        counts[int(min(max(place, 0.0), BINS - 1))] += 1
    return tuple(counts)
