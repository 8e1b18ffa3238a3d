"""The bilevel optimizer: poison is moved so that heads which are trained on it misread the protected class."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_poison_shielding.box import PixelBox
from lightning_poison_shielding.frozen_features import FrozenFeatures
from lightning_poison_shielding.heads import Head

_MOMENTUM = 0.9

Team = Sequence[Head]
"""For each surrogate, the head that is trained on its features."""


def shield(
    box: PixelBox,
    features: Sequence[FrozenFeatures],
    stages: Sequence[tuple[Sequence[Team], int]],
    *,
    generator: torch.Generator,
    step_share: float = 0.125,
) -> Tensor:
    """Move images by the sign of a running mean of their gradients, stage by stage.

    The step shrinks linearly to a tenth over the last stage. Momentum as in Dong et al., Boosting Adversarial Attacks
    with Momentum, CVPR 2018, arXiv 1710.06081, eq. 6 and 7.

    Args:
        box: the bases, and the ball and grid around them.
        features: one map for each surrogate; their gradients are added up, each at its own norm.
        stages: teams that take turns, and how many steps are taken.
        generator: draws the start, within half of the ball.
        step_share: the first step, as a share of the radius.

    Returns:
        Raw images `(P, ...)` in [0, 1], within the ball and on the grid.
    """
    noise = torch.rand(box.bases.shape, generator=generator) - 0.5
    images = box.clamp(box.bases + box.radius * noise.to(box.bases.device))
    velocity = torch.zeros_like(images)
    for number, (teams, steps) in enumerate(stages):
        last = number == len(stages) - 1
        for step in range(steps):
            gradient = images_gradient(images, features, teams[step % len(teams)])
            velocity = _MOMENTUM * velocity + gradient
            length = step_share * box.radius * (1 - 0.9 * step / steps if last else 1)
            images = box.clamp(images - length * velocity.sign())
    return box.rounded(images)


def images_gradient(images: Tensor, features: Sequence[FrozenFeatures], team: Team) -> Tensor:
    """Return the gradient of the shielding loss in each image, divided by its mean absolute value, `(P, ...)`."""
    total = torch.zeros_like(images)
    for extract, head in zip(features, team, strict=True):
        rows = head.gradient(extract.known(images))
        gradient = extract.backward(images, rows / rows.norm().clamp_min(torch.finfo(rows.dtype).tiny))
        total += gradient.to(total.device)
    sizes = total.abs().flatten(1).mean(1).clamp_min(torch.finfo(total.dtype).tiny)
    return total / sizes.view(-1, *[1] * (total.ndim - 1))
