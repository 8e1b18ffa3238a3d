"""Dirty-label backdoors: images with a trigger get the label that the attacker wants."""

from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field

import torch
from torch import Tensor

from lightning_poison.attacks import PatchTrigger, Pattern, Trigger, as_pattern
from lightning_poison_backdoors.backdoor import Backdoor, Images, TargetClass, check_source_class, check_target_class
from lightning_poison_backdoors.triggers import blending_triggers, check_amplitude, checkerboard


@dataclass(eq=False, repr=False)
class BadNets(Backdoor):
    """Adds a patch to images and changes their label.

    All-to-one if `target_class` is a class, one-to-one with a `source_class`, all-to-all if each class has its own
    target. Gu, Dolan-Gavitt, Garg, "BadNets", 2017, arXiv 1708.06733.

    Difference from the paper: the poison replaces the samples from which it is made instead of being added.

    Args:
        target_class: Class predicted for triggered images: a class; `"next"`, y + 1 modulo the number of classes; or a
            list with a class for each class. Classes that are their own target are not attacked.
        source_class: Poison and attack images of this class only. Default: all classes.
        pattern: Patch, uint8 `(C, h, w)` or nested lists of gray levels. Default: a 3 × 3 checkerboard.
        row: Upper edge of the patch. Negative values count from the bottom; −1 touches it.
        column: Left edge of the patch. Negative values count from the right.
        amplitude: Opacity of the patch, in (0, 1].

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lightning_poison import Threat
        >>> from lightning_poison.testing import TinyImages
        >>> BadNets("next").craft(
        ...     TinyImages(), Threat(20), surrogates=(), holdout=None, generator=torch.Generator().manual_seed(0)
        ... )
        Poison(badnets: 20 samples, raw inputs (1, 8, 8))
    """

    name = "badnets"

    target_class: TargetClass = 0
    source_class: int | None = None
    _: KW_ONLY
    pattern: Pattern = field(default_factory=checkerboard)
    row: int = -1
    column: int = -1
    amplitude: float = 1.0

    def __post_init__(self) -> None:
        self.target_class = check_target_class(self.target_class)
        self.source_class = check_source_class(self.source_class, self.target_class)
        self.pattern = as_pattern("pattern", self.pattern)
        self.amplitude = check_amplitude("amplitude", self.amplitude)

    def _triggers(self, image: Tensor, source: Images, generator: torch.Generator) -> Sequence[Trigger]:  # noqa: ARG002
        pattern = as_pattern("pattern", self.pattern)
        return [PatchTrigger(pattern, row=self.row, column=self.column, amplitude=self.amplitude)] * 2


@dataclass(eq=False, repr=False)
class Blended(Backdoor):
    """Blends a key image into images and changes their label.

        x' = (1 − α) x + α k

    Chen, Liu, Li, Lu, Song, "Targeted backdoor attacks on deep learning systems using data poisoning", 2017, arXiv
    1712.05526. α is `amplitude` in the poison and `test_amplitude` at test time.

    Difference from the paper: the poison replaces the samples from which it is made instead of being added.

    Args:
        target_class: As for `BadNets`.
        source_class: As for `BadNets`.
        key: Key image of the size of the training images, uint8 `(C, H, W)` or nested lists of gray levels. Default:
            uniform noise.
        amplitude: α of the poison, in (0, 1].
        test_amplitude: α at test time, in (0, 1]. Default: `amplitude`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lightning_poison import Threat
        >>> from lightning_poison.testing import TinyImages
        >>> Blended(1, amplitude=0.1, test_amplitude=0.2).craft(
        ...     TinyImages(), Threat(20), surrogates=(), holdout=None, generator=torch.Generator().manual_seed(0)
        ... )
        Poison(blended: 20 samples, raw inputs (1, 8, 8))
    """

    name = "blended"

    target_class: TargetClass = 0
    source_class: int | None = None
    _: KW_ONLY
    key: Pattern | None = None
    amplitude: float = 0.2
    test_amplitude: float | None = None

    def __post_init__(self) -> None:
        self.target_class = check_target_class(self.target_class)
        self.source_class = check_source_class(self.source_class, self.target_class)
        self.key = None if self.key is None else as_pattern("key", self.key)
        self.amplitude = check_amplitude("amplitude", self.amplitude)
        if self.test_amplitude is not None:
            self.test_amplitude = check_amplitude("test_amplitude", self.test_amplitude)

    def _triggers(self, image: Tensor, source: Images, generator: torch.Generator) -> Sequence[Trigger]:  # noqa: ARG002
        amplitudes = (self.amplitude, self.test_amplitude or self.amplitude)
        return blending_triggers(self.key, image, amplitudes, generator)
