"""`PGD` and `FGSM`: adversaries for adversarial training and evaluation."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lightning_poison import checks
from lightning_poison.adversarial.pgd import Norm, check_radius, check_settings, perturb_samples
from lightning_poison.data.pixel_range import PixelRange

Loss = Callable[[Tensor], Tensor]
"""Maps inputs `(B, ...)` to one loss each, `(B,)`, to maximize."""


class Adversary(Protocol):
    """Perturbs inputs within a ball around them to maximize a loss."""

    @property
    def epsilon(self) -> float:
        """Radius in units of the raw [0, 1] image."""

    @property
    def steps(self) -> int:
        """Number of gradient steps."""

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
        """Return perturbed inputs.

        Args:
            inputs: Model inputs, `(B, ...)`.
            loss: Loss of model inputs.
            pixels: Normalization of the inputs. Default: raw images in [0, 1].
            strength: Factor for radius and step, in [0, 1]. Default: 1.
            parameters_frozen: See `lightning_poison.adversarial.pgd.perturb`.
            part: See `lightning_poison.adversarial.pgd.perturb`.
            generator: Source of the random starts. Default: a fixed seed.

        Returns:
            Perturbed model inputs `(B, ...)`, detached.
        """


@dataclass(frozen=True)
class PGD:
    """Projected gradient descent from a random start.

    Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards deep learning models resistant to adversarial attacks", ICLR 2018,
    arXiv 1706.06083, eq. 2.1 and the step after it. For the differences see `lightning_poison.adversarial.pgd`.

    Args:
        epsilon: Radius in units of the raw [0, 1] image, regardless of the normalization: `8 / 255` is eight gray
            levels.
        step_size: Length of a step in the same units. Default: 2.5 ε / steps.
        steps: Number of gradient steps, at least 1. Default: 7.
        norm: Norm of the change of the raw image, `"linf"` or `"l2"`. Default: `"linf"`.
        random_start: Start at a point drawn uniformly from the ball, not at the image. Default: `True`.
        restarts: Number of starts. The point with the largest loss is returned. Default: 1.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> images = torch.full((2, 1, 2, 2), 0.5)
        >>> perturbed = PGD(0.1, steps=3).perturb(images, lambda x: x.flatten(1).sum(1))
        >>> torch.allclose(perturbed, images + 0.1)
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
        check_settings(self.norm, self.steps, self.restarts, self.random_start)
        checks.plain_numbers(self)

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
        """Return perturbed inputs; see `Adversary.perturb`."""
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
    """The fast gradient sign method with a random start: one gradient step, a seventh of the cost of PGD's seven.

    Wong, Rice, Kolter, "Fast is better than free: revisiting adversarial training", ICLR 2020, arXiv 2001.03994,
    algorithm 3. Without the random start: Goodfellow, Shlens, Szegedy, ICLR 2015, arXiv 1412.6572.

    It differs in that the start is clamped to the pixel range. If most pixels are at an end of the range, as in MNIST,
    a step of ε or more moves most of them to a corner of the ball, and a network may become robust to corners only: use
    a step of 0.75 ε there.

    Args:
        epsilon: Radius in units of the raw [0, 1] image, regardless of the normalization.
        step_size: Length of the step in the same units. Default: 1.25 ε, the authors' choice, or ε without a random
            start.
        random_start: Start at a point drawn uniformly from the ball, not at the image. Default: `True`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> FGSM(0.1, random_start=False).perturb(torch.full((1, 2), 0.5), lambda x: x @ torch.tensor([1.0, -1.0]))
        tensor([[0.6000, 0.4000]])
    """

    epsilon: float
    step_size: float | None = None
    random_start: bool = True

    def __post_init__(self) -> None:
        self.as_pgd()
        checks.plain_numbers(self)

    @property
    def steps(self) -> int:
        """Number of gradient steps."""
        return 1

    def as_pgd(self) -> PGD:
        """Return the equivalent PGD with one step.

        Example:
            >>> FGSM(0.2).as_pgd()
            PGD(epsilon=0.2, step_size=0.25, steps=1, norm='linf', random_start=True, restarts=1)
        """
        checks.positive("epsilon", self.epsilon)
        default = min(1.0, (1.25 if self.random_start else 1.0) * self.epsilon)  # 1 is the whole range of an image
        length = default if self.step_size is None else self.step_size
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
        """Return perturbed inputs; see `Adversary.perturb`."""
        return self.as_pgd().perturb(
            inputs,
            loss,
            pixels=pixels,
            strength=strength,
            parameters_frozen=parameters_frozen,
            part=part,
            generator=generator,
        )
