"""From scores to a decision where nothing is trusted: the wrong-label null, and p-values among the data themselves."""

import torch
from sklearn.metrics import cohen_kappa_score
from torch import Tensor

from lightning_poison.calibration import CONFIDENCE, Decision
from lightning_poison.errors import InconclusiveError
from lightning_poison.evidence import Evidence
from lightning_poison.functional.contamination import (
    LARGEST_MISREAD_SHARE,
    estimate_contamination,
    has_evidence,
    select_by_posterior,
)
from lightning_poison.functional.thresholds import tail_log_p_values

SMALLEST_AGREEMENT = 0.3
"""Cohen's κ between labels and readings below which a scorer is taken for one that has learnt nothing of the labels."""

_WAY_OUT = (
    "Where the training set augments, score a view that does not (`score_dataset=` of a `Sanitizer`); give the scorer "
    "a stronger `backbone=` or a longer fit; or give `trusted=` data."
)


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
        InconclusiveError: where the scorer's readings hardly agree with the labels, see `check_agreement`; or where it
            misreads too many samples for the estimate to be believed,
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
    check_agreement(labels, label_scores.argmin(1))
    found = estimate_contamination(label_scores, labels, confidence=CONFIDENCE)
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
    evidence = Evidence(present, found.rate, found.low, found.high, CONFIDENCE, natural_error_rate, found.pairs)
    return Decision(
        found.p_values,
        keep,
        torch.full((label_scores.shape[1],), torch.inf, dtype=torch.float64),
        evidence,
        found.posterior,
        float(removed.min()) if len(removed) else 1.0,
    )


def check_agreement(labels: Tensor, readings: Tensor) -> None:
    """Refuse a network that has hardly learnt the labels: nothing can be said of any sample by it.

    Args:
        labels: int64 `(N,)`, that samples carry.
        readings: int64 `(N,)`, as what they are read.

    Raises:
        InconclusiveError: where Cohen's κ of the two (*A coefficient of agreement for nominal scales*, 1960) is below
            `SMALLEST_AGREEMENT`.

    Example:
        >>> check_agreement(torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 0, 1]))
        >>> check_agreement(torch.tensor([0, 1, 0, 1]), torch.tensor([0, 1, 1, 0]))
        Traceback (most recent call last):
        lightning_poison.errors.InconclusiveError: Expected a scorer whose readings agree with the labels, ...
    """
    agreement = float(cohen_kappa_score(labels.numpy(), readings.numpy()))
    if agreement < SMALLEST_AGREEMENT:
        raise InconclusiveError(
            f"Expected a scorer whose readings agree with the labels, Cohen's κ at least {SMALLEST_AGREEMENT:g}, but "
            f"got {agreement:.2f}, so it has hardly learnt them: nothing can be said of any label.\n{_WAY_OUT}"
        )


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
