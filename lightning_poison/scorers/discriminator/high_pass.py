"""Fixed channels in which a small change of an image is large: what a trained network sees beside the image itself."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_poison.checks import describe, expected

CHANNELS = 4
"""How many channels come out for each that goes in."""

_DARK, _DETAIL, _NOISE = 20.0, 4.0, 8.0


def high_pass_channels(images: Tensor) -> Tensor:
    """Return images beside three fixed views of them: their darkest levels, their detail, and their noise.

    The views of an image x are tanh(20 x), in which the darkest tenth of the levels takes up most of the range;
    4 (x − m), with m the mean of the 3 × 3 pixels around; and tanh(8 N ∗ x / 4), with N the noise mask of Immerkær,
    "Fast noise variance estimation", Computer Vision and Image Understanding, 1996: rows (1, −2, 1), (−2, 4, −2) and
    (1, −2, 1), which gives 0 on slopes, and on edges along rows or columns. That paper sums |N ∗ x| over an image; here
    each pixel keeps its value. Borders are repeated outwards, so that they are no edges. All is computed in float32 at
    least, also under autocast.

    Args:
        images: raw, in [0, 1], floating point `(B, C, H, W)`.

    Returns:
        `(B, 4 C, H, W)`: first all channels of x, then all of each view; differentiable in `images`.

    Raises:
        ValueError: where `images` are no such tensor.

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
