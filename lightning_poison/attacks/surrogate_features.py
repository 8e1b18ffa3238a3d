"""Features of a surrogate as a differentiable function of raw images."""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_poison.attacks.threat import Surrogate
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.raw_images import RawImages
from lightning_poison.models.feature_extractor import FeatureExtractor


class RawFeatures:
    """Maps raw images `(B, ...)` in [0, 1] to features `(B, D)` of a surrogate, on the device of the surrogate.

    The model runs only up to its feature layer, in its current mode. `lightning_poison.contexts` provides `evaluating`
    and `frozen`.

    Args:
        surrogate: Model and feature layer.
        pixels: Pixel range of the samples.

    Raises:
        ValueError: If the model has no such layer.

    Example:
        >>> from torch import nn
        >>> surrogate = Surrogate(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), "0")
        >>> RawFeatures(surrogate, PixelRange(mean=(0.5,), std=(0.25,)))(torch.full((1, 1, 2, 2), 0.75))
        tensor([[1., 1., 1., 1.]])
    """

    def __init__(self, surrogate: Surrogate, pixels: PixelRange) -> None:
        self._extract = FeatureExtractor(surrogate.model, surrogate.feature_layer)
        self._pixels = pixels
        state = itertools.chain(surrogate.model.parameters(), surrogate.model.buffers())
        self.device = next((tensor.device for tensor in state), torch.device("cpu"))

    def __repr__(self) -> str:
        return f"RawFeatures({self._extract!r}, {self._pixels})"

    def __call__(self, images: Tensor) -> Tensor:
        """Return the features, differentiable in the images.

        Raises:
            TypeError: If the layer does not return a tensor.
            ValueError: If the layer is not reached, or does not return one vector per sample.
        """
        return self._extract(self._pixels.from_raw(images.to(self.device)))


def read_features(images: RawImages, indices: Tensor, maps: Sequence[Callable[[Tensor], Tensor]]) -> list[Tensor]:
    """Read samples once and compute the features of each map, without gradients.

    Args:
        images: Reads raw images in blocks.
        indices: Positions of the samples, int64 `(M,)`, M of at least 1.
        maps: Functions from raw images `(B, ...)` to features `(B, D)`, such as `RawFeatures`.

    Returns:
        Features `(M, D)` for each map, on the device of its output.

    Raises:
        UnreadableSampleError: If a sample cannot be read or is not finite.
        ValueError: If images are outside the pixel range.

    Example:
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> images = RawImages(TinyImages(), PixelRange(), seed=0, batch_size=2)
        >>> flat, rows = read_features(images, torch.arange(5), [torch.nn.Flatten(), lambda raw: raw[:, 0, 0]])
        >>> flat.shape, rows.shape
        (torch.Size([5, 64]), torch.Size([5, 8]))
    """
    with torch.no_grad():
        rows = [[extract(block) for extract in maps] for block in images.blocks(indices)]
    return [torch.cat(parts) for parts in zip(*rows, strict=True)]
