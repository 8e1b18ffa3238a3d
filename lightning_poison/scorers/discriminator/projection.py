"""`ProjectionDiscriminator`: the network of a `DiscriminatorScorer`, one for all classes."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_poison.checks import expected
from lightning_poison.contexts import full_precision
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.randomness import seeded_rng
from lightning_poison.scorers.discriminator.high_pass import CHANNELS, high_pass_channels
from lightning_poison.scorers.networks import check_inputs

LEAK = 0.2
"""Slope of LeakyReLU below 0."""

_MIN_SIDE = 4
_POOL_FROM = 6
_HIDDEN = 256


class ProjectionDiscriminator(nn.Module):
    """Separates real pairs of sample and label from fake ones: s_k(x) = ψ(h) + ⟨e_k, h⟩, h the features of x.

    Miyato and Koyama, "cGANs with projection discriminator", ICLR 2018, arXiv 1802.05637, section 3, with a linear ψ.
    It differs in that no generator is trained against it, in that there is no spectral normalization, and in its
    inputs: images with their high-pass channels.

    The trunk depends on the shape. For images it consists of four 3 × 3 convolutions, or one more for each halving
    beyond the third; max-pooling after the first, the second, the fourth and all later ones halves the sides until the
    shorter is below 6. Vectors are standardized by `center` and `spread`, followed by a perceptron with two hidden
    layers.

    Args:
        shape: Shape of one sample, `(C, H, W)` with sides of at least 4, or `(D,)`.
        num_classes: Number of labels.
        pixels: Pixel domain of images; ignored for vectors. Default: raw images in [0, 1].
        width: Channels of the first convolution; the last has four times as many. Default: 16.
        seed: Seeds the weights. Default: 0.

    Raises:
        ValueError: If the shape is not one of these.

    Example:
        >>> model = ProjectionDiscriminator((1, 28, 28), 10)
        >>> model(torch.zeros(2, 1, 28, 28)).shape, model.unconditional.in_features
        (torch.Size([2, 10]), 576)
    """

    center: Tensor
    spread: Tensor

    def __init__(
        self,
        shape: Sequence[int],
        num_classes: int,
        *,
        pixels: PixelRange = PixelRange(),  # noqa: B008 (frozen)
        width: int = 16,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.shape = checked_shape(shape)
        self.num_classes = num_classes
        self.pixels = pixels
        with seeded_rng(seed):
            self.trunk, size = _perceptron(shape[0]) if len(shape) == 1 else _convolutions(self.shape, width)
            self.unconditional = nn.Linear(size, 1)
            self.embeddings = nn.Linear(size, num_classes, bias=False)
        if len(shape) == 1:
            self.register_buffer("center", torch.zeros(shape[0]))
            self.register_buffer("spread", torch.ones(shape[0]))

    @property
    def has_images(self) -> bool:
        """Whether samples are images rather than vectors."""
        return len(self.shape) == 3

    def standardize(self, mean: Tensor, deviation: Tensor) -> None:
        """Set the mean and the standard deviation of vectors, `(D,)` each."""
        self.center.copy_(mean)
        self.spread.copy_(deviation)

    def to_raw(self, inputs: Tensor) -> Tensor:
        """Return raw images in [0, 1], or standardized vectors, of samples as the data set returns them.

        Raises:
            ValueError: If they differ in shape from those that the model was built for.
        """
        check_inputs(inputs, self.shape)
        return self.pixels.to_raw(inputs.float()) if self.has_images else (inputs - self.center) / self.spread

    def logits_of_raw(self, raw: Tensor) -> Tensor:
        """Return s_k of a result of `to_raw` for every label k, float32 `(B, C)`; larger for a real pair."""
        features: Tensor = self.trunk(high_pass_channels(raw) if self.has_images else raw)
        with full_precision(raw.device):
            flat = features.flatten(1).float()
            logits: Tensor = self.unconditional(flat) + self.embeddings(flat)
        return logits

    def forward(self, inputs: Tensor) -> Tensor:
        """Return s_k for every label k, float32 `(B, C)`, of samples as the data set returns them."""
        return self.logits_of_raw(self.to_raw(inputs))


def checked_shape(shape: Sequence[int], *, vectors: bool = True) -> tuple[int, ...]:
    """Return the shape of one sample if a discriminator can be built for it.

    Example:
        >>> checked_shape((3, 2, 2), vectors=False)
        Traceback (most recent call last):
        ValueError: Expected `inputs` to be images (C, H, W) of at least 4 x 4, but got shape (3, 2, 2).
    """
    images = len(shape) == 3 and min(shape[1:]) >= _MIN_SIDE
    if not images and not (vectors and len(shape) == 1):
        what = f"images (C, H, W) of at least {_MIN_SIDE} x {_MIN_SIDE}" + (", or vectors (D,)" * vectors)
        raise ValueError(expected("inputs", what, f"shape {tuple(shape)}"))
    return tuple(shape)


def _convolutions(shape: tuple[int, ...], width: int) -> tuple[nn.Module, int]:
    """Return the trunk for images, and its number of features."""
    halvings, sides = 0, shape[1:]
    while min(sides) >> halvings >= _POOL_FROM:
        halvings += 1
    widths = [width, 2 * width, *[4 * width] * max(2, halvings - 1)]
    pooled = [place for place in range(len(widths)) if place != 2][:halvings]
    layers: list[nn.Module] = []
    channels = CHANNELS * shape[0]
    for place, out in enumerate(widths):
        pool = [nn.MaxPool2d(2)] if place in pooled else []
        layers += [nn.Conv2d(channels, out, 3, padding=1), *pool, nn.LeakyReLU(LEAK)]
        channels = out
    return nn.Sequential(*layers), channels * (sides[0] >> halvings) * (sides[1] >> halvings)


def _perceptron(size: int) -> tuple[nn.Module, int]:
    first, second = nn.Linear(size, _HIDDEN), nn.Linear(_HIDDEN, _HIDDEN)
    return nn.Sequential(first, nn.LeakyReLU(LEAK), second, nn.LeakyReLU(LEAK)), _HIDDEN
