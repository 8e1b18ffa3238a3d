"""What the arguments of `perturb` must be."""

import torch
from torch import Tensor

from lightning_poison import checks


def check_images(images: Tensor, low: float, high: float) -> None:
    """Refuse what has no gradient, is no batch, or lies outside the range by more than rounding.

    Example:
        >>> check_images(torch.full((1, 1, 2, 2), 255.0), 0, 1)
        Traceback (most recent call last):
        ValueError: Expected `images` to be in [0, 1], the pixel range, but got values from 255 to 255.
        Hand in raw images, or say how these are normalised: `pixels=PixelRange(mean=..., std=...)`.
    """
    if torch.is_inference_mode_enabled() or images.is_inference():
        raise RuntimeError(
            "Expected to run where gradients can be had, but got `torch.inference_mode` or a tensor made in it.\n"
            "Write `Trainer(inference_mode=False)`, or go into `torch.inference_mode(False)` and clone the images."
        )
    if not images.is_floating_point() or images.ndim < 2 or not images.numel():
        raise ValueError(checks.expected("images", "a floating point batch (B, ...)", checks.describe(images)))
    least, most = (float(end) for end in images.detach().aminmax())
    slack = 1e-4 * (high - low)
    if not low - slack <= least <= most <= high + slack:
        hint = "Hand in raw images, or say how these are normalised: `pixels=PixelRange(mean=..., std=...)`."
        found = f"values from {least:.3g} to {most:.3g}"
        raise ValueError(checks.expected("images", f"in [{low:g}, {high:g}], the pixel range", found, hint))


def check_counts(norm: str, steps: int, restarts: int, random_start: bool) -> None:
    """Refuse another norm, too few steps or restarts, and restarts that would all be the same.

    Example:
        >>> check_counts("linf", steps=10, restarts=3, random_start=False)
        Traceback (most recent call last):
        ValueError: Expected `restarts` to be 1 without a random start, but got 3.
        All of them would end at the same point; set `random_start=True`.
    """
    checks.one_of("norm", norm, ("linf", "l2"))
    checks.positive_int("steps", steps, minimum=0)
    if checks.positive_int("restarts", restarts) > 1 and not random_start:
        hint = "All of them would end at the same point; set `random_start=True`."
        raise ValueError(checks.expected("restarts", "1 without a random start", restarts, hint))


def check_radius(epsilon: float | Tensor, norm: str, *, name: str = "epsilon") -> None:
    """Catch a radius or a step in grey levels; a length of the whole change may well be above 1.

    Example:
        >>> check_radius(3.0, "l2")
        >>> check_radius(8, "linf")
        Traceback (most recent call last):
        ValueError: Expected `epsilon` to be in (0, 1], the range of the images, but got 8.
        For a budget of 8 grey levels write `epsilon=8 / 255`.
    """
    if norm == "linf" and (not isinstance(epsilon, Tensor) or float(epsilon.max()) > 1):
        checks.epsilon(float(epsilon.max()) if isinstance(epsilon, Tensor) else epsilon, name=name)


def one_or_each(name: str, value: float | Tensor, images: Tensor) -> float | Tensor:
    """Return a number of at least 0, or one for each image in a shape that goes with them.

    Example:
        >>> one_or_each("epsilon", torch.tensor([0.1, 0.2]), torch.zeros(2, 3, 8, 8)).shape
        torch.Size([2, 1, 1, 1])
    """
    if not isinstance(value, Tensor):
        return checks.not_negative(name, value)
    if value.shape != images.shape[:1]:
        raise ValueError(
            checks.expected(name, f"a number or one for each image ({len(images)},)", checks.describe(value))
        )
    if not bool(((value >= 0) & value.isfinite()).all()):
        raise ValueError(checks.expected(name, "finite and at least 0 for every image", value.tolist()))
    return value.detach().to(images).view(-1, *[1] * (images.ndim - 1))


def as_movable(mask: Tensor, images: Tensor) -> Tensor:
    """Return a mask as bool `(B, ...)`, on the device of the images.

    Example:
        >>> as_movable(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 3, 2, 2))[0, 0]
        tensor([[False,  True],
                [False,  True]])
    """
    try:
        everywhere = mask.expand_as(images)
    except RuntimeError:
        everywhere = None
    if everywhere is None or not bool(((mask == 0) | (mask == 1)).all()):
        raise ValueError(
            checks.expected("mask", f"0 and 1, broadcastable to {(*images.shape,)}", checks.describe(mask))
        )
    return everywhere.to(device=images.device, dtype=torch.bool)
