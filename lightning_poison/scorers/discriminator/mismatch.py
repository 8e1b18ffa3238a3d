"""Training of a discriminator without a generator: negatives are other labels of the samples, and noisy copies."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_poison.checks import epsilon, expected, not_negative, plain_numbers
from lightning_poison.scorers.discriminator.noise import log_uniform, mixed_noise, perturbed, textured
from lightning_poison.scorers.discriminator.projection import ProjectionDiscriminator


@dataclass(frozen=True)
class NegativeSettings:
    """The negatives of a discriminator that is trained without a generator.

    Args:
        low: Smallest epsilon of the noise, in units of the raw [0, 1] image, but at least one level. For vectors, the
            unit is the standard deviation of each element. Default: .02.
        high: Largest epsilon. Its logarithm is uniform between the two. Default: .3.
        mismatch_weight: Weight of each other label of a real sample, relative to 1 for its own label. Default: 1/3.

    Raises:
        ValueError: If a number is out of range.

    Example:
        >>> NegativeSettings(high=0.1)
        NegativeSettings(low=0.02, high=0.1, mismatch_weight=0.3333333333333333)
    """

    low: float = 0.02
    high: float = 0.3
    mismatch_weight: float = 1 / 3

    def __post_init__(self) -> None:
        epsilon(self.low)
        epsilon(self.high)
        if self.low > self.high:
            raise ValueError(expected("high", f"at least `low` ({self.low:g})", self.high))
        not_negative("mismatch_weight", self.mismatch_weight)
        plain_numbers(self)


def noisy_copies(
    model: ProjectionDiscriminator,
    raw: Tensor,
    settings: NegativeSettings,
    *,
    texture: bool,
    generator: torch.Generator,
) -> Tensor:
    """Return copies with noise, each of its own family and epsilon.

    Args:
        model: Determines whether samples are images, and their grid of levels.
        raw: Result of the model's `to_raw`, `(B, ...)`.
        settings: Strength of the noise.
        texture: Whether to leave flat background unchanged.
        generator: Source of the noise.

    Returns:
        `(B, ...)`. A copy equals its sample if the noise rounds to nothing, or the sample is all background.

    Example:
        >>> model, raw = ProjectionDiscriminator((1, 8, 8), 2), torch.zeros(5, 1, 8, 8)
        >>> generator = torch.Generator().manual_seed(0)
        >>> copies = noisy_copies(model, raw, NegativeSettings(), texture=False, generator=generator)
        >>> bool((copies != raw).flatten(1).any(1).all()), bool(copies.max() <= 0.3)
        (True, True)
        >>> noisy_copies(model, raw, NegativeSettings(), texture=True, generator=generator).equal(raw)
        True
    """
    levels = model.pixels.levels if model.has_images else None
    finest = 0.0 if levels is None else 1 / (levels - 1)
    low, high = max(settings.low, finest), max(settings.high, finest)
    return perturbed(
        raw,
        mixed_noise(raw.shape, generator=generator).to(raw.device),
        log_uniform(len(raw), low, high, generator=generator).to(raw.device),
        levels=levels,
        limits=(0.0, 1.0) if model.has_images else None,
        mask=textured(raw) if texture else None,
    )


def mismatch_loss(
    model: ProjectionDiscriminator,
    inputs: Tensor,
    labels: Tensor,
    *,
    settings: NegativeSettings,
    texture: bool,
    generator: torch.Generator,
) -> Tensor:
    """Return the loss of a batch: pairs of sample and label are real; other labels and noisy copies are fake.

    Each term is a binary cross-entropy with logits: softplus(−s_y(x)) + w Σ_{k≠y} softplus(s_k(x)) + softplus(s_y(x̃)),
    x̃ the copy. The other labels need no additional pass through the network. A copy that equals its sample has no
    weight.

    Args:
        model: The discriminator.
        inputs: `(B, ...)`, as the data set returns them.
        labels: int64 `(B,)`.
        settings: The negatives, and w.
        texture: Whether to leave flat background unchanged.
        generator: Source of the noise.

    Returns:
        A scalar, in nats per sample.

    Example:
        >>> model = ProjectionDiscriminator((1, 8, 8), 4)
        >>> for weight in (*model.unconditional.parameters(), *model.embeddings.parameters()):
        ...     _ = torch.nn.init.zeros_(weight)
        >>> options = {"settings": NegativeSettings(), "texture": False, "generator": torch.Generator().manual_seed(0)}
        >>> loss = mismatch_loss(model, torch.rand(6, 1, 8, 8), torch.arange(6) % 4, **options)
        >>> print(f"{loss.item():.4f}")  # (1 + 3 / 3 + 1) log 2
        2.0794
    """
    raw = model.to_raw(inputs)
    copies = noisy_copies(model, raw, settings, texture=texture, generator=generator)
    changed = (copies != raw).flatten(1).any(1)
    real, fake = model.logits_of_raw(torch.cat([raw, copies])).chunk(2)
    own, noisy = real.gather(1, labels[:, None])[:, 0], fake.gather(1, labels[:, None])[:, 0]
    others = F.softplus(real).sum(1) - F.softplus(own)
    return (F.softplus(-own) + settings.mismatch_weight * others + changed * F.softplus(noisy)).mean()
