"""`ClassPerturbation`: some training images of a class are changed a little, and keep their label."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import Poison, Surrogate, Threat, checks
from lightning_poison.attacks import AvailabilityObjective, Objective, ProtectedClassObjective
from lightning_poison.data import as_raw_images, index_blocks, labels_of, read_blocks, spec_of
from lightning_poison_perturbations.case import Case, Change
from lightning_poison_perturbations.share import draw_share

_BLOCK = 512  # samples read at once
_ROUNDING_ERROR = 1e-6  # what `PixelRange.round_raw` forgives: a float does not hold 1 / 255 exactly


@dataclass(kw_only=True)
class ClassPerturbation:
    """Changes a share of a class's training images within an L∞ ball, and leaves their labels alone.

    Args:
        name: of the attack.
        change: what is done to the images.
        source_class: the class whose images are changed; any where it is `None`.
        class_fraction: what share of that class, in (0, 1]; as many as the budget where it is `None`.
        epsilon: the L∞ radius where the threat sets none, in units of the raw [0, 1] image.
        ink_above: change only pixels that are brighter than this in the raw image, in [0, 1), in any of their channels;
            all where it is `None`.

    Raises:
        ValueError: where an argument is out of its range.
    """

    clean_label = True

    name: str
    change: Change
    source_class: int | None = None
    class_fraction: float | None = None
    epsilon: float = 0.1
    ink_above: float | None = None

    def __post_init__(self) -> None:
        checks.epsilon(self.epsilon)
        if self.source_class is not None:
            checks.positive_int("source_class", self.source_class, minimum=0)
        if self.ink_above is not None and checks.share("ink_above", self.ink_above) == 1:
            raise ValueError(checks.expected("ink_above", "below 1, or no pixel is brighter", self.ink_above))
        if self.class_fraction is None:
            return
        if self.source_class is None:
            raise ValueError("Expected a `source_class` to take `class_fraction` of, but got none.\nName the class.")
        if checks.share("class_fraction", self.class_fraction) == 0:
            raise ValueError(checks.expected("class_fraction", "above 0", self.class_fraction))

    def craft(
        self,
        dataset: "Dataset[Any]",
        threat: Threat,
        *,
        surrogates: Sequence[Surrogate],
        holdout: "Dataset[Any] | None",  # noqa: ARG002 (nothing is drawn from it)
        generator: torch.Generator,
    ) -> Poison:
        """Change images of the class.

        Args:
            dataset: the training set, without random augmentation.
            threat: the budget, the pixel range and its grid, and the radius if there is one.
            surrogates: for the changes that climb a loss; they come back as they were.
            holdout: not used.
            generator: draws the samples and what is random in the change.

        Returns:
            Poison of domain `"sample"` in the place of the images, labels kept. Pixels that did not change keep their
            value bit for bit.

        Raises:
            ValueError: where the class has no sample or fewer than the budget, images lie outside the pixel range, no
                pixel is bright enough, epsilon is below one gray level, or a surrogate is missing or does not fit.
        """
        epsilon = self.epsilon if threat.epsilon is None else threat.epsilon
        _check_level(epsilon, threat.pixels.levels)
        labels = labels_of(dataset)
        chosen = draw_share(
            labels,
            threat.budget,
            source_class=self.source_class,
            class_fraction=self.class_fraction,
            generator=generator,
        )
        inputs = _read(dataset, chosen, seed=int(torch.randint(2**31, (), generator=generator)))
        images = as_raw_images(inputs, threat.pixels)
        classes = int(labels.max()) + 1
        movable = self._movable(images)
        case = Case(images, labels[chosen], movable, epsilon, classes, threat.pixels, surrogates, generator)
        changed = threat.pixels.round_raw(self.change(case), around=images, epsilon=epsilon)
        moved = movable & (changed != images)
        return Poison(
            indices=chosen,
            inputs=torch.where(moved, threat.pixels.from_raw(changed), inputs),
            labels=labels[chosen],
            objective=self._objective(),
            attack=self.name,
            settings=self._settings() | {"epsilon": epsilon},
        )

    def _movable(self, images: Tensor) -> Tensor:
        if self.ink_above is None:
            return torch.ones_like(images, dtype=torch.bool)
        bright = images > self.ink_above
        if not bright.any():
            hint = "It is in units of the raw [0, 1] image: for gray level 25 write `ink_above=25 / 255`."
            found = f"{self.ink_above:g}, and none is"
            raise ValueError(checks.expected("ink_above", "a gray that some pixel is brighter than", found, hint))
        return bright.any(1, keepdim=True).expand_as(images) if images.ndim == 4 else bright

    def _objective(self) -> Objective:
        return AvailabilityObjective() if self.source_class is None else ProtectedClassObjective(self.source_class)

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = asdict(self)
        change: dict[str, Any] = settings.pop("change")
        del settings["name"]
        return settings | change


def _read(dataset: "Dataset[Any]", indices: Tensor, *, seed: int) -> Tensor:
    blocks = read_blocks(dataset, index_blocks(indices, _BLOCK), sample=spec_of(dataset), seed=seed)
    return torch.cat([block.inputs for block in blocks])


def _check_level(epsilon: float, levels: int | None) -> None:
    """Refuse a radius within which no pixel could change."""
    if levels is not None and epsilon + _ROUNDING_ERROR < 1 / (levels - 1):
        hint = "Raise it, or declare the grid that the data have: `PixelRange(levels=...)`."
        raise ValueError(checks.expected("epsilon", f"at least one gray level, 1 / {levels - 1}", epsilon, hint))
