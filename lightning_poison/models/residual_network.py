"""`ResidualConvNet`: the default network for small color images."""

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_poison.checks import expected, positive_int

SMALLEST_SIDE = 24
"""Height and width from which an image is large enough for three halvings and residual blocks."""


class ResidualConvNet(nn.Module):
    """Seven 3 x 3 convolutions with batch norm, four of them in two residual blocks, and one linear layer.

    It follows the small residual network with which David Page trained CIFAR-10 quickly ("How to train your ResNet",
    2018), with a quarter of its channels, and a stride of 2 in the first convolution, which saves most of the time.

    Args:
        shape: Shape of one image, `(C, H, W)`, H and W at least 24.
        feature_size: Length of the feature vector.
        width: Channels of the first convolution. The last one has four times as many. Default: 16.

    Raises:
        ValueError: If the shape is not that of an image, or smaller than 24 x 24.

    Example:
        >>> import torch
        >>> network = ResidualConvNet((3, 32, 32), 32)
        >>> network(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 32])
    """

    def __init__(self, shape: Sequence[int], feature_size: int, *, width: int = 16) -> None:
        super().__init__()
        if len(shape) != 3 or min(shape[1:]) < SMALLEST_SIDE:
            what = f"that of an image (C, H, W) of at least {SMALLEST_SIDE} x {SMALLEST_SIDE}"
            raise ValueError(expected("shape", what, tuple(shape)))
        positive_int("feature_size", feature_size)
        positive_int("width", width)
        self.convolutions = nn.Sequential(
            _convolution(shape[0], width, stride=2),
            _convolution(width, 2 * width),
            nn.MaxPool2d(2),
            _Residual(2 * width),
            _convolution(2 * width, 4 * width),
            nn.MaxPool2d(2),
            _Residual(4 * width),
        )
        self.linear = nn.Linear(4 * width, feature_size)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the features `(B, feature_size)` of images `(B, C, H, W)`."""
        features: Tensor = self.linear(self.convolutions(inputs).amax((2, 3)))
        return features


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = inputs + self.inner(inputs)
        return found


def _convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
