"""Cross-fitting: without trusted data, each sample is scored by a model that was not fitted on it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_poison.checks import describe, expected, printable
from lightning_poison.data.blocks import Block
from lightning_poison.data.inference import score_set
from lightning_poison.data.labeled_data import LabeledData
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.randomness import derived_generator
from lightning_poison.runtime import LocalRuntime, Runtime, SingleRank, all_ranks
from lightning_poison.sanitization.job import Job
from lightning_poison.statistics.stratified import stratified_folds

_REHEARSAL_STEPS = 4


@dataclass(frozen=True)
class Fold:
    """One fold and the samples of the other folds.

    Args:
        data: The whole data set.
        part: Samples of the other folds, as a data set to fit on.
        outside: Positions of the samples of this fold, int64 `(M,)`.
        runtime: This rank on its own.
        generator: The source of randomness.
        seed: Seed of random transforms.
        name: Name in the progress bar.
    """

    data: LabeledData
    part: Any
    outside: Tensor
    runtime: Runtime
    generator: torch.Generator
    seed: int
    name: str

    def score(self, score: Callable[[Block], Tensor]) -> Tensor:
        """Return what a function of a block returns for the samples of this fold, float64, in their order."""
        return score_set(
            self.data.dataset,
            self.outside,
            score,
            sample=SampleSpec(),
            runtime=self.runtime,
            seed=self.seed,
            labels=self.data.labels,
            description=f"Scoring {self.name}",
            unit="blocks",
        )


def cross_fit(
    job: Job, judge: Callable[[Fold], Tensor], name: str, rehearse: Callable[..., int | None] | None, *, number: int
) -> Tensor:
    """Score each fold by a model that was fitted on the others.

    Folds are distributed over the ranks; each is fitted on one of them. The scores of a finished fold are stored.

    Args:
        job: The data set, and where to compute.
        judge: Maps a fold to scores `(M, W)` of its M samples.
        name: Name of the scorer.
        rehearse: Runs the first steps of a fit and returns how many a fit has; see `Scorer.rehearse`.
        number: Position of the scorer in a combination, which determines the seed of folds and fits.

    Returns:
        Scores, float64 `(N, W)`, in the order of the data set.

    Raises:
        ValueError: If a class has fewer samples than there are folds, or a sample carries another label than its data
            set lists.
    """
    labels, runtime, folds, data = job.labels, job.runtime, job.settings.folds, job.data
    seed, units = job.seed_of(number), job.runtime.units.within(f"member-{number}")
    assigned = stratified_folds(labels, folds, derived_generator(seed, "folds"))
    found: dict[int, Tensor] = {}
    with all_ranks(runtime):
        for place in range(runtime.rank, folds, runtime.world_size):
            stored = units.load(f"fold-{place}")
            if stored is not None:
                found[place] = stored[0]["scores"]
                continue
            inside, outside = (assigned != place).nonzero().flatten(), (assigned == place).nonzero().flatten()
            part = data.subset(inside)
            if place == 0:
                _announce(name, rehearse, part, len(labels), folds, runtime)
            own = SingleRank(runtime, units=units.within(f"fold-{place}"))
            generator = derived_generator(seed, "cross-fit", place)
            fold = Fold(data, part, outside, own, generator, seed, f"fold {place + 1} of {folds}")
            found[place] = _checked(judge(fold).double(), len(outside), name)
            units.save(f"fold-{place}", {"scores": found[place]}, {})
    width = runtime.broadcast(next(iter(found.values())).shape[1] if found else 0)
    scores = torch.zeros(len(labels), width, dtype=torch.float64)
    for place, fold_scores in found.items():
        scores[assigned == place] = fold_scores
    return runtime.reduce_sum(scores) if runtime.world_size > 1 else scores


def _checked(scores: Tensor, count: int, name: str) -> Tensor:
    if scores.ndim != 2 or len(scores) != count:
        what = f"a matrix with one row for each of {count} samples"
        raise ValueError(expected(f"the label scores of {printable(name)}", what, describe(scores)))
    return scores


def _announce(
    name: str, rehearse: Callable[..., int | None] | None, part: Any, length: int, folds: int, runtime: Runtime
) -> None:
    """Announce the fits, with an estimate of their time from a few steps of a temporary copy."""
    estimate = ""
    quiet = LocalRuntime(runtime.device, threads=runtime.threads)
    if rehearse is not None and rehearse(part, steps=1, runtime=quiet) is not None:
        start = time.perf_counter()
        steps = rehearse(part, steps=_REHEARSAL_STEPS, runtime=quiet) or 0
        rounds = -(-folds // runtime.world_size)
        estimate = f", about {_rounded((time.perf_counter() - start) / _REHEARSAL_STEPS * steps * rounds)}"
    runtime.announce(
        f"No trusted data: cross-fitting the {printable(name)} scorer over {folds} folds of {length:,} samples"
        f"{estimate}."
    )


def _rounded(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
