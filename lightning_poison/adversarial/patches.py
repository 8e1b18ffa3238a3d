"""Patches of random size, pattern and place: triggers that nobody has chosen."""

import torch
from torch import Tensor


def draw_patches(
    kinds: int, shape: tuple[int, int, int], *, sides: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw rectangles of black and white pixels.

    Args:
        kinds: K, how many.
        shape: `(C, H, W)` of the images that they are meant for.
        sides: the least and the greatest height and width, as shares of the image's, in (0, 1].
        generator: draws sizes, how bright each patch is on the whole, and its pixels.

    Returns:
        Patterns of 0 and 1, `(K, C, H, W)`, of which the upper left counts, and sizes, int64 `(K, 2)`, heights and
        widths.

    Example:
        >>> patterns, sizes = draw_patches(3, (1, 28, 28), sides=(0.1, 0.4), generator=torch.Generator())
        >>> patterns.shape, int(sizes.min()) >= 2, int(sizes.max()) <= 11
        (torch.Size([3, 1, 28, 28]), True, True)
    """
    device = generator.device
    extent = torch.tensor(shape[1:], device=device)
    least, greatest = ((share * extent).long().clamp_min(1) for share in sides)
    drawn = torch.rand(kinds, 2, generator=generator, device=device)
    sizes = least + (drawn * (greatest - least + 1)).long()
    brightness = torch.rand(kinds, 1, 1, 1, generator=generator, device=device)
    pixels = torch.rand(kinds, *shape, generator=generator, device=device)
    return (pixels < brightness).float(), sizes


def place_patches(patterns: Tensor, sizes: Tensor, kinds: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Put a patch on each of B canvases.

    Args:
        patterns: `(K, C, H, W)`, of which the upper left counts.
        sizes: int64 `(K, 2)`, heights and widths.
        kinds: int64 `(B,)`, which patch each canvas gets.
        places: `(B, 2)` in [0, 1): where it stands, as shares of the room from the upper left to the lower right.

    Returns:
        The canvases, `(B, C, H, W)`, and where the patches are, bool `(B, 1, H, W)`.

    Example:
        >>> patterns, sizes = torch.ones(1, 1, 3, 3), torch.tensor([[1, 2]])
        >>> canvas, inside = place_patches(patterns, sizes, torch.tensor([0]), torch.tensor([[0.99, 0.99]]))
        >>> (canvas * inside).int()[0, 0]
        tensor([[0, 0, 0],
                [0, 0, 0],
                [0, 1, 1]], dtype=torch.int32)
    """
    _, _, height, width = patterns.shape
    extent = torch.tensor((height, width), device=sizes.device)
    own = sizes[kinds]
    corners = (places * (extent - own + 1)).long()
    rows, columns = (
        torch.arange(length, device=sizes.device) - corners[:, axis, None]
        for axis, length in enumerate((height, width))
    )
    inside = [(at >= 0) & (at < own[:, axis, None]) for axis, at in enumerate((rows, columns))]
    canvases = patterns[
        kinds[:, None, None], :, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
    ].permute(0, 3, 1, 2)
    return canvases, (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
