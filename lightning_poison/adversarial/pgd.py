"""Projected gradient descent: the perturbation of an image within a ball that maximizes a loss.

    x ← Π(x + α · sign ∇ₓ L)      (Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards deep learning models resistant to
                                   adversarial attacks", ICLR 2018, arXiv 1706.06083: the inner maximum of
                                   eq. 2.1, by the unnumbered step after it)

Π projects onto the ball around the original and onto the pixel range. In the L2 ball, a step follows the gradient
itself, normalized to unit length. One step of length ε without a random start is the fast gradient sign method
(Goodfellow, Shlens, Szegedy, ICLR 2015, arXiv 1412.6572, section 4, unnumbered).

It differs from these papers in that each sample has its own loss and, with restarts, its own best point.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison import checks
from lightning_poison.adversarial.balls import L2Ball, LinfBall
from lightning_poison.adversarial.sample_losses import SampleLosses
from lightning_poison.contexts import evaluating, frozen
from lightning_poison.data.pixel_range import PixelRange

Norm = Literal["linf", "l2"]


def perturb(
    images: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    epsilon: float | Tensor,
    steps: int,
    step_size: float | Tensor | None = None,
    norm: Norm = "linf",
    random_start: bool = True,
    restarts: int = 1,
    low: float = 0.0,
    high: float = 1.0,
    mask: Tensor | None = None,
    parameters_frozen: bool = False,
    part: tuple[int, int] = (0, 1),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Maximize a loss of each image within a ball around it.

    Only the gradient with respect to the images is computed, and no `.grad` is written. It works under `torch.no_grad`.
    Images are stored and updated in float32 or higher, even if `loss` runs under autocast.

    Args:
        images: Floating-point images in `[low, high]`, `(B, ...)`. Not modified.
        loss: Maps images to one differentiable loss each, `(B,)`, to maximize. For a targeted attack, negate it.
        epsilon: Radius in units of the images, at least 0. `(B,)` for one per image.
        steps: Number of gradient steps, at least 0. With 0, the start is returned.
        step_size: Length of a step in the norm, a number or `(B,)`. Default: 2.5 ε / steps.
        norm: `"linf"` bounds the change of each pixel, `"l2"` the length of the whole change. Default: `"linf"`.
        random_start: Start at a point drawn uniformly from the ball and clamped to the range, not at the images.
            Default: `True`.
        restarts: Number of random starts. For each image, the point with the largest loss is returned. Default: 1.
        low: Lower end of the pixel range. Default: 0.
        high: Upper end of the pixel range. Default: 1.
        mask: Pixels that may change: bool, or 0 and 1, broadcastable to the images. Default: all.
        parameters_frozen: Whether the images are the only input of `loss` that requires a gradient. Needed for models
            with reentrant gradient checkpointing, which computes the gradients of all inputs or of none. Default:
            `False`.
        part: Rank and world size. With generators in the same state, the ranks draw the starts that a single rank would
            draw, interleaved as by a distributed sampler. Default: `(0, 1)`.
        generator: Source of the starts. Default: a fixed seed, which gives every batch of a loop the same starts.

    Returns:
        Perturbed images `(B, ...)`, detached, in the dtype of `images`, in `[low, high]` and in the ball, up to
        rounding to that dtype.

    Raises:
        FloatingPointError: If a gradient is NaN or infinite.
        RuntimeError: If called under `torch.inference_mode`, in which there are no gradients.
        ValueError: If an argument has an invalid value or shape, or `loss` does not give a gradient for each image.

    Example:
        >>> weights = torch.tensor([1.0, -2.0, 0.0])
        >>> images = torch.tensor([[0.5, 0.5, 0.5], [0.9, 0.1, 0.5]])
        >>> perturb(images, lambda x: x @ weights, epsilon=0.25, steps=1, step_size=0.25, random_start=False)
        tensor([[0.7500, 0.2500, 0.5000],
                [1.0000, 0.0000, 0.5000]])
    """
    check_images(images, low, high)
    check_settings(norm, steps, restarts, random_start)
    precise = images.detach().to(torch.promote_types(images.dtype, torch.float32)).clamp(low, high)
    radius = _per_image("epsilon", epsilon, precise)
    length = 2.5 * radius / max(1, steps) if step_size is None else _per_image("step_size", step_size, precise)
    movable = None if mask is None else _boolean_mask(mask, precise)
    ball = (LinfBall if norm == "linf" else L2Ball)(precise, radius, length, (low, high), movable)
    losses = SampleLosses(loss, images, parameters_frozen=parameters_frozen)
    source = torch.Generator().manual_seed(0) if generator is None else generator

    def attempt() -> Tensor:
        return _ascend(ball, losses, ball.start(source, part) if random_start else precise, steps)

    best = attempt()
    best_values = losses.values(best) if restarts > 1 else best.new_zeros(())
    for _ in range(restarts - 1):
        points = attempt()
        values = losses.values(points)
        best = torch.where((values > best_values).view(-1, *[1] * (best.ndim - 1)), points, best)
        best_values = torch.maximum(values, best_values)
    return best.to(images.dtype)


def perturb_samples(
    inputs: Tensor,
    loss: Callable[[Tensor], Tensor],
    *,
    epsilon: float | Tensor,
    steps: int,
    step_size: float | Tensor | None = None,
    norm: Norm = "linf",
    random_start: bool = True,
    restarts: int = 1,
    pixels: PixelRange | None = None,
    mask: Tensor | None = None,
    parameters_frozen: bool = False,
    part: tuple[int, int] = (0, 1),
    generator: torch.Generator | None = None,
) -> Tensor:
    """Apply `perturb` to normalized inputs, with radius, step and norm in units of the raw [0, 1] image.

    `loss` maps model inputs to one loss each. `pixels` is their normalization; `None` for raw [0, 1] images. All other
    arguments and the errors are those of `perturb`. Returns perturbed model inputs `(B, ...)`, detached.

    Example:
        >>> pixels = PixelRange(mean=(0.5,), std=(0.25,))
        >>> perturb_samples(torch.zeros(1, 1, 1, 2), lambda x: x.sum((1, 2, 3)), epsilon=0.1, steps=2, pixels=pixels)
        tensor([[[[0.4000, 0.4000]]]])
    """
    check_radius(epsilon, norm)
    domain = PixelRange() if pixels is None else pixels
    perturbed = perturb(
        denormalize(inputs, domain),
        lambda raw: loss(domain.from_raw(raw).to(inputs.dtype)),
        epsilon=epsilon,
        steps=steps,
        step_size=step_size,
        norm=norm,
        random_start=random_start,
        restarts=restarts,
        mask=mask,
        parameters_frozen=parameters_frozen,
        part=part,
        generator=generator,
    )
    return domain.from_raw(perturbed).to(inputs.dtype)


def perturb_against(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float | Tensor,
    steps: int,
    step_size: float | Tensor | None = None,
    norm: Norm = "linf",
    targeted: bool = False,
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    random_start: bool = True,
    restarts: int = 1,
    pixels: PixelRange | None = None,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Perturb images so that a model misclassifies them, or predicts given labels.

    The model runs in evaluation mode with frozen parameters. Both are restored on every exit.

    Args:
        model: Maps a batch to logits `(B, C)`, on the device of the images.
        images: Model inputs, `(B, ...)`.
        labels: True labels, or target labels if `targeted`, int64 `(B,)`.
        epsilon: Radius in units of the raw [0, 1] image, regardless of the normalization. `(B,)` for one per image.
        steps: See `perturb`.
        step_size: Length of a step in the same units. Default: 2.5 ε / steps.
        norm: Norm of the change of the raw image. Default: `"linf"`.
        targeted: Minimize the loss of `labels` instead of maximizing it. Default: `False`.
        loss: Maps logits `(B, C)` and labels `(B,)` to losses `(B,)`. Default: cross-entropy.
        random_start: See `perturb`.
        restarts: See `perturb`.
        pixels: Normalization of the model inputs. Its quantization levels are ignored. Default: raw [0, 1] images.
        mask: See `perturb`.
        generator: See `perturb`.

    Returns:
        Perturbed model inputs `(B, ...)`, detached.

    Raises:
        ValueError: If labels or logits do not match the images. Further errors are those of `perturb`.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> with torch.no_grad():
        ...     _ = model.weight.copy_(torch.eye(2))
        >>> labels = torch.tensor([0])
        >>> perturb_against(model, torch.tensor([[0.6, 0.4]]), labels, epsilon=0.2, steps=10, step_size=0.1)
        tensor([[0.4000, 0.6000]])
    """
    if len(checks.index_vector("labels", labels)) != len(images):
        raise ValueError(checks.expected("labels", f"as long as `images` ({len(images)})", len(labels)))
    criterion = _cross_entropy if loss is None else loss
    sign = -1 if targeted else 1
    with evaluating(model), frozen(model):
        return perturb_samples(
            images,
            lambda inputs: sign * criterion(model(inputs), labels),
            epsilon=epsilon,
            steps=steps,
            step_size=step_size,
            norm=norm,
            random_start=random_start,
            restarts=restarts,
            pixels=pixels,
            mask=mask,
            parameters_frozen=True,
            generator=generator,
        )


def denormalize(images: Tensor, pixels: PixelRange) -> Tensor:
    """Undo a normalization in float32 or higher, and clamp values that are outside [0, 1] by rounding only.

    Args:
        images: Model inputs, `(B, ..., C, H, W)`.
        pixels: Normalization of the inputs.

    Returns:
        Raw images, `(B, ..., C, H, W)`. Inputs without a normalization are returned unchanged.

    Example:
        >>> denormalize(torch.tensor([[[[2.0]]]]), PixelRange(mean=(0.5,), std=(0.25,)))
        tensor([[[[1.]]]])
    """
    if pixels.mean is None or not images.is_floating_point():
        return images
    raw = pixels.to_raw(images.detach().to(torch.promote_types(images.dtype, torch.float32)))
    inside = raw.clamp(0, 1)
    return torch.where((raw - inside).abs() <= 4 * torch.finfo(images.dtype).eps, inside, raw)


def check_images(images: Tensor, low: float, high: float) -> None:
    """Raise an error for images without gradients, that are no batch, or outside the range by more than rounding.

    Example:
        >>> check_images(torch.full((1, 1, 2, 2), 255.0), 0, 1)
        Traceback (most recent call last):
        ValueError: Expected `images` to be in [0, 1], the pixel range, but got values from 255 to 255.
        Pass raw images, or state their normalization: `pixels=PixelRange(mean=..., std=...)`.
    """
    if torch.is_inference_mode_enabled() or images.is_inference():
        raise RuntimeError(
            "Expected to run with gradients, but got `torch.inference_mode` or a tensor made in it.\n"
            "Write `Trainer(inference_mode=False)`, or enter `torch.inference_mode(False)` and clone the images."
        )
    if not images.is_floating_point() or images.ndim < 2 or not images.numel():
        raise ValueError(checks.expected("images", "a floating-point batch (B, ...)", checks.describe(images)))
    lowest, highest = (float(end) for end in images.detach().aminmax())
    tolerance = 1e-4 * (high - low)
    if not low - tolerance <= lowest <= highest <= high + tolerance:
        hint = "Pass raw images, or state their normalization: `pixels=PixelRange(mean=..., std=...)`."
        found = f"values from {lowest:.3g} to {highest:.3g}"
        raise ValueError(checks.expected("images", f"in [{low:g}, {high:g}], the pixel range", found, hint))


def check_settings(norm: str, steps: int, restarts: int, random_start: bool) -> None:
    """Raise an error for an unknown norm, too few steps or restarts, and restarts that would all be equal."""
    checks.one_of("norm", norm, ("linf", "l2"))
    checks.positive_int("steps", steps, minimum=0)
    if checks.positive_int("restarts", restarts) > 1 and not random_start:
        hint = "All of them would end at the same point: set `random_start=True`."
        raise ValueError(checks.expected("restarts", "1 without a random start", restarts, hint))


def check_radius(epsilon: float | Tensor, norm: str, *, name: str = "epsilon") -> None:
    """Raise an error for an L∞ radius or step in gray levels. An L2 radius may exceed 1."""
    if norm == "linf" and (not isinstance(epsilon, Tensor) or float(epsilon.max()) > 1):
        checks.epsilon(float(epsilon.max()) if isinstance(epsilon, Tensor) else epsilon, name=name)


def _ascend(ball: LinfBall | L2Ball, losses: SampleLosses, points: Tensor, steps: int) -> Tensor:
    extremes = []  # checked once at the end, since every check synchronizes a GPU
    for _ in range(steps):
        gradient = losses.gradient(points)
        extremes.append(torch.stack(gradient.aminmax()))
        points = ball.step(points, gradient)
    if steps and not bool((finite := torch.stack(extremes).isfinite().all(1)).all()):
        step = int((~finite).nonzero()[0]) + 1
        raise FloatingPointError(
            f"Expected a finite gradient of the loss, but got NaN or infinity at step {step} of {steps}.\n"
            "Check the model and the loss for a logarithm of 0, a division by 0, or an overflow of float16."
        )
    return points


def _per_image(name: str, value: float | Tensor, images: Tensor) -> float | Tensor:
    """Return a number of at least 0, or one per image in a shape that broadcasts to them."""
    if not isinstance(value, Tensor):
        return checks.not_negative(name, value)
    if value.shape != images.shape[:1]:
        what = f"a number, or one for each image ({len(images)},)"
        raise ValueError(checks.expected(name, what, checks.describe(value)))
    if not bool(((value >= 0) & value.isfinite()).all()):
        raise ValueError(checks.expected(name, "finite and at least 0 for every image", value.tolist()))
    return value.detach().to(images).view(-1, *[1] * (images.ndim - 1))


def _boolean_mask(mask: Tensor, images: Tensor) -> Tensor:
    """Return a mask as bool `(B, ...)` on the device of the images."""
    try:
        expanded = mask.expand_as(images)
    except RuntimeError:
        expanded = None
    if expanded is None or not bool(((mask == 0) | (mask == 1)).all()):
        what = f"0 and 1, broadcastable to {(*images.shape,)}"
        raise ValueError(checks.expected("mask", what, checks.describe(mask)))
    return expanded.to(device=images.device, dtype=torch.bool)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.ndim != 2 or len(logits) != len(labels):
        what = f"a model that returns logits ({len(labels)}, C)"
        raise ValueError(checks.expected("model", what, checks.describe(logits)))
    return F.cross_entropy(logits, labels, reduction="none")
