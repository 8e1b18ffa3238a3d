"""Deciding without trusted data group by group: what stands apart from its class, and what does it do to others?"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_poison.data.blocks import Block
from lightning_poison.data.in_memory import Held, hold
from lightning_poison.data.inference import score_set
from lightning_poison.randomness import derived_generator
from lightning_poison.runtime import agreed
from lightning_poison.sanitization.job import CONFIDENCE, Decision, Job, Judged
from lightning_poison.sanitization.set_scores import check_set, gather_features
from lightning_poison.sanitization.verdict import Evidence
from lightning_poison.sanitization.without_trusted import check_agreement
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.inspection import feature_model_of
from lightning_poison.scorers.protocol import GroupScorer
from lightning_poison.statistics.contamination import SuspectPair, select_by_posterior
from lightning_poison.statistics.group_effects import SuspectGroup, look_alike_mean, resemblance, transfer_share
from lightning_poison.statistics.intervals import wilson_interval
from lightning_poison.statistics.p_values import share_at_least_as_suspicious
from lightning_poison.statistics.stratified import stratified_part
from lightning_poison.statistics.subgroups import Subgroup, subgroup_scores

_ASKED = 4_000
"""Samples that are drawn to see whether the network has learned, and to give them what a group has more of."""

_KEPT_BACK = 0.1
"""Share of the samples in no group that the exclusion model is not trained on, so that it can be compared with."""

_FURTHEST = 1e6
_LEAST_PAIR = 0.05
"""Share of a group that must be read as a class for the two to be listed as a pair."""


@dataclass(frozen=True)
class _Questioned:
    """A group that stands apart, what it does, and as what a network that has not seen it reads its members."""

    group: Subgroup
    found: SuspectGroup
    readings: Tensor


def judge_by_groups(job: Job, scorer: GroupScorer, *, remove_without_evidence: bool) -> Judged:
    """Judge a data set by the groups in it, none of its samples being trusted.

    The network is trained on all samples, so that it learns what an attacker has put there. Groups that stand apart in
    its features are questioned. The members of those that are poison go, for as long as few others are expected to go
    with them: the posterior of a member comes from the log-odds of the linear discriminant that parts the group from
    the rest of its class.

    Args:
        job: the data set and how it is judged.
        scorer: finds groups, and tells which are poison.
        remove_without_evidence: remove groups that stand apart also where they have no effect.

    Raises:
        ValueError: where a class is too small, its features do not vary, or the network returns no logits.
        InconclusiveError: where the network has hardly learned the labels.
    """
    check_set(scorer, job.labels)
    held, model = _fitted(job, feature_model_of(scorer), torch.arange(len(job.labels)), "feature model")
    job = replace(job, dataset=held.dataset, sample=held.sample)
    everything = torch.arange(len(job.labels))
    some = _drawn(job, everything)
    check_agreement(job.labels[some], _logits(job, model, some).argmax(1))
    features = gather_features(job, model, held, everything, "training")
    groups = job.runtime.broadcast(agreed(job.runtime, lambda: scorer.find_groups(features, job.labels)))
    apart = [group for group in groups if scorer.stands_apart(group)]
    questioned = _question(job, scorer, model, features, apart) if apart else []
    out = [each for each in questioned if each.found.is_poison or remove_without_evidence]
    taken = [each.group for each in out]
    scores = subgroup_scores(groups, len(job.labels), is_apart=lambda group: any(group is each for each in taken))
    suggested = torch.full((len(job.labels),), -1)
    for each in out:
        if each.found.resemblance > each.found.transfer:
            suggested[each.group.members] = each.readings
    return Judged(scores, suggested, _decision(job, scores, questioned, taken))


def _fitted(job: Job, model: FeatureModel, indices: Tensor, purpose: str) -> tuple[Held, FeatureModel]:
    """Return the data as they were read, and a copy of a model, fitted on some of them where it has to be."""
    judged = Held(job.dataset, job.sample, job.labels)
    if model.is_fitted:
        return judged, model
    own = copy.deepcopy(model)

    def fit() -> Held:
        kept = hold(judged, runtime=job.runtime, seed=job.seed, name="training data")
        own.fit(kept.part(indices), runtime=job.runtime, generator=derived_generator(job.seed, purpose))
        return kept

    found = agreed(job.runtime, fit)
    own.load(job.runtime.broadcast(dict(own.state())))
    return replace(found, labels=job.labels), own


def _drawn(job: Job, places: Tensor) -> Tensor:
    order = torch.randperm(len(places), generator=derived_generator(job.seed, "asked samples"))
    return places[order[:_ASKED]].sort().values


def _in_no_group(job: Job, apart: Sequence[Subgroup]) -> Tensor:
    free = torch.ones(len(job.labels), dtype=torch.bool)
    for group in apart:
        free[group.members] = False
    return free.nonzero().flatten()


def _question(
    job: Job, scorer: GroupScorer, model: FeatureModel, features: Tensor, apart: Sequence[Subgroup]
) -> list[_Questioned]:
    rest = _in_no_group(job, apart)
    asked = _drawn(job, rest)
    back = stratified_part(job.labels[rest], _KEPT_BACK, derived_generator(job.seed, "kept back"), among=job.labels)
    _, reader = _fitted(job, scorer.exclusion_model, rest[~back], "exclusion model")
    reference, questioned = _logits(job, reader, rest[back]), []
    for group in apart:
        logits = _logits(job, reader, group.members)
        beside = look_alike_mean(features[rest], job.labels[rest], logits.argmax(1))
        shift = (features[group.members].double().mean(0) - beside).float()
        transfer = _transfer(job, model, group.label, shift, asked)
        alike = resemblance(logits, group.label, reference, job.labels[rest[back]])
        verdict = scorer.is_poison(transfer=transfer, resemblance=alike)
        size, apart_by = len(group.members), min(group.separation, _FURTHEST)
        found = SuspectGroup(group.label, size, apart_by, transfer, alike, verdict)
        questioned.append(_Questioned(group, found, logits.argmax(1)))
    return questioned


def _transfer(job: Job, model: FeatureModel, label: int, shift: Tensor, asked: Tensor) -> float:
    places = asked[job.labels[asked] != label]
    before, after = (_logits(job, model, places, shift=change).argmax(1) for change in (None, shift))
    return transfer_share(before, after, job.labels[places], label)


def _logits(job: Job, model: FeatureModel, indices: Tensor, *, shift: Tensor | None = None) -> Tensor:
    def read(block: Block) -> Tensor:
        return model.logits(block.inputs, shift=shift)

    return score_set(
        job.dataset,
        indices,
        read,
        sample=job.sample,
        runtime=job.runtime,
        seed=job.seed,
        labels=job.labels,
        description="questioning groups",
    )


def _decision(job: Job, scores: Tensor, questioned: Sequence[_Questioned], taken: Sequence[Subgroup]) -> Decision:
    posterior = torch.zeros(len(job.labels), dtype=torch.float64)
    for group in taken:
        posterior[group.positions] = torch.maximum(posterior[group.positions], group.log_odds.sigmoid())
    keep = select_by_posterior(posterior, job.false_positive_rate)
    low, high = wilson_interval(posterior.sum(), torch.zeros(()), len(keep), confidence=CONFIDENCE)
    groups = sorted((each.found for each in questioned), key=lambda group: -group.size)
    evidence = Evidence(
        any(group.is_poison for group in groups),
        float(posterior.mean()),
        float(low) / len(keep),
        float(high) / len(keep),
        CONFIDENCE,
        job.natural_error_rate,
        tuple(pair for each in questioned for pair in _pairs(job, each)),
        tuple(groups),
    )
    p_values = share_at_least_as_suspicious(torch.stack([posterior, scores], 1), 1 - posterior)
    thresholds = torch.full((int(job.labels.max()) + 1,), torch.inf, dtype=torch.float64)
    removed = posterior[~keep]
    return Decision(p_values, keep, thresholds, evidence, posterior, float(removed.min()) if len(removed) else 1.0)


def _pairs(job: Job, questioned: _Questioned) -> list[SuspectPair]:
    """Return as what the members of a group are read, where that is what made it poison."""
    found, label = questioned.found, questioned.group.label
    if not found.is_poison or found.transfer >= found.resemblance:
        return []
    counts = torch.bincount(questioned.readings)
    expected = job.natural_error_rate * float((job.labels == label).sum())
    pairs = []
    for number in counts.argsort(descending=True).tolist():
        count = counts[number].double()
        if number == label or count < _LEAST_PAIR * found.size:
            continue
        low, high = wilson_interval(count, torch.zeros(()), len(job.labels), confidence=CONFIDENCE)
        chance = torch.special.gammainc(count, torch.tensor(max(expected, 1e-9)).double())
        pairs.append(SuspectPair(label, number, int(count), float(count), float(low), float(high), float(chance)))
    return pairs
