"""Families of noise for the negatives of a discriminator.

Noise is drawn in [-1, 1]. `perturbed` adds it to samples, bounded, rounded and masked.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_poison.checks import describe, expected, positive, positive_int
from lightning_poison.contexts import full_precision

FLAT = 0.1
"""Maximum difference between a pixel and its surroundings in flat background, in units of the raw image."""

_FILTER = 5
"""Side of the filter of patterned signs, in pixels."""

_ROUNDING_ERROR = 1e-4
"""In levels: 8 / 255 times 255 may be slightly below 8."""


def sign_noise(shape: Sequence[int], *, generator: torch.Generator) -> Tensor:
    """Return −1 or 1 with equal probability for each element, float32 of that shape.

    Example:
        >>> sign_noise((1, 4), generator=torch.Generator().manual_seed(0))
        tensor([[-1.,  1.,  1., -1.]])
    """
    return 2 * torch.randint(2, tuple(shape), generator=generator, device=generator.device).float() - 1


def gaussian_noise(shape: Sequence[int], *, generator: torch.Generator) -> Tensor:
    """Return normal noise of standard deviation ½, clipped to [−1, 1], float32 of that shape.

    Example:
        >>> noise = gaussian_noise((100, 100), generator=torch.Generator().manual_seed(0))
        >>> f"{noise.std():.2f}", noise.abs().max()
        ('0.48', tensor(1.))
    """
    return (0.5 * torch.randn(tuple(shape), generator=generator, device=generator.device)).clamp(-1, 1)


def smooth_noise(shape: Sequence[int], *, generator: torch.Generator, cells: int = 7) -> Tensor:
    """Return patterns of low frequency, one per channel of each image, scaled to a peak of −1 or 1 in each image.

    A coarse grid of uniform random numbers is resized to the images by bicubic interpolation.

    Args:
        shape: `(B, C, H, W)`.
        generator: Source of the grids.
        cells: Side of the coarse grid. Default: 7.

    Returns:
        float32 of that shape.

    Example:
        >>> noise = smooth_noise((2, 1, 28, 28), generator=torch.Generator().manual_seed(0))
        >>> noise.abs().amax((1, 2, 3)), bool(noise.diff(dim=-1).abs().max() < 0.5)
        (tensor([1., 1.]), True)
    """
    positive_int("cells", cells, minimum=2)
    count, channels, height, width = _image_shape(shape)
    coarse = 2 * torch.rand(count, channels, cells, cells, generator=generator, device=generator.device) - 1
    patterns = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True)
    return patterns / patterns.abs().amax((1, 2, 3), keepdim=True)


def patterned_signs(shape: Sequence[int], *, generator: torch.Generator) -> Tensor:
    """Return −1 or 1 in patterns like the signs of a convolutional network's gradient.

    White noise is filtered by a random 5 × 5 filter per channel of each image, and shifted by a random offset, normal
    with the standard deviation of the result. So neighbors may agree or disagree, and one sign may be more frequent,
    unlike in `sign_noise`.

    Args:
        shape: `(B, C, H, W)`.
        generator: Source of noise, filters and offsets.

    Returns:
        float32 of that shape.

    Example:
        >>> signs = patterned_signs((200, 1, 8, 8), generator=torch.Generator().manual_seed(0))
        >>> signs.unique(), bool((signs.mean((1, 2, 3)).abs() > 0.5).float().mean() > 0.3)
        (tensor([-1.,  1.]), True)
    """
    count, channels, height, width = _image_shape(shape)
    device = generator.device
    padded = (1, count * channels, height + _FILTER - 1, width + _FILTER - 1)
    white = torch.randn(padded, generator=generator, device=device)
    filters = torch.randn(count * channels, 1, _FILTER, _FILTER, generator=generator, device=device)
    with full_precision(device):
        patterns = F.conv2d(white, filters, groups=count * channels).view(count, channels, height, width)
    offsets = torch.randn(count, 1, 1, 1, generator=generator, device=device)
    offsets *= patterns.std((1, 2, 3), correction=0, keepdim=True)
    return torch.where(patterns >= offsets, 1.0, -1.0)


def mixed_noise(shape: Sequence[int], *, generator: torch.Generator) -> Tensor:
    """Return noise of a random family for each sample.

    The probabilities are one fifth each for signs, Gaussian and smooth noise, and two fifths for patterned signs.
    Vectors `(B, D)` have no neighbors: they get signs instead of patterned signs, and Gaussian instead of smooth noise.

    Args:
        shape: `(B, C, H, W)` or `(B, D)`.
        generator: Source of the families and of the noise.

    Returns:
        float32 of that shape, in [-1, 1].

    Example:
        >>> noise = mixed_noise((100, 5), generator=torch.Generator().manual_seed(0))
        >>> int((noise.abs() == 1).all(1).sum())
        63
    """
    family = torch.randint(5, (shape[0],), generator=generator, device=generator.device)
    images = len(shape) == 4
    noise = sign_noise(shape, generator=generator)
    smooth, patterned = (smooth_noise, patterned_signs) if images else (gaussian_noise, sign_noise)
    for chosen, draw in ((family == 1, gaussian_noise), (family == 2, smooth), (family > 2, patterned)):
        members = chosen.nonzero().flatten()
        if len(members):
            noise[members] = draw((len(members), *shape[1:]), generator=generator)
    return noise


def log_uniform(count: int, low: float, high: float, *, generator: torch.Generator) -> Tensor:
    """Return random numbers from `low` to `high` with uniform logarithms, float32 `(count,)`.

    Example:
        >>> drawn = log_uniform(1000, 0.01, 1.0, generator=torch.Generator().manual_seed(0))
        >>> f"{float((drawn < 0.1).float().mean()):.1f}"
        '0.5'
    """
    positive("low", low)
    if not low <= high:
        raise ValueError(expected("high", f"at least `low` ({low:g})", high))
    shares = torch.rand(count, generator=generator, device=generator.device)
    return (low * (high / low) ** shares).clamp(low, high)


def textured(images: Tensor) -> Tensor:
    """Return a mask of the pixels that are ink or texture rather than flat background.

    In gray images, these differ from the image's median by more than .1: strokes on a page, of either polarity. In
    color images, whose background is not of a single value, they are the pixels whose 3 × 3 neighborhood has a range
    above .1 in some channel.

    Args:
        images: Raw images in [0, 1], `(B, C, H, W)`.

    Returns:
        bool `(B, 1, H, W)`.

    Raises:
        ValueError: If `images` has another number of dimensions.

    Example:
        >>> textured(torch.tensor([0.0, 0.0, 0.05, 0.9]).view(1, 1, 1, 4))
        tensor([[[[False, False, False,  True]]]])
    """
    if images.ndim != 4:
        raise ValueError(expected("images", "images (B, C, H, W)", describe(images)))
    if images.shape[1] == 1:
        background = images.flatten(1).median(dim=1).values.view(-1, 1, 1, 1)
        return (images - background).abs() > FLAT
    highest, lowest = F.max_pool2d(images, 3, 1, 1), -F.max_pool2d(-images, 3, 1, 1)
    return (highest - lowest > FLAT).any(dim=1, keepdim=True)


def perturbed(
    samples: Tensor,
    noise: Tensor,
    epsilon: float | Tensor,
    *,
    levels: int | None = 256,
    limits: tuple[float, float] | None = (0.0, 1.0),
    mask: Tensor | None = None,
) -> Tensor:
    """Return samples with noise, at most epsilon in each element.

    The change is a whole number of levels. So samples on the grid stay on it, and samples off the grid (resized or
    augmented) are as far off it as their copies.

    Args:
        samples: Raw images or vectors `(B, ...)`.
        noise: In [-1, 1], of the same shape; clipped to that range.
        epsilon: Maximum change, in units of the samples, at least 0; `(B,)` for one per sample.
        levels: Number of values of a raw pixel, including both ends of [0, 1]. `None` for a continuous range. Default:
            256.
        limits: Range to which the result is clipped. `None` for none. Default: [0, 1].
        mask: Elements that may change, bool, broadcastable to the samples. Default: all.

    Returns:
        `(B, ...)`, of the dtype of `samples`.

    Raises:
        ValueError: If `noise` and samples differ in shape.

    Example:
        >>> images, noise = torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[1.0, -0.4, 1.0]])
        >>> perturbed(images, noise, 0.3, levels=11)
        tensor([[0.3000, 0.4000, 1.0000]])
    """
    if noise.shape != samples.shape:
        raise ValueError(expected("noise", f"of the shape of the samples, {tuple(samples.shape)}", describe(noise)))
    each = torch.as_tensor(epsilon, dtype=samples.dtype, device=samples.device)
    radius = each.view(-1, *[1] * (samples.ndim - 1)) if each.ndim else each
    change = noise.to(samples).clamp(-1, 1) * radius
    if levels is not None:
        top = levels - 1
        most = (radius * top + _ROUNDING_ERROR).floor()
        change = (change * top).round().clamp(-most, most) / top
    if mask is not None:
        change = change * mask
    return samples + change if limits is None else (samples + change).clamp(*limits)


def _image_shape(shape: Sequence[int]) -> tuple[int, int, int, int]:
    if len(shape) != 4:
        raise ValueError(expected("shape", "the shape of images (B, C, H, W)", tuple(shape)))
    count, channels, height, width = shape
    return count, channels, height, width
