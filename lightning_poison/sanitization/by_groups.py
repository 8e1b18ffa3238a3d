"""Decisions without trusted data, by groups: separated groups and their effect."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lightning_poison.data.blocks import Block
from lightning_poison.randomness import derived_generator
from lightning_poison.runtime import Units, all_ranks, section
from lightning_poison.sanitization.agreement import check_agreement
from lightning_poison.sanitization.class_patterns import (
    MIN_CLASSES,
    MIN_PATTERN,
    MIN_RECOGNIZED,
    compute_over,
    may_have_pattern,
    pattern_share,
    rest_of_class,
)
from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.fit_announcement import announce_fits
from lightning_poison.sanitization.job import CONFIDENCE, Decision, Job, Outcome
from lightning_poison.sanitization.scorer_calls import (
    call_check_set,
    call_find_groups,
    call_is_poison,
    call_logits,
    call_rehearse,
    call_stands_apart,
    call_training_margins,
)
from lightning_poison.sanitization.set_scores import gather_features
from lightning_poison.scorers.inspection import feature_model_of
from lightning_poison.scorers.protocol import FeatureSource, SetScorer
from lightning_poison.statistics.contamination import SuspectPair, select_by_posterior
from lightning_poison.statistics.group_effects import (
    SHORTCUT_MARGIN,
    WIDE_GAP,
    SuspectGroup,
    has_enough_classes,
    look_alike_mean,
    resemblance,
    rest_margin,
    transfer_share,
)
from lightning_poison.statistics.intervals import wilson_interval
from lightning_poison.statistics.p_values import share_at_least_as_suspicious
from lightning_poison.statistics.stratified import stratified_part
from lightning_poison.statistics.subgroups import Subgroup, subgroup_scores, with_fitted_odds

_PROBED = 4_000
"""Number of samples drawn to check that the network has learned the labels, and to measure the effect of a group."""

_HELD_OUT = 0.1
"""Share of the samples in no group that the exclusion model is not trained on, as a reference."""

_FIRST_FIT = 0.5
"""Share of the time after which the network has learned the data; the rest is for the exclusion model and the tests."""

_IS_FITTED = "fitted"
"""Unit that says that the network has been fitted."""

_MAX_SEPARATION = 1e6

_MOSTLY = 0.5
"""Share of a group in a larger one from which the two are listed as one."""

_MIN_PAIR_SHARE = 0.05
"""Share of a group that must be predicted as a class for the two classes to be listed as a pair."""


@dataclass(frozen=True)
class _Effect:
    """A separated group, its effect, and the predictions for its members without it in training.

    Args:
        group: The group whose effect was measured.
        found: The effect.
        predictions: Predictions for the members of `group`, int64 `(M,)`.
        whole: The group with all samples that are removed with it.
    """

    group: Subgroup
    found: SuspectGroup
    predictions: Tensor
    whole: Subgroup

    @classmethod
    def of(cls, group: Subgroup, found: SuspectGroup, predictions: Tensor) -> "_Effect":
        """Return the effect of a group, with all members of it if it is poison."""
        whole = with_fitted_odds(group) if found.is_poison else group
        return cls(group, replace(found, size=len(whole.members)), predictions, whole)


def judge_by_groups(job: Job, scorer: SetScorer) -> Outcome:
    """Judge a data set by the groups in it, without trusted data.

    The network is trained on all samples, so that it learns any backdoor. Groups that are separated in its
    features are tested for their effect. Members of groups that are poison are removed as long as few clean samples
    are expected among them. The posterior of a member follows from the log-odds of membership along the linear
    discriminant between the group and the rest of its class; see `with_fitted_odds`.

    Args:
        job: The data set and its decision settings. With `remove_without_evidence`, separated groups without an
            effect are removed too.
        scorer: Finds groups and decides which are poison.

    Raises:
        ValueError: If a class is too small, its features do not vary, or the network returns no logits.
        InconclusiveError: If the network has not learned the labels.
    """
    with all_ranks(job.runtime):
        call_check_set(scorer, job.labels)
    source = feature_model_of(scorer)
    fixed = source.is_fitted
    with section(0, _FIRST_FIT):
        _announce(job, source)
        model = _fitted(job, source, job.data.indices, "feature model")
        if job.runtime.rank == 0:
            _units(job).save(_IS_FITTED, {}, {})
    with all_ranks(job.runtime):
        margins = None if fixed else call_training_margins(model, len(job.labels))
    margins = job.runtime.broadcast(margins)
    probed = _draw(job, job.data.indices)
    check_agreement(job.labels[probed], _logits(job, model, probed, unit="agreement").argmax(1))
    features = gather_features(job, model, job.data, job.data.indices, "training", fixed=fixed)
    with all_ranks(job.runtime):
        groups = call_find_groups(scorer, features, job.labels)
    groups = job.runtime.broadcast(groups)
    with all_ranks(job.runtime):
        apart = [group for group in groups if call_stands_apart(scorer, group) and _is_varied(job, group)]
    with section(_FIRST_FIT, 1):
        effects = _effects(job, scorer, model, features, apart) if apart else []
    removed = [each for each in effects if each.found.is_poison or job.settings.remove_without_evidence]
    suspects = [each.whole for each in removed]
    tested = [each.group for each in removed]
    scored = [*suspects, *(group for group in groups if not any(group is each for each in tested))]
    scores = subgroup_scores(scored, len(job.labels), is_apart=lambda group: any(group is each for each in suspects))
    suggested = torch.full((len(job.labels),), -1)
    for each in removed:
        if each.found.resemblance > each.found.transfer:
            suggested[each.group.members] = each.predictions
    decision = _decision(job, scores, effects, suspects)
    numbers = _numbers(job, removed, decision)
    return Outcome(scores, suggested, decision, "group tests", groups=numbers, training_margins=margins)


def _announce(job: Job, source: FeatureSource) -> None:
    """Announce the fit of the network, unless it is fitted, or was in an interrupted run.

    Fits of networks without some of the samples are not announced, since they are seldom needed.
    """
    with all_ranks(job.runtime):
        if source.is_fitted or job.runtime.rank or _units(job).load(_IS_FITTED) is not None:
            return
        work = f"fitting a network on {len(job.data):,} samples to look for groups in its features"
        part = job.data.subset(job.data.indices)
        announce_fits(job.runtime, work, partial(call_rehearse, source), part, 1, _units(job))


def _units(job: Job) -> Units:
    return job.runtime.units.within("groups")


def _is_varied(job: Job, group: Subgroup) -> bool:
    """Whether a group is more than a few samples and their copies."""
    copies = job.data.copies
    return copies is None or 2 * len(torch.unique(copies.first[group.members])) >= len(group.members)


def _numbers(job: Job, removed: Sequence[_Effect], decision: Decision) -> Tensor:
    """Return the number of the group in `decision.evidence` that each sample is a member of, int64 `(N,)`; −1: none."""
    numbers = torch.full((len(job.labels),), -1)
    for each, host in _listed(removed):
        numbers[each.whole.members] = decision.evidence.groups.index(host.found)
    return numbers


def _listed(effects: Sequence[_Effect]) -> list[tuple[_Effect, _Effect]]:
    """Return each group with the one under which it is listed.

    A group that mostly lies in a larger one with the same answer was found twice, and is listed under that one. Others
    are listed as themselves.
    """
    found: list[tuple[_Effect, _Effect]] = []
    for each in sorted(effects, key=lambda effect: -effect.found.size):
        hosts = (host for one, host in found if one is host and host.found.is_poison == each.found.is_poison)
        around = (host for host in hosts if _share_inside(each, host) > _MOSTLY)
        found.append((each, next(around, each)))
    return found


def _share_inside(effect: _Effect, other: _Effect) -> float:
    return float(torch.isin(effect.whole.members, other.whole.members).double().mean())


def _fitted(job: Job, model: FeatureSource, indices: Tensor, purpose: str) -> FeatureSource:
    """Return a copy of the model, fitted on some samples, or the model itself if it is fitted."""
    if model.is_fitted:
        return model
    return job.fit(model, lambda: job.data.subset(indices), purpose)


def _draw(job: Job, places: Tensor) -> Tensor:
    order = torch.randperm(len(places), generator=derived_generator(job.seed, "asked samples"))
    return places[order[:_PROBED]].sort().values


def _in_no_group(job: Job, apart: Sequence[Subgroup]) -> Tensor:
    free = torch.ones(len(job.labels), dtype=torch.bool)
    for group in apart:
        free[group.members] = False
    return free.nonzero().flatten()


def _effects(
    job: Job, scorer: SetScorer, model: FeatureSource, features: Tensor, apart: Sequence[Subgroup]
) -> list[_Effect]:
    """Measure the effect of each group."""
    rest = _in_no_group(job, apart)
    probed = _draw(job, rest)
    held_out = stratified_part(job.labels[rest], _HELD_OUT, derived_generator(job.seed, "kept back"), among=job.labels)
    if scorer.exclusion_model is None:
        raise ValueError(f"Expected `exclusion_model` of {type(scorer).__name__} to be set, since it finds groups.")
    without = _fitted(job, scorer.exclusion_model, rest[~held_out], "exclusion model")
    reference, effects = _logits(job, without, rest[held_out], unit="effects-reference"), []
    before = _logits(job, model, probed, unit="effects-before").argmax(1)
    for number, group in enumerate(apart):
        logits = _logits(job, without, group.members, unit=f"effects-members-{number}")
        look_alikes = look_alike_mean(features[rest], job.labels[rest], logits.argmax(1))
        shift = (features[group.members].double().mean(0) - look_alikes).float()
        other = job.labels[probed] != group.label
        after = _logits(job, model, probed[other], shift=shift, unit=f"effects-shifted-{number}").argmax(1)
        transfer = 0.0
        if group.separation >= WIDE_GAP or has_enough_classes(job.labels[probed[other]]):
            transfer = transfer_share(before[other], after, job.labels[probed[other]], group.label)
        margin_of_rest = rest_margin(reference, job.labels[rest[held_out]], group.label)
        alike = 0.0
        if margin_of_rest < SHORTCUT_MARGIN:
            alike = resemblance(logits, group.label, reference, job.labels[rest[held_out]])
        with all_ranks(job.runtime):
            is_poison = call_is_poison(scorer, transfer=transfer, resemblance=alike)
        separation = min(group.separation, _MAX_SEPARATION)
        size = len(group.members)
        found = SuspectGroup(
            group.label,
            size,
            separation=separation,
            transfer=transfer,
            resemblance=alike,
            is_poison=is_poison,
            rest_margin=margin_of_rest,
        )
        effects.append(_Effect.of(group, found, logits.argmax(1)))
    return _with_patterns(job, scorer.exclusion_model, without, features, probed, effects)


def _with_patterns(
    job: Job,
    exclusion_model: FeatureSource,
    without: FeatureSource,
    features: Tensor,
    probed: Tensor,
    effects: Sequence[_Effect],
) -> list[_Effect]:
    """Put the rest of a class in place of its groups where a pattern makes most of the class poison.

    The most separated group of each class is tested, unless features of a group have an effect on other classes.
    """
    with all_ranks(job.runtime):
        shape = job.data.first_inputs().shape[1:]
    result: list[_Effect] = []
    for label in sorted({each.group.label for each in effects}):
        of_class = sorted(
            (each for each in effects if each.group.label == label), key=lambda each: -each.found.separation
        )
        first = of_class[0]
        rest = rest_of_class(job, features, first.group)
        others, share = probed[job.labels[probed] != label], 0.0
        is_tested = has_enough_classes(job.labels[others], MIN_CLASSES) and may_have_pattern(rest)
        if is_tested and not any(_is_trigger(each.found) for each in of_class):
            share = pattern_share(job, without, rest, shape, others)
        if share >= MIN_PATTERN and (
            first.found.rest_margin >= SHORTCUT_MARGIN or _is_recognized(job, exclusion_model, rest, effects)
        ):
            separation = min(rest.separation, _MAX_SEPARATION)
            found = SuspectGroup(
                label,
                len(rest.members),
                separation=separation,
                transfer=0.0,
                resemblance=0.0,
                is_poison=True,
                pattern=share,
            )
            of_class = [_Effect.of(rest, found, torch.full((len(rest.members),), label))]
        result += of_class
    return result


def _is_trigger(found: SuspectGroup) -> bool:
    return found.is_poison and found.transfer >= found.resemblance


def _is_recognized(job: Job, model: FeatureSource, rest: Subgroup, effects: Sequence[_Effect]) -> bool:
    """Whether most of a class looks like its class to a network that has learned the class from its other samples.

    So it does if only a pattern was added. If the others are poison with wrong labels, they teach another class.
    """
    left_out = torch.zeros(len(job.labels), dtype=torch.bool)
    for each in effects:
        if each.group.label != rest.label:
            left_out[each.group.members] = True
    left_out[rest.members] = True
    fitted = _fitted(job, model, (~left_out).nonzero().flatten(), f"without most of class {rest.label}")
    logits = _logits(job, fitted, rest.members, unit=f"effects-recognized-{rest.label}")
    return float((logits.argmax(1) == rest.label).double().mean()) >= MIN_RECOGNIZED


def _logits(
    job: Job, model: FeatureSource, indices: Tensor, *, shift: Tensor | None = None, unit: str | None = None
) -> Tensor:
    def logits(block: Block) -> Tensor:
        return call_logits(model, block.inputs, shift=shift, indices=block.indices)

    return compute_over(job, indices, logits, unit=unit)


def _decision(job: Job, scores: Tensor, effects: Sequence[_Effect], suspects: Sequence[Subgroup]) -> Decision:
    posterior = torch.zeros(len(job.labels), dtype=torch.float64)
    for group in suspects:
        posterior[group.positions] = torch.maximum(posterior[group.positions], group.log_odds.sigmoid())
    lost = share_at_least_as_suspicious(posterior[:, None], 1 - posterior)
    keep = select_by_posterior(posterior, lost, job.settings.false_positive_rate)
    low, high = wilson_interval(posterior.sum(), torch.zeros(()), len(keep), confidence=CONFIDENCE)
    groups = [each.found for each, host in _listed(effects) if each is host]
    evidence = Evidence(
        any(group.is_poison for group in groups),
        float(posterior.mean()),
        low=float(low) / len(keep),
        high=float(high) / len(keep),
        confidence=CONFIDENCE,
        natural_error_rate=job.settings.natural_error_rate,
        pairs=tuple(pair for each in effects for pair in _pairs(job, each)),
        groups=tuple(groups),
        kind="groups",
    )
    p_values = share_at_least_as_suspicious(torch.stack([posterior, scores], 1), 1 - posterior)
    thresholds = torch.full((int(job.labels.max()) + 1,), torch.inf, dtype=torch.float64)
    removed = posterior[~keep]
    return Decision(
        p_values,
        keep,
        thresholds=thresholds,
        evidence=evidence,
        posterior=posterior,
        posterior_threshold=float(removed.min()) if len(removed) else 1.0,
    )


def _pairs(job: Job, effect: _Effect) -> list[SuspectPair]:
    """Return the classes predicted for the members of a group, if resemblance is what makes it poison."""
    found, label = effect.found, effect.group.label
    if not found.is_poison or found.transfer >= found.resemblance:
        return []
    counts = torch.bincount(effect.predictions)
    expected = job.settings.natural_error_rate * float((job.labels == label).sum())
    pairs = []
    for number in counts.argsort(descending=True).tolist():
        count = counts[number].double()
        if number == label or count < _MIN_PAIR_SHARE * found.size:
            continue
        low, high = wilson_interval(count, torch.zeros(()), len(job.labels), confidence=CONFIDENCE)
        chance = torch.special.gammainc(count, torch.tensor(max(expected, 1e-9)).double())
        pairs.append(
            SuspectPair(
                label,
                number,
                count=int(count),
                estimate=float(count),
                low=float(low),
                high=float(high),
                p_value=float(chance),
            )
        )
    return pairs
