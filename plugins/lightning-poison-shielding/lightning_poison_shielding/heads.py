"""Heads of the victim, retrained at every step, and the gradient of the shielding loss through their training."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_poison_shielding.logistic import HeadProblem, LinearMap, logistic_gradient, logistic_head
from lightning_poison_shielding.losses import ShieldingGoal, head_gradient, shielding_loss
from lightning_poison_shielding.ridge import moments, ridge_gradient, ridge_head

RIDGE_PENALTY = 1e-3
"""λ of the ridge head, for features of mean square 1."""

RIDGE_SCALE = 8.0
"""Factor that turns least-squares scores, which are about in [0, 1], into logits."""

LOGISTIC_PENALTIES = (1e-3, 3e-5)
"""λ of the alternating logistic heads, for features of mean square 1. Strongly and weakly regularized heads are fooled
by different poison, and the attacker does not know the victim's regularization."""

_PRECONDITIONER_INTERVAL = 10


@dataclass(frozen=True)
class HeadData:
    """Features of one surrogate on which heads are trained and the loss is measured.

    Args:
        training: Features of the clean training samples that are kept, `(N, D)`.
        training_labels: Labels, int64 `(N,)`.
        outer: Features of the images on which the loss is measured, `(M, D)`.
        outer_labels: True labels, int64 `(M,)`.
        classes: C.
    """

    training: Tensor
    training_labels: Tensor
    outer: Tensor
    outer_labels: Tensor
    classes: int

    def outer_rows(self, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return some rows of the outer features and labels. `None`: all rows."""
        return (self.outer, self.outer_labels) if rows is None else (self.outer[rows], self.outer_labels[rows])


class Head(Protocol):
    """A linear head trained on clean samples and poison. The poison has the label of the shield class."""

    def gradient(self, features: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the gradient of the shielding loss with respect to the poison's features `(P, D)`.

        The loss is measured on the outer set, or on some `rows` of it, int64 `(M,)`.
        """

    def loss(self, features: Tensor, outer: Tensor, labels: Tensor) -> float:
        """Return the shielding loss on other images, with features `outer`, after training on this poison."""


class RidgeHead:
    """Least squares in closed form; see `Head`. It is the easiest head to fool.

    Args:
        data: Clean samples and the outer set.
        goal: Protected class, shield class and weight.
        weight: Weight of each poison in training.
    """

    def __init__(self, data: HeadData, goal: ShieldingGoal, *, weight: float = 1.0) -> None:
        self._data, self._goal, self._weight = data, goal, weight
        self._clean = moments(data.training, data.training_labels, data.classes)

    def gradient(self, features: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the gradient with respect to the poison's features; see `Head.gradient`."""
        data, labels = self._data, _shield_labels(features, self._goal)
        sums = self._clean + moments(features, labels, data.classes, weight=self._weight)
        head = ridge_head(sums, RIDGE_PENALTY)
        outer = head_gradient(head, *data.outer_rows(rows), self._goal, scale=RIDGE_SCALE)
        return ridge_gradient(head, sums, RIDGE_PENALTY, outer, features, labels, weight=self._weight)

    def loss(self, features: Tensor, outer: Tensor, labels: Tensor) -> float:
        """Return the loss on other images; see `Head.loss`."""
        poison = moments(features, _shield_labels(features, self._goal), self._data.classes, weight=self._weight)
        head = ridge_head(self._clean + poison, RIDGE_PENALTY)
        return float(shielding_loss(RIDGE_SCALE * (outer @ head), labels, self._goal))


class LogisticHead:
    """Softmax regression, solved at every step from the previous solution, with implicit differentiation; see `Head`.

    Args:
        data: Clean samples and the outer set.
        goal: Protected class, shield class and weight.
        penalty: λ.
        weight: Weight of each poison in training.
    """

    def __init__(self, data: HeadData, goal: ShieldingGoal, *, penalty: float, weight: float = 1.0) -> None:
        self._data, self._goal, self._penalty, self._weight = data, goal, penalty, weight
        self._head: Tensor | None = None
        self._precondition: LinearMap | None = None
        self._solves = 0

    def gradient(self, features: Tensor, rows: Tensor | None = None) -> Tensor:
        """Return the gradient with respect to the poison's features; see `Head.gradient`."""
        data, problem = self._data, self._problem(features)
        head = self._solve(problem)
        outer = head_gradient(head, *data.outer_rows(rows), self._goal)
        changing = slice(len(data.training), None)
        return logistic_gradient(problem, head, outer, changing, precondition=self._precondition, steps=10)

    def loss(self, features: Tensor, outer: Tensor, labels: Tensor) -> float:
        """Return the loss on other images; see `Head.loss`."""
        problem = self._problem(features)
        head = logistic_head(problem, start=self._head, precondition=self._precondition)
        return float(shielding_loss(outer @ head, labels, self._goal))

    def _problem(self, features: Tensor) -> HeadProblem:
        data = self._data
        weights = torch.cat(
            [data.training.new_ones(len(data.training)), features.new_full((len(features),), self._weight)]
        )
        return HeadProblem(
            torch.cat([data.training, features]),
            torch.cat([data.training_labels, _shield_labels(features, self._goal)]),
            data.classes,
            self._penalty,
            weights,
        )

    def _solve(self, problem: HeadProblem) -> Tensor:
        """Solve from the previous head; the preconditioner is updated at intervals."""
        head, first = self._head, self._head is None
        if head is None:
            sums = moments(problem.features, problem.labels, problem.classes)
            head = RIDGE_SCALE * ridge_head(sums, RIDGE_PENALTY)
        if self._solves % _PRECONDITIONER_INTERVAL == 0:
            self._precondition = problem.preconditioner(head)
        head = logistic_head(
            problem, start=head, steps=50 if first else 3, tolerance=3e-5, precondition=self._precondition
        )
        if first:
            self._precondition = problem.preconditioner(head)
        self._head = head
        self._solves += 1
        return head


def _shield_labels(features: Tensor, goal: ShieldingGoal) -> Tensor:
    return torch.full((len(features),), goal.shield_class, device=features.device)
