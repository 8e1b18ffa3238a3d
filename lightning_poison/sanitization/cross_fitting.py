"""Cross-fitting: without trusted data, each sample is scored by a model that was not fitted on it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Self

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
from lightning_poison.runtime import Runtime, SingleRank, Units, all_ranks, section
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
    runtime, count, copies = job.runtime, job.settings.folds, job.data.copies or Copies.none(len(job.data))
    folds = _Folds.of(job, copies, number)
    results = _Results(folds)
    with all_ranks(runtime):
        shown = range(count) if runtime.rank == 0 else ()
        missing = [fold_number for fold_number in shown if folds.load(fold_number) is None]
        if missing:
            rounds = -(-len(missing) // runtime.world_size)
            work = f"cross-fitting the {printable(name)} scorer over {count} folds of {len(job.data):,} samples"
            announce_fits(runtime, work, rehearse, folds.others(missing[0]), rounds, folds.units)
        for fold_number in runtime.share(count):
            results.put(fold_number, folds.load(fold_number) or _judged(folds, fold_number, judge, name, missing))
    scores, margins = results.of_all_ranks()
    return CrossFitted(selected_rows(scores, copies.first), None if margins is None else margins[copies.first])


def _judged(
    folds: "_Folds", fold_number: int, judge: Callable[[Fold], FoldScores], name: str, missing: list[int]
) -> FoldScores:
    """Score a fold by a model that is fitted on the others, and store the scores."""
    fold = folds.fold(fold_number)
    with _section_of(fold_number, missing):
        judged = judge(fold)
    found = FoldScores(_checked(judged.scores.to(folds.dtype), len(fold.outside), name), judged.margins)
    folds.save(fold_number, found)
    return found


@dataclass(frozen=True)
class _Folds:
    """The folds of a data set, and where their scores are stored.

    Args:
        job: The data set, and where to compute.
        seed: Seed of the folds and fits.
        assigned: Number of the fold of each sample, int64 `(N,)`.
        is_distinct: Whether a sample is the first of its exact copies with one label, bool `(N,)`.
        units: The scores of finished folds.
        dtype: Data type of the scores.
    """

    job: Job
    seed: int
    assigned: Tensor
    is_distinct: Tensor
    units: Units
    dtype: torch.dtype

    @classmethod
    def of(cls, job: Job, copies: Copies, number: int) -> Self:
        """Assign the samples to folds: copies and members of a group to the same one."""
        seed, labels = job.seed_of(number), job.labels
        generator = derived_generator(seed, "folds")
        assigned = stratified_folds(labels, job.settings.folds, generator, groups=copies.group)
        split = digest_of({"assigned": assigned, "first": copies.first})[:8]
        units = job.runtime.units.within(f"member-{number}").within(f"split-{split}")
        dtype = label_score_dtype(len(labels), int(labels.max()) + 1)
        return cls(job, seed, assigned, copies.first == job.data.indices, units, dtype)

    def others(self, fold_number: int) -> Any:
        """Return the samples of the other folds, as a data set to fit on."""
        return self.job.data.subset((self.assigned != fold_number).nonzero().flatten())

    def scored(self, fold_number: int) -> Tensor:
        """Return the mask of the samples of a fold that are scored, bool `(N,)`."""
        return (self.assigned == fold_number) & self.is_distinct

    def fold(self, fold_number: int) -> Fold:
        """Return a fold, to be scored on this rank alone."""
        return Fold(
            self.job.data,
            self.others(fold_number),
            outside=self.scored(fold_number).nonzero().flatten(),
            runtime=SingleRank(self.job.runtime, units=self.units.within(f"fold-{fold_number}")),
            generator=derived_generator(self.seed, "cross-fit", fold_number),
            seed=self.seed,
            name=f"fold {fold_number + 1} of {self.job.settings.folds}",
            dtype=self.dtype,
        )

    def load(self, fold_number: int) -> FoldScores | None:
        """Return the stored scores of a fold, or `None` if there are none."""
        stored = self.units.load(f"fold-{fold_number}")
        return None if stored is None else FoldScores(stored[0]["scores"], stored[0].get("margins"))

    def save(self, fold_number: int, found: FoldScores) -> None:
        """Store the scores of a fold."""
        recorded = {} if found.margins is None else {"margins": found.margins}
        self.units.save(f"fold-{fold_number}", {"scores": found.scores, **recorded}, {})


class _Results:
    """Scores and training margins by the folds that this rank has taken.

    Args:
        folds: All folds.
    """

    def __init__(self, folds: _Folds) -> None:
        self.folds = folds
        self.scores: Tensor | None = None
        self.total_width = 0
        self.margins: dict[int, Tensor] = {}

    def put(self, fold_number: int, found: FoldScores) -> None:
        """Add what is known by one fold."""
        width = found.scores.shape[1]
        self.total_width += width
        if found.margins is not None:
            self.margins[fold_number] = found.margins
        if self.scores is None:
            self.scores = self._zeros(width)
        self.scores[self.folds.scored(fold_number)] = found.scores

    def of_all_ranks(self) -> tuple[Tensor, Tensor | None]:
        """Return scores `(N, W)` and mean margins `(N,)`, if recorded, by the folds of all ranks."""
        runtime, count = self.folds.job.runtime, self.folds.job.settings.folds
        width = int(runtime.reduce_sum(torch.tensor(self.total_width))) // count
        scores = self._zeros(width) if self.scores is None else self.scores
        margins = _mean_margins(self.margins, self.folds.assigned, count, runtime)
        return sum_over_ranks(scores, runtime), margins

    def _zeros(self, width: int) -> Tensor:
        return zeros_in_file((len(self.folds.assigned), width), self.folds.dtype)


def _mean_margins(found: dict[int, Tensor], assigned: Tensor, folds: int, runtime: Runtime) -> Tensor | None:
    """Return the mean margin of each sample, float64 `(N,)`, the same bits at any number of ranks."""
    if int(runtime.reduce_sum(torch.tensor(len(found)))) < folds:
        return None
    by_fold = torch.zeros(len(assigned), folds, dtype=torch.float64)
    for fold_number, margins in found.items():
        by_fold[assigned != fold_number, fold_number] = margins
    return sum_over_ranks(by_fold, runtime).sum(1) / (folds - 1)


def _section_of(fold_number: int, missing: list[int]) -> AbstractContextManager[None]:
    """Return the section of a fold among those that no rank had finished at the start."""
    if fold_number not in missing:
        return nullcontext()
    done = missing.index(fold_number)
    return section(done / len(missing), (done + 1) / len(missing))


def _checked(scores: Tensor, count: int, name: str) -> Tensor:
    if scores.ndim != 2 or len(scores) != count:
        what = f"a matrix with one row for each of {count} samples"
        raise ValueError(expected(f"the label scores of {printable(name)}", what, describe(scores)))
    return scores
