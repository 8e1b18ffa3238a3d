"""How far the mean feature of a target's poisons is from the target's own."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_poison_collisions.distance import Features, squared_norm


class MeanDistance:
    """½ ‖mean of φ(xⱼ) over the poisons of a target − φ(t)‖² / ‖φ(t)‖², the mean over several feature maps φ.

    Each image gets the value of its target, so all images of a target have the same. The objective of the bullseye
    polytope (Aghakhani et al., EuroS&P 2021, arXiv 2005.00191): the convex polytope's, with every coefficient at one
    over the number of poisons. The code that the authors published takes the length and not its square; with a single
    feature map both have gradients of the same signs.

    Args:
        features: one map for each surrogate.
        targets: `(T, ...)`, raw images in [0, 1].
        target_of: int64 `(P,)`, the target of each image; each of the T has at least one.

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
        """Return the values `(P,)` of raw images `(P, ...)`, differentiable in them."""
        terms = [
            (squared_norm(group_means(extract(images), self._target_of, len(goal)) - goal) / length).to(images.device)
            for extract, goal, length in zip(self._features, self._goals, self._lengths, strict=True)
        ]
        return 0.5 * torch.stack(terms).mean(0)[self._target_of.to(images.device)]


def group_means(values: Tensor, group: Tensor, count: int) -> Tensor:
    """Return the mean of each group's rows, `(count, D)`, differentiable.

    Args:
        values: `(P, D)`.
        group: int64 `(P,)`, in [0, count); each group has at least one row.
        count: how many groups.

    Example:
        >>> group_means(torch.tensor([[1.0], [3.0], [7.0]]), torch.tensor([0, 0, 1]), 2)
        tensor([[2.],
                [7.]])
    """
    group = group.to(values.device)
    sums = values.new_zeros(count, values.shape[1]).index_add(0, group, values)
    return sums / torch.bincount(group, minlength=count)[:, None]
