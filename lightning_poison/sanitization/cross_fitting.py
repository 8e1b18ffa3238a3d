"""Scores where nothing is trusted: every sample is judged by a model that has not seen it."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_poison.checks import printable
from lightning_poison.data.blocks import Block
from lightning_poison.data.in_memory import Held, hold
from lightning_poison.data.inference import score_set
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.randomness import derived_generator
from lightning_poison.runtime import LocalRuntime, Runtime, agreed
from lightning_poison.scorers.protocol import LabelScorer, RehearsableScorer
from lightning_poison.statistics.stratified import stratified_folds

_REHEARSAL_STEPS = 4


def cross_fitted_label_scores(
    dataset: Any,
    labels: Tensor,
    scorer: LabelScorer,
    *,
    folds: int = 3,
    sample: SampleSpec,
    runtime: Runtime,
    seed: int,
) -> Tensor:
    """Fit a copy of the scorer on all folds but one and score that one under every label, fold by fold.

    The folds are shared out over the ranks; each is fitted whole on one of them.

    Args:
        dataset: the untrusted data set.
        labels: int64 `(N,)`, its labels.
        scorer: an unfitted scorer that can be asked for every label; it stays unfitted.
        folds: how many folds.
        sample: where input and label stand in a sample.
        runtime: where to compute.
        seed: seeds folds, fits and random transforms.

    Returns:
        float64 `(N, C)`: the score of each sample under each label.

    Raises:
        ValueError: where a class has fewer samples than there are folds, or a sample carries another label than
            `labels` says.
    """

    def judge(fold: Fold) -> Tensor:
        fitted = copy.deepcopy(scorer).fit(fold.part, runtime=fold.runtime, generator=fold.generator)
        return fold.score(lambda block: fitted.score_labels(block.inputs))

    told = scorer if isinstance(scorer, RehearsableScorer) else None
    held = Held(dataset, sample, labels)
    return cross_fit(held, judge, scorer.name, told, folds=folds, runtime=runtime, seed=seed)


@dataclass(frozen=True)
class Fold:
    """One fold, and the samples that its judge may learn from.

    Args:
        held: the whole data set.
        part: the samples of the other folds, as a data set.
        outside: int64 `(M,)`, the positions of the samples of this fold.
        runtime: one rank that works for itself.
        generator: the source of randomness.
        seed: seeds the random transforms of the data set.
        name: what the progress bar says.
    """

    held: Held
    part: Any
    outside: Tensor
    runtime: Runtime
    generator: torch.Generator
    seed: int
    name: str

    def score(self, score: Callable[[Block], Tensor]) -> Tensor:
        """Return what a function of a block says about the samples of this fold, float64, in their order."""
        return score_set(
            self.held.dataset,
            self.outside,
            score,
            sample=self.held.sample,
            runtime=self.runtime,
            seed=self.seed,
            labels=self.held.labels,
            description=f"scoring {self.name}",
            share=False,
        )


def cross_fit(
    held: Held,
    judge: Callable[[Fold], Tensor],
    name: str,
    rehearsable: RehearsableScorer | None,
    *,
    folds: int,
    runtime: Runtime,
    seed: int,
) -> Tensor:
    """Judge each fold by what was learned from the others.

    Args:
        held: the untrusted data set.
        judge: maps a fold to scores `(M, W)` of its M samples.
        name: whose scores these are.
        rehearsable: what can be timed beforehand.
        folds: how many folds.
        runtime: where to compute.
        seed: seeds folds, fits and random transforms.

    Returns:
        float64 `(N, W)`, in the order of the data set.

    Raises:
        ValueError: where a class has fewer samples than there are folds.
    """
    labels = held.labels
    assigned = stratified_folds(labels, folds, derived_generator(seed, "folds"))
    alone = _Alone(runtime)

    def run() -> dict[int, Tensor]:
        kept = replace(hold(held, runtime=runtime, seed=seed, name="training data"), labels=labels)
        found = {}
        for number in range(runtime.rank, folds, runtime.world_size):
            inside, outside = (assigned != number).nonzero().flatten(), (assigned == number).nonzero().flatten()
            part = kept.part(inside)
            if number == 0:
                _announce(name, rehearsable, part, len(labels), folds, runtime)
            generator = derived_generator(seed, "cross-fit", number)
            found[number] = judge(
                Fold(kept, part, outside, alone, generator, seed, f"fold {number + 1} of {folds}")
            ).double()
        return found

    found = agreed(runtime, run)
    width = runtime.broadcast(next(iter(found.values())).shape[1] if found else 0)
    scores = torch.zeros(len(labels), width, dtype=torch.float64)
    for number, of_fold in found.items():
        scores[assigned == number] = of_fold
    return runtime.reduce_sum(scores) if runtime.world_size > 1 else scores


def _announce(
    name: str, rehearsable: RehearsableScorer | None, part: Any, length: int, folds: int, runtime: Runtime
) -> None:
    """Say before it starts about how long it will take; timed on a few steps of a throw-away copy."""
    about = ""
    if rehearsable is not None:
        quiet = LocalRuntime(runtime.device, threads=runtime.threads)
        rehearsable.rehearse(part, steps=1, runtime=quiet)
        start = time.perf_counter()
        steps = rehearsable.rehearse(part, steps=_REHEARSAL_STEPS, runtime=quiet)
        rounds = -(-folds // runtime.world_size)
        about = f", about {_rounded((time.perf_counter() - start) / _REHEARSAL_STEPS * steps * rounds)}"
    runtime.announce(
        f"Nothing is trusted: fitting the {printable(name)} scorer {folds} times to judge {length:,} samples "
        f"out of fold{about}."
    )


def _rounded(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class _Alone:
    """A rank that works for itself: the device and the progress bar of a runtime, and no collectives."""

    rank = 0
    world_size = 1

    def __init__(self, runtime: Runtime) -> None:
        self.device = runtime.device
        self.threads = runtime.threads
        self.num_workers = runtime.num_workers
        self.autocast = runtime.autocast
        self.progress = runtime.progress
        self.announce = runtime.announce

    def reduce_sum(self, tensor: Tensor) -> Tensor:
        return tensor

    def broadcast(self, value: Any) -> Any:
        return value

    def all_true(self, flag: bool) -> bool:
        return flag
