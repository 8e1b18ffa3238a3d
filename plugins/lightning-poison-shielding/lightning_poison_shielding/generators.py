"""Networks that generate poison from pairs of images, and their training through the victim's head."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison import PixelRange
from lightning_poison_shielding.bilevel import Heads, PixelBox
from lightning_poison_shielding.heads import LOGISTIC_PENALTIES, LogisticHead, RidgeHead
from lightning_poison_shielding.losses import ShieldingGoal
from lightning_poison_shielding.shielding_data import ShieldingData

_SEED_SHAPE = (3, 16, 16)
_DENSE = (2048, math.prod(_SEED_SHAPE))
_WIDTH = 16


@dataclass(frozen=True)
class Pairs:
    """Pairs of an image to protect and an image to carry the poison.

    Args:
        protected: Raw images in [0, 1] of the protected class, `(B, C, H, W)`.
        shields: Raw images in [0, 1] of the shield class, `(B, C, H, W)`.
        protected_features: Their frozen features, those of several surrogates concatenated, `(B, D)`.
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

    Pinkava, Towards Class-Shielding Data Poisoning, section 2.3 and figure 2. The paper does not specify strides,
    kernels and activations. Here the strides are the smallest that reach the image size, the result is center-cropped,
    and rectifiers follow the hidden layers.

    Args:
        feature_size: D.
        shape: Shape of an image, `(C, H, W)`.

    Example:
        >>> pairs = Pairs(torch.rand(2, 1, 28, 28), torch.rand(2, 1, 28, 28), torch.rand(2, 5), torch.rand(2, 5))
        >>> PaperGenerator(5, (1, 28, 28))(pairs).shape
        torch.Size([2, 1, 28, 28])
    """

    def __init__(self, feature_size: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self._size = shape[1:]
        self.dense = nn.Sequential(
            nn.Linear(2 * feature_size, _DENSE[0]),
            nn.ReLU(),
            nn.Linear(*_DENSE),
            nn.ReLU(),
            nn.Unflatten(1, _SEED_SHAPE),
        )
        factor = math.ceil(max(self._size) / _SEED_SHAPE[-1])
        first = math.ceil(math.sqrt(factor))
        strides = first, math.ceil(factor / first)
        widths = (_SEED_SHAPE[0], _WIDTH, shape[0])
        layers = [
            nn.ConvTranspose2d(narrow, wide, stride + 2, stride, padding=1)
            for narrow, wide, stride in zip(widths, widths[1:], strides, strict=False)
        ]
        self.upsampler = nn.Sequential(layers[0], nn.ReLU(), layers[1])

    def forward(self, pairs: Pairs) -> Tensor:
        """Return unbounded perturbations `(B, C, H, W)`."""
        upsampled: Tensor = self.upsampler(self.dense(pairs.features))
        top, left = ((size - crop) // 2 for size, crop in zip(upsampled.shape[-2:], self._size, strict=True))
        return upsampled[..., top : top + self._size[0], left : left + self._size[1]]


class ResidualBlock(nn.Module):
    """Two convolutions with a 1 × 1 convolution as shortcut."""

    def __init__(self, narrow: int, wide: int) -> None:
        super().__init__()
        self.path = nn.Sequential(nn.Conv2d(narrow, wide, 3, padding=1), nn.ReLU(), nn.Conv2d(wide, wide, 3, padding=1))
        self.shortcut = nn.Conv2d(narrow, wide, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map `(B, narrow, H, W)` to `(B, wide, H, W)`."""
        return F.relu(self.path(inputs) + self.shortcut(inputs))


class ResidualUNet(nn.Module):
    """Maps pairs to perturbations by a U-Net: both images are inputs, frozen features are added at the bottleneck.

    Pinkava, Towards Class-Shielding Data Poisoning, section 4.3, item 1, proposes connections from the extractor to the
    upsampler without specifying sizes. Here the encoder is a part of the generator, as in Ronneberger et al., U-Net,
    MICCAI 2015, arXiv 1505.04597, with two levels and residual blocks (He et al. 2016, arXiv 1512.03385).

    Args:
        feature_size: Length of an image's frozen features.
        shape: Shape of an image, `(C, H, W)`, at least 4 × 4.
        width: Number of channels of the first level.

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
        """Return unbounded perturbations `(B, C, H, W)`."""
        hidden, levels = torch.cat([pairs.shields, pairs.protected], 1), []
        for position, block in enumerate(self.down):
            hidden = block(hidden if position == 0 else F.avg_pool2d(hidden, 2))
            levels.append(hidden)
        hidden = hidden + self.features(pairs.features)[..., None, None]
        for block, level in zip(self.up, levels[-2::-1], strict=True):
            hidden = block(torch.cat([F.interpolate(hidden, size=level.shape[-2:]), level], 1))
        perturbation: Tensor = self.last(hidden)
        return perturbation


@dataclass(frozen=True)
class SuperBatch:
    """Images of the three groups for one training step of a generator, in equal parts.

    Args:
        shields: Training samples of the shield class, int64 `(B,)`.
        protected: Positions in the pool, each paired with a shield, int64 `(B,)`.
        outer_rows: Rows of the outer set with protected, shield and control images, int64 `(M,)`.
    """

    shields: Tensor
    protected: Tensor
    outer_rows: Tensor


def draw_super_batch(
    bases: Tensor,
    protected: Tensor,
    outer_labels: Tensor,
    goal: ShieldingGoal,
    size: int,
    *,
    generator: torch.Generator,
) -> SuperBatch:
    """Draw a super-batch, a third of it from each group, with replacement.

    Args:
        bases: Training samples of the shield class that may carry poison, int64.
        protected: Positions in the pool of protected images, int64.
        outer_labels: Labels of the outer set, int64 `(M,)`.
        goal: Protected class and shield class.
        size: Number of images of all three groups.
        generator: The only source of randomness.
    """
    part = max(1, size // 3)

    def draw(group: Tensor) -> Tensor:
        return group[torch.randint(len(group), (part,), generator=generator)] if len(group) else group

    is_protected, is_shield = outer_labels == goal.protected_class, outer_labels == goal.shield_class
    groups = [group.nonzero().flatten() for group in (is_protected, is_shield, ~(is_protected | is_shield))]
    return SuperBatch(draw(bases), draw(protected), torch.cat([draw(group) for group in groups]))


class GeneratorTrainer:
    """Trains a generator so that heads trained on its poison misclassify the protected class.

    Pinkava, Towards Class-Shielding Data Poisoning, section 2.2. The dummy victim is solved instead of trained for some
    steps: its head is first a least-squares head and then a logistic one, and the gradient is taken through the
    solution. The head is trained on the poison and all clean training samples, including the protected ones. Each
    poison of a super-batch has the weight `budget / B`.

    Args:
        network: Maps `Pairs` to perturbations `(B, C, H, W)`.
        data: Training set and pool.
        goal: Protected class, shield class and weight.
        keep: Clean training samples on which the victim trains, bool `(N,)`.
        budget: Number of poisons.
        radius: L∞ radius in units of the raw image.
        pixels: Gray levels of the data.
    """

    def __init__(
        self,
        network: nn.Module,
        data: ShieldingData,
        goal: ShieldingGoal,
        keep: Tensor,
        *,
        budget: int,
        radius: float,
        pixels: PixelRange,
    ) -> None:
        self.network = network
        self._data, self._goal = data, goal
        self._head_data, self._budget, self._radius, self._pixels = data.head_data(keep), budget, radius, pixels

    def train(
        self, bases: Tensor, steps: tuple[int, int], *, size: int, learning_rate: float, generator: torch.Generator
    ) -> None:
        """Train the generator in place with Adam.

        Args:
            bases: Training samples of the shield class that may carry poison, int64.
            steps: Number of steps against least squares, and against alternating logistic heads.
            size: Number of images in a super-batch.
            learning_rate: Initial learning rate of Adam. It decays to zero along a cosine.
            generator: Draws the super-batches.
        """
        weight = self._budget / max(1, size // 3)
        ridge = [RidgeHead(each, self._goal, weight=weight) for each in self._head_data]
        logistic = [
            [LogisticHead(each, self._goal, penalty=penalty, weight=weight) for each in self._head_data]
            for penalty in LOGISTIC_PENALTIES
        ]
        optimizer = torch.optim.Adam(self.network.parameters(), lr=learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=sum(steps))
        for step in range(sum(steps)):
            heads: Heads = ridge if step < steps[0] else logistic[step % len(logistic)]
            batch = draw_super_batch(
                bases, self._data.protected, self._data.outer.labels, self._goal, size, generator=generator
            )
            optimizer.zero_grad()
            self._backward(batch, heads)
            optimizer.step()
            schedule.step()

    def poison(self, shields: Tensor, protected: Tensor) -> Tensor:
        """Return the poison of pairs as raw images `(B, C, H, W)`, within the ball and rounded to gray levels.

        Args:
            shields: Training samples, int64 `(B,)`.
            protected: Positions in the pool, int64 `(B,)`.
        """
        batch_size = self._data.maps[0].batch_size
        parts = []
        with torch.no_grad():
            for some, others in zip(torch.split(shields, batch_size), torch.split(protected, batch_size), strict=True):
                pairs = self.pairs(some, others)
                box = PixelBox(pairs.shields, self._radius, self._pixels)
                parts.append(box.round(self._perturb(pairs)))
        return torch.cat(parts)

    def pairs(self, shields: Tensor, protected: Tensor) -> Pairs:
        """Read pairs of images and their frozen features."""
        device = self._data.maps[0].device
        images = self._data.images(shields).to(device), self._data.pool(protected).to(device)
        features = [torch.cat([extract.detached(part).to(device) for extract in self._data.maps], 1) for part in images]
        return Pairs(images[1], images[0], features[1], features[0])

    def _backward(self, batch: SuperBatch, heads: Heads) -> None:
        pairs = self.pairs(batch.shields, batch.protected)
        with torch.enable_grad():
            perturbed = self._perturb(pairs)
            box = PixelBox(pairs.shields, self._radius, self._pixels)
            poison = perturbed + (box.clamp(perturbed) - perturbed).detach()
            features = [extract(poison) for extract in self._data.maps]
        rows = [head.gradient(part.detach(), batch.outer_rows) for head, part in zip(heads, features, strict=True)]
        torch.autograd.backward(features, rows)

    def _perturb(self, pairs: Pairs) -> Tensor:
        """Add the bounded perturbation to the shield images, the residual form of the paper."""
        perturbation: Tensor = self.network(pairs)
        return pairs.shields + self._radius * perturbation.tanh()
