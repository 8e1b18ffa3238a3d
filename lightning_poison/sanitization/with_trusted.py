"""Decisions with trusted data: fit on most of them, calibrate decision thresholds on the rest."""

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from lightning_poison.checks import expected
from lightning_poison.data.labeled_data import LabeledData
from lightning_poison.randomness import derived_generator
from lightning_poison.sanitization.agreement import check_agreement
from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.job import CONFIDENCE, Decision, Job, MemberScores, Outcome
from lightning_poison.sanitization.sample_scores import scores_with_trusted
from lightning_poison.sanitization.set_scores import group_by_features, set_scores_with_trusted
from lightning_poison.sanitization.settings import DecisionSettings
from lightning_poison.sanitization.trusted_labels import check_numbering, wrong_label_note
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.inspection import members_of
from lightning_poison.scorers.protocol import Scorer, SetScorer
from lightning_poison.statistics.p_values import Combination, combine_log_p, p_values_from_log, select_suggestions
from lightning_poison.statistics.stratified import stratified_part
from lightning_poison.statistics.thresholds import TrustedReference, class_thresholds, log_p_by_trusted, tail_p_values

HELD_OUT = 0.3
"""Share of the trusted samples that an unfitted scorer is calibrated on and not fitted on."""

HELD_OUT_IN_COMBINATION = 0.4
"""The same share for a combination, which compares its members with one half and is calibrated on the other."""

ENOUGH_PER_CLASS = 100
"""Held-out trusted samples per class below which the calibrated rate is uncertain enough for a warning."""

_ENOUGH_TO_COMPARE = 20
"""Number of samples from which the scale of trusted data is compared with that of the training data."""

_MAX_SHIFT = 0.75
"""Largest difference of the mean pixels of trusted and training data, in standard deviations of pixels."""

_MAX_RATIO = 1.8
"""Largest ratio of these standard deviations."""

_MAX_SHARED = 0.005
"""Share of the trusted samples that may be equal to samples of the training data, beyond what is usual in the data.

Fewer are a warning.
"""

_SHARED = "Their labels would be compared with themselves. Remove them from the training data or from `trusted`."

_TRUSTED_HINT = (
    "Check the labels of `trusted`: are they correct, and numbered as those of the training data? Otherwise give the "
    "scorer a stronger `backbone=` or a longer fit, or more `trusted` samples."
)

_TWO_SIDED = 1.96


def judge_with_trusted(job: Job, trusted: LabeledData) -> Outcome:
    """Judge a data set with trusted samples.

    Scorers that are fitted already, and those that need the whole set, are calibrated on all trusted samples.

    Args:
        job: The data set and its decision settings.
        trusted: Known-clean samples.

    Raises:
        ValueError: If a class has too few trusted samples.
        InconclusiveError: If the labels of held-out trusted samples are not those that the scorer predicts, or trusted
            data number the classes differently.
    """
    labels = trusted.labels
    members = list(members_of(job.scorer).values())
    fitted_on, held_out = torch.zeros(0, dtype=torch.int64), torch.arange(len(labels))
    if any(isinstance(member, Scorer) and not member.is_fitted for member in members):
        share = HELD_OUT if len(members) == 1 else HELD_OUT_IN_COMBINATION
        mask = stratified_part(labels, share, derived_generator(job.seed, "trusted split"), among=job.labels)
        fitted_on, held_out = (~mask).nonzero().flatten(), mask.nonzero().flatten()
    warn_of_few(labels[held_out], job.labels, parts=2 if len(members) > 1 else 1)
    found = _member_scores(job, trusted, (fitted_on, held_out))
    for member in found:
        check_learned(labels[held_out], member.trusted_labels)
        check_numbering(job.labels, member.suggested_labels)
    notes = _notes(job, found, labels[held_out], trusted.positions[held_out])
    if isinstance(job.scorer, CombinedScorer):
        outcome = _combine(job, list(members_of(job.scorer)), found, labels[held_out], job.scorer.combine)
        return replace(outcome, notes=notes)
    decision = decide_by_trusted(found[0].scores, job.labels, found[0].trusted, labels[held_out], job.settings)
    return Outcome(found[0].scores, found[0].suggested_labels, decision, "trusted", notes=notes)


def _notes(job: Job, found: list[MemberScores], labels: Tensor, positions: Tensor) -> tuple[str, ...]:
    """Return a sentence about wrong labels among the held-out trusted samples if there are any, and warn of them."""
    rate = job.settings.natural_error_rate
    for member in found:
        if member.trusted_label_scores is not None:
            note = wrong_label_note(labels, member.trusted_label_scores, positions, natural_error_rate=rate)
            if note is not None:
                warnings.warn(note, stacklevel=2)
                return (note,)
    return ()


def decide_by_trusted(
    scores: Tensor, labels: Tensor, trusted_scores: Tensor, trusted_labels: Tensor, settings: DecisionSettings
) -> Decision:
    """Threshold scores at an upper quantile of the held-out trusted scores of each class.

    The evidence compares the share of samples above the thresholds with the stated rate α:
    π = (share − α) / (1 − α), with the standard error of both sets of samples.

    Args:
        scores: Scores of the training data, float64 `(N,)`.
        labels: Their labels, int64 `(N,)`.
        trusted_scores: Scores of samples on which the scorer was not fitted, float64 `(M,)`.
        trusted_labels: Their labels, int64 `(M,)`. Every class of `labels` must occur.
        settings: Of these, `false_positive_rate` is α.

    Raises:
        ValueError: If a class has no threshold at this rate: too few trusted samples, or equal scores for all of them.

    Example:
        >>> trusted, labels = torch.arange(200).double() / 200, torch.zeros(200).long()
        >>> scores = torch.tensor([0.5, 7.0]).double()
        >>> decision = decide_by_trusted(scores, labels[:2], trusted, labels, DecisionSettings())
        >>> decision.keep, decision.p_values[1] < 0.01
        (tensor([ True, False]), tensor(True))
    """
    rate = settings.false_positive_rate
    known = TrustedReference.select(labels, trusted_scores, trusted_labels)
    reference, count = (known.reference_scores, known.reference_labels), len(known.classes)
    p_values = tail_p_values(scores, known.labels, *reference, num_classes=count)
    thresholds = torch.full((int(torch.maximum(labels.max(), trusted_labels.max())) + 1,), torch.inf).double()
    thresholds[known.classes] = class_thresholds(*reference, false_positive_rate=rate, num_classes=count)
    _check_thresholds(thresholds, known)
    keep = scores <= thresholds[labels]
    return Decision(p_values, keep, thresholds, _excess(keep, len(known.reference_scores), settings))


def _check_thresholds(thresholds: Tensor, known: TrustedReference) -> None:
    """Raise if no sample of a class could ever be suspicious."""
    for place, number in enumerate(known.classes.tolist()):
        if torch.isfinite(thresholds[number]):
            continue
        count = int((known.reference_labels == place).sum())
        if count < 2:
            what, hint = f"at least two held-out samples of class {number}", "About 500 per class suffice for 1 %."
            raise ValueError(expected("trusted", what, f"{count}", hint))
        raise ValueError(
            f"Expected scores that differ among the {count} held-out trusted samples of class {number}, but the "
            "largest ones are equal, so no threshold exceeds them.\nThe scorer does not separate samples of "
            "this class. Check for constant inputs or features, use another scorer, or add `trusted` samples."
        )


def _excess(keep: Tensor, reference: int, settings: DecisionSettings) -> Evidence:
    rate = settings.false_positive_rate
    above = float((~keep).double().mean())
    estimate = (above - rate) / (1 - rate)
    error = (rate * (1 - rate) * (1 / len(keep) + 1 / reference)) ** 0.5 / (1 - rate)
    low, high = max(0.0, estimate - _TWO_SIDED * error), min(1.0, max(0.0, estimate + _TWO_SIDED * error))
    natural = settings.natural_error_rate
    return Evidence(low > natural, max(0.0, estimate), low, high, CONFIDENCE, natural, kind="unlike trusted data")


def _member_scores(job: Job, trusted: LabeledData, parts: tuple[Tensor, Tensor]) -> list[MemberScores]:
    found: dict[int, MemberScores] = {}
    set_scorers: dict[int, SetScorer] = {}
    for number, member in enumerate(members_of(job.scorer).values()):
        if isinstance(member, Scorer):
            found[number] = scores_with_trusted(job, member, trusted, parts, number)
        else:
            set_scorers[number] = member
    for group in group_by_features(list(set_scorers.values())):
        numbers = [list(set_scorers)[place] for place in group]
        scorers = [set_scorers[number] for number in numbers]
        found |= zip(numbers, set_scores_with_trusted(job, scorers, trusted, parts[1], numbers[0]), strict=True)
    return [found[number] for number in sorted(found)]


def _combine(job: Job, names: list[str], found: list[MemberScores], labels: Tensor, how: Combination) -> Outcome:
    """Compare each member's scores with one half of the held-out samples, and calibrate the result on the other."""
    _check_halves(labels, job.labels)
    compared = stratified_part(labels, 0.5, derived_generator(job.seed, "combination split"), among=job.labels)

    def log_p_of(scores: list[Tensor], own: Tensor) -> Tensor:
        return torch.stack(
            [
                log_p_by_trusted(each, own, member.trusted[compared], labels[compared])
                for each, member in zip(scores, found, strict=True)
            ]
        )

    reference = torch.isin(labels, job.labels) & ~compared
    log_p = log_p_of([member.scores for member in found], job.labels)
    trusted_log_p = log_p_of([member.trusted[reference] for member in found], labels[reference])
    scores, trusted_scores = combine_log_p(log_p, how), combine_log_p(trusted_log_p, how)
    decision = decide_by_trusted(scores, job.labels, trusted_scores, labels[reference], job.settings)
    suggested = select_suggestions(log_p, torch.stack([member.suggested_labels for member in found]))
    votes = {name: p_values_from_log(log_p[number]) for number, name in enumerate(names)}
    return Outcome(scores, suggested, decision, "trusted", votes)


def _check_halves(labels: Tensor, training_labels: Tensor) -> None:
    counts = torch.bincount(labels, minlength=int(training_labels.max()) + 1)[torch.unique(training_labels)]
    if int(counts.min()) < 2:
        number = int(torch.unique(training_labels)[counts.argmin()])
        raise ValueError(
            f"Expected at least two held-out trusted samples of class {number} for a combination, but got "
            f"{int(counts.min())}.\nMembers are compared with one half of them and calibrated on the other: add "
            "`trusted` samples, about 500 per class."
        )


def warn_of_few(held_out_labels: Tensor, labels: Tensor, *, parts: int) -> None:
    """Warn if a class has too few held-out trusted samples.

    Args:
        held_out_labels: Their labels, int64 `(M,)`.
        labels: Labels of the data to judge, int64 `(N,)`.
        parts: Number of parts into which the held-out samples are divided.
    """
    smallest = int(torch.bincount(held_out_labels)[torch.unique(labels)].min()) // parts
    if smallest < ENOUGH_PER_CLASS:
        warnings.warn(
            f"The false-positive rate is calibrated on {smallest} held-out trusted samples in the smallest class, so "
            "the realized rate may be far from the stated one. With 500 per class it is within half of it.",
            stacklevel=2,
        )


def check_trusted(data: LabeledData, trusted: LabeledData) -> None:
    """Check that trusted samples can be compared with the data that are judged, before anything is fitted.

    Raises:
        ValueError: If a class has no trusted sample, or the trusted samples have another shape or scale than the data,
            or are among them.
    """
    negative = int((trusted.labels < 0).sum())
    if negative:
        raise ValueError(expected("trusted", "samples with labels", f"{negative} without", "Remove them."))
    missing = [number for number in torch.unique(data.labels).tolist() if not bool((trusted.labels == number).any())]
    if missing:
        listed = ", ".join(map(str, missing[:10]))
        raise ValueError(
            f"Expected trusted samples of every class, but there is none of class {listed}.\n"
            "Add some, or omit `trusted`."
        )
    own, known = data.first_inputs(), trusted.first_inputs()
    if own.shape[1:] != known.shape[1:]:
        what = f"samples of shape {tuple(own.shape[1:])}, the shape of the training data"
        raise ValueError(expected("trusted", what, tuple(known.shape[1:]), "Give both the same transform."))
    _check_scale(own, known)
    if data.repeats and trusted.repeats:
        _check_disjoint(data, trusted)


def _check_scale(own: Tensor, known: Tensor) -> None:
    """Raise if trusted samples are scaled, shifted or inverted. Images of the same origin differ far less."""
    if own.ndim < 3 or min(len(own), len(known)) < _ENOUGH_TO_COMPARE:
        return
    spread, spread_known = float(own.double().std()), float(known.double().std())
    shift = abs(float(own.double().mean()) - float(known.double().mean()))
    if shift > _MAX_SHIFT * spread or not 1 / _MAX_RATIO <= spread_known / max(spread, 1e-30) <= _MAX_RATIO:
        raise ValueError(
            f"Expected trusted samples on the scale of the training data, {_range_of(own)}, but got "
            f"{_range_of(known)}.\nGive both the same transform and normalization."
        )


def _range_of(inputs: Tensor) -> str:
    return f"{inputs.min():.3g} to {inputs.max():.3g} with mean {inputs.double().mean():.3g}"


def _check_disjoint(data: LabeledData, trusted: LabeledData) -> None:
    """Raise if trusted samples are among those that are judged, more than equal samples occur in the data anyway.

    A few are a warning.
    """
    own, known = data.sample_digests, trusted.sample_digests
    shared = int(torch.isin(known[known != 0], own[own != 0]).sum())
    usual = 2 * (1 - len(torch.unique(own)) / len(own)) * len(known)
    if shared > usual + _MAX_SHARED * len(known):
        raise ValueError(
            f"Expected `trusted` samples that are not judged, but {shared:,} of {len(known):,} are in the training "
            f"data too.\n{_SHARED}"
        )
    if shared > usual:
        warnings.warn(
            f"{shared:,} of {len(known):,} `trusted` samples are in the training data too. {_SHARED}", stacklevel=2
        )


def check_learned(labels: Tensor, predictions: Tensor) -> None:
    """Raise if the labels of held-out trusted samples are not those that a scorer predicts, if it predicts labels."""
    predicted = predictions >= 0
    if bool(predicted.any()):
        check_agreement(labels[predicted], predictions[predicted], hint=_TRUSTED_HINT)
