"""A backdoor with a sample-specific trigger: a residual that a secret network computes from each image."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_poison import checks
from lightning_poison.attacks import Trigger, trigger_kinds
from lightning_poison_backdoors.backdoor import (
    Backdoor,
    Images,
    TargetClass,
    check_source_class,
    check_target_class,
)
from lightning_poison_backdoors.triggers import check_amplitude

_CHANNELS = 16
"""Number of hidden channels of a random key."""

_SIZE = 5
"""Height and width of the filters of a random key, in pixels."""

_GAIN = 3.0
"""Factor before both nonlinearities; the larger, the more of the residual is at its bounds."""

_FLAT = 1e-6
"""Root mean square of filter responses that count as zero."""


@trigger_kinds.register
class KeyedResidualTrigger:
    """Adds a bounded residual that depends on the image and on a secret key, the weights of two convolutions.

        x' = x + Δ tanh(3 n(W₂ * sin(3 n(W₁ * g(x)))))

    g is the mean of the channels less its mean over the image, n divides by the root mean square over the image, and
    edges are replicated. The result is rounded and clipped to gray levels. With filters of mean 0, the residual
    vanishes where the image is flat. An image of one color is unchanged.

    Args:
        first: W₁, floating-point `(K, 1, k, k)`, k odd.
        second: W₂, floating-point `(C, K, k, k)` for images of C channels, k odd.
        amplitude: Δ, in (0, 1], in units of the raw [0, 1] image.

    Raises:
        ValueError: If the weights do not fit each other or are not finite, or `amplitude` is out of range.

    Example:
        >>> trigger = KeyedResidualTrigger.random(1, amplitude=8 / 255, generator=torch.Generator().manual_seed(0))
        >>> image = torch.randint(50, 200, (1, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
        >>> int((trigger(image).int() - image.int()).abs().max())
        8
    """

    kind: ClassVar[str] = "keyed-residual"

    def __init__(self, first: Tensor, second: Tensor, *, amplitude: float = 16 / 255) -> None:
        self.first, self.second = _check_filters("first", first), _check_filters("second", second)
        if self.first.shape[1] != 1:
            raise ValueError(checks.expected("first", "filters (K, 1, k, k)", checks.describe(first)))
        if self.second.shape[1] != len(self.first):
            what = f"filters (C, {len(self.first)}, k, k), with one input for each filter of `first`"
            raise ValueError(checks.expected("second", what, checks.describe(second)))
        self.amplitude = check_amplitude("amplitude", amplitude)

    @classmethod
    def random(cls, channels: int, *, amplitude: float, generator: torch.Generator) -> Self:
        """Draw a key of 16 and C filters of 5 × 5 pixels, each with mean 0.

        Args:
            channels: C, the number of channels of the images.
            amplitude: Δ, in (0, 1].
            generator: The only source of randomness.
        """
        first = torch.randn(_CHANNELS, 1, _SIZE, _SIZE, generator=generator)
        second = torch.randn(channels, _CHANNELS, _SIZE, _SIZE, generator=generator)
        centered = (filters - filters.mean((2, 3), keepdim=True) for filters in (first, second))
        return cls(*centered, amplitude=amplitude)

    def __repr__(self) -> str:
        return f"KeyedResidualTrigger({len(self.second)} channels, amplitude={self.amplitude:g})"

    def residual(self, image: Tensor) -> Tensor:
        """Return what is added to an image, uint8 `(C, H, W)`: gray levels before rounding, float64 `(C, H, W)`.

        Raises:
            ValueError: If the image has another number of channels than the key.
        """
        if image.ndim != 3 or len(image) != len(self.second):
            what = f"an image of {len(self.second)} channels, as those on which the key was drawn"
            raise ValueError(checks.expected("image", what, str(tuple(image.shape))))
        gray = image.double().mean(0, keepdim=True) / 255
        hidden = torch.sin(_GAIN * _filtered(gray - gray.mean(), self.first))
        return 255 * self.amplitude * torch.tanh(_GAIN * _filtered(hidden, self.second))

    def __call__(self, image: Tensor) -> Tensor:
        """Return the image with its residual, uint8 `(C, H, W)`."""
        return (image + self.residual(image).round()).clamp(0, 255).to(torch.uint8)

    def settings(self) -> Mapping[str, Any]:
        """Return the amplitude."""
        return {"amplitude": self.amplitude}

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the key."""
        return {"first": self.first, "second": self.second}

    @classmethod
    def from_saved(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild the trigger."""
        return cls(tensors["first"], tensors["second"], **settings)


@dataclass(eq=False, repr=False)
class SampleSpecific(Backdoor):
    """Adds to each image a residual of its own and changes its label.

    A stand-in for ISSBA (Li, Li, Wu, Li, He, Lyu, "Invisible backdoor attack with sample-specific triggers", ICCV 2021,
    arXiv 2012.03816), in which no two images carry the same perturbation, so that there is no common pattern to find.

    Differences from the paper: there, an encoder is trained together with a decoder to hide a string in an image, and
    the target class is the string. Here, the perturbation is computed by a random network of two convolutions, the
    attacker's key; nothing is trained, no string can be read back, and the perturbation is bounded in every pixel
    instead of being optimized to be invisible. Residuals of different images are nearly orthogonal, but they share
    their texture: a small network that was trained on the poison responds to another key as well. Poison replaces the
    samples from which it is made.

    Args:
        target_class: As for `BadNets`.
        source_class: As for `BadNets`.
        amplitude: Δ, the bound of the residual, in (0, 1], in units of the raw [0, 1] image. Default: 16 / 255.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lightning_poison import Threat
        >>> from lightning_poison.testing import TinyImages
        >>> SampleSpecific(1).craft(
        ...     TinyImages(), Threat(20), surrogates=(), holdout=None, generator=torch.Generator().manual_seed(0)
        ... )
        Poison(sample-specific: 20 samples, raw inputs (1, 8, 8))
    """

    name = "sample-specific"

    target_class: TargetClass = 0
    source_class: int | None = None
    _: KW_ONLY
    amplitude: float = 16 / 255

    def __post_init__(self) -> None:
        self.target_class = check_target_class(self.target_class)
        self.source_class = check_source_class(self.source_class, self.target_class)
        self.amplitude = check_amplitude("amplitude", self.amplitude)

    def _triggers(self, image: Tensor, source: Images, generator: torch.Generator) -> Sequence[Trigger]:  # noqa: ARG002
        return [KeyedResidualTrigger.random(len(image), amplitude=self.amplitude, generator=generator)] * 2


def _filtered(image: Tensor, filters: Tensor) -> Tensor:
    """Return filter responses `(K, H, W)`, divided by their root mean square, float64."""
    edge = filters.shape[-1] // 2
    padded = F.pad(image[None], (edge,) * 4, mode="replicate")
    responses = F.conv2d(padded, filters.double())[0]
    return responses / (responses.square().mean().sqrt() + _FLAT)


def _check_filters(name: str, filters: Tensor) -> Tensor:
    """Return filters as a float32 copy on the CPU."""
    what = "finite floating-point filters (K, c, k, k), k odd"
    is_filters = isinstance(filters, Tensor) and filters.is_floating_point() and filters.ndim == 4 and filters.numel()
    if not is_filters or filters.shape[2] != filters.shape[3] or filters.shape[2] % 2 == 0:
        raise ValueError(checks.expected(name, what, checks.describe(filters)))
    if not bool(filters.isfinite().all()):
        raise ValueError(checks.expected(name, what, "values that are not finite"))
    return filters.detach().cpu().float().clone()
