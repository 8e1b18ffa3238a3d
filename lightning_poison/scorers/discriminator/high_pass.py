"""Fixed channels that amplify small changes of an image, as additional inputs of a network."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_poison.checks import describe, expected

CHANNELS = 4
"""Output channels per input channel."""

_DARK, _DETAIL, _NOISE = 20.0, 4.0, 8.0


def high_pass_channels(images: Tensor) -> Tensor:
    """Return images with three fixed views of each: dark levels, detail, and noise.

    The views of an image x are tanh(20 x), in which the darkest tenth of the levels has most of the range; 4 (x − m),
    with m the mean of the 3 × 3 neighborhood; and tanh(8 N ∗ x / 4), with N the noise mask of Immerkær, "Fast noise
    variance estimation", Computer Vision and Image Understanding, 1996: rows (1, −2, 1), (−2, 4, −2) and (1, −2, 1),
    which is 0 on slopes, and on edges along rows or columns. That paper sums |N ∗ x| over an image; here each pixel
    keeps its value. Borders are replicated, so that they are not edges. The computation is in float32 or higher, also
    under autocast.

    Args:
        images: Raw images in [0, 1], floating-point `(B, C, H, W)`.

    Returns:
        `(B, 4 C, H, W)`: first all channels of x, then all of each view; differentiable in `images`.

    Raises:
        ValueError: If `images` is not such a tensor.

    Example:
        >>> image = torch.zeros(1, 1, 3, 3)
        >>> image[0, 0, 1, 1] = 0.09
        >>> high_pass_channels(image)[0, :, 1, 1]
        tensor([0.0900, 0.9468, 0.3200, 0.6169])
    """
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(expected("images", "floating-point images (B, C, H, W)", describe(images)))
    precise = images.to(torch.promote_types(images.dtype, torch.float32))
    padded = F.pad(precise, (1, 1, 1, 1), mode="replicate")
    detail = precise - F.avg_pool2d(padded, 3, stride=1)
    across = padded[..., 2:] - 2 * padded[..., 1:-1] + padded[..., :-2]
    noise = (across[..., 2:, :] - 2 * across[..., 1:-1, :] + across[..., :-2, :]) / 4
    views = [precise, torch.tanh(_DARK * precise), _DETAIL * detail, torch.tanh(_NOISE * noise)]
    return torch.cat(views, dim=1)
