"""Metrics of an attack, of scores and of a removal, as torchmetrics classes that a Trainer logs and reduces over ranks.

All but `AttackSuccessRate` need the ground truth, which only an evaluation has. The metrics of a removal stand in
`lightning_poison.removal_metrics` and can be imported from here.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from lightning_poison.attacks.objectives import Objective
from lightning_poison.checks import describe, expected, fraction


class RemovalCounts(Metric):
    """How many samples of each role were removed, of how many.

    The metrics below differ from it in what they compute from these counts; in a `MetricCollection` they share one
    update.

    Args:
        **kwargs: torchmetrics' own, as `sync_on_compute`.

    Example:
        >>> keep = torch.tensor([True, False, False, True, False])
        >>> is_poison = torch.tensor([False, True, False, True, False])
        >>> is_cover = torch.tensor([False, False, False, False, True])
        >>> counts = RemovalCounts()
        >>> counts.update(keep, is_poison, is_cover)
        >>> counts.compute()
        tensor([[1, 2],
                [1, 2],
                [1, 1]])
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better: bool | None = None

    counts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("counts", torch.zeros(3, 2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, keep: Tensor, is_poison: Tensor, is_cover: Tensor | None = None) -> None:
        """Add samples of a data set.

        Args:
            keep: bool `(N,)`, `True` stays.
            is_poison: bool `(N,)`, the ground truth.
            is_cover: bool `(N,)`, which samples are cover; none where it is not given.

        Raises:
            ValueError: where one is no boolean mask of the length of `keep`, or a sample is poison and cover.
        """
        clean, poison, cover = sample_roles("keep", _mask("keep", keep, keep.shape[:1]), is_poison, is_cover)
        rows = [[(role & ~keep).sum(), role.sum()] for role in (poison, clean, cover)]
        self.counts += torch.stack([torch.stack(row) for row in rows])

    def compute(self) -> Tensor:
        """Return int64 `(3, 2)`: for poison, clean and cover samples how many were removed, and how many there are.

        Raises:
            ValueError: where no sample was added on any rank.
        """
        return self._counted()

    def _counted(self) -> Tensor:
        if not self.counts[:, 1].any():
            raise ValueError("Expected samples to judge a removal by, but got none.\nCall `update` first.")
        return self.counts.clone()

    def _share(self, role: int) -> Tensor:
        counts = self._counted()[role]
        return counts[0] / counts[1]


class RemovalPrecision(RemovalCounts):
    """The share of poison among what was removed, cover samples left out; NaN where nothing was removed.

    Arguments and `update` are those of `RemovalCounts`.

    Example:
        >>> metric = RemovalPrecision()
        >>> metric(torch.tensor([True, False, False]), torch.tensor([False, True, False]))
        tensor(0.5000)
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        """Return the share, in [0, 1], or NaN."""
        removed = self._counted()[:2, 0]
        return removed[0] / removed.sum()


class RemovalRecall(RemovalCounts):
    """The share of the poison that was removed; NaN where there is no poison.

    Arguments and `update` are those of `RemovalCounts`.

    Example:
        >>> metric = RemovalRecall()
        >>> metric(torch.tensor([True, False, False]), torch.tensor([True, True, False]))
        tensor(0.5000)
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        """Return the share, in [0, 1], or NaN."""
        return self._share(0)


class RemovalFalsePositiveRate(RemovalCounts):
    """The share of the clean samples that was removed; NaN where there are none.

    Arguments and `update` are those of `RemovalCounts`.

    Example:
        >>> metric = RemovalFalsePositiveRate()
        >>> metric(torch.tensor([True, False, False]), torch.tensor([False, True, False]))
        tensor(0.5000)
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """Return the share, in [0, 1], or NaN."""
        return self._share(1)


class CoverRemovalRate(RemovalCounts):
    """The share of the cover samples that was removed; NaN where there are none.

    Arguments and `update` are those of `RemovalCounts`.

    Example:
        >>> metric = CoverRemovalRate()
        >>> poison, cover = torch.tensor([True, False, False]), torch.tensor([False, True, True])
        >>> metric(torch.tensor([True, True, False]), poison, cover)
        tensor(0.5000)
    """

    def compute(self) -> Tensor:
        """Return the share, in [0, 1], or NaN."""
        return self._share(2)


def sample_roles(name: str, like: Tensor, is_poison: Tensor, is_cover: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the masks of clean, poison and cover samples.

    Args:
        name: the name of the argument `like`, for messages.
        like: `(N,)`, sets the length and the device.
        is_poison: bool `(N,)`.
        is_cover: bool `(N,)`; none where it is `None`.

    Raises:
        ValueError: where one is no boolean mask of that length, or a sample is poison and cover.

    Example:
        >>> poison, cover = torch.tensor([True, False, False]), torch.tensor([False, True, False])
        >>> sample_roles("scores", torch.zeros(3), poison, cover)[0]
        tensor([False, False,  True])
    """
    poison = _mask("is_poison", is_poison, like.shape, f", as `{name}`").to(like.device)
    cover = torch.zeros_like(poison)
    if is_cover is not None:
        cover = _mask("is_cover", is_cover, like.shape, f", as `{name}`").to(like.device)
    if (poison & cover).any():
        both = int((poison & cover).nonzero()[0])
        raise ValueError(expected("is_cover", "false for all poison", f"sample {both} as poison and cover"))
    return ~(poison | cover), poison, cover


def _mask(name: str, value: Tensor, shape: torch.Size, note: str = "") -> Tensor:
    if value.dtype != torch.bool or value.shape != shape or value.ndim != 1:
        raise ValueError(expected(name, f"a boolean mask {tuple(shape)}{note}", describe(value)))
    return value


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
