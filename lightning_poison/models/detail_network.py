"""`DetailConvNet`: a small network whose features keep what is small, such as a trigger in a corner."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison.checks import expected, positive_int
from lightning_poison.models.backbones import LARGE_IMAGE

_LAYERS = ((16, 1), (32, 2), (32, 1), (64, 2), (64, 1))
"""Channels and stride of each convolution."""

_REDUCED = 64
"""Longer side to which large images are reduced, in pixels."""


class DetailConvNet(nn.Module):
    """Five 3 x 3 convolutions with batch norm, of which the first keeps the resolution, and one linear layer.

    It costs more than `SmallConvNet`, and a backdoor of a percent of the data forms a group with a wider gap in its
    features. Images with a side of at least 96 pixels are reduced to 64 first, by averaging.

    Args:
        shape: Shape of one image, `(C, H, W)`, H and W at least 4.
        feature_size: Length of the feature vector. Default: 64.

    Raises:
        ValueError: If the shape is not that of an image, or smaller than 4 x 4.

    Example:
        >>> import torch
        >>> network = DetailConvNet((3, 32, 32), 64)
        >>> network(torch.zeros(2, 3, 32, 32)).shape, network.linear.in_features
        (torch.Size([2, 64]), 4096)
    """

    def __init__(self, shape: Sequence[int], feature_size: int = 64) -> None:
        super().__init__()
        if len(shape) != 3 or min(shape[1:]) < 4:
            raise ValueError(expected("shape", "that of an image (C, H, W) of at least 4 x 4", tuple(shape)))
        positive_int("feature_size", feature_size)
        self.reduced = _reduced(shape[1:])
        layers: list[nn.Module] = []
        channels, sides = shape[0], self.reduced or tuple(shape[1:])
        for out, stride in _LAYERS:
            layers += [nn.Conv2d(channels, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU()]
            channels, sides = out, tuple(-(-side // stride) for side in sides)
        self.convolutions = nn.Sequential(*layers)
        self.linear = nn.Linear(channels * sides[0] * sides[1], feature_size)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the features `(B, feature_size)` of images `(B, C, H, W)`."""
        if self.reduced is not None:
            inputs = F.interpolate(inputs, self.reduced, mode="area")
        features: Tensor = self.linear(self.convolutions(inputs).flatten(1))
        return features


def _reduced(sides: Sequence[int]) -> tuple[int, int] | None:
    """Return the size to which images are reduced, or `None` if they are small."""
    longer = max(sides)
    if longer < LARGE_IMAGE:
        return None
    height, width = (max(4, round(side * _REDUCED / longer)) for side in sides)
    return height, width
