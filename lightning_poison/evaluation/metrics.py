"""torchmetrics classes for attacks and suspicion scores, which a Trainer can log and reduce over ranks.

`TPRAtFPR` needs the ground truth, which is only known in an evaluation. To evaluate a removal mask, use the binary
metrics of torchmetrics on `~keep`.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_poison.attacks.objectives import Objective
from lightning_poison.checks import describe, expected, fraction


class AttackSuccessRate(Metric):
    """Share of an attack's evaluation set on which the attacker succeeds.

    Always report it together with the clean accuracy of the same model.

    Args:
        objective: Objective of the attack; `objective.evaluation_set(test)` returns the items.
        **kwargs: Arguments of `torchmetrics.Metric`, such as `sync_on_compute`.

    Example:
        >>> from lightning_poison.attacks.objectives import ProtectedClassObjective
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
            predictions: Predicted labels, int64 `(N,)`, or floating-point logits `(N, C)`.
            true: True labels, int64 `(N,)`.
            wanted: Labels that the attacker wants, int64 `(N,)`; −1 for any label but the true one.
            reference: Predictions of a model trained without poison, like `predictions`. If given, items on which this
                model fails in the same way do not count as success. Optional.

        Raises:
            ValueError: If lengths or types disagree.
        """
        labels = _as_labels("predictions", predictions, len(true))
        reference_labels = None if reference is None else _as_labels("reference", reference, len(true))
        if wanted.shape != true.shape:
            raise ValueError(expected("wanted", f"of shape {tuple(true.shape)}, as `true`", describe(wanted)))
        self.successes += self.objective.success(labels, true, wanted, reference=reference_labels).sum()
        self.total += len(true)

    def compute(self) -> Tensor:
        """Return the success rate, in [0, 1].

        Raises:
            ValueError: If no item was added on any rank.
        """
        if not self.total:
            raise ValueError(
                "Expected items of an evaluation set, but got none.\n"
                "The attack has no target in this test set, or `update` was not called."
            )
        return self.successes / self.total


class TPRAtFPR(Metric):
    """True-positive rate on poison at the lowest threshold with at most the given false-positive rate.

    The `BinarySensitivityAtSpecificity` of torchmetrics computes the same for probabilities. It applies a sigmoid to
    scores outside [0, 1], batch by batch, which makes large scores equal.

    Scores are stored in the dtype of the metric, float32 unless changed by `set_dtype`.

    Args:
        false_positive_rate: Maximum share of the clean samples above the threshold, in (0, 1).
        **kwargs: Arguments of `torchmetrics.Metric`, such as `sync_on_compute`.

    Raises:
        ValueError: If `false_positive_rate` is outside (0, 1).

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
            scores: Suspicion scores, floating point `(N,)`; larger is more suspicious.
            is_poison: Ground truth, bool `(N,)`.
            is_cover: Cover samples, which are ignored, bool `(N,)`. Default: none.

        Raises:
            ValueError: If shapes or types disagree, a score is NaN, or a sample is both poison and cover.
        """
        if scores.ndim != 1 or not scores.is_floating_point():
            raise ValueError(expected("scores", "one-dimensional and floating point", describe(scores)))
        if scores.isnan().any():
            raise ValueError(expected("scores", "numbers", f"NaN at sample {int(scores.isnan().nonzero()[0])}"))
        poison = _check_mask("is_poison", is_poison, scores)
        cover = torch.zeros_like(poison) if is_cover is None else _check_mask("is_cover", is_cover, scores)
        if (both := (poison & cover).nonzero()).numel():
            raise ValueError(expected("is_cover", "false for all poison", f"sample {int(both[0])} as poison and cover"))
        values = scores.detach().to(self.dtype)
        self.poison_scores.append(values[poison])
        self.clean_scores.append(values[~(poison | cover)])

    def compute(self) -> Tensor:
        """Return the true-positive rate, in [0, 1].

        Raises:
            ValueError: If no poison or no clean sample was added on any rank.
        """
        poison, clean = _concatenate(self.poison_scores), _concatenate(self.clean_scores)
        if not len(poison) or not len(clean):
            raise ValueError(
                f"Expected poison and clean samples, but got {len(poison)} and {len(clean)}.\n"
                "Use the poisoned training set, with `poison.is_poison(len(dataset))` as the ground truth."
            )
        allowed = int(self.false_positive_rate * len(clean) * (1 + 1e-9))
        threshold = clean.sort(descending=True).values[allowed]
        return (poison > threshold).to(self.dtype).mean()


def _check_mask(name: str, mask: Tensor, scores: Tensor) -> Tensor:
    if mask.dtype != torch.bool or mask.shape != scores.shape:
        what = f"a boolean mask {tuple(scores.shape)}, as `scores`"
        raise ValueError(expected(name, what, describe(mask)))
    return mask.to(scores.device)


def _concatenate(parts: list[Tensor] | Tensor) -> Tensor:
    values: Tensor = dim_zero_cat(parts) if len(parts) else torch.zeros(0)
    return values


def _as_labels(name: str, predictions: Tensor, count: int) -> Tensor:
    is_logits = predictions.ndim == 2 and predictions.is_floating_point()
    is_labels = predictions.ndim == 1 and not predictions.is_floating_point() and predictions.dtype != torch.bool
    if len(predictions) != count or not (is_logits or is_labels):
        what = f"integer labels ({count},), or floating-point logits ({count}, C)"
        raise ValueError(expected(name, what, describe(predictions)))
    return predictions.argmax(1) if is_logits else predictions
