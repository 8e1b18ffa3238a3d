"""Scores where nothing is trusted: every sample is judged by a model that has not seen it."""

import copy
import time
from typing import Any

import torch
from torch import Tensor

from lightning_poison.checks import expected, positive_int, printable
from lightning_poison.holding import Held, hold
from lightning_poison.runtime import LocalRuntime, Runtime
from lightning_poison.samples import SampleSpec
from lightning_poison.scorers.protocol import LabelScorer, RehearsableScorer
from lightning_poison.scoring import agreed, score_set
from lightning_poison.seeds import derived_generator

_REHEARSAL_STEPS = 4


def stratified_folds(labels: Tensor, folds: int, generator: torch.Generator) -> Tensor:
    """Share samples out over folds, each class evenly.

    Args:
        labels: int64 `(N,)`.
        folds: how many folds, at least 2.
        generator: the source of randomness.

    Returns:
        int64 `(N,)`, the fold of each sample.

    Raises:
        ValueError: where a class has fewer samples than there are folds.

    Example:
        >>> stratified_folds(torch.tensor([0, 0, 0, 0]), 2, torch.Generator().manual_seed(0)).bincount()
        tensor([2, 2])
    """
    positive_int("folds", folds, minimum=2)
    assigned = torch.empty_like(labels)
    for number in torch.unique(labels).tolist():
        members = (labels == number).nonzero().flatten()
        if len(members) < folds:
            raise ValueError(
                expected("folds", f"at most the {len(members)} samples of class {number}", folds)
                + "\nUse fewer folds, leave the class out, or give `trusted=` data; or mend the label of sample "
                f"{int(members[0])}, if there is no such class."
            )
        start = int(torch.randint(folds, (1,), generator=generator))
        order = torch.randperm(len(members), generator=generator)
        assigned[members[order]] = (torch.arange(len(members)) + start) % folds
    return assigned


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
    assigned = stratified_folds(labels, folds, derived_generator(seed, "folds"))
    classes = int(labels.max()) + 1
    alone = _Alone(runtime)

    def run() -> Tensor:
        held = hold(Held(dataset, sample, labels), runtime=runtime, seed=seed, name="training data")
        found = torch.zeros(len(labels), classes, dtype=torch.float64)
        for fold in range(runtime.rank, folds, runtime.world_size):
            inside, outside = (assigned != fold).nonzero().flatten(), (assigned == fold).nonzero().flatten()
            part = held.part(inside)
            if fold == 0:
                _announce(scorer, part, len(labels), folds, runtime)
            generator = derived_generator(seed, "cross-fit", fold)
            fitted = copy.deepcopy(scorer).fit(part, runtime=alone, generator=generator)
            found[outside] = score_set(
                held.dataset,
                outside,
                lambda block, fitted=fitted: fitted.score_labels(block.inputs),  # type: ignore[misc]
                sample=held.sample,
                runtime=alone,
                seed=seed,
                labels=labels,
                description=f"scoring fold {fold + 1} of {folds}",
                share=False,
            )
        return found

    found = agreed(runtime, run)
    return runtime.reduce_sum(found) if runtime.world_size > 1 else found


def _announce(scorer: LabelScorer, part: Any, length: int, folds: int, runtime: Runtime) -> None:
    """Say before it starts about how long it will take; timed on a few steps of a throw-away copy."""
    about = ""
    if isinstance(scorer, RehearsableScorer):
        quiet = LocalRuntime(runtime.device, threads=runtime.threads)
        scorer.rehearse(part, steps=1, runtime=quiet)
        start = time.perf_counter()
        steps = scorer.rehearse(part, steps=_REHEARSAL_STEPS, runtime=quiet)
        rounds = -(-folds // runtime.world_size)
        about = f", about {_rounded((time.perf_counter() - start) / _REHEARSAL_STEPS * steps * rounds)}"
    runtime.announce(
        f"Nothing is trusted: fitting the {printable(scorer.name)} scorer {folds} times to judge {length:,} samples "
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
