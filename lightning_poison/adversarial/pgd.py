"""Projected gradient descent: the small change of an image that raises a loss the most.

    x ← Π(x + α · sign ∇ₓ L)      (Madry, Makelov, Schmidt, Tsipras, Vladu, "Towards deep learning models resistant to
                                   adversarial attacks", ICLR 2018, arXiv 1706.06083: the inner maximum of
                                   eq. 2.1, by the unnumbered step after it)

Π projects onto the ball around the original and onto the pixel range. In the L2 ball the step goes along the gradient
itself, at unit length. One step of length ε without a random start is the fast gradient sign method (Goodfellow,
Shlens, Szegedy, ICLR 2015, arXiv 1412.6572, section 4, unnumbered).

It differs from these papers in that each sample has a loss and, with restarts, a best point of its own.
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


def check_images(images: Tensor, low: float, high: float) -> None:
    """Refuse what has no gradient, is no batch, or lies outside the range by more than rounding.

    Example:
        >>> check_images(torch.full((1, 1, 2, 2), 255.0), 0, 1)
        Traceback (most recent call last):
        ValueError: Expected `images` to be in [0, 1], the pixel range, but got values from 255 to 255.
        Hand in raw images, or say how these are normalized: `pixels=PixelRange(mean=..., std=...)`.
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
        hint = "Hand in raw images, or say how these are normalized: `pixels=PixelRange(mean=..., std=...)`."
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
    """Catch a radius or a step in gray levels; a length of the whole change may well be above 1.

    Example:
        >>> check_radius(3.0, "l2")
        >>> check_radius(8, "linf")
        Traceback (most recent call last):
        ValueError: Expected `epsilon` to be in (0, 1], the range of the images, but got 8.
        For a budget of 8 gray levels write `epsilon=8 / 255`.
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

    Only the gradient with respect to the images is computed, and no `.grad` is written; it works under `torch.no_grad`.
    The images are kept and moved in float32 at least, also where `loss` runs under autocast.

    Args:
        images: `(B, ...)`, floating point, in `[low, high]`; left as they are.
        loss: maps images like these to one loss each, `(B,)`, differentiable. It is maximized: for a targeted attack
            hand in the negative.
        epsilon: the radius in units of the images, at least 0; `(B,)` for one an image.
        steps: how many gradients are taken, at least 0; with none, the start comes back.
        step_size: the length of a step in the norm, one or `(B,)`; 2.5 ε / steps where it is `None`.
        norm: the ball: `"linf"` bounds the change of each pixel, `"l2"` the length of the whole change.
        random_start: start at a point drawn uniformly from the ball, then clamped to the range; else at the images.
        restarts: how many random starts are tried; for each image the point with the largest loss is kept.
        low: the lower end of the pixel range.
        high: the upper end.
        mask: where pixels may move; bool or 0 and 1, broadcastable to the images.
        parameters_frozen: whether nothing but the images has a gradient in `loss`; say so for a model under reentrant
            gradient checkpointing, which gives a gradient to all or to none.
        part: a rank, and how many there are: from generators that are in one state, ranks draw the starts that one
            rank would draw for their samples in turns, as a distributed sampler deals them out.
        generator: draws the starts; `None` is a fixed seed: pass one in a loop, or all its batches start alike.

    Returns:
        `(B, ...)`, detached, of the dtype of `images`, in `[low, high]` and the ball, up to rounding to that dtype.

    Raises:
        FloatingPointError: where a gradient is NaN or infinite.
        RuntimeError: under `torch.inference_mode`, in which nothing has a gradient.
        ValueError: where an argument is out of its range or shape, or `loss` gives no gradient for each image.

    Example:
        >>> weights = torch.tensor([1.0, -2.0, 0.0])
        >>> images = torch.tensor([[0.5, 0.5, 0.5], [0.9, 0.1, 0.5]])
        >>> perturb(images, lambda x: x @ weights, epsilon=0.25, steps=1, step_size=0.25, random_start=False)
        tensor([[0.7500, 0.2500, 0.5000],
                [1.0000, 0.0000, 0.5000]])
    """
    check_images(images, low, high)
    check_counts(norm, steps, restarts, random_start)
    precise = images.detach().to(torch.promote_types(images.dtype, torch.float32)).clamp(low, high)
    radius = one_or_each("epsilon", epsilon, precise)
    length = 2.5 * radius / max(1, steps) if step_size is None else one_or_each("step_size", step_size, precise)
    movable = None if mask is None else as_movable(mask, precise)
    ball = (LinfBall if norm == "linf" else L2Ball)(precise, radius, length, (low, high), movable)
    losses = SampleLosses(loss, images, parameters_frozen=parameters_frozen)
    draws = torch.Generator().manual_seed(0) if generator is None else generator

    def attempt() -> Tensor:
        return _ascend(ball, losses, ball.start(draws, part) if random_start else precise, steps)

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
    """Do what `perturb` does to inputs that a data set has normalized.

    Args:
        inputs: `(B, ...)`, as the model takes them; `loss` is asked about inputs like these.
        loss: as for `perturb`.
        epsilon: the radius in units of the raw [0, 1] image, whatever the normalization; `(B,)` for one an image.
        steps: as for `perturb`.
        step_size: in the same units as the radius.
        norm: of the raw image.
        random_start: as for `perturb`.
        restarts: as for `perturb`.
        pixels: how the inputs are normalized; raw [0, 1] images where it is `None`. Its grid is left alone.
        mask: as for `perturb`.
        parameters_frozen: as for `perturb`.
        part: as for `perturb`.
        generator: as for `perturb`.

    Returns:
        `(B, ...)`, as the model takes them, detached.

    Raises:
        FloatingPointError: as `perturb`.
        RuntimeError: as `perturb`.
        ValueError: as `perturb`.

    Example:
        >>> pixels = PixelRange(mean=(0.5,), std=(0.25,))
        >>> perturb_samples(torch.zeros(1, 1, 1, 2), lambda x: x.sum((1, 2, 3)), epsilon=0.1, steps=2, pixels=pixels)
        tensor([[[[0.4000, 0.4000]]]])
    """
    check_radius(epsilon, norm)
    domain = PixelRange() if pixels is None else pixels
    found = perturb(
        as_raw(inputs, domain),
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
    return domain.from_raw(found).to(inputs.dtype)


def _ascend(ball: LinfBall | L2Ball, losses: SampleLosses, points: Tensor, steps: int) -> Tensor:
    extremes = []  # looked at once, in the end: each look at a step would make a GPU wait
    for _ in range(steps):
        gradient = losses.gradient(points)
        extremes.append(torch.stack(gradient.aminmax()))
        points = ball.step(points, gradient)
    if steps and not bool((finite := torch.stack(extremes).isfinite().all(1)).all()):
        step = int((~finite).nonzero()[0]) + 1
        raise FloatingPointError(
            f"Expected a finite gradient of the loss, but got NaN or infinity at step {step} of {steps}.\n"
            "Look in the model and the loss for a logarithm of 0, a division by 0, or an overflow of float16."
        )
    return points


def as_raw(images: Tensor, pixels: PixelRange) -> Tensor:
    """Undo a normalization in float32 at least; what rounding alone has put outside the range is put back.

    Args:
        images: `(B, ..., C, H, W)`, as the model takes them.
        pixels: how they are normalized.

    Returns:
        The raw images; what has no normalization comes back as it is.

    Example:
        >>> as_raw(torch.tensor([[[[2.0]]]]), PixelRange(mean=(0.5,), std=(0.25,)))
        tensor([[[[1.]]]])
    """
    if pixels.mean is None or not images.is_floating_point():
        return images
    raw = pixels.to_raw(images.detach().to(torch.promote_types(images.dtype, torch.float32)))
    inside = raw.clamp(0, 1)
    return torch.where((raw - inside).abs() <= 4 * torch.finfo(images.dtype).eps, inside, raw)


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
    """Change images so that a model misreads them, or reads them as the labels given.

    The model runs in evaluation mode with its parameters frozen, and is given back as it was, after errors too.

    Args:
        model: maps a batch to logits `(B, C)`, on the device of the images.
        images: `(B, ...)`, as the model takes them.
        labels: int64 `(B,)`, the true ones; the wanted ones where `targeted`.
        epsilon: the radius in units of the raw [0, 1] image, whatever the normalization; `(B,)` for one an image.
        steps: as for `perturb`.
        step_size: in the same units.
        norm: of the raw image.
        targeted: lower the loss of `labels`, and not raise it.
        loss: maps logits `(B, C)` and labels `(B,)` to losses `(B,)`; cross-entropy where it is `None`.
        random_start: as for `perturb`.
        restarts: as for `perturb`.
        pixels: how the model's inputs are normalized; raw [0, 1] images where it is `None`. Its grid is left alone.
        mask: as for `perturb`.
        generator: as for `perturb`.

    Returns:
        `(B, ...)`, as the model takes them, detached.

    Raises:
        FloatingPointError: as `perturb`.
        RuntimeError: as `perturb`.
        ValueError: as `perturb`, and where labels and logits do not fit the images.

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


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.ndim != 2 or len(logits) != len(labels):
        what = f"a model that returns logits ({len(labels)}, C)"
        raise ValueError(checks.expected("model", what, checks.describe(logits)))
    return F.cross_entropy(logits, labels, reduction="none")
