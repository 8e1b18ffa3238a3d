"""What a scorer that judges sample by sample says: fitted on trusted samples, or across folds where none are."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from lightning_poison.checks import expected, printable
from lightning_poison.data.blocks import Block
from lightning_poison.data.in_memory import Held, hold
from lightning_poison.data.inference import score_set
from lightning_poison.randomness import derived_generator
from lightning_poison.runtime import agreed
from lightning_poison.sanitization.cross_fitting import cross_fitted_label_scores
from lightning_poison.sanitization.job import Job, MemberScores
from lightning_poison.scorers.inspection import AnyScorer
from lightning_poison.scorers.protocol import LabelScorer, Scorer


def score_by_trusted(
    job: Job, scorer: Scorer, trusted: Held, parts: tuple[Tensor, Tensor], number: int
) -> MemberScores:
    """Fit a copy of a scorer on some trusted samples, unless it is fitted, and score the others and the judged ones.

    Args:
        job: the data set and how it is judged.
        scorer: stays as it is.
        trusted: the samples that are believed.
        parts: the positions of those to fit on, and of those that are held out.
        number: which member of a combination this is.
    """
    if not scorer.is_fitted:
        scorer = copy.deepcopy(scorer)
        trusted = agreed(job.runtime, lambda: _fitted(job, scorer, trusted, parts[0], number))
        scorer.load(job.runtime.broadcast(dict(scorer.state())))
    trusted_scores, _ = _scores_and_suggestions(job, scorer, trusted, parts[1], "trusted")
    judged = Held(job.dataset, job.sample, job.labels)
    everything = torch.arange(len(job.labels))
    scores, suggested = _scores_and_suggestions(job, scorer, judged, everything, "training")
    return MemberScores(scores, suggested, trusted_scores)


def label_scores(job: Job, scorer: Scorer, *, folds: int, number: int) -> Tensor:
    """Return the score of each judged sample under each label, float64 `(N, C)`, out of fold.

    A scorer that is fitted already scores them as it is.

    Raises:
        ValueError: where the scorer cannot be asked for another label, or knows fewer classes than there are.
    """
    labels, seed = job.labels, job.seed_of(number)
    if not isinstance(scorer, LabelScorer):
        raise ValueError(cannot_say(scorer))
    if not scorer.is_fitted:
        return cross_fitted_label_scores(
            job.dataset, labels, scorer, folds=folds, sample=job.sample, runtime=job.runtime, seed=seed
        )
    found = score_set(
        job.dataset,
        torch.arange(len(labels)),
        lambda block: scorer.score_labels(block.inputs),
        sample=job.sample,
        runtime=job.runtime,
        seed=job.seed,
        labels=labels,
    )
    if found.shape[1] <= int(labels.max()):
        known = found.shape[1]
        raise ValueError(expected("dataset", f"labels below {known}, the scorer's classes", int(labels.max())))
    return found[:, : int(labels.max()) + 1]


def cannot_say(scorer: AnyScorer) -> str:
    """Return the error of a scorer that cannot be asked how suspicious a sample is under another label.

    Example:
        >>> from lightning_poison.scorers.pixel_counting import PixelCountingScorer
        >>> print(cannot_say(PixelCountingScorer()))
        Expected `trusted=` data, since the pixel-counting scorer cannot be asked for another label.
        Without trusted data use a scorer with `score_labels`, such as `LikelihoodScorer()`.
    """
    return (
        f"Expected `trusted=` data, since the {printable(scorer.name)} scorer cannot be asked for another label.\n"
        "Without trusted data use a scorer with `score_labels`, such as `LikelihoodScorer()`."
    )


def _scores_and_suggestions(job: Job, scorer: Scorer, held: Held, indices: Tensor, name: str) -> tuple[Tensor, Tensor]:
    both = score_set(
        held.dataset,
        indices,
        _both(scorer),
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
            of_labels = scorer.score_labels(block.inputs).double()
            if of_labels.shape[1] <= int(block.labels.max()):
                known, came = of_labels.shape[1], int(block.labels.max())
                raise ValueError(expected("dataset", f"labels below {known}, the scorer's classes", came))
            own = of_labels.gather(1, block.labels[:, None])
            return torch.cat([own, of_labels.argmin(1, keepdim=True).double()], dim=1)

        return by_label

    def alone(block: Block) -> Tensor:
        own = scorer.score_batch(block.inputs, block.labels).double()
        return torch.stack([own, torch.full_like(own, -1)], dim=1)

    return alone


def _fitted(job: Job, scorer: Scorer, trusted: Held, indices: Tensor, number: int) -> Held:
    """Fit on some of the trusted samples, and return all of them as they were read for it."""
    held = hold(trusted, runtime=job.runtime, seed=job.seed, name="trusted data")
    generator = derived_generator(job.seed_of(number), "trusted fit")
    scorer.fit(held.part(indices), runtime=job.runtime, generator=generator)
    return held
