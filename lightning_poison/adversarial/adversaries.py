"""`PGD` and `FGSM`: how a batch is perturbed, as settings that adversarial training and evaluation share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_poison import checks
from lightning_poison.adversarial.pgd import Norm, check_counts, check_radius, perturb_samples
from lightning_poison.data.pixel_range import PixelRange

Loss = Callable[[Tensor], Tensor]
"""Maps inputs `(B, ...)` to one loss each, `(B,)`; it is maximized."""


class Adversary(Protocol):
    """Changes inputs, within a ball around them, so that a loss grows."""

    @property
    def epsilon(self) -> float:
        """The radius, in units of the raw [0, 1] image."""

    @property
    def steps(self) -> int:
        """How many gradients are taken."""

    def perturb(
        self,
        inputs: Tensor,
        loss: Loss,
        *,
        pixels: PixelRange | None = None,
        strength: float = 1.0,
        parameters_frozen: bool = False,
        part: tuple[int, int] = (0, 1),
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return changed inputs.

        Args:
            inputs: `(B, ...)`, as the model takes them.
            loss: of inputs like these.
            pixels: how they are normalized; raw images in [0, 1] where it is `None`.
            strength: radius and step are this share of what they are, in [0, 1].
            parameters_frozen: see `lightning_poison.adversarial.pgd.perturb`.
            part: see there.
            generator: draws the starts; a fixed seed where it is `None`.

        Returns:
            `(B, ...)`, detached.
        """


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent, from a random start.

    Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards deep learning models resistant to adversarial attacks", ICLR 2018,
    arXiv 1706.06083, eq. 2.1 and the step after it. See `lightning_poison.adversarial.pgd` for what differs.

    Args:
        epsilon: the radius in units of the raw [0, 1] image, whatever the normalization: `8 / 255` is eight gray
            levels.
        step_size: in the same units; 2.5 ε / steps where it is `None`.
        steps: how many gradients are taken, at least 1.
        norm: `"linf"` or `"l2"`, of the raw image.
        random_start: start at a point drawn uniformly from the ball, or at the image.
        restarts: how many starts are tried; the point with the largest loss is kept.

    Raises:
        ValueError: where an argument is out of its range.

    Example:
        >>> images = torch.full((2, 1, 2, 2), 0.5)
        >>> found = PGD(0.1, steps=3).perturb(images, lambda x: x.flatten(1).sum(1))
        >>> torch.allclose(found, images + 0.1)
        True
    """

    epsilon: float
    step_size: float | None = None
    steps: int = 7
    norm: Norm = "linf"
    random_start: bool = True
    restarts: int = 1

    def __post_init__(self) -> None:
        checks.positive("epsilon", self.epsilon)
        check_radius(self.epsilon, self.norm)
        if self.step_size is not None:
            checks.positive("step_size", self.step_size)
            check_radius(self.step_size, self.norm, name="step_size")
        checks.positive_int("steps", self.steps)
        check_counts(self.norm, self.steps, self.restarts, self.random_start)

    def perturb(
        self,
        inputs: Tensor,
        loss: Loss,
        *,
        pixels: PixelRange | None = None,
        strength: float = 1.0,
        parameters_frozen: bool = False,
        part: tuple[int, int] = (0, 1),
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return changed inputs; see `Adversary.perturb`."""
        if checks.share("strength", strength) == 0:
            return inputs.detach().clone()
        return perturb_samples(
            inputs,
            loss,
            epsilon=strength * self.epsilon,
            steps=self.steps,
            step_size=None if self.step_size is None else strength * self.step_size,
            norm=self.norm,
            random_start=self.random_start,
            restarts=self.restarts,
            pixels=pixels,
            parameters_frozen=parameters_frozen,
            part=part,
            generator=generator,
        )


@dataclass(frozen=True)
class FGSM:
    """The fast gradient sign method with a random start: one gradient, at a seventh of the price of PGD's seven.

    Wong, Rice, Kolter, "Fast is better than free: revisiting adversarial training", ICLR 2020, arXiv 2001.03994,
    algorithm 3. Without the random start it is Goodfellow, Shlens, Szegedy, ICLR 2015, arXiv 1412.6572.

    It differs in that the start is clamped to the pixel range. Where most pixels lie at an end of it, as in MNIST, a
    step of ε or more then takes most of them to a corner of the ball, and a network may learn to withstand corners
    alone: 0.75 ε is the better step there.

    Args:
        epsilon: the radius in units of the raw [0, 1] image, whatever the normalization.
        step_size: in the same units; 1.25 ε, the authors' choice, where it is `None`, and ε without a random start.
        random_start: start at a point drawn uniformly from the ball, or at the image.

    Raises:
        ValueError: where an argument is out of its range.

    Example:
        >>> FGSM(0.1, random_start=False).perturb(torch.full((1, 2), 0.5), lambda x: x @ torch.tensor([1.0, -1.0]))
        tensor([[0.6000, 0.4000]])
    """

    epsilon: float
    step_size: float | None = None
    random_start: bool = True

    def __post_init__(self) -> None:
        self.as_pgd()

    @property
    def steps(self) -> int:
        """How many gradients are taken."""
        return 1

    def as_pgd(self) -> PGD:
        """Return the same as one step of PGD.

        Example:
            >>> FGSM(0.2).as_pgd()
            PGD(epsilon=0.2, step_size=0.25, steps=1, norm='linf', random_start=True, restarts=1)
        """
        checks.positive("epsilon", self.epsilon)
        own = min(1.0, (1.25 if self.random_start else 1.0) * self.epsilon)  # from 1 on, the image's range ends a step
        length = own if self.step_size is None else self.step_size
        return PGD(self.epsilon, length, steps=1, random_start=self.random_start)

    def perturb(
        self,
        inputs: Tensor,
        loss: Loss,
        *,
        pixels: PixelRange | None = None,
        strength: float = 1.0,
        parameters_frozen: bool = False,
        part: tuple[int, int] = (0, 1),
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return changed inputs; see `Adversary.perturb`."""
        return self.as_pgd().perturb(
            inputs,
            loss,
            pixels=pixels,
            strength=strength,
            parameters_frozen=parameters_frozen,
            part=part,
            generator=generator,
        )
