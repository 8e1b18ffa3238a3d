"""The changes: up the loss of surrogates, random signs, and one smooth pattern."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_poison import checks
from lightning_poison.adversarial import perturb
from lightning_poison.contexts import evaluating, frozen
from lightning_poison_perturbations.case import Case, added
from lightning_poison_perturbations.surrogate_loss import SurrogateLoss


@dataclass(frozen=True, kw_only=True)
class Ascent:
    """Raises the loss of surrogates on the labels that the images carry, by projected gradient ascent.

    Args:
        steps: how many gradients are taken.
        step_size: the length of a step in each pixel, relative to epsilon.
        random_start: start at a random point of the ball.
        restarts: how many starts are tried; for each image the best one counts.
        batch_size: how many images are changed at once.

    Raises:
        ValueError: where an argument is out of its range.
    """

    steps: int
    step_size: float
    random_start: bool
    restarts: int
    batch_size: int

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "batch_size"):
            checks.positive_int(name, getattr(self, name))
        checks.positive("step_size", self.step_size)

    def __call__(self, case: Case) -> Tensor:
        """Return the images at the end of the way.

        Raises:
            ValueError: where there is no surrogate, or one has the wrong number of outputs.
        """
        loss = SurrogateLoss(case.surrogates, case.pixels, classes=case.classes)
        with evaluating(*loss.models), frozen(*loss.models):
            batches = torch.split(torch.arange(len(case.images)), self.batch_size)
            return torch.cat([self._change(case, loss, batch) for batch in batches])

    def _change(self, case: Case, loss: SurrogateLoss, batch: Tensor) -> Tensor:
        return perturb(
            case.images[batch],
            lambda points: loss(points, case.labels[batch]),
            epsilon=case.epsilon,
            steps=self.steps,
            step_size=self.step_size * case.epsilon,
            random_start=self.random_start,
            restarts=self.restarts,
            mask=case.movable[batch],
            generator=case.generator,
        )


@dataclass(frozen=True)
class RandomSigns:
    """Moves each pixel by epsilon, up or down by the toss of a coin: the control without a gradient."""

    def __call__(self, case: Case) -> Tensor:
        """Return the images with their signs added."""
        return added(case, 2.0 * torch.randint(2, case.images.shape, generator=case.generator) - 1)


@dataclass(frozen=True, kw_only=True)
class SmoothPattern:
    """Adds one pattern of low frequency, the same to all images and channels, that reaches epsilon at its peak.

    It is a coarse square of random numbers in [-1, 1], drawn up to the size of the images by bicubic interpolation.

    Args:
        cells: the side of the coarse square.

    Raises:
        ValueError: where an argument is out of its range.
    """

    cells: int

    def __post_init__(self) -> None:
        checks.positive_int("cells", self.cells, minimum=2)

    def __call__(self, case: Case) -> Tensor:
        """Return the images with the pattern added.

        Raises:
            ValueError: where the samples are no images.
        """
        if case.images.ndim != 4:
            raise ValueError(checks.expected("dataset", "images (C, H, W)", checks.describe(case.images[0])))
        coarse = 2 * torch.rand(1, 1, self.cells, self.cells, generator=case.generator) - 1
        pattern = F.interpolate(coarse, case.images.shape[-2:], mode="bicubic", align_corners=True)
        return added(case, pattern / pattern.abs().max())
