"""Metrics of an attack, of scores and of a removal, as torchmetrics classes that a Trainer logs and reduces over ranks.

All but `AttackSuccessRate` need the ground truth, which only an evaluation has. The metrics of a removal stand in
`lightning_poison.removal_metrics` and can be imported from here.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_poison.checks import describe, expected, fraction
from lightning_poison.objectives import Objective
from lightning_poison.removal_metrics import (
    CoverRemovalRate,
    RemovalCounts,
    RemovalFalsePositiveRate,
    RemovalPrecision,
    RemovalRecall,
    sample_roles,
)

__all__ = [
    "AttackSuccessRate",
    "CoverRemovalRate",
    "RemovalCounts",
    "RemovalFalsePositiveRate",
    "RemovalPrecision",
    "RemovalRecall",
    "TPRAtFPR",
]


class AttackSuccessRate(Metric):
    """The share of the items of an attack's evaluation set on which the attacker gets what it wants.

    Print it beside the clean accuracy of the same model, never alone.

    Args:
        objective: what the attacker wants; `objective.evaluation_set(test)` has the items.
        **kwargs: torchmetrics' own, as `sync_on_compute`.

    Example:
        >>> from lightning_poison.objectives import ProtectedClassObjective
        >>> metric = AttackSuccessRate(ProtectedClassObjective(3, target_class=5))
        >>> true, wanted = torch.full((4,), 3), torch.full((4,), 5)
        >>> metric.update(torch.tensor([5, 3, 5, 0]), true, wanted)
        >>> metric.compute()
        tensor(0.5000)
    """

    is_differentiable = False
    higher_is_better = None
    full_state_update = False

    successes: Tensor
    total: Tensor

    def __init__(self, objective: Objective, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.objective = objective
        for name in ("successes", "total"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, predictions: Tensor, true: Tensor, wanted: Tensor, reference: Tensor | None = None) -> None:
        """Add a batch of an evaluation set.

        Args:
            predictions: int64 `(N,)`, the labels that the model predicts, or floating-point logits `(N, C)`.
            true: int64 `(N,)`, the true labels.
            wanted: int64 `(N,)`, the labels that the attacker wants; −1 for any other than the true one.
            reference: what a model that was trained without poison predicts, as `predictions`. Items on which it fails
                the same way are no success.

        Raises:
            ValueError: where lengths or types disagree.
        """
        read = _as_labels("predictions", predictions, len(true))
        compared = None if reference is None else _as_labels("reference", reference, len(true))
        if wanted.shape != true.shape:
            raise ValueError(expected("wanted", f"of shape {tuple(true.shape)}, as `true`", describe(wanted)))
        self.successes += self.objective.success(read, true, wanted, reference=compared).sum()
        self.total += len(true)

    def compute(self) -> Tensor:
        """Return the share, in [0, 1].

        Raises:
            ValueError: where no item was added on any rank.
        """
        if not self.total:
            raise ValueError(
                "Expected the items of an evaluation set, but got none.\n"
                "The attack has no target in this test set, or `update` was not called."
            )
        return self.successes / self.total


class TPRAtFPR(Metric):
    """The share of the poison above the lowest cut that loses at most a stated share of the clean samples.

    torchmetrics' `BinarySensitivityAtSpecificity` answers the same question for probabilities. It is not used here
    because it passes scores outside [0, 1] through a sigmoid, batch by batch, which makes large ones equal.

    Scores are kept in the metric's dtype, float32 unless `set_dtype` changes it.

    Args:
        false_positive_rate: the largest share of the clean samples to lose, in (0, 1).
        **kwargs: torchmetrics' own, as `sync_on_compute`.

    Raises:
        ValueError: where `false_positive_rate` is outside (0, 1).

    Example:
        >>> metric = TPRAtFPR(0.25)
        >>> scores = torch.tensor([1.0, 2.0, 3.0, 9.0, 8.0, 2.5])
        >>> metric.update(scores, torch.tensor([False, False, False, False, True, True]))
        >>> metric.compute()
        tensor(0.5000)
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    poison_scores: list[Tensor]
    clean_scores: list[Tensor]

    def __init__(self, false_positive_rate: float = 0.01, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.false_positive_rate = fraction("false_positive_rate", false_positive_rate)
        for name in ("poison_scores", "clean_scores"):
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, scores: Tensor, is_poison: Tensor, is_cover: Tensor | None = None) -> None:
        """Add samples of a data set.

        Args:
            scores: floating point `(N,)`, larger is more suspicious.
            is_poison: bool `(N,)`, the ground truth.
            is_cover: bool `(N,)`, which samples are cover and left out; none where it is not given.

        Raises:
            ValueError: where shapes or types disagree, a score is NaN, or a sample is poison and cover.
        """
        if scores.ndim != 1 or not scores.is_floating_point():
            raise ValueError(expected("scores", "one-dimensional and of floating point", describe(scores)))
        if scores.isnan().any():
            raise ValueError(expected("scores", "numbers", f"NaN at sample {int(scores.isnan().nonzero()[0])}"))
        clean, poison, _ = sample_roles("scores", scores, is_poison, is_cover)
        held = scores.detach().to(self.dtype)
        self.poison_scores.append(held[poison])
        self.clean_scores.append(held[clean])

    def compute(self) -> Tensor:
        """Return the share of the poison, in [0, 1].

        Raises:
            ValueError: where no poison or no clean sample was added on any rank.
        """
        poison, clean = _joined(self.poison_scores), _joined(self.clean_scores)
        if not len(poison) or not len(clean):
            raise ValueError(
                f"Expected poison and clean samples, but got {len(poison)} and {len(clean)}.\n"
                "Take the poisoned training set, with `poison.is_poison(len(dataset))` as the ground truth."
            )
        allowed = int(self.false_positive_rate * len(clean) * (1 + 1e-9))
        cut = clean.sort(descending=True).values[allowed]
        return (poison > cut).to(self.dtype).mean()


def _joined(parts: list[Tensor] | Tensor) -> Tensor:
    joined: Tensor = dim_zero_cat(parts) if len(parts) else torch.zeros(0)
    return joined


def _as_labels(name: str, predictions: Tensor, count: int) -> Tensor:
    logits = predictions.ndim == 2 and predictions.is_floating_point()
    whole = predictions.ndim == 1 and not predictions.is_floating_point() and predictions.dtype != torch.bool
    if len(predictions) != count or not (logits or whole):
        what = f"labels ({count},) of integers, or logits ({count}, C) of floating point"
        raise ValueError(expected(name, what, describe(predictions)))
    return predictions.argmax(1) if logits else predictions
