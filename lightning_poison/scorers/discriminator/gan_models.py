"""Generators and discriminators of all classes side by side: each class has its own, and one pass runs them all.

The networks of the classes are the groups of grouped convolutions, so they share neither weights nor gradients.
"""

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_poison.contexts import full_precision
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.randomness import seeded_rng
from lightning_poison.scorers.discriminator.projection import LEAK, checked_shape
from lightning_poison.scorers.networks import check_inputs

_LARGE = 64
"""Side from which all three transposed convolutions of a generator double the sides. Below it, two of them do."""


class ClassDiscriminators(nn.Module):
    """One discriminator per class: four times convolution, max-pooling, LeakyReLU and dropout, then a linear output.

    Smutny 2025, arXiv 2506.01224, section 3.2, which states neither the numbers of channels nor the dropout rate. Each
    pooling halves the sides while the shorter side has at least two pixels.

    Args:
        shape: Shape of one image, `(C, H, W)` with sides of at least 4.
        num_classes: Number of classes.
        pixels: Pixel domain of the images. Default: raw images in [0, 1].
        width: Channels of the first convolution of a class; the last two have four times as many. Default: 16.
        dropout: Dropout rate. Default: .3.
        seed: Seeds the weights. Default: 0.

    Raises:
        ValueError: If `shape` is not the shape of an image.

    Example:
        >>> import torch
        >>> model = ClassDiscriminators((1, 28, 28), 10, width=4)
        >>> model(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int,
        *,
        pixels: PixelRange = PixelRange(),  # noqa: B008 (frozen)
        width: int = 16,
        dropout: float = 0.3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.shape = checked_shape(shape, vectors=False)
        self.pixels = pixels
        self.num_classes = num_classes
        channels, height, breadth = self.shape
        layers: list[nn.Module] = []
        with seeded_rng(seed):
            for out in (width, 2 * width, 4 * width, 4 * width):
                layers.append(_grouped(nn.Conv2d, num_classes, channels, out, 3, padding=1))
                if min(height, breadth) >= 2:
                    layers.append(nn.MaxPool2d(2))
                    height, breadth = height // 2, breadth // 2
                layers += [nn.LeakyReLU(LEAK), nn.Dropout(dropout)]
                channels = out
            self.output = _grouped(nn.Conv2d, num_classes, channels, 1, (height, breadth))
        self.layers = nn.Sequential(*layers)

    def logits_of_raw(self, images: Tensor) -> Tensor:
        """Return the logits of images, each class's images under its own discriminator.

        Args:
            images: Raw images `(B, K C, H, W)`, the channels of the K classes side by side.

        Returns:
            Logits, float32 `(B, K)`, larger for a real image of the class.
        """
        features = self.layers(images)
        with full_precision(images.device):
            logits: Tensor = self.output(features.float())
        return logits.flatten(1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the logits of images under every discriminator, float32 `(B, K)`.

        Args:
            inputs: Images `(B, C, H, W)`, as the data set returns them.

        Raises:
            ValueError: If they differ in shape from those that the model was built for.
        """
        check_inputs(inputs, self.shape)
        return self.logits_of_raw(self.pixels.to_raw(inputs.float()).repeat(1, self.num_classes, 1, 1))


class ClassGenerators(nn.Module):
    """One generator per class: a dense layer and three transposed convolutions map one number to an image.

    Smutny 2025, arXiv 2506.01224, section 3.2, which states neither the numbers of channels nor the activations: here
    LeakyReLU, and a sigmoid at the end. Images are cropped to the shape.

    Args:
        shape: Shape of one image, `(C, H, W)`.
        num_classes: Number of classes.
        width: Channels of the last hidden layer of a class; the first has four times as many. Default: 16.
        seed: Seeds the weights. Default: 0.

    Example:
        >>> import torch
        >>> ClassGenerators((1, 28, 28), 10, width=4)(torch.zeros(2, 10, 1, 1)).shape
        torch.Size([2, 10, 28, 28])
    """

    def __init__(self, shape: Sequence[int], num_classes: int, *, width: int = 16, seed: int = 0) -> None:
        super().__init__()
        self.shape = checked_shape(shape, vectors=False)
        channels, height, breadth = self.shape
        last = 2 if min(height, breadth) >= _LARGE else 1
        start = (-(-height // (4 * last)), -(-breadth // (4 * last)))
        doubling = {"stride": 2, "padding": 1}
        with seeded_rng(seed):
            self.layers = nn.Sequential(
                _grouped(nn.ConvTranspose2d, num_classes, 1, 4 * width, start),
                nn.LeakyReLU(LEAK),
                _grouped(nn.ConvTranspose2d, num_classes, 4 * width, 2 * width, 4, **doubling),
                nn.LeakyReLU(LEAK),
                _grouped(nn.ConvTranspose2d, num_classes, 2 * width, width, 4, **doubling),
                nn.LeakyReLU(LEAK),
                _grouped(nn.ConvTranspose2d, num_classes, width, channels, 2 + last, stride=last, padding=1),
                nn.Sigmoid(),
            )

    def forward(self, noise: Tensor) -> Tensor:
        """Map numbers `(B, K, 1, 1)` to raw images `(B, K C, H, W)`, the channels of the K classes side by side."""
        images: Tensor = self.layers(noise)
        return images[..., : self.shape[1], : self.shape[2]]


def _grouped(
    kind: type[nn.Conv2d] | type[nn.ConvTranspose2d],
    groups: int,
    channels: int,
    out: int,
    kernel: int | tuple[int, int],
    **options: int,
) -> nn.Module:
    """Return the layers of all classes as one grouped layer."""
    return kind(groups * channels, groups * out, kernel, groups=groups, **options)  # type: ignore[arg-type]
