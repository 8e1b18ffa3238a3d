"""The paper's generator: frozen features of a pair of images, two dense layers, two deconvolutions."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_SEED = (3, 16, 16)
_DENSE = (2048, math.prod(_SEED))
_WIDTH = 16


@dataclass(frozen=True)
class Pairs:
    """Images to hide and images to carry the poison, side by side.

    Args:
        protected: raw images `(B, C, H, W)` in [0, 1] of the protected class.
        shields: the same of the shield class.
        protected_features: `(B, D)`, their frozen features; several surrogates' one after the other.
        shield_features: `(B, D)`.
    """

    protected: Tensor
    shields: Tensor
    protected_features: Tensor
    shield_features: Tensor

    @property
    def features(self) -> Tensor:
        """Both features of each pair, `(B, 2 D)`."""
        return torch.cat([self.protected_features, self.shield_features], 1)


class PaperGenerator(nn.Module):
    """Maps pairs to perturbations: features → dense 2048 → dense 768 = 3 × 16 × 16 → two deconvolutions.

    Pinkava, Towards Class-Shielding Data Poisoning, section 2.3 and figure 2. The paper does not say which strides,
    kernels and activations it uses. Here the strides are the least that reach the size of the images, what is too much
    is cut off evenly, and rectifiers stand between the layers.

    Args:
        feature_size: D.
        shape: of an image, `(C, H, W)`.

    Example:
        >>> pairs = Pairs(torch.rand(2, 1, 28, 28), torch.rand(2, 1, 28, 28), torch.rand(2, 5), torch.rand(2, 5))
        >>> PaperGenerator(5, (1, 28, 28))(pairs).shape
        torch.Size([2, 1, 28, 28])
    """

    def __init__(self, feature_size: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self._size = shape[1:]
        self.dense = nn.Sequential(
            nn.Linear(2 * feature_size, _DENSE[0]), nn.ReLU(), nn.Linear(*_DENSE), nn.ReLU(), nn.Unflatten(1, _SEED)
        )
        whole = math.ceil(max(self._size) / _SEED[-1])
        first = math.ceil(math.sqrt(whole))
        strides = first, math.ceil(whole / first)
        widths = (_SEED[0], _WIDTH, shape[0])
        layers = [
            nn.ConvTranspose2d(narrow, wide, stride + 2, stride, padding=1)
            for narrow, wide, stride in zip(widths, widths[1:], strides, strict=False)
        ]
        self.upsampler = nn.Sequential(layers[0], nn.ReLU(), layers[1])

    def forward(self, pairs: Pairs) -> Tensor:
        """Return perturbations `(B, C, H, W)`, of any size."""
        grown: Tensor = self.upsampler(self.dense(pairs.features))
        top, left = ((have - want) // 2 for have, want in zip(grown.shape[-2:], self._size, strict=True))
        return grown[..., top : top + self._size[0], left : left + self._size[1]]
