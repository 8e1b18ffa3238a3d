"""How far the features of crafted images are from those of their targets."""

import copy
from collections.abc import Callable, Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

Features = Callable[[Tensor], Tensor]
"""Maps raw images `(P, ...)` in [0, 1] to feature vectors `(P, D)`, each image by itself."""


class Distance(Protocol):
    """What is minimized: a value for each image."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return the values `(P,)` of raw images `(P, ...)`, differentiable in them."""


class SeparableDistance(Distance, Protocol):
    """A distance of each image by itself: no other image of the batch has a part in it."""

    def select(self, rows: Tensor) -> Self:
        """Return the distance for some of the images alone, int64 `(Q,)` positions."""


class FeatureDistance:
    """‖f(x) − f(t)‖² for each pair, in units of ‖f(b) − f(t)‖², the mean over several feature maps.

    So it is 1 at the base `b` and 0 where `x` collides with the target `t`, whatever the scale of the features.

    Args:
        features: one map for each surrogate.
        bases: `(P, ...)`, raw images in [0, 1].
        targets: `(P, ...)`, what each of them shall collide with.

    Example:
        >>> distance = FeatureDistance([lambda images: images.flatten(1)], torch.zeros(2, 3), torch.ones(2, 3))
        >>> distance(torch.tensor([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5]]))
        tensor([1.0000, 0.2500])
    """

    def __init__(self, features: Sequence[Features], bases: Tensor, targets: Tensor) -> None:
        self._features = tuple(features)
        with torch.no_grad():
            self._goals = [extract(targets) for extract in self._features]
            starts = [extract(bases) for extract in self._features]
        self._initial = [
            squared_norm(start - goal).clamp(min=torch.finfo(goal.dtype).tiny)
            for start, goal in zip(starts, self._goals, strict=True)
        ]

    def __call__(self, images: Tensor) -> Tensor:
        """Return the distances `(P,)` of raw images `(P, ...)`, differentiable in them."""
        terms = [
            (squared_norm(extract(images) - goal) / initial).to(images.device)
            for extract, goal, initial in zip(self._features, self._goals, self._initial, strict=True)
        ]
        return torch.stack(terms).mean(0)

    def select(self, rows: Tensor) -> Self:
        """Return the distance for some of the pairs alone.

        Example:
            >>> distance = FeatureDistance([lambda images: images], torch.zeros(2, 3), torch.ones(2, 3))
            >>> distance.select(torch.tensor([1]))(torch.ones(1, 3))
            tensor([0.])
        """
        part = copy.copy(self)
        part._goals = [goal[rows.to(goal.device)] for goal in self._goals]
        part._initial = [initial[rows.to(initial.device)] for initial in self._initial]
        return part


def value_and_gradient(distance: Distance, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the distances `(P,)` of images and the gradient `(P, ...)` of their sum, both detached."""
    with torch.enable_grad():
        leaf = images.detach().requires_grad_()
        values = distance(leaf)
        (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return values.detach(), gradient


def squared_norm(values: Tensor) -> Tensor:
    """Return the squared Euclidean norm of each row, `(P,)`.

    Example:
        >>> squared_norm(torch.tensor([[3.0, 4.0]]))
        tensor([25.])
    """
    return values.flatten(1).square().sum(1)
