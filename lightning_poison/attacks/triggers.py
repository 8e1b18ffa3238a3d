"""Backdoor triggers: image edits that the attacker applies at training and test time."""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from lightning_poison import checks
from lightning_poison.attacks.kinds import KindRegistry, Saved
from lightning_poison.checks import from_json

_FARTHEST = 2**31
"""Largest distance of a trigger from the bottom or right edge, in pixels."""


@runtime_checkable
class Trigger(Saved, Protocol):
    """Edit of a raw image, uint8 `(C, H, W)`, before the transform of the data set. It can be saved with the poison."""

    def __call__(self, image: Tensor) -> Tensor:
        """Return the triggered image, uint8 `(C, H, W)`, without changing the argument."""


trigger_kinds = KindRegistry[Trigger]("trigger")
"""Registered kinds. Decorate a class with `@trigger_kinds.register` so that saved poison can load it."""


@trigger_kinds.register
class PatchTrigger:
    """Small pattern at a fixed position (Gu et al., "BadNets", 2017, arXiv 1708.06733).

    Args:
        pattern: uint8 `(C, h, w)`, or `(1, h, w)` for any number of channels.
        row: Top row of the pattern. Negative values count from the bottom; −1 touches the bottom edge.
        column: Left column of the pattern. Negative values count from the right; −1 touches the right edge.
        amplitude: Blending weight of the pattern, in (0, 1].

    Raises:
        ValueError: If the pattern is not a uint8 image, `row` or `column` is not an integer, or `amplitude` is outside
            (0, 1].

    Example:
        >>> trigger = PatchTrigger(torch.full((1, 2, 2), 255, dtype=torch.uint8), row=-1, column=-1)
        >>> trigger(torch.zeros(1, 4, 4, dtype=torch.uint8))[0, -2:, -3:].tolist()
        [[0, 255, 255], [0, 255, 255]]
    """

    kind: ClassVar[str] = "patch"

    def __init__(self, pattern: Tensor, *, row: int = -1, column: int = -1, amplitude: float = 1.0) -> None:
        is_image = isinstance(pattern, Tensor) and pattern.dtype == torch.uint8 and pattern.ndim == 3
        if not is_image or not pattern.numel():
            raise ValueError(checks.expected("pattern", "a uint8 image (C, h, w)", checks.describe(pattern)))
        if not checks.share("amplitude", amplitude):
            raise ValueError(checks.expected("amplitude", "in (0, 1]", amplitude))
        self.pattern = pattern
        self.row = checks.positive_int("row", row, minimum=-_FARTHEST)
        self.column = checks.positive_int("column", column, minimum=-_FARTHEST)
        self.amplitude = float(amplitude)

    def __repr__(self) -> str:
        shape = tuple(self.pattern.shape)
        return f"PatchTrigger({shape}, row={self.row}, column={self.column}, amplitude={self.amplitude:g})"

    def __call__(self, image: Tensor) -> Tensor:
        """Return the image with the patch on it.

        Raises:
            ValueError: If the patch does not fit inside the image.
        """
        channels, height, width = self.pattern.shape
        top = self.row if self.row >= 0 else image.shape[-2] - height + self.row + 1
        left = self.column if self.column >= 0 else image.shape[-1] - width + self.column + 1
        fits = 0 <= top <= image.shape[-2] - height and 0 <= left <= image.shape[-1] - width
        if not fits or channels not in (1, image.shape[-3]):
            raise ValueError(
                f"Expected a trigger inside the image, but got a pattern of {tuple(self.pattern.shape)} at row "
                f"{self.row}, column {self.column} for an image of {tuple(image.shape)}.\n"
                "Choose a smaller pattern or another position."
            )
        changed = image.clone()
        area = changed[..., top : top + height, left : left + width]
        blended = area.float() + self.amplitude * (self.pattern.float() - area.float())
        area.copy_(blended.round().to(torch.uint8))
        return changed

    def settings(self) -> Mapping[str, Any]:
        """Return position and amplitude."""
        return {"row": self.row, "column": self.column, "amplitude": self.amplitude}

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the pattern."""
        return {"pattern": self.pattern}

    @classmethod
    def from_saved(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild the trigger."""
        return from_json(cls, {**settings, **tensors}, "trigger")
