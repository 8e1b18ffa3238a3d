"""Running scorers for a decision: one or several that vote, with trusted samples or without."""

import warnings

import torch
from torch import Tensor

from lightning_poison.checks import expected
from lightning_poison.data.blocks import read_blocks
from lightning_poison.data.in_memory import Held
from lightning_poison.randomness import derived_generator
from lightning_poison.runtime import agreed
from lightning_poison.sanitization.job import CONFIDENCE, Decision, Job, Judged, MemberScores
from lightning_poison.sanitization.sample_scores import score_by_trusted
from lightning_poison.sanitization.set_scores import group_by_features, score_sets_by_trusted
from lightning_poison.sanitization.verdict import Evidence
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.inspection import members_of
from lightning_poison.scorers.protocol import FeatureScorer, Scorer
from lightning_poison.statistics.p_values import Combination, combine_log_p, p_values_from_log, suggested_by
from lightning_poison.statistics.stratified import stratified_part
from lightning_poison.statistics.thresholds import TrustedReference, class_thresholds, log_p_by_trusted, tail_p_values

_TWO_SIDED = 1.96


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
    known = TrustedReference.of(labels, trusted_scores, trusted_labels)
    p_values = tail_p_values(scores, known.own, known.scores, known.labels, num_classes=len(known.present))
    thresholds = torch.full((int(torch.maximum(labels.max(), trusted_labels.max())) + 1,), torch.inf).double()
    thresholds[known.present] = class_thresholds(
        known.scores, known.labels, false_positive_rate=false_positive_rate, num_classes=len(known.present)
    )
    _check_cuts(thresholds, known)
    keep = scores <= thresholds[labels]
    evidence = _excess(keep, len(known.scores), false_positive_rate, natural_error_rate)
    return Decision(p_values, keep, thresholds, evidence)


def _check_cuts(thresholds: Tensor, known: TrustedReference) -> None:
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


HELD_OUT = 0.3
"""Share of the trusted samples that an unfitted scorer is calibrated on and not fitted on."""


HELD_OUT_FOR_TWO = 0.4
"""That share for a combination, which needs one half to compare its members with and one to calibrate on."""


ENOUGH_PER_CLASS = 100
"""Held-out trusted samples a class below which a calibrated rate is loose enough to be warned about."""


def judge_by_trusted(job: Job, trusted: Held) -> Judged:
    """Judge a data set by trusted samples: fit on most of them, calibrate on the rest.

    Scorers that are fitted already, and those that must see the whole set, are calibrated on all of them. Members of a
    combination are compared with one half of the samples to calibrate on; the combination is calibrated on the other.

    Args:
        job: the data set and how it is judged.
        trusted: the samples that are believed.

    Raises:
        ValueError: where a class is absent from the trusted samples, or has too few of them; or where they have
            another shape than the judged ones.
    """
    labels = trusted.labels
    _check_classes(job.labels, labels)
    agreed(job.runtime, lambda: _check_shapes(job, trusted))
    members = list(members_of(job.scorer).values())
    fitted_on, held_out = torch.zeros(0, dtype=torch.int64), torch.arange(len(labels))
    if any(isinstance(member, Scorer) and not member.is_fitted for member in members):
        share = HELD_OUT if len(members) == 1 else HELD_OUT_FOR_TWO
        held = stratified_part(labels, share, derived_generator(job.seed, "trusted split"), among=job.labels)
        fitted_on, held_out = (~held).nonzero().flatten(), held.nonzero().flatten()
    _warn_of_few(labels[held_out], job.labels, parts=2 if len(members) > 1 else 1)
    found = _members_scores(job, trusted, (fitted_on, held_out))
    if isinstance(job.scorer, CombinedScorer):
        return _combined(job, list(members_of(job.scorer)), found, labels[held_out], job.scorer.combine)
    alone = found[0]
    decision = _decision(job, alone.scores, alone.trusted, labels[held_out])
    return Judged(alone.scores, alone.suggested_labels, decision)


def _members_scores(job: Job, trusted: Held, parts: tuple[Tensor, Tensor]) -> list[MemberScores]:
    members = list(members_of(job.scorer).values())
    found: dict[int, MemberScores] = {}
    in_sets: dict[int, FeatureScorer] = {}
    for number, member in enumerate(members):
        if isinstance(member, Scorer):
            found[number] = score_by_trusted(job, member, trusted, parts, number)
        else:
            in_sets[number] = member
    for group in group_by_features(list(in_sets.values())):
        numbers = [list(in_sets)[place] for place in group]
        scorers = [in_sets[number] for number in numbers]
        found |= zip(numbers, score_sets_by_trusted(job, scorers, trusted, parts[1], numbers[0]), strict=True)
    return [found[number] for number in range(len(members))]


def _combined(job: Job, names: list[str], found: list[MemberScores], labels: Tensor, how: Combination) -> Judged:
    """Compare each member's scores with half of the held-out samples, and calibrate what they say on the other."""
    _check_halves(labels, job.labels)
    generator = derived_generator(job.seed, "combination split")
    compared = stratified_part(labels, 0.5, generator, among=job.labels)

    def votes_on(scores: list[Tensor], own: Tensor) -> Tensor:
        return torch.stack(
            [
                log_p_by_trusted(each, own, member.trusted[compared], labels[compared])
                for each, member in zip(scores, found, strict=True)
            ]
        )

    reference = torch.isin(labels, job.labels) & ~compared
    log_p = votes_on([member.scores for member in found], job.labels)
    of_trusted = votes_on([member.trusted[reference] for member in found], labels[reference])
    scores = combine_log_p(log_p, how)
    decision = _decision(job, scores, combine_log_p(of_trusted, how), labels[reference])
    suggested = suggested_by(log_p, torch.stack([member.suggested_labels for member in found]))
    votes = {name: p_values_from_log(log_p[number]) for number, name in enumerate(names)}
    return Judged(scores, suggested, decision, votes)


def _decision(job: Job, scores: Tensor, trusted_scores: Tensor, trusted_labels: Tensor) -> Decision:
    return decide_by_trusted(
        scores,
        job.labels,
        trusted_scores,
        trusted_labels,
        false_positive_rate=job.false_positive_rate,
        natural_error_rate=job.natural_error_rate,
    )


def _check_halves(labels: Tensor, judged: Tensor) -> None:
    counts = torch.bincount(labels, minlength=int(judged.max()) + 1)[torch.unique(judged)]
    if int(counts.min()) < 2:
        number = int(torch.unique(judged)[counts.argmin()])
        raise ValueError(
            f"Expected at least two held-out trusted samples of class {number} for a combination, but got "
            f"{int(counts.min())}.\nOne half is what the members are compared with, the other what they are calibrated "
            "on: give more `trusted` samples, some 500 a class."
        )


def _warn_of_few(held_out_labels: Tensor, labels: Tensor, *, parts: int) -> None:
    smallest = int(torch.bincount(held_out_labels)[torch.unique(labels)].min()) // parts
    if smallest < ENOUGH_PER_CLASS:
        warnings.warn(
            f"The false-positive rate is calibrated on {smallest} held-out trusted samples in the smallest class: the "
            "realised rate may lie far from the stated one. At 500 a class it lies within half of it.",
            stacklevel=2,
        )


def _check_shapes(job: Job, trusted: Held) -> None:
    """Check the first sample of each, before anything is fitted."""
    judged, known = (
        next(read_blocks(dataset, [torch.zeros(1, dtype=torch.int64)], sample=sample, seed=job.seed)).inputs.shape[1:]
        for dataset, sample in ((job.dataset, job.sample), (trusted.dataset, trusted.sample))
    )
    if judged != known:
        raise ValueError(
            expected("trusted", f"samples of shape {tuple(judged)}, as the judged ones have", tuple(known))
            + "\nGive both the same transform."
        )


def _check_classes(labels: Tensor, trusted_labels: Tensor) -> None:
    missing = [number for number in torch.unique(labels).tolist() if not bool((trusted_labels == number).any())]
    if missing:
        listed = ", ".join(map(str, missing[:10]))
        raise ValueError(
            f"Expected trusted samples of every class, but there is none of class {listed}.\n"
            "Add some, or leave `trusted` out to judge the data by themselves."
        )
