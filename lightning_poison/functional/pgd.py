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
from torch import Tensor

from lightning_poison.functional.balls import L2Ball, LinfBall
from lightning_poison.functional.pgd_arguments import as_movable, check_counts, check_images, check_radius, one_or_each
from lightning_poison.functional.sample_losses import SampleLosses
from lightning_poison.pixels import PixelRange

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
    """Maximise a loss of each image within a ball around it.

    Only the gradient with respect to the images is computed, and no `.grad` is written; it works under `torch.no_grad`.
    The images are kept and moved in float32 at least, also where `loss` runs under autocast.

    Args:
        images: `(B, ...)`, floating point, in `[low, high]`; left as they are.
        loss: maps images like these to one loss each, `(B,)`, differentiable. It is maximised: for a targeted attack
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
    """Do what `perturb` does to inputs that a data set has normalised.

    Args:
        inputs: `(B, ...)`, as the model takes them; `loss` is asked about inputs like these.
        loss: as for `perturb`.
        epsilon: the radius in units of the raw [0, 1] image, whatever the normalisation; `(B,)` for one an image.
        steps: as for `perturb`.
        step_size: in the same units as the radius.
        norm: of the raw image.
        random_start: as for `perturb`.
        restarts: as for `perturb`.
        pixels: how the inputs are normalised; raw [0, 1] images where it is `None`. Its grid is left alone.
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
    """Undo a normalisation in float32 at least; what rounding alone has put outside the range is put back.

    Args:
        images: `(B, ..., C, H, W)`, as the model takes them.
        pixels: how they are normalised.

    Returns:
        The raw images; what has no normalisation comes back as it is.

    Example:
        >>> as_raw(torch.tensor([[[[2.0]]]]), PixelRange(mean=(0.5,), std=(0.25,)))
        tensor([[[[1.]]]])
    """
    if pixels.mean is None or not images.is_floating_point():
        return images
    raw = pixels.to_raw(images.detach().to(torch.promote_types(images.dtype, torch.float32)))
    inside = raw.clamp(0, 1)
    return torch.where((raw - inside).abs() <= 4 * torch.finfo(images.dtype).eps, inside, raw)
