"""Cross-fitting: without trusted data, each sample is scored by a model that was not fitted on it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_poison.checks import describe, expected, printable
from lightning_poison.data.blocks import Block
from lightning_poison.data.copies import Copies
from lightning_poison.data.fingerprints import digest_of
from lightning_poison.data.inference import score_set, sum_over_ranks
from lightning_poison.data.labeled_data import LabeledData
from lightning_poison.data.large_matrices import label_score_dtype, selected_rows, zeros_in_file
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.randomness import derived_generator
from lightning_poison.runtime import Runtime, SingleRank, all_ranks, section
from lightning_poison.sanitization.fit_announcement import announce_fits
from lightning_poison.sanitization.job import Job
from lightning_poison.statistics.stratified import stratified_folds


@dataclass(frozen=True)
class Fold:
    """One fold and the samples of the other folds.

    Args:
        data: The whole data set.
        part: Samples of the other folds, as a data set to fit on.
        outside: Positions of the samples of this fold, int64 `(M,)`; of exact copies with one label, the first.
        runtime: This rank on its own.
        generator: The source of randomness.
        seed: Seed of random transforms.
        name: Name in the progress bar.
        dtype: Data type of the scores.
    """

    data: LabeledData
    part: Any
    outside: Tensor
    runtime: Runtime
    generator: torch.Generator
    seed: int
    name: str
    dtype: torch.dtype = torch.float64

    def score(self, score: Callable[[Block], Tensor]) -> Tensor:
        """Return what a function of a block returns for the samples of this fold, in their order."""
        return score_set(
            self.data.dataset,
            self.outside,
            score,
            sample=SampleSpec(),
            runtime=self.runtime,
            seed=self.seed,
            labels=self.data.labels,
            description=f"Scoring {self.name}",
            dtype=self.dtype,
            unit="blocks",
        )


@dataclass(frozen=True)
class FoldScores:
    """What is known of the samples of a fold, and of those that its model was fitted on.

    Args:
        scores: Scores of the samples of the fold, `(M, W)`.
        margins: Training margins of the samples of the other folds, in their order; see `Scorer.training_margins`.
            Default: not recorded.
    """

    scores: Tensor
    margins: Tensor | None = None


@dataclass(frozen=True)
class CrossFitted:
    """What is known of the samples of a data set after all folds.

    Args:
        scores: Scores by a model that was not fitted on the sample, `(N, W)`, in the order of the data set; float64, or
            float32 if there are many: `label_score_dtype`.
        margins: Mean training margins in the fits that saw the sample, float64 `(N,)`. `None` if they are not recorded.
    """

    scores: Tensor
    margins: Tensor | None = None


def cross_fit(
    job: Job, judge: Callable[[Fold], FoldScores], name: str, rehearse: Callable[..., int | None] | None, *, number: int
) -> CrossFitted:
    """Score each fold by a model that was fitted on the others.

    Each fold is fitted and scored on one rank, the next one that is free. The scores of a finished fold are stored.
    Copies and members of a group are in the same fold, and exact copies with one label have the scores of the first.

    Args:
        job: The data set, and where to compute.
        judge: Scores the samples of a fold.
        name: Name of the scorer.
        rehearse: Runs the first steps of a fit and returns how many a fit has; see `Scorer.rehearse`.
        number: Position of the scorer in a combination, which determines the seed of folds and fits.

    Raises:
        ValueError: If a class has fewer samples than there are folds, or a sample carries another label than its data
            set lists.
    """
    labels, runtime, folds, data = job.labels, job.runtime, job.settings.folds, job.data
    seed = job.seed_of(number)
    copies = data.copies or Copies.none(len(data))
    is_distinct = copies.first == data.indices
    assigned = stratified_folds(labels, folds, derived_generator(seed, "folds"), groups=copies.group)
    split = digest_of({"assigned": assigned, "first": copies.first})[:8]
    units = runtime.units.within(f"member-{number}").within(f"split-{split}")
    dtype = label_score_dtype(len(labels), int(labels.max()) + 1)
    scores: Tensor | None = None
    widths: list[int] = []
    margins: dict[int, Tensor] = {}

    def put(place: int, fold_scores: Tensor, fold_margins: Tensor | None) -> None:
        nonlocal scores
        widths.append(fold_scores.shape[1])
        if fold_margins is not None:
            margins[place] = fold_margins
        if scores is None:
            scores = zeros_in_file((len(labels), fold_scores.shape[1]), dtype)
        scores[(assigned == place) & is_distinct] = fold_scores

    with all_ranks(runtime):
        shown = range(folds) if runtime.rank == 0 else ()
        missing = [place for place in shown if units.load(f"fold-{place}") is None]
        if missing:
            rounds = -(-len(missing) // runtime.world_size)
            part = data.subset((assigned != missing[0]).nonzero().flatten())
            work = f"cross-fitting the {printable(name)} scorer over {folds} folds of {len(data):,} samples"
            announce_fits(runtime, work, rehearse, part, rounds, units)
        for place in runtime.share(folds):
            if (stored := units.load(f"fold-{place}")) is not None:
                put(place, stored[0]["scores"], stored[0].get("margins"))
                continue
            part = data.subset((assigned != place).nonzero().flatten())
            outside = ((assigned == place) & is_distinct).nonzero().flatten()
            own = SingleRank(runtime, units=units.within(f"fold-{place}"))
            generator = derived_generator(seed, "cross-fit", place)
            fold = Fold(data, part, outside, own, generator, seed, f"fold {place + 1} of {folds}", dtype)
            with _section_of(place, missing):
                judged = judge(fold)
            fold_scores = _checked(judged.scores.to(dtype), len(outside), name)
            recorded = {} if judged.margins is None else {"margins": judged.margins}
            units.save(f"fold-{place}", {"scores": fold_scores, **recorded}, {})
            put(place, fold_scores, judged.margins)
            del fold_scores, judged
    width = int(runtime.reduce_sum(torch.tensor(sum(widths)))) // folds
    if scores is None:
        scores = zeros_in_file((len(labels), width), dtype)
    mean_margins = _mean_margins(margins, assigned, folds, runtime)
    return CrossFitted(
        selected_rows(sum_over_ranks(scores, runtime), copies.first),
        None if mean_margins is None else mean_margins[copies.first],
    )


def _mean_margins(found: dict[int, Tensor], assigned: Tensor, folds: int, runtime: Runtime) -> Tensor | None:
    """Return the mean margin of each sample, float64 `(N,)`, the same bits at any number of ranks."""
    if int(runtime.reduce_sum(torch.tensor(len(found)))) < folds:
        return None
    by_fold = torch.zeros(len(assigned), folds, dtype=torch.float64)
    for place, margins in found.items():
        by_fold[assigned != place, place] = margins
    return sum_over_ranks(by_fold, runtime).sum(1) / (folds - 1)


def _section_of(place: int, missing: list[int]) -> AbstractContextManager[None]:
    """Return the section of a fold among those that no rank had finished at the start."""
    if place not in missing:
        return nullcontext()
    done = missing.index(place)
    return section(done / len(missing), (done + 1) / len(missing))


def _checked(scores: Tensor, count: int, name: str) -> Tensor:
    if scores.ndim != 2 or len(scores) != count:
        what = f"a matrix with one row for each of {count} samples"
        raise ValueError(expected(f"the label scores of {printable(name)}", what, describe(scores)))
    return scores
