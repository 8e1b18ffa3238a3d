"""`ClassPerturbation`: the base of attacks that perturb training images of a class and keep their labels."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import PixelRange, Poison, Surrogate, Threat, checks
from lightning_poison.attacks import AvailabilityObjective, Objective, ProtectedClassObjective, known_class
from lightning_poison.data import as_raw_images, index_blocks, labels_of, read_blocks, spec_of

_BLOCK_SIZE = 512
_ROUNDING_ERROR = 1e-6  # tolerance of `PixelRange.round_raw`: 1 / 255 is not exact in floating point


@dataclass(frozen=True)
class PerturbationTask:
    """Images to perturb, and the constraints on the perturbation.

    Args:
        images: Raw images in [0, 1], `(P, ...)`.
        labels: Labels, int64 `(P,)`.
        mask: Pixels that may change, bool `(P, ...)`.
        epsilon: L∞ radius in units of the raw image.
        classes: Number of classes of the training set.
        pixels: Normalization of the samples.
        surrogates: Models to craft on.
        generator: The only source of randomness.
    """

    images: Tensor
    labels: Tensor
    mask: Tensor
    epsilon: float
    classes: int
    pixels: PixelRange
    surrogates: Sequence[Surrogate]
    generator: torch.Generator


@dataclass(kw_only=True)
class ClassPerturbation(ABC):
    """Perturbs training images within an L∞ ball and keeps their labels. Subclasses define `perturb_images`.

    Args:
        source_class: Class whose images are perturbed. Default: all classes.
        class_fraction: Share of that class, in (0, 1]. Default: as many images as the budget.
        epsilon: L∞ radius if the threat sets none, in units of the raw [0, 1] image.
        ink_above: Perturb only pixels brighter than this, in any of their channels, in [0, 1). Default: all pixels.

    Raises:
        ValueError: If an argument is out of range.
    """

    name = "class-perturbation"
    clean_label = True

    source_class: int | None = None
    class_fraction: float | None = None
    epsilon: float = 0.1
    ink_above: float | None = None

    def __post_init__(self) -> None:
        checks.epsilon(self.epsilon)
        if self.source_class is not None:
            checks.positive_int("source_class", self.source_class, minimum=0)
        if self.ink_above is not None and checks.share("ink_above", self.ink_above) == 1:
            raise ValueError(checks.expected("ink_above", "below 1, the brightest value", self.ink_above))
        if self.class_fraction is None:
            return
        if self.source_class is None:
            raise ValueError("Expected a `source_class` with `class_fraction`, but got none.\nSet `source_class`.")
        if checks.share("class_fraction", self.class_fraction) == 0:
            raise ValueError(checks.expected("class_fraction", "above 0", self.class_fraction))

    @abstractmethod
    def perturb_images(self, task: PerturbationTask) -> Tensor:
        """Return perturbed raw images `(P, ...)`. `craft` projects them onto ball, range, mask and pixel grid."""

    def craft(
        self,
        dataset: "Dataset[Any]",
        threat: Threat,
        *,
        surrogates: Sequence[Surrogate],
        holdout: "Dataset[Any] | None",  # noqa: ARG002
        generator: torch.Generator,
    ) -> Poison:
        """Perturb images of the class.

        Args:
            dataset: Training set without random augmentation.
            threat: Budget, pixel range and grid, and the radius if it sets one.
            surrogates: Models for gradient-based perturbations. Their state is restored.
            holdout: Not used.
            generator: Draws the samples and the random parts of the perturbation.

        Returns:
            Poison of domain `"sample"` that replaces the images, with their labels. Unchanged pixels keep their value
            bit for bit.

        Raises:
            ValueError: If the class has no samples or fewer than the budget, images are outside the pixel range, no
                pixel is bright enough, epsilon is below one gray level, or a surrogate is missing or does not fit.
        """
        epsilon = self.epsilon if threat.epsilon is None else threat.epsilon
        _check_gray_level(epsilon, threat.pixels.levels)
        labels = labels_of(dataset)
        chosen = draw_from_class(
            labels,
            threat.budget,
            source_class=self.source_class,
            class_fraction=self.class_fraction,
            generator=generator,
        )
        inputs = _read_inputs(dataset, chosen, seed=int(torch.randint(2**31, (), generator=generator)))
        images = as_raw_images(inputs, threat.pixels)
        classes = int(labels.max()) + 1
        mask = self._mask(images)
        task = PerturbationTask(images, labels[chosen], mask, epsilon, classes, threat.pixels, surrogates, generator)
        perturbed = threat.pixels.round_raw(self.perturb_images(task), around=images, epsilon=epsilon)
        changed = mask & (perturbed != images)
        return Poison(
            indices=chosen,
            inputs=torch.where(changed, threat.pixels.from_raw(perturbed), inputs),
            labels=labels[chosen],
            objective=self._objective(),
            attack=self.name,
            settings=asdict(self) | {"epsilon": epsilon},
        )

    def _mask(self, images: Tensor) -> Tensor:
        if self.ink_above is None:
            return torch.ones_like(images, dtype=torch.bool)
        bright = images > self.ink_above
        if not bright.any():
            what = f"below the brightest pixel, {float(images.max()):g}"
            hint = "It is in units of the raw [0, 1] image: for gray level 25 write `ink_above=25 / 255`."
            raise ValueError(checks.expected("ink_above", what, self.ink_above, hint))
        return bright.any(1, keepdim=True).expand_as(images) if images.ndim == 4 else bright

    def _objective(self) -> Objective:
        return AvailabilityObjective() if self.source_class is None else ProtectedClassObjective(self.source_class)


def draw_from_class(
    labels: Tensor, budget: int, *, source_class: int | None, class_fraction: float | None, generator: torch.Generator
) -> Tensor:
    """Draw samples of a class: a share of it, or as many as the budget.

    Args:
        labels: Labels of the training set, int64 `(N,)`.
        budget: Number of samples that may change.
        source_class: Class to draw from. `None`: all classes.
        class_fraction: Share of the class, in (0, 1]. `None`: as many samples as the budget.
        generator: The only source of randomness.

    Returns:
        Positions in the training set in ascending order, int64 `(P,)`.

    Raises:
        ValueError: If the class has no samples or fewer than the budget, or its share exceeds the budget.

    Example:
        >>> labels = torch.tensor([0, 1, 1, 0, 1, 1])
        >>> draw_from_class(labels, 9, source_class=1, class_fraction=1.0, generator=torch.Generator())
        tensor([1, 2, 4, 5])
    """
    members = torch.arange(len(labels))
    if source_class is not None:
        members = (labels == known_class("source_class", source_class, labels)).nonzero().flatten()
    where = "the training set" if source_class is None else f"class {source_class}"
    count = budget
    if class_fraction is not None:
        count = max(1, round(class_fraction * len(members)))
        if count > budget:
            what = f"at least {count}, `class_fraction` {class_fraction:g} of {where}"
            raise ValueError(checks.expected("budget", what, budget, "Raise the budget, or lower `class_fraction`."))
    elif budget > len(members):
        hint = "Lower it, or set `class_fraction=1.0` for the whole class."
        raise ValueError(checks.expected("budget", f"at most {len(members)}, the samples of {where}", budget, hint))
    return members[torch.randperm(len(members), generator=generator)[:count]].sort().values


def _read_inputs(dataset: "Dataset[Any]", indices: Tensor, *, seed: int) -> Tensor:
    blocks = read_blocks(dataset, index_blocks(indices, _BLOCK_SIZE), sample=spec_of(dataset), seed=seed)
    return torch.cat([block.inputs for block in blocks])


def _check_gray_level(epsilon: float, levels: int | None) -> None:
    """Refuse a radius within which no pixel can change."""
    if levels is not None and epsilon + _ROUNDING_ERROR < 1 / (levels - 1):
        hint = "Raise it, or declare the gray levels of the data: `PixelRange(levels=...)`."
        raise ValueError(checks.expected("epsilon", f"at least one gray level, 1 / {levels - 1}", epsilon, hint))
