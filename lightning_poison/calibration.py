"""From scores to a decision where some samples are trusted: a cut at the quantile of their scores."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_poison.checks import expected
from lightning_poison.evidence import Evidence
from lightning_poison.functional.thresholds import class_thresholds, tail_log_p_values, tail_p_values

CONFIDENCE = 0.95
"""How often the interval around an estimated contamination covers the truth."""

_TWO_SIDED = 1.96


@dataclass(frozen=True)
class Decision:
    """What calibration adds to scores; the fields are those of `Verdict`.

    Example:
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


def decide_by_trusted(
    scores: Tensor,
    labels: Tensor,
    trusted_scores: Tensor,
    trusted_labels: Tensor,
    *,
    false_positive_rate: float,
    natural_error_rate: float,
) -> Decision:
    """Cut at the upper quantile of held-out trusted scores of each class.

    The evidence compares the share of samples above the cut with the stated rate: π = (share − α) / (1 − α), with the
    standard error of both samples, the judged one and the trusted one.

    Args:
        scores: float64 `(N,)`.
        labels: int64 `(N,)`.
        trusted_scores: float64 `(M,)`, of samples that the scorer was not fitted on.
        trusted_labels: int64 `(M,)`; every class of `labels` must be among them.
        false_positive_rate: α, in (0, 1).
        natural_error_rate: the share of odd samples that a curated data set has itself.

    Raises:
        ValueError: where a class has no cut at this rate: too few trusted samples, or the same score for all of them.

    Example:
        >>> trusted, labels = torch.arange(200).double() / 200, torch.zeros(200).long()
        >>> decision = decide_by_trusted(
        ...     torch.tensor([0.5, 7.0]).double(), labels[:2], trusted, labels, false_positive_rate=0.01,
        ...     natural_error_rate=0.003,
        ... )
        >>> decision.keep, decision.p_values[1] < 0.01
        (tensor([ True, False]), tensor(True))
    """
    known = _Known.of(labels, trusted_scores, trusted_labels)
    p_values = tail_p_values(scores, known.own, known.scores, known.labels, num_classes=len(known.present))
    thresholds = torch.full((int(torch.maximum(labels.max(), trusted_labels.max())) + 1,), torch.inf).double()
    thresholds[known.present] = class_thresholds(
        known.scores, known.labels, false_positive_rate=false_positive_rate, num_classes=len(known.present)
    )
    _check_cuts(thresholds, known)
    keep = scores <= thresholds[labels]
    evidence = _excess(keep, len(known.scores), false_positive_rate, natural_error_rate)
    return Decision(p_values, keep, thresholds, evidence)


def log_p_by_trusted(scores: Tensor, labels: Tensor, trusted_scores: Tensor, trusted_labels: Tensor) -> Tensor:
    """Return the natural logarithms of the p-values that held-out trusted samples of each class give.

    Args:
        scores: float64 `(N,)`.
        labels: int64 `(N,)`.
        trusted_scores: float64 `(M,)`, of samples that the scorer was not fitted on.
        trusted_labels: int64 `(M,)`; every class of `labels` must be among them.

    Returns:
        float64 `(N,)`.

    Example:
        >>> trusted, labels = torch.arange(199).double(), torch.zeros(199, dtype=torch.int64)
        >>> log_p_by_trusted(torch.tensor([99.5, 400.0]).double(), labels[:2], trusted, labels).exp()[0]
        tensor(0.5000, dtype=torch.float64)
    """
    known = _Known.of(labels, trusted_scores, trusted_labels)
    return tail_log_p_values(scores, known.own, known.scores, known.labels, num_classes=len(known.present))


@dataclass(frozen=True)
class _Known:
    """The trusted samples of the classes that are judged, classes numbered without gaps."""

    present: Tensor
    own: Tensor
    scores: Tensor
    labels: Tensor

    @classmethod
    def of(cls, labels: Tensor, trusted_scores: Tensor, trusted_labels: Tensor) -> "_Known":
        present, own = torch.unique(labels, return_inverse=True)
        reference = torch.isin(trusted_labels, present)
        return cls(present, own, trusted_scores[reference], torch.searchsorted(present, trusted_labels[reference]))


def _check_cuts(thresholds: Tensor, known: _Known) -> None:
    """Refuse to go on where nothing of a class could ever be called suspicious."""
    for place, number in enumerate(known.present.tolist()):
        if torch.isfinite(thresholds[number]):
            continue
        count = int((known.labels == place).sum())
        if count < 2:
            what, hint = f"at least two held-out samples of class {number}", "Some 500 a class hold a rate of 1 % well."
            raise ValueError(expected("trusted", what, f"{count}", hint))
        raise ValueError(
            f"Expected scores that differ among the {count} held-out trusted samples of class {number}, but the "
            "largest are all the same, so that no cut lies above them.\nThe scorer tells no samples of this class "
            "apart: look for inputs or features that are constant, take another scorer, or give more `trusted` data."
        )


def _excess(keep: Tensor, reference: int, rate: float, natural_error_rate: float) -> Evidence:
    above = float((~keep).double().mean())
    estimate = (above - rate) / (1 - rate)
    error = (rate * (1 - rate) * (1 / len(keep) + 1 / reference)) ** 0.5 / (1 - rate)
    low, high = max(0.0, estimate - _TWO_SIDED * error), min(1.0, max(0.0, estimate + _TWO_SIDED * error))
    return Evidence(low > natural_error_rate, max(0.0, estimate), low, high, CONFIDENCE, natural_error_rate)
