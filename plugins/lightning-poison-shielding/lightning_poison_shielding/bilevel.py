"""Bilevel optimization: poison of a shield class is optimized through retrained heads, and the class is chosen."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_poison import PixelRange, Threat, checks
from lightning_poison_shielding.frozen_features import FrozenFeatures
from lightning_poison_shielding.heads import LOGISTIC_PENALTIES, Head, HeadData, LogisticHead, RidgeHead
from lightning_poison_shielding.losses import ShieldingGoal
from lightning_poison_shielding.shielding_data import ShieldingData, draw_bases

SCREENING_POISONS, SCREENING_STEPS = 500, 15
"""Number of poisons, weighted to the budget, and of steps with which a shield class is screened."""

_MOMENTUM = 0.9

Heads = Sequence[Head]
"""One head for each surrogate, trained on its features."""


@dataclass(frozen=True)
class PixelBox:
    """The admissible values of each pixel: pixel range, L∞ ball and gray levels.

    Args:
        bases: Centers of the balls, raw images in [0, 1], `(P, ...)`.
        radius: L∞ radius in units of the raw image.
        pixels: Gray levels of the data.

    Example:
        >>> box = PixelBox(torch.tensor([[0.2]]), radius=0.09, pixels=PixelRange(levels=11))
        >>> box.clamp(torch.tensor([[0.9]])), box.round(torch.tensor([[0.29]]))
        (tensor([[0.2900]]), tensor([[0.2000]]))
    """

    bases: Tensor
    radius: float
    pixels: PixelRange

    def clamp(self, images: Tensor) -> Tensor:
        """Project images `(P, ...)` onto pixel range and ball."""
        low, high = (self.bases - self.radius).clamp(min=0), (self.bases + self.radius).clamp(max=1)
        return torch.minimum(torch.maximum(images, low), high)

    def round(self, images: Tensor) -> Tensor:
        """Return the nearest images with admissible gray levels; a pixel without any keeps its original value."""
        return self.pixels.round_raw(images, around=self.bases, epsilon=self.radius)


def optimize_images(
    box: PixelBox,
    features: Sequence[FrozenFeatures],
    stages: Sequence[tuple[Sequence[Heads], int]],
    *,
    generator: torch.Generator,
    step_share: float = 0.125,
) -> Tensor:
    """Minimize the shielding loss by steps along the sign of the gradient with momentum, stage by stage.

    The step size decays linearly to a tenth in the last stage. Momentum as in Dong et al., Boosting Adversarial Attacks
    with Momentum, CVPR 2018, arXiv 1710.06081, eq. 6 and 7.

    Args:
        box: Bases and admissible pixels.
        features: One feature map for each surrogate. Their gradients are normalized and summed.
        stages: Alternating heads, and the number of steps, of each stage.
        generator: Draws the starting point within half of the ball.
        step_share: Initial step size as a share of the radius.

    Returns:
        Raw images in [0, 1] in the box, `(P, ...)`.
    """
    noise = torch.rand(box.bases.shape, generator=generator) - 0.5
    images = box.clamp(box.bases + box.radius * noise.to(box.bases.device))
    velocity = torch.zeros_like(images)
    for position, (alternating, steps) in enumerate(stages):
        is_last = position == len(stages) - 1
        for step in range(steps):
            gradient = normalized_gradient(images, features, alternating[step % len(alternating)])
            velocity = _MOMENTUM * velocity + gradient
            length = step_share * box.radius * (1 - 0.9 * step / steps if is_last else 1)
            images = box.clamp(images - length * velocity.sign())
    return box.round(images)


def normalized_gradient(images: Tensor, features: Sequence[FrozenFeatures], heads: Heads) -> Tensor:
    """Return the gradient of the shielding loss for each image, divided by its mean absolute value, `(P, ...)`."""
    total = torch.zeros_like(images)
    for extract, head in zip(features, heads, strict=True):
        rows = head.gradient(extract.detached(images))
        gradient = extract.input_gradient(images, rows / rows.norm().clamp_min(torch.finfo(rows.dtype).tiny))
        total += gradient.to(total.device)
    sizes = total.abs().flatten(1).mean(1).clamp_min(torch.finfo(total.dtype).tiny)
    return total / sizes.view(-1, *[1] * (total.ndim - 1))


@dataclass(frozen=True)
class Shield:
    """The poison of a shield class.

    Args:
        shield_class: Label of the poison.
        bases: Training samples from which it was made, int64 `(P,)`.
        images: Raw images in [0, 1], `(P, ...)`.
        loss: Shielding loss on the validation images. NaN if there are none.
    """

    shield_class: int
    bases: Tensor
    images: Tensor
    loss: float = float("nan")


class ShieldCrafter:
    """Crafts the poison of any shield class for one protected class.

    Args:
        data: Training set and pool.
        threat: Budget, pixel range and radius. Without a radius, it is 1.
        protected_class: Class to be misclassified.
        protected_weight: t of the shielding loss.
        poisons_per_base: Maximum number of poisons made from a training sample.
        replace: Whether the poison replaces its bases.
        steps: Number of steps against least squares, and against logistic regression.
        generator: The only source of randomness.
    """

    def __init__(
        self,
        data: ShieldingData,
        threat: Threat,
        protected_class: int,
        *,
        protected_weight: float,
        poisons_per_base: int,
        replace: bool,
        steps: tuple[int, int],
        generator: torch.Generator,
    ) -> None:
        self._data, self._threat, self._generator = data, threat, generator
        self._protected_class, self._protected_weight = protected_class, protected_weight
        self._poisons_per_base, self._replace, self._steps = poisons_per_base, replace, steps

    def candidates(self) -> list[int]:
        """Return the classes that can be the shield class.

        Raises:
            ValueError: If no class has enough samples for the budget.
        """
        limits = self._data.training.labels.bincount(minlength=self._data.classes) * self._poisons_per_base
        limit_of = {number: limit for number, limit in enumerate(limits.tolist()) if number != self._protected_class}
        candidates = [number for number, limit in limit_of.items() if limit >= self._threat.budget]
        if not candidates:
            what = f"at most {max(limit_of.values(), default=0)}, the limit of the largest shield class"
            hint = "Lower it, or raise `poisons_per_base`."
            raise ValueError(checks.expected("budget", what, self._threat.budget, hint))
        return candidates

    def screen(self, shield_class: int) -> Shield:
        """Craft a few poisons against least squares, to estimate the success of the class."""
        budget = self._threat.budget
        count = min(budget, SCREENING_POISONS)
        bases = self._draw_bases(shield_class)[torch.randperm(budget, generator=self._generator)[:count]]
        goal, data = self._goal(shield_class), self._head_data(bases)
        heads = [RidgeHead(each, goal, weight=budget / count) for each in data]
        images = self._optimize(bases, [([heads], SCREENING_STEPS)])
        return Shield(shield_class, bases, images, self._validation_loss(images, [heads]))

    def craft(self, shield_class: int) -> Shield:
        """Craft the whole budget: against least squares, then against alternating logistic heads."""
        bases = self._draw_bases(shield_class)
        goal, data = self._goal(shield_class), self._head_data(bases)
        ridge = [RidgeHead(each, goal) for each in data]
        logistic = [[LogisticHead(each, goal, penalty=penalty) for each in data] for penalty in LOGISTIC_PENALTIES]
        images = self._optimize(bases, [([ridge], self._steps[0]), (logistic, self._steps[1])])
        return Shield(shield_class, bases, images, self._validation_loss(images, logistic))

    def _goal(self, shield_class: int) -> ShieldingGoal:
        return ShieldingGoal(self._protected_class, shield_class, self._protected_weight)

    def _draw_bases(self, shield_class: int) -> Tensor:
        return draw_bases(
            self._data.training.labels,
            shield_class,
            self._threat.budget,
            poisons_per_base=self._poisons_per_base,
            generator=self._generator,
        )

    def _head_data(self, bases: Tensor) -> list[HeadData]:
        keep = torch.ones(len(self._data.training.labels), dtype=torch.bool)
        if self._replace:
            keep[bases] = False
        return self._data.head_data(keep)

    def _optimize(self, bases: Tensor, stages: Sequence[tuple[Sequence[Heads], int]]) -> Tensor:
        threat, images = self._threat, self._data.images(bases)
        radius = 1.0 if threat.epsilon is None else threat.epsilon
        box = PixelBox(images.to(self._data.maps[0].device), radius, threat.pixels)
        return optimize_images(box, self._data.maps, stages, generator=self._generator)

    def _validation_loss(self, images: Tensor, alternating: Sequence[Heads]) -> float:
        """Return the mean loss of the heads on the validation images."""
        validation = self._data.validation
        losses = [
            head.loss(extract.detached(images), features, validation.labels.to(features.device))
            for heads in alternating
            for head, extract, features in zip(heads, self._data.maps, validation.features or [], strict=False)
        ]
        return sum(losses) / len(losses) if losses else float("nan")


def choose_shield(crafter: ShieldCrafter, *, finalists: int) -> Shield:
    """Screen all classes, craft the poison of the best, and return the best of these.

    Args:
        crafter: Crafts the poison. Its data must have validation images.
        finalists: Number of classes whose poison is crafted in full.
    """
    screened = sorted((crafter.screen(number) for number in crafter.candidates()), key=lambda shield: shield.loss)
    return min((crafter.craft(each.shield_class) for each in screened[:finalists]), key=lambda shield: shield.loss)
