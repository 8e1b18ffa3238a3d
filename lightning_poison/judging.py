"""Running scorers for a decision: one or several that vote, with trusted samples or without."""

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from lightning_poison.calibration import Decision, Judged, decide_by_trusted, log_p_by_trusted
from lightning_poison.checks import expected
from lightning_poison.functional.combining import Combination, combine_log_p, suggested_by
from lightning_poison.functional.stratified import stratified_part
from lightning_poison.group_judging import judge_by_groups
from lightning_poison.holding import Held, hold
from lightning_poison.member_scores import Job, MemberScores, cannot_say, label_scores, score_by_trusted
from lightning_poison.reading import read_blocks
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.members import members_of
from lightning_poison.scorers.protocol import FeatureScorer, GroupScorer, LabelFeatureScorer, LabelScorer, Scorer
from lightning_poison.scoring import agreed
from lightning_poison.seeds import derived_generator
from lightning_poison.self_calibration import decide_by_wrong_label_null, log_p_by_labels
from lightning_poison.set_scores import group_by_features, score_sets_by_trusted, set_label_scores

HELD_OUT = 0.3
"""Share of the trusted samples that an unfitted scorer is calibrated on and not fitted on."""

HELD_OUT_FOR_TWO = 0.4
"""That share for a combination, which needs one half to compare its members with and one to calibrate on."""

ENOUGH_PER_CLASS = 100
"""Held-out trusted samples a class below which a calibrated rate is loose enough to be warned about."""


def judge_untrusted(job: Job, *, folds: int, remove_without_evidence: bool) -> Judged:
    """Judge a data set by itself: out-of-fold scores, then the wrong-label null; or group by group.

    Of a combination each member is asked for its own out-of-fold scores; what they are compared with under a label are
    the samples that carry it.

    Raises:
        ValueError: where a scorer cannot be asked for another label.
        InconclusiveError: see `decide_by_wrong_label_null`.
    """
    if isinstance(job.scorer, GroupScorer):
        return judge_by_groups(job, job.scorer, remove_without_evidence=remove_without_evidence)
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
        votes = {name: _p_values(log_p[number].gather(1, own)[:, 0]) for number, name in enumerate(members)}
        of_labels = combine_log_p(log_p, job.scorer.combine)
    decision = decide_by_wrong_label_null(
        of_labels,
        job.labels,
        false_positive_rate=job.false_positive_rate,
        natural_error_rate=job.natural_error_rate,
        remove_without_evidence=remove_without_evidence,
    )
    return Judged(of_labels.gather(1, own)[:, 0], of_labels.argmin(1), decision, votes)


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
    return Judged(scores, suggested, decision, {name: _p_values(log_p[number]) for number, name in enumerate(names)})


def _decision(job: Job, scores: Tensor, trusted_scores: Tensor, trusted_labels: Tensor) -> Decision:
    return decide_by_trusted(
        scores,
        job.labels,
        trusted_scores,
        trusted_labels,
        false_positive_rate=job.false_positive_rate,
        natural_error_rate=job.natural_error_rate,
    )


def _p_values(log_p: Tensor) -> Tensor:
    """Return p-values; those too small for a number are the smallest normal one."""
    return log_p.exp().clamp_min(torch.finfo(torch.float64).tiny)


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
