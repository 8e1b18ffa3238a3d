"""Several triggers, one after the other; and patches in the corners of an image."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from torch import Tensor

from lightning_poison import checks
from lightning_poison.attacks import PatchTrigger, Trigger
from lightning_poison.attacks.triggers import triggers


@triggers.register
class ChainTrigger:
    """Puts several triggers on an image, one after the other.

    Args:
        parts: the triggers, of any registered kinds.

    Raises:
        ValueError: where there is none.

    Example:
        >>> import torch
        >>> dot = torch.full((1, 1, 1), 255, dtype=torch.uint8)
        >>> trigger = ChainTrigger([PatchTrigger(dot, row=0, column=0), PatchTrigger(dot, row=-1, column=-1)])
        >>> trigger(torch.zeros(1, 2, 3, dtype=torch.uint8))[0].tolist()
        [[255, 0, 0], [0, 0, 255]]
    """

    kind: ClassVar[str] = "chain"

    def __init__(self, parts: Sequence[Trigger]) -> None:
        if not parts:
            raise ValueError(checks.expected("parts", "one trigger or more", "none"))
        self.parts = tuple(parts)

    def __repr__(self) -> str:
        return f"ChainTrigger([{', '.join(map(repr, self.parts))}])"

    def __call__(self, image: Tensor) -> Tensor:
        """Return the image, uint8 `(C, H, W)`, with all triggers on it."""
        for part in self.parts:
            image = part(image)
        return image

    def settings(self) -> Mapping[str, Any]:
        """Return the settings of each part."""
        return {"parts": [triggers.pack(part)[0] for part in self.parts]}

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors of the parts, each behind the number of its part."""
        packed = [triggers.pack(part)[1] for part in self.parts]
        return {f"{number}.{name}": tensor for number, part in enumerate(packed) for name, tensor in part.items()}

    @classmethod
    def from_saved(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Build the trigger again."""
        parts = []
        for number, packed in enumerate(settings["parts"]):
            prefix = f"{number}."
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            parts.append(triggers.unpack(packed, own))
        return cls(parts)


def corner_patches(pattern: Tensor, *, corners: int, amplitude: float = 1.0) -> Trigger:
    """Return a trigger with a pattern in one corner, the lower right, or mirrored in all four.

    Four mirrored corners outlive a victim's random flips, and some of them its random crops.

    Args:
        pattern: uint8 `(C, h, w)`, or `(1, h, w)` for any number of channels, as it stands in the lower right.
        corners: 1 or 4.
        amplitude: how far each pixel moves toward the pattern, in (0, 1].

    Raises:
        ValueError: where `corners` is another number, or the patch is none.
    """
    checks.one_of("corners", corners, (1, 4))
    lower_right = PatchTrigger(pattern, row=-1, column=-1, amplitude=amplitude)
    if corners == 1:
        return lower_right
    return ChainTrigger(
        [
            lower_right,
            PatchTrigger(pattern.flip(-1), row=-1, column=0, amplitude=amplitude),
            PatchTrigger(pattern.flip(-2), row=0, column=-1, amplitude=amplitude),
            PatchTrigger(pattern.flip(-2, -1), row=0, column=0, amplitude=amplitude),
        ]
    )
