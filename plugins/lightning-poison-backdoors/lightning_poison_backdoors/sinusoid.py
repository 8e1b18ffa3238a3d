"""The sinusoidal stripes of Barni et al."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from lightning_poison import checks
from lightning_poison.attacks.triggers import triggers
from lightning_poison_backdoors.limits import amplitude_of


@triggers.register
class SinusoidTrigger:
    """Upright stripes that are added to the whole image: v(i, j) = Δ sin(2π j f / W).

    Barni, Kallas, Tondi, "A new backdoor attack in CNNs by training set corruption without label poisoning", ICIP 2019,
    arXiv 1902.11237. What leaves the range of gray levels is cut off.

    Args:
        amplitude: Δ, in (0, 1], in units of the raw [0, 1] image.
        frequency: f, how many stripes there are across the image, above 0.

    Raises:
        ValueError: where a number is out of range.

    Example:
        >>> trigger = SinusoidTrigger(amplitude=20 / 255, frequency=1)
        >>> trigger(torch.full((1, 1, 4), 100, dtype=torch.uint8)).tolist()
        [[[100, 120, 100, 80]]]
    """

    kind: ClassVar[str] = "sinusoid"

    def __init__(self, *, amplitude: float = 40 / 255, frequency: float = 6) -> None:
        self.amplitude = amplitude_of("amplitude", amplitude)
        self.frequency = checks.positive("frequency", frequency)

    def __repr__(self) -> str:
        return f"SinusoidTrigger(amplitude={self.amplitude:.4g}, frequency={self.frequency:g})"

    def __call__(self, image: Tensor) -> Tensor:
        """Return the image, uint8 `(C, H, W)`, with the stripes on it.

        Raises:
            ValueError: where the stripes are too faint to change a gray level, or zero at each column.
        """
        width = image.shape[-1]
        phase = 2 * math.pi * self.frequency * torch.arange(width, dtype=torch.float64) / width
        stripes = 255 * self.amplitude * phase.sin()
        if float(stripes.abs().max()) < 0.5:
            raise ValueError(
                f"Expected stripes that change gray levels, but got {self!r}, which changes none of {width} columns.\n"
                f"Choose a larger amplitude, and a frequency that is no multiple of {width / 2:g}."
            )
        return (image.double() + stripes).round().clamp(0, 255).to(torch.uint8)

    def settings(self) -> Mapping[str, Any]:
        """Return amplitude and frequency."""
        return {"amplitude": self.amplitude, "frequency": self.frequency}

    def tensors(self) -> Mapping[str, Tensor]:
        """Return nothing: the stripes follow from the settings."""
        return {}

    @classmethod
    def from_saved(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:  # noqa: ARG003
        """Build the trigger again."""
        return cls(**settings)
