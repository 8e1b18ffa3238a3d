"""`Evidence`: whether there is poison in a data set, and how much."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Self, get_args

from lightning_poison.checks import (
    boolean,
    expected,
    fraction,
    from_json,
    instance,
    not_negative,
    one_of,
    positive_int,
    printable,
    share,
)
from lightning_poison.statistics.contamination import SuspectPair
from lightning_poison.statistics.group_effects import SuspectGroup

EvidenceKind = Literal["wrong labels", "groups", "unlike trusted data", "several kinds"]
"""What a decision looked for."""

Conclusion = Literal["evidence", "uncertain", "hardly detectable", "no evidence"]
"""What may be concluded; see `Evidence.conclusion`."""


@dataclass(frozen=True)
class Evidence:
    """Whether there is poison, and how much.

    Args:
        present: Whether the lower end of the interval is above the natural error rate, or, if the data were judged by
            groups, whether a group is poison.
        contamination: Estimated share of the data set that is poison, in [0, 1].
        low: Lower end of the interval around it.
        high: Upper end of the interval.
        confidence: Nominal coverage of the interval.
        natural_error_rate: Share of wrong labels that does not count as evidence.
        pairs: Pairs of classes with many wrong labels, most first.
        groups: Groups of samples that are separated from their class, largest first.
        kind: What was looked for, and is counted in `contamination`: wrong labels, members of groups, or samples unlike
            the trusted data. Of the last, `contamination` is a lower bound, since some poison is like trusted data.
            Default: `"wrong labels"`.
        power: Estimated share of wrong labels that would be removed, in [0, 1], if labels of random samples were
            replaced by random ones; `None` if it is unknown. Default: `None`.
        planted: Share of the labels that is replaced for it, in (0, 1). Of a smaller one, less may be removed. Default:
            0.05.

    Raises:
        ValueError: If a value is out of its range, or `contamination` is outside its interval.

    Example:
        >>> print(Evidence(True, 0.021, 0.015, 0.03, confidence=0.95, natural_error_rate=0.003, power=0.6))
        evidence of poison: an estimated 2.10 % of the labels are wrong (1.50 to 3.00 %, 95 % interval;
        natural error rate 0.30 %); of 5 % random wrong labels, 60 % would be removed
    """

    present: bool
    contamination: float
    low: float
    high: float
    confidence: float
    natural_error_rate: float
    pairs: tuple[SuspectPair, ...] = ()
    groups: tuple[SuspectGroup, ...] = ()
    kind: EvidenceKind = "wrong labels"
    power: float | None = None
    planted: float = 0.05

    def __post_init__(self) -> None:
        object.__setattr__(self, "present", boolean("present", self.present))
        for name in ("contamination", "low", "high", "natural_error_rate"):
            object.__setattr__(self, name, share(name, getattr(self, name)))
        object.__setattr__(self, "confidence", fraction("confidence", self.confidence))
        if not self.low - _ROUNDING <= self.contamination <= self.high + _ROUNDING:
            what = f"between `low` and `high`, {self.low:g} and {self.high:g}"
            raise ValueError(expected("contamination", what, self.contamination))
        one_of("kind", self.kind, get_args(EvidenceKind))
        if self.power is not None:
            object.__setattr__(self, "power", share("power", self.power))
        object.__setattr__(self, "planted", fraction("planted", self.planted))
        for number, pair in enumerate(instance("pairs", self.pairs, tuple)):
            _check_pair(f"pairs[{number}]", pair)
        for number, group in enumerate(instance("groups", self.groups, tuple)):
            _check_group(f"groups[{number}]", group)

    @property
    def conclusion(self) -> Conclusion:
        """What may be concluded: a report, a summary and a log all say it in the words of `headline_of`.

        `"evidence"` if `present`; `"hardly detectable"` if fewer than 20 % of random wrong labels would be removed;
        `"uncertain"` if more wrong labels are estimated than the natural error rate, and surely more than none, but
        not surely more than the natural error rate; otherwise `"no evidence"`.
        """
        if self.present:
            return "evidence"
        if self.power is not None and self.power < _LITTLE_POWER:
            return "hardly detectable"
        is_more = self.low > 0 and self.contamination > self.natural_error_rate
        return "uncertain" if self.kind == "wrong labels" and is_more else "no evidence"

    @property
    def estimate(self) -> str:
        """How much is estimated, in words, with its interval."""
        if self.kind == "groups" and not self.contamination:
            return "no group of samples affects how others are classified"
        wording = _WORDING[self.kind]
        interval = f"{100 * self.low:.2f} to {100 * self.high:.2f} %, {100 * self.confidence:.0f} % interval"
        natural = f"; natural error rate {100 * self.natural_error_rate:.2f} %" if self.kind != "groups" else ""
        power = "" if self.power is None else f"; of {self.planting}, {100 * self.power:.0f} % would be removed"
        return f"{wording.estimate} {100 * self.contamination:.2f} % {wording.of} ({interval}{natural}){power}"

    @property
    def planting(self) -> str:
        """What `power` is stated for, in words."""
        return f"{100 * self.planted:.0f} % random wrong labels"

    def __str__(self) -> str:
        return f"{headline_of(self.conclusion, self.kind)}: {self.estimate}"

    def details(self, class_names: Sequence[str] | None = None, rows: int = 5) -> list[str]:
        """Return a line for each of the first pairs of classes and of the first groups.

        Args:
            class_names: Names of the classes, untrusted. Default: their numbers.
            rows: Largest number of pairs, and of groups. Default: 5.
        """
        lines = []
        for pair in self.pairs[:rows]:
            names = [_class_name(index, class_names) for index in (pair.labeled, pair.predicted)]
            lines.append(
                f"  labeled {names[0]}, looks like {names[1]}: about {pair.estimate:.0f} samples "
                f"({pair.low:.0f} to {pair.high:.0f})"
            )
        if (hidden := len(self.pairs) - rows) > 0:
            lines.append(f"  and {hidden} more pairs of classes")
        lines += [f"  {each.describe(_class_name(each.label, class_names))}" for each in self.groups[:rows]]
        if (hidden := len(self.groups) - rows) > 0:
            lines.append(f"  and {hidden} more groups")
        return lines

    def meta(self) -> dict[str, Any]:
        """Return the evidence as JSON values, for `from_meta`."""
        pairs, groups = ([dict(vars(each)) for each in several] for several in (self.pairs, self.groups))
        return {**vars(self), "pairs": pairs, "groups": groups}

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Self:
        """Build the evidence from what `meta` returned.

        Raises:
            ValueError: If a value is missing, unknown, or invalid.
        """
        parts: dict[str, Any] = dict(instance("evidence", meta, Mapping))
        kinds: dict[str, type[Any]] = {"pairs": SuspectPair, "groups": SuspectGroup}
        for name, kind in kinds.items():
            listed = enumerate(instance(name, parts.get(name, []), list))
            parts[name] = tuple(from_json(kind, each, f"{name}[{number}]") for number, each in listed)
        return from_json(cls, parts, "evidence")


def headline_of(conclusion: Conclusion, kind: EvidenceKind) -> str:
    """Return what was concluded about what was looked for, in words.

    Example:
        >>> headline_of("uncertain", "wrong labels")
        'no clear evidence of poison, but some labels may be wrong'
        >>> headline_of("no evidence", "groups")
        'no evidence of a backdoor'
    """
    absent = _WORDING[kind].absent
    return {
        "evidence": "evidence of poison",
        "uncertain": "no clear evidence of poison, but some labels may be wrong",
        "hardly detectable": f"{absent} can hardly be found here",
        "no evidence": f"no evidence of {absent}",
    }[conclusion]


class _Wording(NamedTuple):
    absent: str
    estimate: str
    of: str


_WORDING: dict[EvidenceKind, _Wording] = {
    "wrong labels": _Wording("wrong labels", "an estimated", "of the labels are wrong"),
    "groups": _Wording(
        "a backdoor", "an estimated", "of the samples are in groups that affect how others are classified"
    ),
    "unlike trusted data": _Wording("poison", "at least an estimated", "of the samples are unlike the trusted data"),
    "several kinds": _Wording("poison", "an estimated", "of the samples"),
}

_LITTLE_POWER = 0.2
"""Power below which the absence of evidence says little."""

_ROUNDING = 1e-6
"""How far an estimate may be outside its interval."""


def _class_name(index: int, names: Sequence[str] | None) -> str:
    return printable(names[index], limit=40) if names is not None and index < len(names) else str(index)


def _check_pair(name: str, pair: Any) -> None:
    instance(name, pair, SuspectPair)
    for each in ("labeled", "predicted", "count"):
        positive_int(f"{name}.{each}", getattr(pair, each), minimum=0)
    for each in ("estimate", "low", "high"):
        not_negative(f"{name}.{each}", getattr(pair, each))
    share(f"{name}.p_value", pair.p_value)


def _check_group(name: str, group: Any) -> None:
    instance(name, group, SuspectGroup)
    for each in ("label", "size"):
        positive_int(f"{name}.{each}", getattr(group, each), minimum=0)
    not_negative(f"{name}.separation", group.separation)
    share(f"{name}.transfer", group.transfer)
    share(f"{name}.resemblance", group.resemblance)
    boolean(f"{name}.is_poison", group.is_poison)
    not_negative(f"{name}.rest_margin", group.rest_margin)
    share(f"{name}.pattern", group.pattern)
