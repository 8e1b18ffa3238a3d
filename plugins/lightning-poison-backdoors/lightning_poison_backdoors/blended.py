"""Blended injection: a key image over the whole image."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import Poison, Surrogate, Threat, checks
from lightning_poison.attacks import PatchTrigger
from lightning_poison_backdoors.choosing import TargetClass, check_source_class, check_target_class
from lightning_poison_backdoors.limits import amplitude_of
from lightning_poison_backdoors.patterns import Pattern, as_pattern
from lightning_poison_backdoors.settings import as_json
from lightning_poison_backdoors.stamping import raw_images, relabeled_poison


class Blended:
    """Blends a key image into images and gives them another label.

        x' = (1 − α) x + α k

    Chen, Liu, Li, Lu, Song, "Targeted backdoor attacks on deep learning systems using data poisoning", 2017, arXiv
    1712.05526. α is `amplitude` in the poison and `test_amplitude` at test time.

    Difference from the paper: the poison stands in the place of the samples that it is made from, and is not added.

    Args:
        target_class: as for `BadNets`.
        source_class: as for `BadNets`.
        key: the key image, uint8 `(C, H, W)` of the images' own size, or nested lists of gray levels; noise that is
            drawn uniformly where it is `None`.
        amplitude: α of the poison, in (0, 1].
        test_amplitude: α at test time; the same where it is `None`.

    Raises:
        ValueError: where an argument is out of range.

    Example:
        >>> from lightning_poison.testing import TinyImages
        >>> Blended(1, amplitude=0.1, test_amplitude=0.2).craft(
        ...     TinyImages(), Threat(20), surrogates=(), holdout=None, generator=torch.Generator().manual_seed(0)
        ... )
        Poison(blended: 20 samples, raw inputs (1, 8, 8))
    """

    name = "blended"
    clean_label = False

    def __init__(
        self,
        target_class: TargetClass = 0,
        source_class: int | None = None,
        *,
        key: Pattern | None = None,
        amplitude: float = 0.2,
        test_amplitude: float | None = None,
    ) -> None:
        self.target_class = check_target_class(target_class)
        self.source_class = check_source_class(source_class, target_class)
        self.key = None if key is None else as_pattern("key", key)
        self.amplitude = amplitude_of("amplitude", amplitude)
        self.test_amplitude = None if test_amplitude is None else amplitude_of("test_amplitude", test_amplitude)

    def __repr__(self) -> str:
        key = None if self.key is None else tuple(self.key.shape)
        return (
            f"Blended(target_class={self.target_class!r}, source_class={self.source_class}, key={key}, "
            f"amplitude={self.amplitude:g}, test_amplitude={self.test_amplitude})"
        )

    def craft(
        self,
        dataset: "Dataset[Any]",
        threat: Threat,
        *,
        surrogates: Sequence[Surrogate],  # noqa: ARG002 (no model is needed)
        holdout: "Dataset[Any] | None",  # noqa: ARG002
        generator: torch.Generator,
    ) -> Poison:
        """Return as many blended samples as the budget says.

        Raises:
            TypeError: where the raw images of the data set cannot be reached.
            ValueError: where labels must stay, a class is absent, there are fewer samples than the budget, the key is
                not of the images' size, or it changes more than the threat's epsilon.
        """
        key = key_for(raw_images(dataset, torch.tensor([0]))[0], self.key, generator)
        return relabeled_poison(
            self.name,
            dataset,
            threat,
            trigger=whole_image(key, self.amplitude),
            test_trigger=whole_image(key, self.test_amplitude or self.amplitude),
            target_class=self.target_class,
            source_class=self.source_class,
            settings=as_json(self),
            generator=generator,
        )


def key_for(image: Tensor, key: Tensor | None, generator: torch.Generator) -> Tensor:
    """Return the key image if it has the size of an image, uint8 `(C, H, W)`; noise where none is given.

    Raises:
        ValueError: where it has another size.
    """
    if key is None:
        return torch.randint(256, image.shape, generator=generator).to(torch.uint8)
    if key.shape[1:] != image.shape[1:] or key.shape[0] not in (1, image.shape[0]):
        raise ValueError(
            checks.expected("key", f"an image like those of the data set, {tuple(image.shape)}", str(tuple(key.shape)))
            + "\nResize it, or use `badnets` for a patch."
        )
    return key


def whole_image(key: Tensor, amplitude: float) -> PatchTrigger:
    """Return a patch that covers the image: blending is moving each pixel toward it."""
    return PatchTrigger(key, row=0, column=0, amplitude=amplitude)
