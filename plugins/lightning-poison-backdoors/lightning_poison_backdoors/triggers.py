"""Triggers: chains, corner patches, sinusoidal stripes and key images, with their patterns and amplitudes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from lightning_poison import checks
from lightning_poison.attacks import PatchTrigger, Pattern, Trigger, as_pattern, trigger_kinds


@trigger_kinds.register
class ChainTrigger:
    """Applies several triggers in sequence.

    Args:
        parts: Triggers of any registered kinds, at least one.

    Raises:
        ValueError: If `parts` is empty.

    Example:
        >>> dot = torch.full((1, 1, 1), 255, dtype=torch.uint8)
        >>> trigger = ChainTrigger([PatchTrigger(dot, row=0, column=0), PatchTrigger(dot, row=-1, column=-1)])
        >>> trigger(torch.zeros(1, 2, 3, dtype=torch.uint8))[0].tolist()
        [[255, 0, 0], [0, 0, 255]]
    """

    kind: ClassVar[str] = "chain"

    def __init__(self, parts: Sequence[Trigger]) -> None:
        if not parts:
            raise ValueError(checks.expected("parts", "at least one trigger", "none"))
        self.parts = tuple(parts)

    def __repr__(self) -> str:
        return f"ChainTrigger([{', '.join(map(repr, self.parts))}])"

    def __call__(self, image: Tensor) -> Tensor:
        """Return the image, uint8 `(C, H, W)`, with all triggers applied."""
        for part in self.parts:
            image = part(image)
        return image

    def settings(self) -> Mapping[str, Any]:
        """Return the settings of the parts."""
        return {"parts": [trigger_kinds.pack(part)[0] for part in self.parts]}

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors of the parts, prefixed with the index of the part."""
        packed = [trigger_kinds.pack(part)[1] for part in self.parts]
        return {f"{index}.{name}": tensor for index, part in enumerate(packed) for name, tensor in part.items()}

    @classmethod
    def from_saved(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild the trigger."""
        parts = []
        for index, packed in enumerate(settings["parts"]):
            prefix = f"{index}."
            own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            parts.append(trigger_kinds.unpack(packed, own))
        return cls(parts)


@trigger_kinds.register
class SinusoidTrigger:
    """Vertical stripes added to the whole image: v(i, j) = Δ sin(2π j f / W), clipped to the range of gray levels.

    Barni, Kallas, Tondi, "A new backdoor attack in CNNs by training set corruption without label poisoning", ICIP 2019,
    arXiv 1902.11237.

    Args:
        amplitude: Δ, in (0, 1], in units of the raw [0, 1] image.
        frequency: f, the number of stripes across the image, above 0.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> trigger = SinusoidTrigger(amplitude=20 / 255, frequency=1)
        >>> trigger(torch.full((1, 1, 4), 100, dtype=torch.uint8)).tolist()
        [[[100, 120, 100, 80]]]
    """

    kind: ClassVar[str] = "sinusoid"

    def __init__(self, *, amplitude: float = 40 / 255, frequency: float = 6) -> None:
        self.amplitude = check_amplitude("amplitude", amplitude)
        self.frequency = checks.positive("frequency", frequency)

    def __repr__(self) -> str:
        return f"SinusoidTrigger(amplitude={self.amplitude:.4g}, frequency={self.frequency:g})"

    def __call__(self, image: Tensor) -> Tensor:
        """Return the image, uint8 `(C, H, W)`, with the stripes added.

        Raises:
            ValueError: If the stripes change no gray level.
        """
        width = image.shape[-1]
        phase = 2 * math.pi * self.frequency * torch.arange(width, dtype=torch.float64) / width
        stripes = 255 * self.amplitude * phase.sin()
        if float(stripes.abs().max()) < 0.5:
            raise ValueError(
                f"Expected stripes that change gray levels, but got {self!r}, which changes none of {width} columns.\n"
                f"Choose a larger amplitude, and a frequency that is not a multiple of {width / 2:g}."
            )
        return (image.double() + stripes).round().clamp(0, 255).to(torch.uint8)

    def settings(self) -> Mapping[str, Any]:
        """Return amplitude and frequency."""
        return {"amplitude": self.amplitude, "frequency": self.frequency}

    def tensors(self) -> Mapping[str, Tensor]:
        """Return no tensors: the settings determine the stripes."""
        return {}

    @classmethod
    def from_saved(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:  # noqa: ARG003
        """Rebuild the trigger."""
        return cls(**settings)


def corner_patches(pattern: Tensor, *, corners: int, amplitude: float = 1.0) -> Trigger:
    """Return a trigger with a pattern in the lower right corner, or mirrored in all four corners.

    Four mirrored corners survive random flips of the victim, and some of them survive random crops.

    Args:
        pattern: Pattern of the lower right corner, uint8 `(C, h, w)`, or `(1, h, w)` for any number of channels.
        corners: 1 or 4.
        amplitude: Opacity of the pattern, in (0, 1].

    Raises:
        ValueError: If `corners` is another number, or the pattern is invalid.
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


def blending_triggers(
    key: Pattern | None, image: Tensor, amplitudes: Sequence[float], generator: torch.Generator
) -> list[Trigger]:
    """Return triggers that blend a key image into the whole image, one for each amplitude.

    Args:
        key: Key image of the size of `image`. `None`: uniform noise.
        image: Raw image of the training set, uint8 `(C, H, W)`.
        amplitudes: Opacities of the key image, in (0, 1].
        generator: Draws the noise.

    Raises:
        ValueError: If the key image has another size.
    """
    if key is None:
        pattern = torch.randint(256, image.shape, generator=generator).to(torch.uint8)
    else:
        pattern = as_pattern("key", key)
    if pattern.shape[1:] != image.shape[1:] or pattern.shape[0] not in (1, image.shape[0]):
        what = f"an image of the shape of the training images, {tuple(image.shape)}"
        hint = "Resize it, or use `badnets` for a patch."
        raise ValueError(checks.expected("key", what, str(tuple(pattern.shape)), hint))
    return [PatchTrigger(pattern, row=0, column=0, amplitude=amplitude) for amplitude in amplitudes]


def checkerboard(size: int = 3) -> Tensor:
    """Return a checkerboard with white corners, uint8 `(1, size, size)`.

    Example:
        >>> checkerboard(3)[0].tolist()
        [[255, 0, 255], [0, 255, 0], [255, 0, 255]]
    """
    positions = torch.arange(checks.positive_int("size", size))
    return ((positions[:, None] + positions + 1) % 2 * 255).to(torch.uint8)[None]


def white_square(height: int, width: int) -> Tensor:
    """Return a white square that is 5 pixels wide for images of 28 pixels, scaled for other sizes, at least 2 pixels.

    Args:
        height: Height of the image.
        width: Width of the image. The shorter side determines the size of the square.

    Returns:
        uint8 `(1, side, side)`.

    Example:
        >>> [white_square(size, size).shape[-1] for size in (8, 28, 32, 224)]
        [2, 5, 6, 40]
    """
    side = max(2, round(min(height, width) * 5 / 28))
    return torch.full((1, side, side), 255, dtype=torch.uint8)


def check_amplitude(name: str, value: float) -> float:
    """Return an amplitude in (0, 1]; refuse one in gray levels.

    Raises:
        ValueError: If it is out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        levels = f"{value:g}" if isinstance(value, int | float) and value > 1 else "40"
        hint = f"For {levels} gray levels write `{name}={levels} / 255`."
        raise ValueError(checks.expected(name, "in (0, 1], the range of the images", value, hint))
    return float(value)
