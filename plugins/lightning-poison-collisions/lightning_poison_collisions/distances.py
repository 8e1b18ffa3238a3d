"""Distances between the features of crafted images and those of their targets."""

import copy
from collections.abc import Callable, Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

Features = Callable[[Tensor], Tensor]
"""Maps raw images `(P, ...)` in [0, 1] to feature vectors `(P, D)`, each image independently."""


class Distance(Protocol):
    """A function to minimize, with one value for each image."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return the values `(P,)` of raw images `(P, ...)`, differentiable with respect to the images."""


class SeparableDistance(Distance, Protocol):
    """A distance whose value for an image does not depend on the other images of the batch."""

    def select(self, rows: Tensor) -> Self:
        """Return the distance for some of the images, at positions int64 `(Q,)`."""


class FeatureDistance:
    """‖f(x) − f(t)‖² for each pair, in units of ‖f(b) − f(t)‖², averaged over several feature maps.

    The value is 1 at the base `b` and 0 if `x` collides with the target `t`, at any scale of the features.

    Args:
        features: One feature map for each surrogate.
        bases: Raw images in [0, 1], `(P, ...)`.
        targets: Target of each base, `(P, ...)`.

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
        """Return the distances `(P,)` of raw images `(P, ...)`, differentiable with respect to the images."""
        terms = [
            (squared_norm(extract(images) - goal) / initial).to(images.device)
            for extract, goal, initial in zip(self._features, self._goals, self._initial, strict=True)
        ]
        return torch.stack(terms).mean(0)

    def select(self, rows: Tensor) -> Self:
        """Return the distance for some of the pairs.

        Example:
            >>> distance = FeatureDistance([lambda images: images], torch.zeros(2, 3), torch.ones(2, 3))
            >>> distance.select(torch.tensor([1]))(torch.ones(1, 3))
            tensor([0.])
        """
        part = copy.copy(self)
        part._goals = [goal[rows.to(goal.device)] for goal in self._goals]
        part._initial = [initial[rows.to(initial.device)] for initial in self._initial]
        return part


class MeanDistance:
    """½ ‖mean of φ(xⱼ) over the poisons of a target − φ(t)‖² / ‖φ(t)‖², averaged over several feature maps φ.

    Each image has the value of its target, so all images of a target have the same value. This is the objective of the
    bullseye polytope (Aghakhani et al., EuroS&P 2021, arXiv 2005.00191): that of the convex polytope, with every
    coefficient equal to one over the number of poisons. The code published by the authors uses the norm instead of its
    square; with a single feature map, both have gradients of the same signs.

    Args:
        features: One feature map for each surrogate.
        targets: Raw images in [0, 1], `(T, ...)`.
        target_of: Target of each image, int64 `(P,)`; each target has at least one image.

    Example:
        >>> targets = torch.tensor([[0.5, 0.0]])
        >>> distance = MeanDistance([lambda images: images], targets, torch.tensor([0, 0]))
        >>> distance(torch.tensor([[1.0, 0.0], [0.0, 0.0]])), distance(torch.zeros(2, 2))
        (tensor([0., 0.]), tensor([0.5000, 0.5000]))
    """

    def __init__(self, features: Sequence[Features], targets: Tensor, target_of: Tensor) -> None:
        self._features = tuple(features)
        self._target_of = target_of
        with torch.no_grad():
            self._goals = [extract(targets) for extract in self._features]
        self._lengths = [squared_norm(goal).clamp(min=torch.finfo(goal.dtype).tiny) for goal in self._goals]

    def __call__(self, images: Tensor) -> Tensor:
        """Return the values `(P,)` of raw images `(P, ...)`, differentiable with respect to the images."""
        terms = [
            (squared_norm(group_means(extract(images), self._target_of, len(goal)) - goal) / length).to(images.device)
            for extract, goal, length in zip(self._features, self._goals, self._lengths, strict=True)
        ]
        return 0.5 * torch.stack(terms).mean(0)[self._target_of.to(images.device)]


def group_means(values: Tensor, group: Tensor, count: int) -> Tensor:
    """Return the mean of the rows of each group, `(count, D)`, differentiable.

    Args:
        values: Rows, `(P, D)`.
        group: Group of each row, int64 `(P,)`, in [0, count); each group has at least one row.
        count: Number of groups.

    Example:
        >>> group_means(torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([0, 0, 1]), 2)
        tensor([[2.],
                [7.]])
    """
    group = group.to(values.device)
    sums = values.new_zeros(count, values.shape[1]).index_add(0, group, values)
    return sums / torch.bincount(group, minlength=count)[:, None]


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


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """Reshape one value per image `(P,)` so that it broadcasts over images `(P, ...)`."""
    return values.view(-1, *[1] * (images.ndim - 1))
