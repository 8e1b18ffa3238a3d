"""Feature collisions within an L∞ ball."""

import torch
from torch import Tensor

from lightning_poison_collisions.distance import Distance, value_and_gradient


def collide_within(
    distance: Distance,
    bases: Tensor,
    *,
    epsilon: float,
    steps: int,
    step_size: float | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Minimize a distance over the pixel range and the L∞ ball around `b` by signed gradient steps.

    The form of projected gradient descent (Madry et al. 2018, arXiv 1706.06083) that minimizes the feature distance
    and has no penalty: the ball takes its place. The best point met on the way is returned, for each image; images that
    share one value come from the same step.

    Args:
        distance: the feature term.
        bases: `(P, ...)`, raw images in [0, 1], the centers.
        epsilon: the radius, in units of the raw image.
        steps: how many gradients are taken.
        step_size: the length of a step in each pixel; 2.5 ε / steps where it is `None`.
        start: `(P, ...)`, where to start from, projected onto the ball; the bases where it is `None`.

    Returns:
        `(P, ...)`, raw images in [0, 1] within the ball, not rounded to a grid.

    Example:
        >>> from lightning_poison_collisions.distance import FeatureDistance
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
        better = (values < best_values).view(-1, *[1] * (images.ndim - 1))
        best = torch.where(better, images, best)
        best_values = torch.minimum(values, best_values)
    return best
