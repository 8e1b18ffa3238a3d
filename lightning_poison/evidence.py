"""`Evidence`: what was found out about the question whether there is poison at all."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from lightning_poison.functional.contamination import SuspectPair
from lightning_poison.functional.group_effects import SuspectGroup


@dataclass(frozen=True)
class Evidence:
    """Is there poison at all?

    Args:
        present: whether the lower end of the interval lies above the natural error rate; or, where the data were judged
            group by group, whether a group is taken for poison.
        contamination: the estimated share of the data set that is poison, in [0, 1].
        low: the lower end of its interval.
        high: its upper end.
        confidence: how often such an interval covers the truth.
        natural_error_rate: the share of odd samples that a curated data set has itself.
        pairs: the pairs of classes that stand out, most poison first.
        groups: the groups of samples that stand apart from their class, largest first.

    Example:
        >>> print(Evidence(True, 0.021, 0.015, 0.03, confidence=0.95, natural_error_rate=0.003))
        evidence of poison: an estimated 2.10 % of the samples (1.50 to 3.00 %, 95 % interval;
        natural error rate 0.30 %)
    """

    present: bool
    contamination: float
    low: float
    high: float
    confidence: float
    natural_error_rate: float
    pairs: tuple[SuspectPair, ...] = ()
    groups: tuple[SuspectGroup, ...] = ()

    def __str__(self) -> str:
        found = "evidence of poison" if self.present else "no evidence of poison"
        interval = f"{100 * self.low:.2f} to {100 * self.high:.2f} %, {100 * self.confidence:.0f} % interval"
        natural = f"natural error rate {100 * self.natural_error_rate:.2f} %"
        return f"{found}: an estimated {100 * self.contamination:.2f} % of the samples ({interval}; {natural})"

    def meta(self) -> dict[str, Any]:
        """Return it as JSON can hold it; what `from_meta` takes."""
        pairs, groups = ([dict(vars(each)) for each in several] for several in (self.pairs, self.groups))
        return {**vars(self), "pairs": pairs, "groups": groups}

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Self:
        """Build it from what `meta` returned."""
        pairs = tuple(SuspectPair(**pair) for pair in meta["pairs"])
        groups = tuple(SuspectGroup(**group) for group in meta.get("groups", ()))
        return cls(**{**meta, "pairs": pairs, "groups": groups})
