"""Small synthetic images for tests and examples, identical on every machine."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.checks import positive_int
from lightning_poison.data.pixel_range import PixelRange


class TinyImages(Dataset[tuple[Tensor, int]]):
    """Images of 8 × 8 pixels, a fixed pattern per class with noise; easy to learn.

    Like the data sets of torchvision, it has `data`, `targets`, `classes` and `transform`, so that raw images are
    accessible.

    Args:
        size: Number of images, whose labels cycle through the classes. Default: 96.
        classes: Number of classes. Default: 3.
        channels: Number of channels. Default: 1.
        pixels: Pixel range of the samples. Default: [0, 1] without normalization.
        seed: Seed of the noise. The patterns are the same for every seed. Default: 0.

    Example:
        >>> image, label = TinyImages(12)[4]
        >>> image.shape, label
        (torch.Size([1, 8, 8]), 1)
    """

    def __init__(
        self,
        size: int = 96,
        *,
        classes: int = 3,
        channels: int = 1,
        pixels: PixelRange = PixelRange(),  # noqa: B008 (frozen)
        seed: int = 0,
    ) -> None:
        shape = (positive_int("channels", channels), 8, 8)
        self.targets = torch.arange(positive_int("size", size)) % positive_int("classes", classes)
        self.classes = [f"class {number}" for number in range(classes)]
        patterns = torch.randint(40, 216, (classes, *shape), generator=torch.Generator().manual_seed(0))
        noise = 20 * torch.randn(size, *shape, generator=torch.Generator().manual_seed(seed + 1))
        self.data = (patterns[self.targets] + noise).round().clamp(0, 255).to(torch.uint8)
        self.transform = _Normalize(pixels)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.data[index]), int(self.targets[index])


class _Normalize:
    def __init__(self, pixels: PixelRange) -> None:
        self.pixels = pixels

    def __call__(self, image: Tensor) -> Tensor:
        return self.pixels.from_raw(image.float() / 255)
