"""Scores of single-sample scorers, with trusted data or out of fold."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from lightning_poison.checks import printable
from lightning_poison.data.blocks import Block
from lightning_poison.data.inference import score_set
from lightning_poison.data.labeled_data import LabeledData
from lightning_poison.data.large_matrices import label_score_dtype
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.sanitization.cross_fitting import CrossFitted, Fold, FoldScores, cross_fit
from lightning_poison.sanitization.job import Job, MemberScores
from lightning_poison.sanitization.scorer_calls import (
    call_deepcopy,
    call_fit,
    call_rehearse,
    call_score_batch,
    call_score_labels,
    call_training_margins,
)
from lightning_poison.scorers.inspection import AnyScorer
from lightning_poison.scorers.protocol import Scorer


def scores_with_trusted(
    job: Job, scorer: Scorer, trusted: LabeledData, parts: tuple[Tensor, Tensor], number: int
) -> MemberScores:
    """Fit a copy of a scorer on some trusted samples unless it is fitted; score the other ones and the training data.

    Args:
        job: The data set and its decision settings.
        scorer: Not modified.
        trusted: Known-clean samples.
        parts: Positions of the trusted samples to fit on, and of those held out.
        number: Position of the scorer in a combination.
    """
    if not scorer.is_fitted:
        scorer = job.fit(scorer, lambda: trusted.subset(parts[0]), "trusted fit", number=number)
    count = 1 + int(torch.maximum(job.labels.max(), trusted.labels.max()))
    if scorer.scores_labels:
        label_scores = _label_scores_of_trusted(job, scorer, trusted, parts[1], number, count)
        trusted_scores = label_scores.gather(1, trusted.labels[parts[1]][:, None])[:, 0]
        trusted_labels = label_scores.argmin(1)
    else:
        label_scores = None
        trusted_scores, trusted_labels = _scores_and_suggestions(
            job, scorer, trusted, parts[1], "trusted", number, count
        )
    scores, suggested = _scores_and_suggestions(job, scorer, job.data, job.data.indices, "training", number, count)
    return MemberScores(scores, suggested, trusted_scores, trusted_labels, label_scores)


def _label_scores_of_trusted(
    job: Job, scorer: Scorer, trusted: LabeledData, indices: Tensor, number: int, count: int
) -> Tensor:
    """Return the scores of trusted samples under each of the first C labels, float64 `(M, C)`."""

    def score(block: Block) -> Tensor:
        label_scores = call_score_labels(scorer, block.inputs, int(block.labels.max()) + 1, indices=block.indices)
        return label_scores[:, :count].double()

    return score_set(
        trusted.dataset,
        indices,
        score,
        sample=SampleSpec(),
        runtime=job.runtime,
        seed=job.seed,
        labels=trusted.labels,
        description="Scoring trusted data",
        unit=f"member-{number}-trusted-label-blocks",
    )


def out_of_fold_label_scores(job: Job, scorer: Scorer, *, number: int) -> CrossFitted:
    """Score each sample under each of C labels, by copies fitted on the other folds.

    A fitted scorer is used unchanged.

    Raises:
        ValueError: If the scorer does not score labels, or was fitted on fewer classes than the data set has.
    """
    if not scorer.scores_labels:
        raise ValueError(needs_trusted(scorer))
    count = int(job.labels.max()) + 1

    def label_scores(fitted: Scorer, block: Block) -> Tensor:
        return call_score_labels(fitted, block.inputs, count, indices=block.indices)[:, :count]

    if scorer.is_fitted:
        scores = score_set(
            job.data.dataset,
            job.data.indices,
            partial(label_scores, scorer),
            sample=SampleSpec(),
            runtime=job.runtime,
            seed=job.seed,
            labels=job.labels,
            dtype=label_score_dtype(len(job.labels), count),
            unit=f"member-{number}-blocks",
        )
        return CrossFitted(scores)

    def judge(fold: Fold) -> FoldScores:
        fitted = call_fit(call_deepcopy(scorer), fold.part, runtime=fold.runtime, generator=fold.generator)
        margins = call_training_margins(fitted, len(fold.part))
        return FoldScores(fold.score(partial(label_scores, fitted)), margins)

    return cross_fit(job, judge, scorer.name, partial(call_rehearse, scorer), number=number)


def needs_trusted(scorer: AnyScorer) -> str:
    """Return the error message for a scorer that cannot score other labels.

    Example:
        >>> from lightning_poison.scorers.deep_knn import DeepKNNScorer
        >>> print(needs_trusted(DeepKNNScorer()).splitlines()[1])
        Without trusted data use a scorer with `score_labels`, such as `LikelihoodScorer()`.
    """
    return (
        f"Expected `trusted=` data, since the {printable(scorer.name)} scorer cannot score a sample under other "
        "labels.\nWithout trusted data use a scorer with `score_labels`, such as `LikelihoodScorer()`."
    )


def _scores_and_suggestions(
    job: Job, scorer: Scorer, data: LabeledData, indices: Tensor, name: str, number: int, count: int
) -> tuple[Tensor, Tensor]:
    both = score_set(
        data.dataset,
        indices,
        _score_and_suggest(scorer, count),
        sample=SampleSpec(),
        runtime=job.runtime,
        seed=job.seed,
        labels=data.labels,
        description=f"Scoring {name} data",
        unit=f"member-{number}-{name}-blocks",
    )
    return both[:, 0], both[:, 1].long()


def _score_and_suggest(scorer: Scorer, count: int) -> Callable[[Block], Tensor]:
    """Return a function of a block: scores under the carried labels, and the least suspicious of C labels or −1."""

    def with_suggestion(block: Block) -> Tensor:
        label_scores = call_score_labels(scorer, block.inputs, int(block.labels.max()) + 1, indices=block.indices)
        own = label_scores.gather(1, block.labels[:, None])
        return torch.cat([own, label_scores[:, :count].argmin(1, keepdim=True).double()], dim=1)

    def without_suggestion(block: Block) -> Tensor:
        own = call_score_batch(scorer, block.inputs, block.labels, indices=block.indices)
        return torch.stack([own, torch.full_like(own, -1)], dim=1)

    return with_suggestion if scorer.scores_labels else without_suggestion
