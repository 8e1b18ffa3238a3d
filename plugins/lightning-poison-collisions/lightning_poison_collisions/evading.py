"""Feature distances with a price for being noticed, and the way back to what passes."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor

from lightning_poison import PixelRange
from lightning_poison_collisions.distance import Distance
from lightning_poison_collisions.known_scorers import KnownScorer

Penalty = Literal["hinge", "soft"]

_HALVINGS = 12


class EvadingDistance:
    """A feature distance, plus what each known scorer makes of the image.

    With `e` the excess of a score over its threshold, in units of the spread of clean scores, `"hinge"` adds
    w · max(0, e + slack) for each scorer, and nothing below the threshold; `"soft"` adds w · e, and goes on rewarding
    an image that passes already.

    Args:
        distance: the feature term.
        defenses: the scorers that the attacker knows.
        labels: int64 `(P,)`, the labels that the poison carries.
        pixels: how samples are normalized.
        penalty: `"hinge"` or `"soft"`.
        weight: w, above 0.
        slack: how far below the threshold the hinge begins, in the same unit.

    Example:
        >>> from lightning_poison_collisions.distance import FeatureDistance
        >>> class Brightness:
        ...     name, is_control, is_fitted = "brightness", False, True
        ...     def score_batch(self, inputs, labels):
        ...         return inputs.flatten(1).mean(1)
        >>> known = KnownScorer(Brightness(), torch.tensor([0.5]), torch.tensor([0.1]))
        >>> distance = FeatureDistance([lambda images: images], torch.zeros(2, 3), torch.ones(2, 3))
        >>> evading = EvadingDistance(distance, [known], torch.zeros(2).long(), PixelRange(), weight=2.0, slack=0.0)
        >>> evading(torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
        tensor([ 1., 10.])
    """

    def __init__(
        self,
        distance: Distance,
        defenses: Sequence[KnownScorer],
        labels: Tensor,
        pixels: PixelRange,
        *,
        penalty: Penalty = "hinge",
        weight: float,
        slack: float,
    ) -> None:
        self._distance, self._labels = distance, labels
        self._defenses, self._pixels = tuple(defenses), pixels
        self._penalty, self._weight, self._slack = penalty, weight, slack

    def __call__(self, images: Tensor) -> Tensor:
        """Return the values `(P,)` of raw images `(P, ...)`, differentiable in them."""
        samples = self._pixels.from_raw(images)
        total = self._distance(images)
        for defense in self._defenses:
            excess = defense.excess(samples, self._labels).to(total.device)
            charged = excess if self._penalty == "soft" else (excess + self._slack).relu()
            total = total + self._weight * charged
        return total


def retreat(bases: Tensor, images: Tensor, passes: Callable[[Tensor], Tensor]) -> Tensor:
    """Pull images that are noticed back toward their bases until they pass; those that never do stay as they are.

    On the line from base to image the point is searched by halving. Where passing is not monotone along the line the
    point found still passes, but may not be the farthest.

    Args:
        bases: `(P, ...)`, raw images.
        images: `(P, ...)`, raw images.
        passes: maps raw images to whether each passes, bool `(P,)`.

    Returns:
        `(P, ...)`.

    Example:
        >>> moved = retreat(torch.zeros(2, 1), torch.tensor([[0.4], [1.0]]), lambda images: images[:, 0] <= 0.5)
        >>> moved.round(decimals=2)
        tensor([[0.4000],
                [0.5000]])
    """
    broad = (-1, *[1] * (images.ndim - 1))
    noticed = ~passes(images)
    low, high = torch.zeros(len(images), device=images.device), torch.ones(len(images), device=images.device)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        fine = passes(torch.lerp(bases, images, middle.view(broad)))
        low, high = torch.where(fine, middle, low), torch.where(fine, high, middle)
    pulled = torch.lerp(bases, images, low.view(broad))
    helped = (noticed & passes(pulled)).view(broad)
    return torch.where(helped, pulled, images)
