"""Running a scorer for a decision: fitted on trusted samples, or across folds where nothing is trusted."""

import copy
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_poison.calibration import Decision, decide_by_trusted, decide_by_wrong_label_null
from lightning_poison.checks import expected, printable
from lightning_poison.crossfit import cross_fitted_label_scores
from lightning_poison.holding import Held, hold
from lightning_poison.reading import Block, read_blocks
from lightning_poison.runtime import Runtime
from lightning_poison.samples import SampleSpec
from lightning_poison.scorers.protocol import LabelScorer, Scorer
from lightning_poison.scoring import agreed, score_set
from lightning_poison.seeds import derived_generator

HELD_OUT = 0.3
"""Share of the trusted samples that an unfitted scorer is calibrated on and not fitted on."""

ENOUGH_PER_CLASS = 100
"""Held-out trusted samples a class below which a calibrated rate is loose enough to be warned about."""


@dataclass(frozen=True)
class Job:
    """A data set and how it is judged; the fields are the arguments of `sanitize`."""

    dataset: Any
    labels: Tensor
    scorer: Scorer
    sample: SampleSpec
    runtime: Runtime
    seed: int
    false_positive_rate: float
    natural_error_rate: float


@dataclass(frozen=True)
class Judged:
    """Scores `(N,)`, the least suspicious label of each sample `(N,)` or −1, and the decision."""

    scores: Tensor
    suggested_labels: Tensor
    decision: Decision


def judge_untrusted(job: Job, *, folds: int, remove_without_evidence: bool) -> Judged:
    """Judge a data set by itself: out-of-fold scores, then the wrong-label null."""
    label_scores = _label_scores(job, folds)
    decision = decide_by_wrong_label_null(
        label_scores,
        job.labels,
        false_positive_rate=job.false_positive_rate,
        natural_error_rate=job.natural_error_rate,
        remove_without_evidence=remove_without_evidence,
    )
    return Judged(label_scores.gather(1, job.labels[:, None])[:, 0], label_scores.argmin(1), decision)


def judge_by_trusted(job: Job, trusted: Held) -> Judged:
    """Judge a data set by trusted samples: fit on most of them, calibrate on the rest.

    A scorer that is fitted already is calibrated on all of them.

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
    held_out = torch.arange(len(labels))
    if not job.scorer.is_fitted:
        job = replace(job, scorer=copy.deepcopy(job.scorer))
        fitted_on, held_out = _split(labels, job.labels, derived_generator(job.seed, "trusted split"))
        trusted = agreed(job.runtime, lambda: _fitted(job, trusted, fitted_on))
        job.scorer.load(job.runtime.broadcast(dict(job.scorer.state())))
    _warn_of_few(labels[held_out], job.labels)
    trusted_scores, _ = _scores_and_suggestions(job, trusted, held_out, "trusted")
    everything = torch.arange(len(job.labels))
    judged = Held(job.dataset, job.sample, job.labels)
    scores, suggested = _scores_and_suggestions(job, judged, everything, "training")
    decision = decide_by_trusted(
        scores,
        job.labels,
        trusted_scores,
        labels[held_out],
        false_positive_rate=job.false_positive_rate,
        natural_error_rate=job.natural_error_rate,
    )
    return Judged(scores, suggested, decision)


def _label_scores(job: Job, folds: int) -> Tensor:
    scorer, labels = job.scorer, job.labels
    if not isinstance(scorer, LabelScorer):
        raise ValueError(
            f"Expected `trusted=` data, since the {printable(scorer.name)} scorer cannot be asked for another label.\n"
            "Without trusted data use a scorer with `score_labels`, such as `LikelihoodScorer()`."
        )
    if not scorer.is_fitted:
        return cross_fitted_label_scores(
            job.dataset, labels, scorer, folds=folds, sample=job.sample, runtime=job.runtime, seed=job.seed
        )
    label_scores = score_set(
        job.dataset,
        torch.arange(len(labels)),
        lambda block: scorer.score_labels(block.inputs),
        sample=job.sample,
        runtime=job.runtime,
        seed=job.seed,
        labels=labels,
    )
    if label_scores.shape[1] <= int(labels.max()):
        known = label_scores.shape[1]
        raise ValueError(expected("dataset", f"labels below {known}, the scorer's classes", int(labels.max())))
    return label_scores


def _warn_of_few(held_out_labels: Tensor, labels: Tensor) -> None:
    smallest = int(torch.bincount(held_out_labels)[torch.unique(labels)].min())
    if smallest < ENOUGH_PER_CLASS:
        warnings.warn(
            f"The false-positive rate is calibrated on {smallest} held-out trusted samples in the smallest class: the "
            "realised rate may lie far from the stated one. At 500 a class it lies within half of it.",
            stacklevel=2,
        )


def _scores_and_suggestions(job: Job, held: Held, indices: Tensor, name: str) -> tuple[Tensor, Tensor]:
    both = score_set(
        held.dataset,
        indices,
        _both(job.scorer),
        sample=held.sample,
        runtime=job.runtime,
        seed=job.seed,
        labels=held.labels,
        description=f"scoring {name} data",
    )
    return both[:, 0], both[:, 1].long()


def _both(scorer: Scorer) -> Callable[[Block], Tensor]:
    """Return a function of a block: the score under its own label, and the least suspicious label or −1."""
    if isinstance(scorer, LabelScorer):

        def by_label(block: Block) -> Tensor:
            label_scores = scorer.score_labels(block.inputs).double()
            if label_scores.shape[1] <= int(block.labels.max()):
                known, came = label_scores.shape[1], int(block.labels.max())
                raise ValueError(expected("dataset", f"labels below {known}, the scorer's classes", came))
            own = label_scores.gather(1, block.labels[:, None])
            return torch.cat([own, label_scores.argmin(1, keepdim=True).double()], dim=1)

        return by_label

    def alone(block: Block) -> Tensor:
        own = scorer.score_batch(block.inputs, block.labels).double()
        return torch.stack([own, torch.full_like(own, -1)], dim=1)

    return alone


def _fitted(job: Job, trusted: Held, indices: Tensor) -> Held:
    """Fit on some of the trusted samples, and return all of them as they were read for it."""
    held = hold(trusted, runtime=job.runtime, seed=job.seed, name="trusted data")
    job.scorer.fit(held.part(indices), runtime=job.runtime, generator=derived_generator(job.seed, "trusted fit"))
    return held


def _split(labels: Tensor, judged: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Share trusted samples out, each class that is judged by `HELD_OUT`: to fit on, and to calibrate on."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    for number in torch.unique(judged).tolist():
        members = (labels == number).nonzero().flatten()
        if len(members) < 2:
            raise ValueError(
                expected("trusted", f"at least two samples of class {number}", len(members))
                + "\nOne is needed to fit on, and one to calibrate on."
            )
        count = max(1, round(HELD_OUT * len(members)))
        held[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return (~held).nonzero().flatten(), held.nonzero().flatten()


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
