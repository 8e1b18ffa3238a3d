"""The residual U-Net that the paper names as future work: the upsampler sees the images, not their features alone."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison_shielding.paper_generator import Pairs


class ResidualBlock(nn.Module):
    """Two convolutions beside a 1 × 1 convolution."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.path = nn.Sequential(nn.Conv2d(narrow, wide, 3, padding=1), nn.ReLU(), nn.Conv2d(wide, wide, 3, padding=1))
        self.beside = nn.Conv2d(narrow, wide, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `(B, narrow, H, W)` to `(B, wide, H, W)`."""
        return F.relu(self.path(inputs) + self.beside(inputs))


class ResidualUNet(nn.Module):
    """Maps pairs to perturbations; both images go in, and frozen features are added at the bottom.

    Pinkava, Towards Class-Shielding Data Poisoning, section 4.3, item 1, names through-lines from the extractor to the
    upsampler and gives no sizes. Here the encoder is a part of the generator, in the form of Ronneberger et al., U-Net,
    MICCAI 2015, arXiv 1505.04597, with two levels and residual blocks (He et al. 2016, arXiv 1512.03385).

    Args:
        feature_size: the length of an image's frozen features.
        shape: of an image, `(C, H, W)`, of at least 4 × 4.
        width: how many channels the first level has.

    Example:
        >>> pairs = Pairs(torch.rand(2, 3, 9, 7), torch.rand(2, 3, 9, 7), torch.rand(2, 5), torch.rand(2, 5))
        >>> ResidualUNet(5, (3, 9, 7))(pairs).shape
        torch.Size([2, 3, 9, 7])
    """

    def __init__(self, feature_size: int, shape: tuple[int, int, int], *, width: int = 8) -> None:
        super().__init__()
        channels = shape[0]
        self.down = nn.ModuleList(
            [ResidualBlock(2 * channels, width), ResidualBlock(width, 2 * width), ResidualBlock(2 * width, 4 * width)]
        )
        self.features = nn.Linear(2 * feature_size, 4 * width)
        self.up = nn.ModuleList([ResidualBlock(6 * width, 2 * width), ResidualBlock(3 * width, width)])
        self.last = nn.Conv2d(width, channels, 1)

    def forward(self, pairs: Pairs) -> Tensor:
        """Return perturbations `(B, C, H, W)`, of any size."""
        flow, levels = torch.cat([pairs.shields, pairs.protected], 1), []
        for number, block in enumerate(self.down):
            flow = block(flow if number == 0 else F.avg_pool2d(flow, 2))
            levels.append(flow)
        flow = flow + self.features(pairs.features)[..., None, None]
        for block, level in zip(self.up, levels[-2::-1], strict=True):
            flow = block(torch.cat([F.interpolate(flow, size=level.shape[-2:]), level], 1))
        perturbation: Tensor = self.last(flow)
        return perturbation
