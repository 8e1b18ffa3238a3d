"""Default networks for small images, large images and vectors."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from lightning_poison.checks import describe, expected, positive_int
from lightning_poison.models.residual_network import SMALLEST_SIDE, ResidualConvNet
from lightning_poison.models.user_network import run_network
from lightning_poison.randomness import seeded_rng

LARGE_IMAGE = 96
"""Height or width from which the default network is a ResNet-18."""

_MIN_SPREAD = 1e-6
"""Standard deviation below which an element of a sample counts as constant."""

_LARGEST = 20.0
"""Largest absolute value of a standardized element; a single outlier must not outweigh all others."""


def default_backbone(shape: Sequence[int], feature_size: int, *, seed: int = 0) -> nn.Module:
    """Build an untrained network that maps samples to feature vectors.

    - `(3, H, W)`, H and W at least 24 and below 96: a `ResidualConvNet`, 0.1 million weights.
    - `(C, H, W)`, other images with H and W below 96: a `SmallConvNet`, about 0.1 to 0.3 million weights.
    - `(C, H, W)`, H or W at least 96: torchvision's ResNet-18 (He et al. 2016, arXiv 1512.03385), untrained.
    - `(D,)`: a perceptron with two hidden layers, behind a `Standardization`.

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
            if max(shape[1:]) >= LARGE_IMAGE:
                return _resnet(shape[0], feature_size)
            photo = shape[0] == 3 and min(shape[1:]) >= SMALLEST_SIDE
            return ResidualConvNet(shape, feature_size) if photo else SmallConvNet(shape, feature_size)
    raise ValueError(
        expected("inputs", "images (C, H, W) of at least 4 x 4, or vectors (D,)", f"shape {tuple(shape)}")
        + f"\n{_way_out(shape)} a network for samples of this shape to the scorer: `backbone=`."
    )


def _way_out(shape: Sequence[int]) -> str:
    """Say how samples of a shape become images or vectors."""
    if len(shape) == 3 and shape[2] in (1, 3, 4) and min(shape[:2]) >= 4:
        return "Put the channels first: `torchvision.transforms.v2.ToImage()`, or `image.permute(2, 0, 1)`. Or pass"
    if len(shape) == 2:
        return "Add a dimension to gray images, `image[None]`, and flatten signals, `signal.flatten()`. Or pass"
    return "Pass"


class Standardization(nn.Module):
    """Standardizes the elements of vectors by statistics of the data that a network is fitted on.

    `fit_module` measures them before the first step. Before that, vectors are left unchanged. Standardized values are
    limited to 20 standard deviations.

    Args:
        size: Number of elements D.

    Example:
        >>> standardization = Standardization(2)
        >>> standardization.measure([torch.tensor([[1.0, 7.0], [3.0, 7.0]])])
        >>> standardization(torch.tensor([[3.0, 8.0]]))
        tensor([[1., 1.]])
    """

    center: Tensor
    spread: Tensor
    limit: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(size))
        self.register_buffer("spread", torch.ones(size))
        self.register_buffer("limit", torch.tensor(torch.inf))

    @property
    def is_measured(self) -> bool:
        """Whether the elements have been measured."""
        return bool(self.limit.isfinite())

    def measure(self, blocks: Iterable[Tensor]) -> None:
        """Measure mean and standard deviation of each element over blocks of vectors, float32 `(B, D)`."""
        center, spread = moments(blocks)
        self.center.copy_(center)
        self.spread.copy_(spread)
        self.limit.fill_(_LARGEST)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return standardized vectors, `(B, D)`."""
        return ((inputs - self.center) / self.spread).clamp(-self.limit, self.limit)


def moments(blocks: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each element of samples, float32; 1 for constant elements.

    Args:
        blocks: Blocks of samples, float32 `(B, ...)`.

    Example:
        >>> moments([torch.tensor([[1.0, 7.0]]), torch.tensor([[3.0, 7.0]])])
        (tensor([2., 7.]), tensor([1., 1.]))
    """
    count, origin = 0, torch.zeros(())
    sums = squares = torch.zeros((), dtype=torch.float64)
    for block in blocks:
        if not count:
            origin = block[0]
        shifted = (block - origin).double()
        count, sums, squares = count + len(block), sums + shifted.sum(0), squares + shifted.square().sum(0)
    mean = sums / count
    spread = (squares / count - mean.square()).clamp_min(0).sqrt()
    spread = torch.where(spread > _MIN_SPREAD, spread, torch.ones_like(spread))
    return (mean + origin).float(), spread.float()


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
    features = run_network(backbone, inputs)
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
        Standardization(size),
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
