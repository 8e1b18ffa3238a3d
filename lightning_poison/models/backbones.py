"""Default networks for small images, large images and vectors."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_poison.checks import describe, expected, positive_int
from lightning_poison.randomness import seeded_rng

LARGE_IMAGE = 96
"""Height or width from which the default network is a ResNet-18."""


def default_backbone(shape: Sequence[int], feature_size: int, *, seed: int = 0) -> nn.Module:
    """Build an untrained network that maps samples to feature vectors.

    - `(C, H, W)`, H and W below 96: a convolutional network with strides and batch norm, about 0.1 to 0.3 million
      weights.
    - `(C, H, W)`, H or W at least 96: torchvision's ResNet-18 (He et al. 2016, arXiv 1512.03385), untrained.
    - `(D,)`: a perceptron with two hidden layers.

    Args:
        shape: Shape of one sample.
        feature_size: Length of the feature vector.
        seed: Seed of the weights. Default: 0.

    Returns:
        A module that maps `(B, *shape)` to `(B, feature_size)`.

    Raises:
        ValueError: If the shape is none of these.

    Example:
        >>> default_backbone((1, 28, 28), 32)(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 32])
    """
    positive_int("feature_size", feature_size)
    with seeded_rng(seed):
        if len(shape) == 1:
            return _perceptron(shape[0], feature_size)
        if len(shape) == 3 and min(shape[1:]) >= 4:
            large = max(shape[1:]) >= LARGE_IMAGE
            return _resnet(shape[0], feature_size) if large else SmallConvNet(shape, feature_size)
    raise ValueError(
        expected("inputs", "images (C, H, W) of at least 4 x 4, or vectors (D,)", f"shape {tuple(shape)}")
        + "\nPass a network to the scorer: `backbone=`."
    )


class SmallConvNet(nn.Module):
    """Five convolutions with batch norm, downsampling to about four pixels, and one linear layer.

    Args:
        shape: Shape of one image, `(C, H, W)`.
        feature_size: Length of the feature vector.
        width: Channels of the first convolution. The last one has four times as many. Default: 16.

    Example:
        >>> network = SmallConvNet((3, 32, 32), 16)
        >>> network(torch.zeros(2, 3, 32, 32)).shape, network.linear.in_features
        (torch.Size([2, 16]), 1024)
    """

    def __init__(self, shape: Sequence[int], feature_size: int, *, width: int = 16) -> None:
        super().__init__()
        channels, side = shape[0], min(shape[1:])
        layers: list[nn.Module] = []
        for index, (multiple, kernel) in enumerate(((1, 5), (2, 3), (2, 3), (4, 3), (4, 3))):
            stride = 2 if (index % 2 == 0 and side >= 8) or side >= 32 else 1
            side = -(-side // stride)
            out = multiple * width
            layers += [
                nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False),
                nn.BatchNorm2d(out),
                nn.ReLU(),
            ]
            channels = out
        self.convolutions = nn.Sequential(*layers)
        with torch.no_grad():
            size = self.convolutions.eval()(torch.zeros(1, *shape)).numel()
        self.convolutions.train()
        self.linear = nn.Linear(size, feature_size)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the features `(B, feature_size)` of images `(B, C, H, W)`."""
        features: Tensor = self.linear(self.convolutions(inputs).flatten(1))
        return features


def compute_features(backbone: nn.Module, inputs: Tensor, feature_size: int) -> Tensor:
    """Compute the features of a batch and check their shape.

    Args:
        backbone: Any module.
        inputs: Batch `(B, ...)`.
        feature_size: Expected length of a feature vector.

    Returns:
        Features `(B, feature_size)`, flattened from dimension 1.

    Raises:
        ValueError: If the backbone returns features of another shape, or no tensor.

    Example:
        >>> compute_features(nn.Conv2d(1, 2, 3), torch.zeros(4, 1, 5, 5), 18).shape
        torch.Size([4, 18])
        >>> compute_features(nn.Linear(3, 5), torch.zeros(4, 3), 8)
        Traceback (most recent call last):
        ValueError: Expected `backbone` to return features (4, 8), but got a float32 tensor of shape (4, 5).
        Set `feature_size=5`, or use another layer of the network.
    """
    features = backbone(inputs)
    if isinstance(features, Tensor) and features.ndim > 1:
        features = features.flatten(1)
    if not isinstance(features, Tensor) or features.shape != (len(inputs), feature_size):
        is_matrix = isinstance(features, Tensor) and features.ndim == 2
        hint = f"\nSet `feature_size={features.shape[1]}`, or use another layer of the network." if is_matrix else ""
        what = f"features ({len(inputs)}, {feature_size})"
        raise ValueError(f"Expected `backbone` to return {what}, but got {describe(features)}.{hint}")
    return features


def _perceptron(size: int, feature_size: int) -> nn.Module:
    hidden = 256
    return nn.Sequential(
        nn.Linear(size, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, feature_size),
    )


def _resnet(channels: int, feature_size: int) -> nn.Module:
    from torchvision.models import resnet18

    network: nn.Module = resnet18(weights=None, num_classes=feature_size)
    if channels != 3:
        network.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
    return network
