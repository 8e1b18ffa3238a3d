"""Random patches: triggers of random size, pattern and position."""

import torch
from torch import Tensor


def draw_patches(
    kinds: int, shape: tuple[int, int, int], *, sides: tuple[float, float], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Draw rectangles of random black and white pixels.

    Args:
        kinds: K, the number of patches.
        shape: Shape of the images, `(C, H, W)`.
        sides: Minimum and maximum height and width, as shares of those of the image, in (0, 1].
        generator: Source of the size, the mean brightness and the pixels of each patch.

    Returns:
        Patterns of 0 and 1 in the upper left corner of `(K, C, H, W)`, and their heights and widths, int64 `(K, 2)`.

    Example:
        >>> patterns, sizes = draw_patches(3, (1, 28, 28), sides=(0.1, 0.4), generator=torch.Generator())
        >>> patterns.shape, int(sizes.min()) >= 2, int(sizes.max()) <= 11
        (torch.Size([3, 1, 28, 28]), True, True)
    """
    device = generator.device
    extent = torch.tensor(shape[1:], device=device)
    smallest, largest = ((share * extent).long().clamp_min(1) for share in sides)
    drawn = torch.rand(kinds, 2, generator=generator, device=device)
    sizes = smallest + (drawn * (largest - smallest + 1)).long()
    brightness = torch.rand(kinds, 1, 1, 1, generator=generator, device=device)
    pixels = torch.rand(kinds, *shape, generator=generator, device=device)
    return (pixels < brightness).float(), sizes


def place_patches(patterns: Tensor, sizes: Tensor, kinds: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """Place one patch on each of B canvases.

    Args:
        patterns: Patterns in the upper left corner of `(K, C, H, W)`.
        sizes: Heights and widths, int64 `(K, 2)`.
        kinds: Index of the patch on each canvas, int64 `(B,)`.
        places: Relative vertical and horizontal position of each patch, `(B, 2)` in [0, 1), from the upper left to the
            lower right corner.

    Returns:
        Canvases, `(B, C, H, W)`, and masks of the patches, bool `(B, 1, H, W)`.

    Example:
        >>> patterns, sizes = torch.ones(1, 1, 3, 3), torch.tensor([[1, 2]])
        >>> canvas, inside = place_patches(patterns, sizes, torch.tensor([0]), torch.tensor([[0.99, 0.99]]))
        >>> (canvas * inside).int()[0, 0]
        tensor([[0, 0, 0],
                [0, 0, 0],
                [0, 1, 1]], dtype=torch.int32)
    """
    _, _, height, width = patterns.shape
    canvas = torch.tensor((height, width), device=sizes.device)
    extents = sizes[kinds]
    corners = (places * (canvas - extents + 1)).long()
    rows, columns = (
        torch.arange(length, device=sizes.device) - corners[:, axis, None]
        for axis, length in enumerate((height, width))
    )
    inside = [(at >= 0) & (at < extents[:, axis, None]) for axis, at in enumerate((rows, columns))]
    canvases = patterns[
        kinds[:, None, None], :, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]
    ].permute(0, 3, 1, 2)
    return canvases, (inside[0][:, :, None] & inside[1][:, None, :])[:, None]
