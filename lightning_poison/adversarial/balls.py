"""The L∞ and the L2 ball around images, within a pixel range: random starts, and steps that stay inside.

Both project onto the ball first and then onto the range. If the center is in the range, the second projection only
shortens the change, and the point stays in the ball.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Range = tuple[float, float]


class LinfBall:
    """All images whose pixels differ from those of the center by at most a radius.

    Args:
        center: Images `(B, ...)` in the range.
        radius: Radius in units of the images, a number or broadcastable to them.
        length: Length of a step in each pixel, a number or broadcastable to the images.
        limits: Lowest and highest value of a pixel.
        movable: Mask of the pixels that may change, bool `(B, ...)`. `None` for all.

    Example:
        >>> ball = LinfBall(torch.tensor([[0.5, 0.9]]), 0.25, 0.25, (0.0, 1.0), None)
        >>> ball.step(torch.tensor([[0.5, 0.9]]), torch.tensor([[-3.0, 0.1]]))
        tensor([[0.2500, 1.0000]])
    """

    def __init__(
        self, center: Tensor, radius: float | Tensor, length: float | Tensor, limits: Range, movable: Tensor | None
    ) -> None:
        self._center, self._radius, self._length = center, radius, length
        lowest, highest = (center - radius).clamp_(min=limits[0]), (center + radius).clamp_(max=limits[1])
        self._lowest = lowest if movable is None else torch.where(movable, lowest, center)
        self._highest = highest if movable is None else torch.where(movable, highest, center)

    def start(self, generator: torch.Generator, part: tuple[int, int] = (0, 1)) -> Tensor:
        """Draw points uniformly from the ball and clamp them to the range. For `part` see `perturb`."""
        drawn = _match_layout(_draw(torch.rand, self._center.shape, self._center, generator, part), self._center)
        return self._project_(drawn.mul(2).sub_(1).mul_(self._radius).add_(self._center))

    def step(self, points: Tensor, gradient: Tensor) -> Tensor:
        """Move each pixel by one step length along the sign of the gradient."""
        moved = torch.sign(gradient, out=torch.empty_like(points))
        return self._project_(moved.mul_(self._length).add_(points))

    def _project_(self, points: Tensor) -> Tensor:
        """Project new points in place: large temporaries cost more than arithmetic."""
        return points.clamp_(self._lowest, self._highest)


class L2Ball:
    """All images whose change from the center is at most as long as a radius.

    Args:
        center: Images `(B, ...)` in the range.
        radius: Radius in units of the images, a number or broadcastable to them.
        length: Length of a step, a number or broadcastable to the images.
        limits: Lowest and highest value of a pixel.
        movable: Mask of the pixels that may change, bool `(B, ...)`. `None` for all.

    Example:
        >>> ball = L2Ball(torch.tensor([[0.5, 0.5]]), 0.25, 1.0, (0.0, 1.0), None)
        >>> ball.step(torch.tensor([[0.5, 0.5]]), torch.tensor([[3.0, -4.0]]))
        tensor([[0.6500, 0.3000]])
    """

    def __init__(
        self, center: Tensor, radius: float | Tensor, length: float | Tensor, limits: Range, movable: Tensor | None
    ) -> None:
        self._center, self._radius, self._length, self._limits = center, radius, length, limits
        self._movable = None if movable is None else movable.to(center.dtype)

    def start(self, generator: torch.Generator, part: tuple[int, int] = (0, 1)) -> Tensor:
        """Draw points uniformly from the ball of the movable pixels' dimension, and clamp them to the range."""
        center = self._center
        movable = torch.ones_like(center) if self._movable is None else self._movable
        dimensions = movable.flatten(1).sum(1).clamp_min(1)
        directions = _match_layout(_draw(torch.randn, center.shape, center, generator, part), center)
        shares = _draw(torch.rand, center.shape[:1], center, generator, part)
        lengths = self._radius * _per_image(shares.to(center.device) ** (1 / dimensions), center)
        return self._project(center + lengths * self._unit(directions))

    def step(self, points: Tensor, gradient: Tensor) -> Tensor:
        """Move by one step length along the gradient of the movable pixels."""
        return self._project(points + self._length * self._unit(gradient))

    def _unit(self, vectors: Tensor) -> Tensor:
        """Return the movable part scaled to length 1, or 0 if it is 0. Gradients of 1e-30 do not vanish."""
        movable = vectors if self._movable is None else vectors * self._movable
        scaled = movable / _per_image(movable.abs().flatten(1).amax(1), movable)
        return scaled / _per_image(torch.linalg.vector_norm(scaled.flatten(1), dim=1), scaled)

    def _project(self, points: Tensor) -> Tensor:
        change = points - self._center
        norms = _per_image(torch.linalg.vector_norm(change.flatten(1), dim=1), change)
        return (self._center + change * (self._radius / norms).clamp(max=1)).clamp(*self._limits)


def _draw(
    draw: Callable[..., Tensor], shape: torch.Size, like: Tensor, generator: torch.Generator, part: tuple[int, int]
) -> Tensor:
    """Draw for the interleaved batches of all ranks, and return the share of this rank."""
    rank, ranks = part
    return draw((shape[0] * ranks, *shape[1:]), generator=generator, dtype=like.dtype, device=generator.device)[
        rank::ranks
    ]


def _match_layout(drawn: Tensor, like: Tensor) -> Tensor:
    """Return the same numbers on the device and in the memory format of the images, such as channels last."""
    same = drawn.device == like.device and drawn.stride() == like.stride()
    return drawn if same else torch.empty_like(like).copy_(drawn)


def _per_image(values: Tensor, images: Tensor) -> Tensor:
    """Return `(B,)` as a positive divisor that broadcasts to the images."""
    return values.clamp_min(torch.finfo(values.dtype).tiny).view(-1, *[1] * (images.ndim - 1))
