"""BadNets: a small patch, and the label that it calls."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from lightning_poison import Poison, Surrogate, Threat
from lightning_poison.attacks import PatchTrigger
from lightning_poison_backdoors.choosing import TargetClass, check_source_class, check_target_class
from lightning_poison_backdoors.limits import amplitude_of
from lightning_poison_backdoors.patterns import Pattern, as_pattern, checkerboard
from lightning_poison_backdoors.settings import as_json
from lightning_poison_backdoors.stamping import relabeled_poison


class BadNets:
    """Puts a patch on images and gives them another label.

    All-to-one where `target_class` is a class, one-to-one where `source_class` is given too, all-to-all where each
    class has a target of its own. Gu, Dolan-Gavitt, Garg, "BadNets", 2017, arXiv 1708.06733.

    Difference from the paper: the poison stands in the place of the samples that it is made from, and is not added.

    Args:
        target_class: what triggered images shall be read as: a class; `"next"`, y + 1 modulo the number of classes; or
            a list with a class for each class. A class that is its own target is left alone.
        source_class: poison images of this class only, and aim at those; `None` for all.
        pattern: the patch, uint8 `(C, h, w)` or nested lists of gray levels; a 3 × 3 checkerboard where it is `None`.
        row: its upper edge; negative counts from the bottom, −1 touching it.
        column: its left edge; negative counts from the right.
        amplitude: how far each pixel moves from the image toward the pattern, in (0, 1].

    Raises:
        ValueError: where an argument is out of range.

    Example:
        >>> from lightning_poison.testing import TinyImages
        >>> BadNets("next").craft(
        ...     TinyImages(), Threat(20), surrogates=(), holdout=None, generator=torch.Generator().manual_seed(0)
        ... )
        Poison(badnets: 20 samples, raw inputs (1, 8, 8))
    """

    name = "badnets"
    clean_label = False

    def __init__(
        self,
        target_class: TargetClass = 0,
        source_class: int | None = None,
        *,
        pattern: Pattern | None = None,
        row: int = -1,
        column: int = -1,
        amplitude: float = 1.0,
    ) -> None:
        self.target_class = check_target_class(target_class)
        self.source_class = check_source_class(source_class, target_class)
        self.pattern = checkerboard() if pattern is None else as_pattern("pattern", pattern)
        self.row = row
        self.column = column
        self.amplitude = amplitude_of("amplitude", amplitude)

    def __repr__(self) -> str:
        return (
            f"BadNets(target_class={self.target_class!r}, source_class={self.source_class}, "
            f"pattern={tuple(self.pattern.shape)}, row={self.row}, column={self.column}, amplitude={self.amplitude:g})"
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
        """Return as many patched samples as the budget says.

        Raises:
            TypeError: where the raw images of the data set cannot be reached.
            ValueError: where labels must stay, a class is absent, there are fewer samples than the budget, the patch
                does not fit the images, or it changes more than the threat's epsilon.
        """
        trigger = PatchTrigger(self.pattern, row=self.row, column=self.column, amplitude=self.amplitude)
        return relabeled_poison(
            self.name,
            dataset,
            threat,
            trigger=trigger,
            test_trigger=trigger,
            target_class=self.target_class,
            source_class=self.source_class,
            settings=as_json(self),
            generator=generator,
        )
