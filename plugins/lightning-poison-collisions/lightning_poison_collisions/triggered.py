"""`HiddenTriggerAttack`: the base of clean-label backdoors whose trigger appears at test time only."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import PixelRange, Poison, SampleSpec, Surrogate, Threat, checks
from lightning_poison.attacks import PatchTrigger, Pattern, TriggerObjective, as_pattern, check_surrogates
from lightning_poison.contexts import evaluating, frozen
from lightning_poison.data import as_raw_images, labels_of, read_raw, read_sample
from lightning_poison.randomness import seeded_rng

_COLORS = 4  # random colors along each side of the patch, as in the triggers of Saha et al.


@dataclass(frozen=True)
class Scene:
    """What is given to the attacker.

    Args:
        dataset: Training set whose raw images can be read.
        candidates: Positions of the images of the target class, int64 `(M,)`.
        budget: Number of poisons, at most M.
        sources: Raw images in [0, 1] of other classes with the trigger, `(S, C, H, W)`.
        objective: Goal of the attack.
        surrogates: Models to craft on, at least one.
        pixels: Normalization of the samples.
        radius: L∞ radius of the perturbation, in units of the raw [0, 1] image.
        generator: The only source of randomness.
    """

    dataset: "Dataset[Any]"
    candidates: Tensor
    budget: int
    sources: Tensor
    objective: TriggerObjective
    surrogates: Sequence[Surrogate]
    pixels: PixelRange
    radius: float
    generator: torch.Generator


@dataclass(frozen=True, kw_only=True)
class HiddenTriggerAttack(ABC):
    """Clean-label backdoor whose poison carries no trigger.

    Images of the target class are perturbed within an L∞ ball and keep their label. A model trained on them is to
    predict the target class for test images with a patch, which no training image has. Poison replaces its bases, as
    raw images, so that the victim's augmentation applies to it. Subclasses define `_craft_images`.

    Args:
        target_class: Class of the poison, which is to be predicted for images with the trigger.
        source_class: Class of the images that the trigger is to change. Default: every class but `target_class`.
        pattern: Patch in the lower right corner. Default: 4 × 4 random colors, enlarged to a quarter of the shorter
            side of the image.
        sources: Maximum number of source images on which the attack is crafted. They are drawn from `holdout` if there
            is one, else from the training set.
        epsilon: L∞ radius if the threat sets none, in units of the raw [0, 1] image.
        steps: Number of steps.
        step_size: Initial step size in units of epsilon. It decays tenfold at 3/8, 5/8 and 7/8 of the steps.
        batch_size: Number of images processed at once.

    Raises:
        ValueError: If an argument is out of range.
    """

    name = "hidden-trigger-attack"
    clean_label = True

    target_class: int = 0
    source_class: int | None = None
    pattern: Pattern | None = None
    sources: int = 500
    epsilon: float = 16 / 255
    steps: int = 250
    step_size: float = 0.4
    batch_size: int = 128

    def __post_init__(self) -> None:
        checks.positive_int("target_class", self.target_class, minimum=0)
        if self.source_class is not None:
            checks.positive_int("source_class", self.source_class, minimum=0)
            if self.source_class == self.target_class:
                what = f"another class than `target_class` ({self.target_class})"
                raise ValueError(checks.expected("source_class", what, "the same"))
        for name in ("sources", "steps", "batch_size"):
            checks.positive_int(name, getattr(self, name))
        checks.epsilon(self.epsilon)
        checks.positive("step_size", self.step_size)
        if self.pattern is not None:
            object.__setattr__(self, "pattern", as_pattern("pattern", self.pattern).tolist())

    @abstractmethod
    def _craft_images(self, scene: Scene) -> tuple[Tensor, Tensor]:
        """Return the positions of the bases, int64 `(P,)`, and the raw images made from them, `(P, C, H, W)`."""

    def _settings(self) -> dict[str, Any]:
        """Return the settings as JSON values. The constructor accepts them."""
        return asdict(self)

    def craft(
        self,
        dataset: "Dataset[Any]",
        threat: Threat,
        *,
        surrogates: Sequence[Surrogate],
        holdout: "Dataset[Any] | None",
        generator: torch.Generator,
    ) -> Poison:
        """Craft as many poisons as the budget.

        Surrogates are used in evaluation mode on their device and in their precision, and their state is restored.
        Several surrogates contribute equally to the objective.

        Args:
            dataset: Training set whose raw images can be read. Its transform may only scale and normalize.
            threat: Budget, pixel range, and the radius if it sets one.
            surrogates: Models to craft on, at least one.
            holdout: Other images, from which sources are drawn. Default: those of `dataset`.
            generator: The only source of randomness.

        Returns:
            Poison of domain `"raw"` with the labels of its bases and a `TriggerObjective`.

        Raises:
            TypeError: If the raw images of the data set cannot be read.
            ValueError: If there is no surrogate, a class is absent or has fewer samples than the budget, the pattern
                does not fit the images, the transform changes their shape, or images are outside the pixel range.
        """
        check_surrogates(surrogates)
        source_set = dataset if holdout is None else holdout
        labels = labels_of(dataset)
        candidates = _positions(labels, labels == self.target_class, "target_class", self.target_class)
        if threat.budget > len(candidates):
            what = f"at most {len(candidates)}, the number of samples of class {self.target_class}"
            raise ValueError(checks.expected("budget", what, threat.budget, "Lower the budget of the threat."))
        image = check_transform(dataset, int(candidates[0]), threat.pixels)
        trigger = PatchTrigger(self._pattern_for(image, generator), row=-1, column=-1)
        models = [surrogate.model for surrogate in surrogates]
        with evaluating(*models), frozen(*models):
            scene = Scene(
                dataset,
                candidates,
                threat.budget,
                self._triggered(source_set, trigger, generator),
                TriggerObjective(trigger, self.target_class, self.source_class),
                surrogates,
                threat.pixels,
                self.epsilon if threat.epsilon is None else threat.epsilon,
                generator,
            )
            indices, images = self._craft_images(scene)
        return poison_of(scene, indices, images, attack=self.name, settings=self._settings())

    def _pattern_for(self, image: Tensor, generator: torch.Generator) -> Tensor:
        if self.pattern is not None:
            return as_pattern("pattern", self.pattern)
        return random_pattern(image.shape[0], max(2, min(image.shape[1:]) // 4), generator)

    def _triggered(self, dataset: "Dataset[Any]", trigger: PatchTrigger, generator: torch.Generator) -> Tensor:
        """Draw source images and return them with the trigger, raw in [0, 1], `(S, C, H, W)`."""
        labels = labels_of(dataset)
        allowed = labels != self.target_class if self.source_class is None else labels == self.source_class
        eligible = _positions(labels, allowed, "source_class", self.source_class)
        drawn = eligible[torch.randperm(len(eligible), generator=generator)[: self.sources]]
        return torch.stack([trigger(read_raw(dataset, index)) for index in drawn.tolist()]).float() / 255


def read_originals(dataset: "Dataset[Any]", indices: Tensor) -> Tensor:
    """Return images before the data set's transform, uint8 `(P, C, H, W)`.

    Raises:
        TypeError: If the data set's raw images cannot be read.
    """
    return torch.stack([read_raw(dataset, index) for index in indices.tolist()])


def poison_of(scene: Scene, indices: Tensor, images: Tensor, *, attack: str, settings: dict[str, Any]) -> Poison:
    """Round crafted images to gray levels, toward their originals, and return them as poison.

    Args:
        scene: What is given to the attacker.
        indices: Positions of the bases, int64 `(P,)`.
        images: Raw images, `(P, C, H, W)`.
        attack: Name of the attack.
        settings: Settings of the attack, as JSON values.
    """
    originals = read_originals(scene.dataset, indices)
    change = 255 * images.detach().cpu().float() - originals
    levels = (change + 0.01 * change.sign()).trunc()
    return Poison(
        indices=indices,
        labels=labels_of(scene.dataset)[indices],
        objective=scene.objective,
        attack=attack,
        inputs=(originals + levels).clamp(0, 255).to(torch.uint8),
        domain="raw",
        settings=settings,
    )


def random_pattern(channels: int, side: int, generator: torch.Generator) -> Tensor:
    """Return 4 × 4 random colors, enlarged by bilinear interpolation, uint8 `(channels, side, side)`.

    Example:
        >>> random_pattern(3, 8, torch.Generator().manual_seed(0)).shape
        torch.Size([3, 8, 8])
    """
    colors = torch.randint(256, (1, channels, _COLORS, _COLORS), generator=generator).float()
    return F.interpolate(colors, size=(side, side), mode="bilinear").round().to(torch.uint8)[0]


def check_transform(dataset: "Dataset[Any]", index: int, pixels: PixelRange) -> Tensor:
    """Check that a sample has the shape of its raw image and is in the pixel range.

    Args:
        dataset: Map-style data set.
        index: Position of the sample.
        pixels: Normalization of the samples.

    Returns:
        The raw image, uint8 `(C, H, W)`.

    Raises:
        TypeError: If the raw images of the data set cannot be read.
        ValueError: If the sample has another shape or is outside the pixel range.
    """
    image = read_raw(dataset, index)
    with seeded_rng(0):
        sample = read_sample(dataset, index)
    inputs = SampleSpec.detect(sample).inputs_in(sample)
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.shape != image.shape:
        raise ValueError(
            f"Expected samples of the shape of their raw images, float {tuple(image.shape)}, but sample {index} is "
            f"{checks.describe(inputs)}.\nPass a data set whose transform only scales and normalizes."
        )
    as_raw_images(inputs[None], pixels)
    return image


def _positions(labels: Tensor, allowed: Tensor, name: str, value: int | None) -> Tensor:
    found = allowed.nonzero().flatten()
    if not len(found):
        classes = ", ".join(str(label) for label in sorted(set(labels.tolist()))[:40])
        raise ValueError(checks.expected(name, f"a class that has samples (the classes are {classes})", value))
    return found
