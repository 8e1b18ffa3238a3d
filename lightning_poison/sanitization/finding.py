"""`Finding`: what one member of a union looked for, and what it found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from lightning_poison.checks import expected, from_json, instance, positive_int, printable
from lightning_poison.sanitization.evidence import Evidence


@dataclass(frozen=True)
class Finding:
    """What one member of a union found, over all of its rounds.

    Args:
        scorer: Name of the member.
        removed: Number of samples that it removed.
        evidence: Whether it found poison, of which kind, and how much. `None` if it could not decide.
        failure: Why it could not decide, or empty.

    Raises:
        ValueError: If there is neither evidence nor a failure, or `removed` is negative.

    Example:
        >>> evidence = Evidence(True, 0.021, 0.015, 0.03, confidence=0.95, natural_error_rate=0.003)
        >>> print(Finding("confidence", 190, evidence))
        confidence removed 190: evidence of poison: an estimated 2.10 % of the labels are wrong (1.50 to 3.00 %,
        95 % interval; natural error rate 0.30 %)
    """

    scorer: str
    removed: int
    evidence: Evidence | None
    failure: str = ""

    def __post_init__(self) -> None:
        instance("scorer", self.scorer, str)
        instance("failure", self.failure, str)
        object.__setattr__(self, "removed", positive_int("removed", self.removed, minimum=0))
        if self.evidence is not None:
            instance("evidence", self.evidence, Evidence)
        elif not self.failure:
            raise ValueError(expected("failure", "a reason, since there is no evidence", repr(self.failure)))

    def __str__(self) -> str:
        name = printable(self.scorer, limit=80)
        if self.evidence is None:
            return f"{name} could not decide: {printable(self.failure, limit=800)}"
        return f"{name} removed {self.removed:,}: {self.evidence}"

    def lines(self, class_names: Sequence[str] | None, rows: int) -> list[str]:
        """Return the finding as lines of a list, with the details of its evidence; see `Evidence.details`."""
        return [f"- {self}", *(self.evidence.details(class_names, rows) if self.evidence else ())]

    def meta(self) -> dict[str, Any]:
        """Return the finding as JSON values, for `from_meta`."""
        return {**vars(self), "evidence": None if self.evidence is None else self.evidence.meta()}

    @classmethod
    def from_meta(cls, meta: Any) -> Self:
        """Build the finding from what `meta` returned.

        Raises:
            ValueError: If a value is missing, unknown, or invalid.
        """
        parts: dict[str, Any] = dict(instance("findings", meta, Mapping))
        if parts.get("evidence") is not None:
            parts["evidence"] = Evidence.from_meta(parts["evidence"])
        return from_json(cls, parts, "finding")
