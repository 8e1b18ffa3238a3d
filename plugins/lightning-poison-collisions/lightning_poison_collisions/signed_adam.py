"""Minimizing one value of many images within an L∞ ball, by Adam on the signs of the gradient."""

from collections.abc import Callable

import torch
from torch import Tensor

_MILESTONES = (3 / 8, 5 / 8, 7 / 8)  # of the steps; there the step shrinks, in the code of Geiping et al.
_SHRINK = 0.1


def descend_within(
    objective: Callable[[Tensor], tuple[Tensor, Tensor]],
    bases: Tensor,
    *,
    epsilon: float,
    steps: int,
    step_size: float,
    start: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Minimize a value over the pixel range and the L∞ ball around the bases.

    Adam (Kingma and Ba 2015, arXiv 1412.6980) is fed the signs of the gradient, its point is projected after each step,
    and its step shrinks tenfold at 3/8, 5/8 and 7/8 of the steps, as in the code that Geiping et al. published with
    their paper (ICLR 2021, arXiv 2009.02276; github.com/JonasGeiping/poisoning-gradient-matching, `witch_base.py`). The
    best point met on the way is returned.

    Args:
        objective: maps raw images `(P, ...)` to a value and its gradient `(P, ...)`, both detached; the value is a
            scalar, or `(P,)` where no image has a part in that of another.
        bases: `(P, ...)`, raw images in [0, 1], the centers.
        epsilon: the radius, in units of the raw image.
        steps: how many steps are taken.
        step_size: of the first steps, in each pixel.
        start: `(P, ...)`, where to start from, projected onto the ball; the bases where it is `None`.

    Returns:
        The images `(P, ...)`, not rounded to a grid, and their value; each image's best where each has a value.

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
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [round(at * steps) for at in _MILESTONES], _SHRINK)
    best_value, gradient = objective(images)
    best = images.clone()
    for _ in range(steps):
        images.grad = gradient.sign()
        optimizer.step()
        schedule.step()
        images.clamp_(low, high)
        value, gradient = objective(images)
        better = (value < best_value).view(-1, *[1] * (images.ndim - 1))
        best, best_value = torch.where(better, images, best), torch.minimum(value, best_value)
    return best, best_value
