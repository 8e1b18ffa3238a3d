"""`Encoder`: a network that was trained elsewhere, as a map from the images of a data set to feature vectors."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison.checks import boolean, describe, expected, positive_int
from lightning_poison.contexts import evaluating
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.models.feature_extractor import FeatureExtractor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Mean and standard deviation of the channels of ImageNet, in units of the raw image."""

IMAGE_SIZE = (128, 224)
"""Sides between which images are left as they are. For EfficientNet-Lite0 and CIFAR-10, 96 and 112 pixels read less
well, and 160 pixels read better and take 1.6 times as long."""

_TOLERANCE = 0.02
"""How far pixels may be outside of [0, 1], as interpolation overshoots; five gray levels."""

_PIXELS_AT_ONCE = 32 * 112 * 112
"""Pixels that pass through the network at once. More need more memory and take longer, since caches are small."""


class Encoder(nn.Module):
    """Maps images, as a data set returns them, to features of a network that never saw their labels.

    Images are brought to the raw range, gray images to three channels, and images that are too small or too large to
    another size, as a whole: triggers are often in a corner that a crop would remove. Then they are normalized as the
    network expects.

    Args:
        network: Trained network for images of three channels. It runs in evaluation mode and never changes.
        layer: Name of the layer whose output is the feature vector. Default: `""`, the output of the network.
        mean: Mean per channel that the network expects to be subtracted. Default: that of ImageNet.
        std: Standard deviation per channel by which it expects to be divided. Default: that of ImageNet.
        image_size: Side to which images are resized, in pixels; or a smallest and a largest side, between which images
            are left as they are. Default: (128, 224).
        flip_average: Whether features are the mean of those of an image and of its mirror image. This doubles the
            time. Default: `False`.
        pixels: Normalization of the data set's images. Default: raw images in [0, 1].

    Raises:
        TypeError: If `flip_average` is not a boolean.
        ValueError: If the network has no such layer, or a size is not a positive integer.

    Example:
        >>> network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> encoder = Encoder(network, mean=(0.0,), std=(0.5,), image_size=8)
        >>> encoder(torch.full((2, 1, 4, 4), 0.5))
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    """

    def __init__(
        self,
        network: nn.Module,
        layer: str = "",
        *,
        mean: tuple[float, ...] = IMAGENET_MEAN,
        std: tuple[float, ...] = IMAGENET_STD,
        image_size: int | tuple[int, int] = IMAGE_SIZE,
        flip_average: bool = False,
        pixels: PixelRange | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.layer = layer
        self.normalization = PixelRange(mean=tuple(mean), std=tuple(std))
        self.image_size = image_sizes(image_size)
        self.flip_average = boolean("flip_average", flip_average)
        self.pixels = PixelRange() if pixels is None else pixels
        self._extract = FeatureExtractor(network, layer)

    def extra_repr(self) -> str:
        """Return the settings, which distinguish two encoders with the same network."""
        parts = {"layer": self.layer, "normalization": self.normalization, "image_size": self.image_size}
        parts |= {"flip_average": self.flip_average, "pixels": self.pixels}
        return ", ".join(f"{name}={value!r}" for name, value in parts.items())

    def forward(self, inputs: Tensor) -> Tensor:
        """Return features, float32 `(B, D)`.

        Args:
            inputs: Images `(B, C, H, W)` of one or three channels.

        Raises:
            ValueError: If inputs are no such images or not in the range that `pixels` describes, or the features are
                not finite or not one vector per sample.
        """
        images = self._raw(inputs)
        side = _side(images, self.image_size)
        parts = torch.split(images, max(1, _PIXELS_AT_ONCE // side**2))
        with evaluating(self.network):
            features = torch.cat([self._features(part, side) for part in parts])
        finite = torch.isfinite(features).all(1)
        if not finite.all():
            place = int((~finite).nonzero()[0])
            raise ValueError(
                expected("the features", "finite", f"NaN or infinite values at sample {place} of a batch")
                + f"\nCheck the weights of {type(self.network).__name__}, or name another layer."
            )
        return features

    def _features(self, images: Tensor, side: int) -> Tensor:
        if images.shape[-2:] != (side, side):
            images = F.interpolate(images, (side, side), mode="bilinear", antialias=True)
        images = self.normalization.from_raw(images.expand(-1, 3, -1, -1))
        images = images.contiguous(memory_format=torch.channels_last)
        features = self._extract(images).float()
        return (features + self._extract(images.flip(-1)).float()) / 2 if self.flip_average else features

    def _raw(self, inputs: Tensor) -> Tensor:
        if inputs.ndim != 4 or inputs.shape[1] not in (1, 3):
            way = "Pass `FeatureModel(network)` with a network for such inputs, or features that you have."
            came = f"inputs of shape {tuple(inputs.shape[1:])}"
            raise ValueError(expected("inputs", "images (B, 1, H, W) or (B, 3, H, W)", came, way))
        if not inputs.is_floating_point():
            raise ValueError(expected("inputs", "floating-point images", describe(inputs)))
        raw = self.pixels.to_raw(inputs)
        low, high = (float(value) for value in raw.aminmax())
        if not (low >= -_TOLERANCE and high <= 1 + _TOLERANCE):
            raise ValueError(_out_of_range(low, high, self.pixels))
        return raw


def image_sizes(value: Any) -> tuple[int, int]:
    """Return a smallest and a largest side from one side or a pair of them.

    Raises:
        ValueError: If a side is not a positive integer, or the smallest is above the largest.

    Example:
        >>> image_sizes(96), image_sizes((128, 224))
        ((96, 96), (128, 224))
    """
    if not isinstance(value, tuple | list):
        return (positive_int("image_size", value), int(value))
    if len(value) != 2:
        raise ValueError(expected("image_size", "a side, or a smallest and a largest side", value))
    low, high = (positive_int("image_size", side) for side in value)
    if low > high:
        raise ValueError(expected("image_size", "a smallest side, then a largest side", value))
    return low, high


def _side(images: Tensor, sizes: tuple[int, int]) -> int:
    return min(max(max(images.shape[-2:]), sizes[0]), sizes[1])


def _out_of_range(low: float, high: float, pixels: PixelRange) -> str:
    came = f"values from {low:.3g} to {high:.3g}"
    if pixels.mean is not None:
        way = "Correct `pixels`: its `mean` and `std` are those that the transform of the data set uses."
        return expected("inputs", "images in [0, 1] once `pixels` has undone their normalization", came, way)
    way = "If the transform of the data set normalizes images, pass `pixels=PixelRange(mean=..., std=...)`."
    if low >= 0 and high > 2:
        way = "Divide gray levels by 255."
    return expected("inputs", "raw images in [0, 1]", came, way)
