"""From scores to a decision: on held-out trusted scores, or on the wrong-label null where nothing is trusted."""

from dataclasses import dataclass

import torch
from sklearn.metrics import cohen_kappa_score
from torch import Tensor

from lightning_poison.checks import expected
from lightning_poison.errors import InconclusiveError
from lightning_poison.functional.contamination import (
    LARGEST_MISREAD_SHARE,
    estimate_contamination,
    has_evidence,
    select_by_posterior,
)
from lightning_poison.functional.thresholds import class_thresholds, tail_log_p_values, tail_p_values
from lightning_poison.verdict import Evidence

SMALLEST_AGREEMENT = 0.3
"""Cohen's κ between labels and readings below which a scorer is taken for one that has learnt nothing of the labels."""

_CONFIDENCE = 0.95
_TWO_SIDED = 1.96

_WAY_OUT = (
    "Where the training set augments, score a view that does not (`score_dataset=` of a `Sanitizer`); give the scorer "
    "a stronger `backbone=` or a longer fit; or give `trusted=` data."
)


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


def log_p_by_labels(label_scores: Tensor, labels: Tensor) -> Tensor:
    """Return the logarithms of p-values under every label, from the judged data themselves.

    Under a label, the samples that carry it are what a score is compared with, wrong ones among them: a p-value is too
    large then, in the same order.

    Args:
        label_scores: float64 `(N, C)`, the out-of-fold score of each sample under each label.
        labels: int64 `(N,)`.

    Returns:
        float64 `(N, C)`; under a label that no sample carries it is the smallest of all.

    Example:
        >>> label_scores = torch.tensor([[0.0, 9.0], [1.0, 8.0], [9.0, 0.5], [7.0, 0.0]]).double()
        >>> log_p_by_labels(label_scores, torch.tensor([0, 0, 1, 1])).argmax(1)
        tensor([0, 0, 1, 1])
    """
    log_p = torch.empty_like(label_scores)
    for number in range(label_scores.shape[1]):
        members = label_scores[labels == number, number]
        zeros = torch.zeros(len(labels), dtype=torch.int64)
        if len(members):
            log_p[:, number] = tail_log_p_values(
                label_scores[:, number], zeros, members, zeros[: len(members)], num_classes=1
            )
    present = torch.unique(labels)
    absent = torch.ones(label_scores.shape[1], dtype=torch.bool)
    absent[present] = False
    log_p[:, absent] = log_p[:, present].amin()
    return log_p


def decide_by_wrong_label_null(
    label_scores: Tensor,
    labels: Tensor,
    *,
    false_positive_rate: float,
    natural_error_rate: float,
    remove_without_evidence: bool,
) -> Decision:
    """Cut in the posterior that a label is wrong, estimated from the data themselves.

    Args:
        label_scores: float64 `(N, C)`, the out-of-fold score of each sample under each label.
        labels: int64 `(N,)`.
        false_positive_rate: the expected share of clean samples that is removed at most, in (0, 1).
        natural_error_rate: the share of odd samples that a curated data set has itself.
        remove_without_evidence: remove also where there is no evidence of poison.

    Raises:
        InconclusiveError: where the scorer's readings hardly agree with the labels (Cohen's κ, *A coefficient of
            agreement for nominal scales*, 1960); or where it misreads too many samples for the estimate to be believed,
            but not with `remove_without_evidence`.

    Example:
        >>> labels = torch.arange(200) % 2
        >>> label_scores = 5 - 5 * torch.eye(2).double()[labels]  # low under the label that a sample is read as
        >>> labels[:10] = 1 - labels[:10]
        >>> decision = decide_by_wrong_label_null(
        ...     label_scores, labels, false_positive_rate=0.01, natural_error_rate=0.003, remove_without_evidence=False
        ... )
        >>> decision.evidence.present, (~decision.keep).nonzero().flatten().tolist()
        (True, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    agreement = float(cohen_kappa_score(labels.numpy(), label_scores.argmin(1).numpy()))
    if agreement < SMALLEST_AGREEMENT:
        raise InconclusiveError(
            f"Expected a scorer whose readings agree with the labels, Cohen's κ at least {SMALLEST_AGREEMENT:g}, but "
            f"got {agreement:.2f}, so it has hardly learnt them: nothing can be said of any label.\n{_WAY_OUT}"
        )
    found = estimate_contamination(label_scores, labels, confidence=_CONFIDENCE)
    if found.misread_share > LARGEST_MISREAD_SHARE and not remove_without_evidence:
        raise InconclusiveError(
            f"Expected a scorer that misreads at most {100 * LARGEST_MISREAD_SHARE:g} % of rightly labelled samples, "
            f"but it misreads an estimated {100 * found.misread_share:.0f} %, so wrong labels cannot be told from hard "
            f"samples.\n{_WAY_OUT} `remove_without_evidence=True` goes on all the same."
        )
    present = has_evidence(found, natural_error_rate=natural_error_rate)
    keep = torch.ones(len(labels), dtype=torch.bool)
    if present or remove_without_evidence:
        keep = select_by_posterior(found.posterior, false_positive_rate)
    removed = found.posterior[~keep]
    evidence = Evidence(present, found.rate, found.low, found.high, _CONFIDENCE, natural_error_rate, found.pairs)
    return Decision(
        found.p_values,
        keep,
        torch.full((label_scores.shape[1],), torch.inf, dtype=torch.float64),
        evidence,
        found.posterior,
        float(removed.min()) if len(removed) else 1.0,
    )


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
    return Evidence(low > natural_error_rate, max(0.0, estimate), low, high, _CONFIDENCE, natural_error_rate)
