"""From scores to a decision where nothing is trusted: the wrong-label null, and p-values among the data themselves."""

from dataclasses import replace

import torch
from sklearn.metrics import cohen_kappa_score
from torch import Tensor

from lightning_poison.data.in_memory import Held, hold
from lightning_poison.errors import InconclusiveError
from lightning_poison.runtime import agreed
from lightning_poison.sanitization.job import CONFIDENCE, Decision, Job, Judged
from lightning_poison.sanitization.sample_scores import cannot_say, label_scores
from lightning_poison.sanitization.set_scores import set_label_scores
from lightning_poison.sanitization.verdict import Evidence
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.inspection import members_of
from lightning_poison.scorers.protocol import LabelFeatureScorer, LabelScorer, Scorer
from lightning_poison.statistics.contamination import (
    LARGEST_MISREAD_SHARE,
    estimate_contamination,
    has_evidence,
    select_by_posterior,
)
from lightning_poison.statistics.p_values import combine_log_p, p_values_from_log
from lightning_poison.statistics.thresholds import tail_log_p_values

SMALLEST_AGREEMENT = 0.3
"""Cohen's κ between labels and readings below which a scorer has learned nothing of the labels."""


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
            f"Expected a scorer that misreads at most {100 * LARGEST_MISREAD_SHARE:g} % of rightly labeled samples, "
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
    """Refuse a network that has hardly learned the labels: nothing can be said of any sample by it.

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
            f"got {agreement:.2f}, so it has hardly learned them: nothing can be said of any label.\n{_WAY_OUT}"
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


def judge_untrusted(job: Job, *, folds: int, remove_without_evidence: bool) -> Judged:
    """Judge a data set by itself: out-of-fold scores, then the wrong-label null.

    Of a combination each member is asked for its own out-of-fold scores; what they are compared with under a label are
    the samples that carry it.

    Raises:
        ValueError: where a scorer cannot be asked for another label.
        InconclusiveError: see `decide_by_wrong_label_null`.
    """
    members = members_of(job.scorer)
    for member in members.values():
        if not isinstance(member, LabelScorer | LabelFeatureScorer):
            raise ValueError(cannot_say(member))
    if len(members) > 1:
        judged = Held(job.dataset, job.sample, job.labels)
        held = agreed(job.runtime, lambda: hold(judged, runtime=job.runtime, seed=job.seed, name="training data"))
        job = replace(job, dataset=held.dataset, sample=held.sample)
    found = [
        label_scores(job, member, folds=folds, number=number)
        if isinstance(member, Scorer)
        else set_label_scores(job, member, folds=folds, number=number)
        for number, member in enumerate(members.values())
    ]
    own = job.labels[:, None]
    of_labels, votes = found[0], {}
    if isinstance(job.scorer, CombinedScorer):
        log_p = torch.stack([log_p_by_labels(each, job.labels) for each in found])
        votes = {name: p_values_from_log(log_p[number].gather(1, own)[:, 0]) for number, name in enumerate(members)}
        of_labels = combine_log_p(log_p, job.scorer.combine)
    decision = decide_by_wrong_label_null(
        of_labels,
        job.labels,
        false_positive_rate=job.false_positive_rate,
        natural_error_rate=job.natural_error_rate,
        remove_without_evidence=remove_without_evidence,
    )
    return Judged(of_labels.gather(1, own)[:, 0], of_labels.argmin(1), decision, votes)
