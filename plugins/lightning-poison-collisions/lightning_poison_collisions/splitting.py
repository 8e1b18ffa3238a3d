"""Feature collisions by forward-backward splitting, all images of a batch at once."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from lightning_poison_collisions.distance import Distance, SeparableDistance, squared_norm, value_and_gradient

_SHRINK = 0.5
_MOST_CHANGE = 10.0  # of a step length from one step to the next
_PATIENCE = 10  # steps between two looks at who has arrived


def penalized_objective(distance: Distance, images: Tensor, bases: Tensor, *, beta: float) -> Tensor:
    """Return what `collide` minimizes, J(x) = distance(x) + β‖x − b‖², for each image `(P,)`."""
    return distance(images) + beta * squared_norm(images - bases)


def collide(
    distance: SeparableDistance,
    bases: Tensor,
    *,
    beta: float,
    steps: int,
    learning_rate: float = 10.0,
    tolerance: float = 1e-2,
) -> Tensor:
    """Minimize J(x) = distance(x) + β‖x − b‖² over the pixel range, starting from `b`.

    Poison frogs (Shafahi et al. 2018, arXiv 1804.00792, algorithm 1; Yaseen et al. 2020, arXiv 2003.00798, eq. 1) by
    forward-backward splitting: a gradient step on the distance, then the exact proximal step of the penalty and the
    range. Each image has a step length of its own: a step that lowers its J is taken, and the next length follows
    from the change of its gradient (Barzilai and Borwein 1988; Wright et al. 2009 for splitting); any other step is
    taken back and the length halves. So J never rises, for any image. Images that have arrived leave the batch.

    The papers' β weighs against ‖f(x) − f(t)‖² as it is. With a `FeatureDistance` that term is in units of the pair's
    initial distance, and one β serves every network: in the papers' terms it is β‖f(b) − f(t)‖² for each pair.

    Args:
        distance: the feature term.
        bases: `(P, ...)`, raw images in [0, 1], where to start from and the anchor of the penalty.
        beta: the weight of the penalty, above 0.
        steps: how many gradients are taken at most.
        learning_rate: the initial step length.
        tolerance: an image has arrived when ten steps lowered its J by less than this share; 0 takes all steps.

    Returns:
        `(P, ...)`, raw images in [0, 1], not rounded to a grid.

    Example:
        >>> from lightning_poison_collisions.distance import FeatureDistance
        >>> bases, targets = torch.zeros(1, 2), torch.ones(1, 2)
        >>> distance = FeatureDistance([lambda images: images], bases, targets)
        >>> collide(distance, bases, beta=0.5, steps=40).round(decimals=3)
        tensor([[0.5000, 0.5000]])
    """
    values, gradient = value_and_gradient(distance, bases)
    under_way = _Descent(distance, bases, bases, gradient, values, torch.full_like(values, learning_rate))
    rows, before, found = torch.arange(len(bases), device=bases.device), values, bases.clone()
    untouched = values
    for step in range(1, steps + 1):
        under_way = under_way.advanced(beta)
        if step % _PATIENCE == 0 or step == steps:
            found[rows] = under_way.images
            arrived = (under_way.values < untouched) & (under_way.values > (1 - tolerance) * before)
            going = (~arrived).nonzero().flatten()
            if not len(going):
                break
            under_way, rows, untouched = under_way.select(going), rows[going], untouched[going]
            before = under_way.values
    return found


@dataclass(frozen=True)
class _Descent:
    """Images on their way down, each with a step length of its own.

    Args:
        distance: the feature term of these images.
        bases: `(P, ...)`.
        images: `(P, ...)`, where they are.
        gradient: `(P, ...)`, of the distance, there.
        values: `(P,)`, J there.
        rates: `(P,)`, the length of the next step.
    """

    distance: SeparableDistance
    bases: Tensor
    images: Tensor
    gradient: Tensor
    values: Tensor
    rates: Tensor

    def advanced(self, beta: float) -> Self:
        """Return the descent after one step: forward on the distance, backward on the penalty and the range."""
        rates = _for_each(self.rates, self.images)
        forward = self.images - rates * self.gradient
        moved = ((forward + 2 * beta * rates * self.bases) / (1 + 2 * beta * rates)).clamp_(0, 1)
        values, gradient = value_and_gradient(self.distance, moved)
        values = values + beta * squared_norm(moved - self.bases)
        lower = values < self.values
        taken = _for_each(lower, self.images)
        return replace(
            self,
            images=torch.where(taken, moved, self.images),
            gradient=torch.where(taken, gradient, self.gradient),
            values=torch.where(lower, values, self.values),
            rates=torch.where(lower, self._next_rates(moved, gradient), self.rates * _SHRINK),
        )

    def _next_rates(self, moved: Tensor, gradient: Tensor) -> Tensor:
        """Return one over the curvature met along the last step; longer steps where it was not positive."""
        step, change = (moved - self.images).flatten(1), (gradient - self.gradient).flatten(1)
        curved = (step * change).sum(1)
        spectral = torch.where(curved > 0, squared_norm(step) / curved, torch.inf)
        return spectral.clamp(self.rates / _MOST_CHANGE, self.rates * _MOST_CHANGE)

    def select(self, rows: Tensor) -> Self:
        """Return the descent of some of the images alone."""
        tensors = {name: getattr(self, name)[rows] for name in ("bases", "images", "gradient", "values", "rates")}
        return replace(self, distance=self.distance.select(rows), **tensors)


def _for_each(values: Tensor, images: Tensor) -> Tensor:
    """Shape one value an image `(P,)` so that it broadcasts over images `(P, ...)`."""
    return values.view(-1, *[1] * (images.ndim - 1))
