"""Rows of a manifest."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning_poison.checks import expected, printable
from lightning_poison.manifest.cells import (
    COLUMNS,
    MAX_TEXT,
    VOTE_PREFIX,
    DecisionWord,
    check_value,
    shortened_text,
)
from lightning_poison.sanitization.reasons import finder_of, reason_of
from lightning_poison.sanitization.verdict import Verdict


@dataclass(frozen=True)
class ManifestRow:
    """Findings and decision for one suspicious sample.

    Args:
        sample_id: Position in the data set, from 0.
        label: Label of the sample; −1 without a label.
        suggested_label: Label under which the sample is least suspicious, or `None` if the scorer suggests none.
        label_name: Name of the class, or empty if unknown.
        suggested_name: Name of the suggested class, or empty if unknown.
        score: Suspicion score; larger is more suspicious.
        p_value: Share of clean samples with the same label that score at least as high, in [0, 1].
        posterior: Probability that the sample is poison, in [0, 1]; `None` with trusted data.
        score_threshold: Score threshold of its class; `None` if the threshold applies to the posterior.
        posterior_threshold: Posterior threshold; `None` with trusted data.
        decision: `"removed"`, `"flagged"` (suspicious, but kept in the training set), `"kept-by-hand"`, or
            `"removed-by-hand"`.
        content_hash: Digest of the content, from `lightning_poison.manifest.matching.content_hash`.
        fingerprint: First 16 digits of the verdict's fingerprint.
        reason: Why the sample is suspicious, in words. Contains class names, which are untrusted.
        found_by: Name of the scorer that removed the sample.
        path: File of the sample, or empty if the data set has no paths. Untrusted text.
        votes: p-value from each member of a combination, by name.

    Texts have at most 4,096 characters.

    Raises:
        ValueError: If a value is of another type or out of its range.
    """

    sample_id: int
    label: int
    suggested_label: int | None
    label_name: str
    suggested_name: str
    score: float
    p_value: float
    posterior: float | None
    score_threshold: float | None
    posterior_threshold: float | None
    decision: DecisionWord
    content_hash: str
    fingerprint: str
    reason: str = ""
    found_by: str = ""
    path: str = ""
    votes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in COLUMNS:
            check_value(name, getattr(self, name))
        for name, vote in self.votes.items():
            if not isinstance(name, str) or len(name) > MAX_TEXT or vote is None:
                raise ValueError(expected("votes", "p-values by names", f"{vote!r} by {printable(repr(name))}"))
            check_value(VOTE_PREFIX + name, vote)

    def __str__(self) -> str:
        parts = [f"labeled {_class(self.label, self.label_name)}"]
        if self.suggested_label is not None:
            parts.append(f"looks like {_class(self.suggested_label, self.suggested_name)}")
        parts.append(f"p = {self.p_value:.2g}")
        if self.found_by in self.votes:
            parts.append(f"found by {printable(self.found_by, limit=40)}")
        elif self.votes:
            lowest = min(self.votes, key=lambda name: self.votes[name])
            parts.append(f"lowest vote from {printable(lowest, limit=40)}")
        parts.append(self.decision)
        if self.path:
            parts.append(printable(self.path, limit=80))
        return f"sample {self.sample_id}: {', '.join(parts)}"


def row_values(verdict: Verdict, index: int, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a row that a verdict determines."""
    label, suggested = int(verdict.labels[index]), int(verdict.suggested_labels[index])
    threshold = float(verdict.thresholds[label]) if 0 <= label < len(verdict.thresholds) else math.inf
    return {
        "sample_id": index,
        "label": label,
        "suggested_label": suggested if suggested >= 0 else None,
        "label_name": _name(label, class_names),
        "suggested_name": _name(suggested, class_names),
        "score": float(verdict.scores[index]),
        "p_value": float(verdict.p_values[index]),
        "posterior": float(verdict.posterior[index]) if verdict.posterior is not None else None,
        "score_threshold": threshold if math.isfinite(threshold) else None,
        "posterior_threshold": verdict.posterior_threshold,
        "fingerprint": verdict.fingerprint[:16],
        "reason": shortened_text(reason_of(verdict, index, class_names)),
        "found_by": shortened_text(finder_of(verdict, index)),
        "votes": {shortened_text(name): float(vote[index]) for name, vote in verdict.votes.items()},
    }


def _class(number: int, name: str) -> str:
    return f"{number} ({printable(name, limit=40)})" if name else str(number)


def _name(label: int, class_names: Sequence[str]) -> str:
    return shortened_text(str(class_names[label])) if 0 <= label < len(class_names) else ""
