"""Minimizers over images: signed gradient steps, signed Adam, and forward-backward splitting."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from lightning_poison_collisions.distances import (
    Distance,
    SeparableDistance,
    per_image,
    squared_norm,
    value_and_gradient,
)

_MILESTONES = (3 / 8, 5 / 8, 7 / 8)  # shares of the steps after which the step size of Geiping et al. decays
_DECAY = 0.1
_BACKTRACKING = 0.5  # factor of the step size after a rejected step
_MAX_RATE_CHANGE = 10.0  # largest factor between consecutive step sizes
_CHECK_INTERVAL = 10  # steps between convergence checks


def collide_within(
    distance: Distance,
    bases: Tensor,
    *,
    epsilon: float,
    steps: int,
    step_size: float | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Minimize a distance over the pixel range and an L∞ ball around the bases by signed gradient steps.

    Projected gradient descent (Madry et al. 2018, arXiv 1706.06083) that minimizes the feature distance, with the ball
    instead of a penalty. Returns the best point of each image; images that share one value use the same step.

    Args:
        distance: Feature term.
        bases: Centers of the balls, raw images in [0, 1], `(P, ...)`.
        epsilon: Radius in units of the raw image.
        steps: Number of gradient steps.
        step_size: Step size in each pixel. Default: 2.5 ε / steps.
        start: Starting point, projected onto the ball, `(P, ...)`. Default: the bases.

    Returns:
        Raw images in [0, 1] within the ball, not rounded to gray levels, `(P, ...)`.

    Example:
        >>> from lightning_poison_collisions.distances import FeatureDistance
        >>> bases, targets = torch.zeros(1, 2), torch.ones(1, 2)
        >>> distance = FeatureDistance([lambda images: images], bases, targets)
        >>> collide_within(distance, bases, epsilon=0.25, steps=10)
        tensor([[0.2500, 0.2500]])
    """
    low, high = (bases - epsilon).clamp(min=0), (bases + epsilon).clamp(max=1)
    length = 2.5 * epsilon / steps if step_size is None else step_size
    images = best = (bases if start is None else start).clamp(low, high)
    best_values, gradient = value_and_gradient(distance, images)
    for _ in range(steps):
        images = (images - length * gradient.sign()).clamp(low, high)
        values, gradient = value_and_gradient(distance, images)
        best = torch.where(per_image(values < best_values, images), images, best)
        best_values = torch.minimum(values, best_values)
    return best


def descend_within(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]],
    bases: Tensor,
    *,
    epsilon: float,
    steps: int,
    step_size: float,
    start: Tensor | None = None,
    keep_best: bool = True,
) -> tuple[Tensor, Tensor]:
    """Minimize a value over the pixel range and an L∞ ball around the bases by Adam on the signs of the gradient.

    Adam (Kingma and Ba 2015, arXiv 1412.6980) receives the signs of the gradient. Its iterate is projected after each
    step, and the step size decays tenfold at 3/8, 5/8 and 7/8 of the steps, as in the code of Geiping et al. (ICLR
    2021, arXiv 2009.02276; github.com/JonasGeiping/poisoning-gradient-matching, `witch_base.py`). Returns the best
    point, or the last one.

    Args:
        objective: Maps raw images `(P, ...)` to a value and its gradient `(P, ...)`, both detached. The value is a
            scalar, or `(P,)` if the images are independent of each other.
        bases: Centers of the balls, raw images in [0, 1], `(P, ...)`.
        epsilon: Radius in units of the raw image.
        steps: Number of steps.
        step_size: Initial step size in each pixel.
        start: Starting point, projected onto the ball, `(P, ...)`. Default: the bases.
        keep_best: Whether to return the best point. Pass `False` for an objective that changes between calls, whose
            values are not comparable.

    Returns:
        The images `(P, ...)`, not rounded to gray levels, and their value. If each image has a value, the best point
        of each image.

    Example:
        >>> goal = torch.ones(1, 2)
        >>> def distance(images):
        ...     return (images - goal).square().sum(), 2 * (images - goal)
        >>> images, value = descend_within(distance, torch.zeros(1, 2), epsilon=0.25, steps=20, step_size=0.1)
        >>> images, value
        (tensor([[0.2500, 0.2500]]), tensor(1.1250))
    """
    low, high = (bases - epsilon).clamp(min=0), (bases + epsilon).clamp(max=1)
    images = (bases if start is None else start).clamp(low, high).detach().clone()
    optimizer = torch.optim.Adam([images], lr=step_size)
    milestones = [round(share * steps) for share in _MILESTONES]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, _DECAY)
    best_value, gradient = objective(images)
    best = images.clone()
    for _ in range(steps):
        images.grad = gradient.sign()
        optimizer.step()
        schedule.step()
        images.clamp_(low, high)
        value, gradient = objective(images)
        if keep_best:
            best = torch.where(per_image(value < best_value, images), images, best)
            best_value = torch.minimum(value, best_value)
    return (best, best_value) if keep_best else (images, value)


def penalized_objective(distance: Distance, images: Tensor, bases: Tensor, *, beta: float) -> Tensor:
    """Return the objective of `collide`, J(x) = distance(x) + β‖x − b‖², for each image `(P,)`."""
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
    """Minimize J(x) = distance(x) + β‖x − b‖² over the pixel range by forward-backward splitting, starting at `b`.

    Poison frogs (Shafahi et al. 2018, arXiv 1804.00792, algorithm 1; Yaseen et al. 2020, arXiv 2003.00798, eq. 1): a
    gradient step on the distance, then the exact proximal step of the penalty and the range. Each image has its own
    step size. A step that lowers J is accepted, and the next step size follows from the change of the gradient
    (Barzilai and Borwein 1988; Wright et al. 2009 for splitting); otherwise the step is rejected and the step size
    halved. So J never increases for any image. Converged images leave the batch.

    The papers weigh β against the unscaled ‖f(x) − f(t)‖². In a `FeatureDistance` this term is in units of the pair's
    initial distance, so that one β suits every network; in the papers' terms it is β‖f(b) − f(t)‖² for each pair.

    Args:
        distance: Feature term.
        bases: Raw images in [0, 1], starting points and centers of the penalty, `(P, ...)`.
        beta: Weight of the penalty, above 0.
        steps: Maximum number of gradient steps.
        learning_rate: Initial step size.
        tolerance: An image has converged when ten steps lowered its J by less than this share. 0 runs all steps.

    Returns:
        Raw images in [0, 1], not rounded to gray levels, `(P, ...)`.

    Example:
        >>> from lightning_poison_collisions.distances import FeatureDistance
        >>> bases, targets = torch.zeros(1, 2), torch.ones(1, 2)
        >>> distance = FeatureDistance([lambda images: images], bases, targets)
        >>> collide(distance, bases, beta=0.5, steps=40).round(decimals=3)
        tensor([[0.5000, 0.5000]])
    """
    values, gradient = value_and_gradient(distance, bases)
    descent = _Descent(distance, bases, bases, gradient, values, torch.full_like(values, learning_rate))
    rows, previous, result = torch.arange(len(bases), device=bases.device), values, bases.clone()
    initial = values
    for step in range(1, steps + 1):
        descent = descent.step(beta)
        if step % _CHECK_INTERVAL == 0 or step == steps:
            result[rows] = descent.images
            converged = (descent.values < initial) & (descent.values > (1 - tolerance) * previous)
            remaining = (~converged).nonzero().flatten()
            if not len(remaining):
                break
            descent, rows, initial = descent.select(remaining), rows[remaining], initial[remaining]
            previous = descent.values
    return result


@dataclass(frozen=True)
class _Descent:
    """The state of forward-backward splitting, with one step size for each image.

    Args:
        distance: Feature term of the images.
        bases: Centers of the penalty, `(P, ...)`.
        images: Current images, `(P, ...)`.
        gradient: Gradient of the distance at the images, `(P, ...)`.
        values: J at the images, `(P,)`.
        rates: Size of the next step, `(P,)`.
    """

    distance: SeparableDistance
    bases: Tensor
    images: Tensor
    gradient: Tensor
    values: Tensor
    rates: Tensor

    def step(self, beta: float) -> Self:
        """Return the state after a forward step on the distance and a backward step on the penalty and the range."""
        rates = per_image(self.rates, self.images)
        forward = self.images - rates * self.gradient
        proposed = ((forward + 2 * beta * rates * self.bases) / (1 + 2 * beta * rates)).clamp_(0, 1)
        values, gradient = value_and_gradient(self.distance, proposed)
        values = values + beta * squared_norm(proposed - self.bases)
        lower = values < self.values
        accepted = per_image(lower, self.images)
        return replace(
            self,
            images=torch.where(accepted, proposed, self.images),
            gradient=torch.where(accepted, gradient, self.gradient),
            values=torch.where(lower, values, self.values),
            rates=torch.where(lower, self._next_rates(proposed, gradient), self.rates * _BACKTRACKING),
        )

    def _next_rates(self, proposed: Tensor, gradient: Tensor) -> Tensor:
        """Return the inverse curvature along the last step, or a longer step if the curvature is not positive."""
        step, change = (proposed - self.images).flatten(1), (gradient - self.gradient).flatten(1)
        curvature = (step * change).sum(1)
        spectral = torch.where(curvature > 0, squared_norm(step) / curvature, torch.inf)
        return spectral.clamp(self.rates / _MAX_RATE_CHANGE, self.rates * _MAX_RATE_CHANGE)

    def select(self, rows: Tensor) -> Self:
        """Return the state of some of the images."""
        tensors = {name: getattr(self, name)[rows] for name in ("bases", "images", "gradient", "values", "rates")}
        return replace(self, distance=self.distance.select(rows), **tensors)
