"""Decisions without trusted data: out-of-fold scores under every label, and the wrong-label null."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from lightning_poison.contexts import reproducible_kernels
from lightning_poison.data.copies import Copies
from lightning_poison.data.inputs import describe_scale
from lightning_poison.data.large_matrices import selected_rows, zeros_in_file
from lightning_poison.errors import InconclusiveError
from lightning_poison.randomness import derived_generator
from lightning_poison.sanitization.agreement import BETTER_SCORER_HINT, check_agreement
from lightning_poison.sanitization.cross_fitting import CrossFitted
from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.job import CONFIDENCE, Decision, Job, Outcome
from lightning_poison.sanitization.sample_scores import needs_trusted, out_of_fold_label_scores
from lightning_poison.sanitization.set_scores import set_label_scores
from lightning_poison.sanitization.settings import DecisionSettings
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.inspection import members_of, never_saw_labels
from lightning_poison.scorers.protocol import Scorer
from lightning_poison.statistics.contamination import (
    MAX_MISCLASSIFIED_SHARE,
    Contamination,
    HardMargins,
    estimate_contamination,
    has_evidence,
    select_by_posterior,
)
from lightning_poison.statistics.lowest_scores import LowestScores
from lightning_poison.statistics.p_values import combine_log_p, p_values_from_log
from lightning_poison.statistics.planted_labels import (
    RELIABLE_RESPONSE,
    PlantedResult,
    corrected_for_response,
    planted_result,
)
from lightning_poison.statistics.row_blocks import row_blocks
from lightning_poison.statistics.thresholds import tail_log_p_values
from lightning_poison.statistics.training_opinion import TrainingOpinion

T = TypeVar("T")


def judge_without_trusted(job: Job) -> Outcome:
    """Judge a data set without trusted data: out-of-fold scores, then the wrong-label null.

    Each member of a combination gives its own out-of-fold scores. Under each label they are compared with the scores
    of the samples that carry it. Of exact copies with one label, only the first is compared and counted, and the others
    get its decision.

    Raises:
        ValueError: If a scorer does not score labels.
        InconclusiveError: See `decide_by_wrong_label_null`.
    """
    members = members_of(job.scorer)
    for member in members.values():
        if not member.scores_labels:
            raise ValueError(needs_trusted(member))
    fitted = [
        out_of_fold_label_scores(job, member, number=number)
        if isinstance(member, Scorer)
        else CrossFitted(set_label_scores(job, member, number=number))
        for number, member in enumerate(members.values())
    ]
    copies = job.data.copies or Copies.none(len(job.data))
    distinct, place = copies.distinct, copies.place_in_distinct
    margins, labels = fitted[0].margins, job.labels[distinct]
    others = job.training_margins if never_saw_labels(job.scorer) else None
    found = [selected_rows(each.scores, distinct) for each in _drained(fitted)]
    own = labels[:, None]
    label_scores, votes = found[0], {}
    if isinstance(job.scorer, CombinedScorer):
        margins = None
        log_p = [log_p_by_labels(each, labels) for each in _drained(found)]
        votes = {
            name: p_values_from_log(each.gather(1, own)[:, 0].double())[place]
            for name, each in zip(members, log_p, strict=True)
        }
        label_scores = log_p[0]
        for rows in row_blocks(*label_scores.shape):
            label_scores[rows] = combine_log_p(torch.stack([each[rows] for each in log_p]), job.scorer.combine)
    lowest = LowestScores.of(label_scores)
    scores, suggested = label_scores.gather(1, own)[:, 0].double(), lowest.predicted
    try:
        margins, others = (None if each is None else each[distinct] for each in (margins, others))
        with reproducible_kernels(torch.device("cpu"), job.runtime.threads):
            decision = decide_by_wrong_label_null(
                label_scores, labels, job.settings, margins=margins, other_margins=others, lowest=lowest
            )
    except InconclusiveError as error:
        scale = describe_scale(job.data.first_inputs())
        advice = f"Check the transform too: the scorer reads {scale}; your network should read the same in training."
        message = f"{error}\n{advice}"
        raise InconclusiveError(message, scores[place]) from error
    return Outcome(scores[place], suggested[place], decision.of_copies(place), "wrong-label null", votes)


def _drained(items: list[T]) -> Iterator[T]:
    """Yield items and release each, so that its memory is free before the next."""
    while items:
        yield items.pop(0)


def decide_by_wrong_label_null(
    label_scores: Tensor,
    labels: Tensor,
    settings: DecisionSettings,
    *,
    margins: Tensor | None = None,
    other_margins: Tensor | None = None,
    lowest: LowestScores | None = None,
) -> Decision:
    """Threshold the posterior probability that a label is wrong, estimated from the data themselves.

    What the decision would find is measured by planting wrong labels into the data (`planted_result`). If many samples
    are misclassified, the estimate and its interval allow for how much of these it sees (`corrected_for_response`), and
    there are two estimates, with two distributions of the margins of hard samples. The second one decides if it fits as
    well, finds fewer wrong labels, and has a lower interval: which one takes hard samples for wrong labels depends on
    the classes.

    Args:
        label_scores: Out-of-fold score of each sample under each label, floating-point `(N, C)`.
        labels: Labels, int64 `(N,)`.
        settings: Of these, `false_positive_rate` limits the expected share of clean samples removed.
        margins: Average training margins, as for `estimate_contamination`. They are not known of planted labels, so
            what these measure is what would be found without. Optional.
        other_margins: Those of a network that was trained on the samples, finite, `(N,)`, if the scores are those of a
            model that reads other features: they change the probabilities, not the estimate. See
            `TrainingOpinion`. Optional.
        lowest: The lowest of these scores. Default: they are computed.

    Raises:
        InconclusiveError: If the scorer's predictions hardly agree with the labels (see `check_agreement`), or, unless
            `remove_without_evidence` is set, if it takes many hard samples for wrong labels: it misclassifies many, or
            may with as few wrong labels as the interval allows, the estimate is large, and it, or the second one, sees
            too few of the planted wrong labels.

    Example:
        >>> labels = torch.arange(200) % 2
        >>> label_scores = 5 - 5 * torch.eye(2).double()[labels]  # lowest under the predicted label
        >>> labels[:10] = 1 - labels[:10]
        >>> decision = decide_by_wrong_label_null(label_scores, labels, DecisionSettings())
        >>> decision.evidence.present, (~decision.keep).nonzero().flatten().tolist()
        (True, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    """
    lowest = LowestScores.of(label_scores) if lowest is None else lowest
    check_agreement(labels, lowest.predicted)
    samples = _ScoredSamples(label_scores, labels, settings, lowest, margins, other_margins)
    raw = samples.estimate("exponential")
    used = first = samples.measured(raw, "exponential")
    response = first.planted.response
    if _are_many_hard(raw) or _is_doubtful(raw, raw):
        other = samples.estimate("normal")
        if _fits_as_well(other, raw):
            used, response = _chosen(first, samples.measured(other, "normal"))
    is_present = _has_evidence(used.corrected, settings)
    if is_present and _is_doubtful(used.raw, raw) and response < RELIABLE_RESPONSE:
        _check_overridden(used.raw, response, settings)
    found = samples.weighed(used.corrected, about=used.corrected, labels=labels)
    keep = _select(found, settings)
    removed = found.posterior[~keep]
    evidence = Evidence(
        is_present,
        found.rate,
        low=found.low,
        high=found.high,
        confidence=CONFIDENCE,
        natural_error_rate=settings.natural_error_rate,
        pairs=found.pairs,
        power=used.planted.power,
        planted=used.planted.share,
    )
    return Decision(
        found.p_values,
        keep,
        thresholds=torch.full((label_scores.shape[1],), torch.inf, dtype=torch.float64),
        evidence=evidence,
        posterior=found.posterior,
        posterior_threshold=float(removed.min()) if len(removed) else 1.0,
    )


class _Estimate(NamedTuple):
    """An estimate of the wrong labels, and how it responds to planted ones.

    Args:
        raw: The estimate from the scores alone.
        corrected: The estimate that allows for its response.
        planted: What the estimate and the decision find of planted wrong labels.
    """

    raw: Contamination
    corrected: Contamination
    planted: PlantedResult


@dataclass(frozen=True)
class _ScoredSamples:
    """All that the estimates are made from; see the arguments of `decide_by_wrong_label_null`."""

    label_scores: Tensor
    labels: Tensor
    settings: DecisionSettings
    lowest: LowestScores
    margins: Tensor | None
    other_margins: Tensor | None

    def estimate(self, hard: HardMargins) -> Contamination:
        """Estimate the wrong labels, with a distribution of the margins of hard samples."""
        return estimate_contamination(
            self.label_scores, self.labels, confidence=CONFIDENCE, margins=self.margins, lowest=self.lowest, hard=hard
        )

    def measured(self, raw: Contamination, hard: HardMargins) -> _Estimate:
        """Plant wrong labels, and correct an estimate for what is found of them."""

        def estimate_again(replaced: Tensor) -> Contamination:
            return estimate_contamination(
                self.label_scores,
                replaced,
                confidence=CONFIDENCE,
                lowest=self.lowest,
                hard=hard,
                only_disagreements=True,
            )

        def decide_again(found: Contamination, response: float, replaced: Tensor) -> Tensor:
            about = _corrected(raw, response)
            return _select(self.weighed(_corrected(found, response), about=about, labels=replaced), self.settings)

        num_classes = self.label_scores.shape[1]
        planted = planted_result(self.labels, estimate_again, decide_again, rate=raw.rate, num_classes=num_classes)
        return _Estimate(raw, _corrected(raw, planted.response), planted)

    def weighed(self, found: Contamination, *, about: Contamination, labels: Tensor) -> Contamination:
        """Allow for the margins in another network, if there is one.

        Args:
            found: The estimate.
            about: The estimate for the labels without planted ones. It shows which margins wrong labels have.
            labels: Labels that `found` is about, some of which may be planted, int64 `(N,)`.
        """
        if self.other_margins is None:
            return found
        known = self.labels, self.lowest.predicted, self.other_margins
        opinion = TrainingOpinion.of(about, *known)
        if opinion is None:
            return found
        generator = derived_generator(self.settings.seed, "planted margins")
        return opinion.weigh(found, labels, self.lowest.predicted, opinion.margins_if(labels, *known, generator))


def _chosen(first: _Estimate, second: _Estimate) -> tuple[_Estimate, float]:
    """Return the estimate to use of two that fit as well, and the response that decides whether it is refused.

    Args:
        first: The estimate with exponential margins of hard samples.
        second: The estimate with normal ones, which finds no more wrong labels.
    """
    if not _are_many_hard(first.raw):  # the second is only a check of the first
        return first, min(first.planted.response, second.planted.response)
    used = second if second.corrected.low <= first.corrected.low else first
    return used, used.planted.response


def _are_many_hard(raw: Contamination) -> bool:
    """Whether many samples are misclassified."""
    return raw.misclassified_share > MAX_MISCLASSIFIED_SHARE


def _is_doubtful(raw: Contamination, first: Contamination) -> bool:
    """Whether an estimate is large, and many samples may be hard with as few wrong labels as the first one allows."""
    most_hard = first.misclassified_share + first.rate - first.low
    return raw.rate > _LARGE_RATE and most_hard > MAX_MISCLASSIFIED_SHARE


def _fits_as_well(second: Contamination, first: Contamination) -> bool:
    """Whether the second estimate fits the margins as well as the first, with no more wrong labels."""
    return second.log_likelihood >= first.log_likelihood - _MARGIN_OF_FIT and second.rate <= first.rate


def _corrected(found: Contamination, response: float) -> Contamination:
    return corrected_for_response(found, response) if _are_many_hard(found) else found


_MARGIN_OF_FIT = 5.0
"""By how much the log-likelihood with normal tails of hard samples may be lower than with an exponential, which adapts.

On pairs and on ten classes of CIFAR-10, it was at most 2 lower where these tails leave fewer wrong labels. Where a part
of the samples is ambiguous and the others are plain, it is 100 and more lower.
"""

_LARGE_RATE = 0.15
"""Estimated share of wrong labels above which the estimate must see at least half of the planted ones.

With 40 % of confused labels, on 10,000 images of CIFAR-10, it sees .64. Of 2,000 images with 10 % wrong labels, which a
small network misclassifies nearly half the time, it is 21 % and sees .38.
"""


def _check_overridden(found: Contamination, response: float, settings: DecisionSettings) -> None:
    if not settings.remove_without_evidence:
        raise InconclusiveError(
            "Expected a scorer that can tell wrong labels from hard samples, but this one considers "
            f"{100 * found.rate:.0f} % of the labels wrong, misclassifies another "
            f"{100 * found.misclassified_share:.0f} % of the samples, and notices {100 * max(0.0, response):.0f} % of "
            f"the wrong labels that were planted to test it.\n{BETTER_SCORER_HINT} "
            "`remove_without_evidence=True` overrides this check."
        )


def _has_evidence(found: Contamination, settings: DecisionSettings) -> bool:
    return has_evidence(found, natural_error_rate=settings.natural_error_rate)


def _select(found: Contamination, settings: DecisionSettings) -> Tensor:
    """Return the mask of the samples to keep: all of them if there is no evidence."""
    if _has_evidence(found, settings) or settings.remove_without_evidence:
        return select_by_posterior(found.posterior, found.p_values, settings.false_positive_rate)
    return torch.ones(len(found.posterior), dtype=torch.bool)


def log_p_by_labels(label_scores: Tensor, labels: Tensor) -> Tensor:
    """Compute log p-values under every label, with the data themselves as the reference.

    Under a label, the reference is the samples that carry it, wrong ones included. This makes p-values too large, but
    preserves their order.

    Args:
        label_scores: Out-of-fold score of each sample under each label, float64 `(N, C)`.
        labels: Labels, int64 `(N,)`.

    Returns:
        Natural logarithms of the p-values `(N, C)`, of the data type of the scores. Under a label that no sample
        carries, the smallest of all.

    Example:
        >>> label_scores = torch.tensor([[0.0, 9.0], [1.0, 8.0], [9.0, 0.5], [7.0, 0.0]]).double()
        >>> log_p_by_labels(label_scores, torch.tensor([0, 0, 1, 1])).argmax(1)
        tensor([0, 0, 1, 1])
    """
    log_p = zeros_in_file(tuple(label_scores.shape), label_scores.dtype)
    zeros = torch.zeros(len(labels), dtype=torch.int64)
    for number in range(label_scores.shape[1]):
        scores = label_scores[:, number].double()
        members = scores[labels == number]
        if len(members):
            log_p[:, number] = tail_log_p_values(scores, zeros, members, zeros[: len(members)], num_classes=1)
    present = torch.unique(labels)
    absent = torch.ones(label_scores.shape[1], dtype=torch.bool)
    absent[present] = False
    if bool(absent.any()):
        log_p[:, absent] = min(log_p[:, number].amin() for number in present.tolist())
    return log_p
