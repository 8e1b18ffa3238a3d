"""job."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.randomness import derived_seed
from lightning_poison.runtime import Runtime
from lightning_poison.sanitization.verdict import Evidence
from lightning_poison.scorers.inspection import AnyScorer

CONFIDENCE = 0.95
"""How often the interval around an estimated contamination covers the truth."""


@dataclass(frozen=True)
class Decision:
    """What calibration adds to scores; the fields are those of `Verdict`.

    Example:
        >>> import torch
        >>> from lightning_poison.sanitization.with_trusted import decide_by_trusted
        >>> labels, trusted_scores = torch.zeros(100).long(), torch.arange(100) / 100
        >>> decision = decide_by_trusted(
        ...     torch.full((50,), 3.0), labels[:50], trusted_scores, labels, false_positive_rate=0.05,
        ...     natural_error_rate=0.003,
        ... )
        >>> decision.evidence.present, int(decision.keep.sum()), decision.posterior
        (True, 0, None)
    """

    p_values: Tensor
    keep: Tensor
    thresholds: Tensor
    evidence: Evidence
    posterior: Tensor | None = None
    posterior_threshold: float | None = None


@dataclass(frozen=True)
class Judged:
    """What was found out.

    Args:
        scores: float64 `(N,)`.
        suggested_labels: int64 `(N,)`, the least suspicious label of each sample, or −1.
        decision: what calibration makes of the scores.
        votes: p-values `(N,)` by the name of each member of a combination.
    """

    scores: Tensor
    suggested_labels: Tensor
    decision: Decision
    votes: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Job:
    """A data set and how it is judged; the fields are the arguments of `sanitize`."""

    dataset: Any
    labels: Tensor
    scorer: AnyScorer
    sample: SampleSpec
    runtime: Runtime
    seed: int
    false_positive_rate: float
    natural_error_rate: float

    def seed_of(self, number: int) -> int:
        """Return the seed of a member of a combination; that of the first, and of a scorer alone, is the job's own."""
        return derived_seed(self.seed, "member", number) if number else self.seed


@dataclass(frozen=True)
class MemberScores:
    """What one scorer says of the judged samples, and of the trusted ones that it is compared with.

    Args:
        scores: float64 `(N,)`.
        suggested_labels: int64 `(N,)`, the label under which a sample is least suspicious, or −1.
        trusted: float64 `(M,)`, the scores of held-out trusted samples.
    """

    scores: Tensor
    suggested_labels: Tensor
    trusted: Tensor
