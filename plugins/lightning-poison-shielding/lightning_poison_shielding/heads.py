"""The victim's head, trained again at every step, and what it says about the features of the poison."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_poison_shielding.conjugate import Linear
from lightning_poison_shielding.logistic import HeadProblem, logistic_gradient, logistic_head
from lightning_poison_shielding.losses import Roles, head_gradient, shielding_loss
from lightning_poison_shielding.ridge import moments, ridge_gradient, ridge_head

RIDGE_PENALTY = 1e-3
"""λ of the ridge head, for features of mean square 1."""

RIDGE_SCALE = 8.0
"""Least-squares scores lie about [0, 1]; as logits they are multiplied by this."""

LOGISTIC_PENALTIES = (1e-3, 3e-5)
"""λ of the logistic heads that take turns, for features of mean square 1: heads of strong and of weak regularization
are deceived by different poison, and nobody knows the victim's."""

_REFRESH = 10


@dataclass(frozen=True)
class Known:
    """What the attacker knows in the feature space of one surrogate.

    Args:
        training: `(N, D)`, features of the clean training samples that stay.
        training_labels: int64 `(N,)`.
        outer: `(M, D)`, features of the images that the loss is measured on.
        outer_labels: int64 `(M,)`, their true labels.
        classes: C.
    """

    training: Tensor
    training_labels: Tensor
    outer: Tensor
    outer_labels: Tensor
    classes: int

    def measured(self, rows: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the outer features and labels, or some rows of them."""
        return (self.outer, self.outer_labels) if rows is None else (self.outer[rows], self.outer_labels[rows])


class Head(Protocol):
    """A head that is trained on the clean samples and the poison."""

    def gradient(self, features: Tensor, measured: Tensor | None = None) -> Tensor:
        """Return the gradient of the shielding loss in the features `(P, D)` of the poison.

        The loss is measured on all of the outer set, or on its rows `measured`, int64 `(M,)`.
        """

    def loss(self, features: Tensor, outer: Tensor, labels: Tensor) -> float:
        """Return the shielding loss on other images when the head is trained with this poison."""


class RidgeHead:
    """Least squares: in closed form, and the first to be broken.

    Args:
        known: the clean samples and the outer set.
        roles: which class is which; the poison carries the shield class's label.
        weight: how many samples each poison stands for.
    """

    def __init__(self, known: Known, roles: Roles, *, weight: float = 1.0) -> None:
        self._known, self._roles, self._weight = known, roles, weight
        self._clean = moments(known.training, known.training_labels, known.classes)

    def gradient(self, features: Tensor, measured: Tensor | None = None) -> Tensor:
        """Return the gradient of the shielding loss in the features `(P, D)` of the poison.

        The loss is measured on all of the outer set, or on its rows `measured`, int64 `(M,)`.
        """
        known, labels = self._known, _shield_labels(features, self._roles)
        sums = self._clean + moments(features, labels, known.classes, weight=self._weight)
        head = ridge_head(sums, RIDGE_PENALTY)
        outer = head_gradient(head, *known.measured(measured), self._roles, scale=RIDGE_SCALE)
        return ridge_gradient(head, sums, RIDGE_PENALTY, outer, features, labels, weight=self._weight)

    def loss(self, features: Tensor, outer: Tensor, labels: Tensor) -> float:
        """Return the shielding loss on other images when the head is trained with this poison."""
        added = moments(features, _shield_labels(features, self._roles), self._known.classes, weight=self._weight)
        head = ridge_head(self._clean + added, RIDGE_PENALTY)
        return float(shielding_loss(RIDGE_SCALE * (outer @ head), labels, self._roles))


class LogisticHead:
    """Softmax regression: solved anew at every step from where it was, the gradient by implicit differentiation.

    Args:
        known: the clean samples and the outer set.
        roles: which class is which; the poison carries the shield class's label.
        penalty: λ.
        weight: how many samples each poison stands for.
    """

    def __init__(self, known: Known, roles: Roles, *, penalty: float, weight: float = 1.0) -> None:
        self._known, self._roles, self._penalty, self._weight = known, roles, penalty, weight
        self._head: Tensor | None = None
        self._precondition: Linear | None = None
        self._solved = 0

    def gradient(self, features: Tensor, measured: Tensor | None = None) -> Tensor:
        """Return the gradient of the shielding loss in the features `(P, D)` of the poison.

        The loss is measured on all of the outer set, or on its rows `measured`, int64 `(M,)`.
        """
        known, problem = self._known, self._problem(features)
        head = self._solve(problem)
        outer = head_gradient(head, *known.measured(measured), self._roles)
        changing = slice(len(known.training), None)
        return logistic_gradient(problem, head, outer, changing, precondition=self._precondition, steps=10)

    def loss(self, features: Tensor, outer: Tensor, labels: Tensor) -> float:
        """Return the shielding loss on other images when the head is trained with this poison."""
        problem = self._problem(features)
        head = logistic_head(problem, start=self._head, precondition=self._precondition)
        return float(shielding_loss(outer @ head, labels, self._roles))

    def _problem(self, features: Tensor) -> HeadProblem:
        known = self._known
        weights = torch.cat(
            [known.training.new_ones(len(known.training)), features.new_full((len(features),), self._weight)]
        )
        return HeadProblem(
            torch.cat([known.training, features]),
            torch.cat([known.training_labels, _shield_labels(features, self._roles)]),
            known.classes,
            self._penalty,
            weights,
        )

    def _solve(self, problem: HeadProblem) -> Tensor:
        """Solve from the last head, with a preconditioner that is made anew now and then."""
        head, first = self._head, self._head is None
        if head is None:
            sums = moments(problem.features, problem.labels, problem.classes)
            head = RIDGE_SCALE * ridge_head(sums, RIDGE_PENALTY)
        if self._solved % _REFRESH == 0:
            self._precondition = problem.near_inverse(head)
        head = logistic_head(
            problem, start=head, steps=50 if first else 3, tolerance=3e-5, precondition=self._precondition
        )
        if first:
            self._precondition = problem.near_inverse(head)
        self._head = head
        self._solved += 1
        return head


def _shield_labels(features: Tensor, roles: Roles) -> Tensor:
    return torch.full((len(features),), roles.shield_class, device=features.device)
