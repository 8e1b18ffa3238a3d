"""The perturbations: gradient ascent on the loss of surrogates, random signs, and one smooth pattern."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison import checks
from lightning_poison.adversarial import perturb
from lightning_poison.attacks import check_surrogates
from lightning_poison.contexts import evaluating, frozen
from lightning_poison_perturbations.class_perturbation import ClassPerturbation, PerturbationTask


@dataclass(kw_only=True)
class PGD(ClassPerturbation):
    """Projected gradient ascent on the loss of surrogates at the images' own labels; labels are unchanged.

    Madry et al., ICLR 2018, arXiv 1706.06083, section 2.1. Several surrogates contribute equally to the loss.

    Args:
        source_class: Class whose images are perturbed. Default: all classes.
        class_fraction: Share of that class, in (0, 1]. Default: as many images as the budget.
        epsilon: L∞ radius if the threat sets none, in units of the raw [0, 1] image.
        ink_above: Perturb only pixels brighter than this, in units of the raw image. Default: all pixels.
        steps: Number of gradient steps.
        step_size: Step size in each pixel, relative to epsilon.
        random_start: Whether to start at a random point of the ball.
        restarts: Number of random starts. For each image the start with the largest final loss is used.
        batch_size: Number of images perturbed at once.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> PGD(source_class=3, ink_above=0.1).step_size
        0.25
    """

    name = "pgd"

    steps: int = 10
    step_size: float = 0.25
    random_start: bool = True
    restarts: int = 1
    batch_size: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("steps", "restarts", "batch_size"):
            checks.positive_int(name, getattr(self, name))
        checks.positive("step_size", self.step_size)

    def perturb_images(self, task: PerturbationTask) -> Tensor:
        """Return the images with the largest loss found.

        Raises:
            ValueError: If there is no surrogate, or one has the wrong number of outputs.
        """
        check_surrogates(task.surrogates)
        models = [surrogate.model for surrogate in task.surrogates]
        with evaluating(*models), frozen(*models):
            batches = torch.split(torch.arange(len(task.images)), self.batch_size)
            return torch.cat([self._perturb_batch(task, models, batch) for batch in batches])

    def _perturb_batch(self, task: PerturbationTask, models: Sequence[nn.Module], batch: Tensor) -> Tensor:
        return perturb(
            task.images[batch],
            lambda images: _summed_loss(models, images, task.labels[batch], task),
            epsilon=task.epsilon,
            steps=self.steps,
            step_size=self.step_size * task.epsilon,
            random_start=self.random_start,
            restarts=self.restarts,
            mask=task.mask[batch],
            generator=task.generator,
        )


@dataclass(kw_only=True)
class FGSM(PGD):
    """One step of length epsilon along the sign of the loss gradient of surrogates; labels are unchanged.

    Goodfellow, Shlens, Szegedy, ICLR 2015, arXiv 1412.6572, section 4.

    Args:
        source_class: Class whose images are perturbed. Default: all classes.
        class_fraction: Share of that class, in (0, 1]. Default: as many images as the budget.
        epsilon: L∞ radius if the threat sets none, in units of the raw [0, 1] image.
        ink_above: Perturb only pixels brighter than this, in units of the raw image. Default: all pixels.
        batch_size: Number of images perturbed at once.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> FGSM(source_class=3, class_fraction=0.5, epsilon=0.3).steps
        1
    """

    name = "fgsm"

    steps: int = field(default=1, init=False)
    step_size: float = field(default=1.0, init=False)
    random_start: bool = field(default=False, init=False)
    restarts: int = field(default=1, init=False)


@dataclass(kw_only=True)
class RandomSign(ClassPerturbation):
    """Shifts each pixel by epsilon, up or down at random; labels are unchanged. The control without gradients.

    Args:
        source_class: Class whose images are perturbed. Default: all classes.
        class_fraction: Share of that class, in (0, 1]. Default: as many images as the budget.
        epsilon: L∞ radius if the threat sets none, in units of the raw [0, 1] image.
        ink_above: Perturb only pixels brighter than this, in units of the raw image. Default: all pixels.
    """

    name = "random-sign"
    needs_surrogates = False

    def perturb_images(self, task: PerturbationTask) -> Tensor:
        """Return the images with random signs added."""
        signs = 2.0 * torch.randint(2, task.images.shape, generator=task.generator) - 1
        return task.images + task.epsilon * signs


@dataclass(kw_only=True)
class SmoothPattern(ClassPerturbation):
    """Adds one random low-frequency pattern to all images and channels; labels are unchanged.

    The pattern is a coarse square of random numbers in [-1, 1], upsampled to the image size by bicubic interpolation
    and scaled to epsilon at its peak.

    Args:
        source_class: Class whose images are perturbed. Default: all classes.
        class_fraction: Share of that class, in (0, 1]. Default: as many images as the budget.
        epsilon: Peak of the pattern if the threat sets no radius, in units of the raw [0, 1] image.
        ink_above: Perturb only pixels brighter than this, in units of the raw image. Default: all pixels.
        cells: Side of the coarse square, at least 2.

    Raises:
        ValueError: If an argument is out of range.
    """

    name = "smooth-pattern"
    needs_surrogates = False

    cells: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int("cells", self.cells, minimum=2)

    def perturb_images(self, task: PerturbationTask) -> Tensor:
        """Return the images with the pattern added.

        Raises:
            ValueError: If the samples are not images.
        """
        if task.images.ndim != 4:
            raise ValueError(checks.expected("dataset", "images (C, H, W)", checks.describe(task.images[0])))
        coarse = 2 * torch.rand(1, 1, self.cells, self.cells, generator=task.generator) - 1
        pattern = F.interpolate(coarse, task.images.shape[-2:], mode="bicubic", align_corners=True)
        return task.images + task.epsilon * (pattern / pattern.abs().max())


def _summed_loss(models: Sequence[nn.Module], images: Tensor, labels: Tensor, task: PerturbationTask) -> Tensor:
    """Return the cross-entropy summed over the models, each on its own device, for raw images: `(B,)`."""
    losses = []
    for position, model in enumerate(models):
        device = next((parameter.device for parameter in model.parameters()), images.device)
        logits: Tensor = model(task.pixels.from_raw(images.to(device)))
        if logits.shape != (len(images), task.classes):
            what = f"a model with {task.classes} outputs, one for each class of the training set"
            hint = "Craft on a model that was trained on these classes."
            output = f"an output of shape {tuple(logits.shape)}"
            raise ValueError(checks.expected(f"surrogates[{position}]", what, output, hint))
        losses.append(F.cross_entropy(logits, labels.to(device), reduction="none").to(images.device))
    return torch.stack(losses).sum(0)
