"""What an attacker who knows the defense has: a fitted scorer, and the cut in its score."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import CombinedScorer, PixelRange
from lightning_poison.checks import describe, expected, fraction
from lightning_poison.data import labels_of
from lightning_poison.runtime import Runtime
from lightning_poison.sanitization import score_dataset
from lightning_poison.scorers import Scorer
from lightning_poison.statistics import class_thresholds


@dataclass(frozen=True, eq=False)
class KnownScorer:
    """A fitted scorer and its thresholds, in the attacker's hands.

    Args:
        scorer: fitted; its scores are differentiable in the inputs.
        thresholds: `(C,)`, finite; a sample of class c passes whose score is at most the c-th.
        scales: `(C,)`, above 0, in what unit the scores of a class are counted: how far clean ones lie apart.

    Raises:
        ValueError: where thresholds and scales are not vectors of one length, or not in their ranges.

    Example:
        >>> from lightning_poison import LikelihoodScorer
        >>> KnownScorer(LikelihoodScorer(), torch.tensor([3.0, 4.0]), torch.ones(2))
        KnownScorer('likelihood', 2 classes)
    """

    scorer: Scorer
    thresholds: Tensor
    scales: Tensor

    def __post_init__(self) -> None:
        if self.thresholds.ndim != 1 or not torch.isfinite(self.thresholds).all():
            raise ValueError(expected("thresholds", "a finite vector (C,)", describe(self.thresholds)))
        if self.scales.shape != self.thresholds.shape or not bool((self.scales > 0).all()):
            what = f"above 0 and of shape {tuple(self.thresholds.shape)}, as `thresholds`"
            raise ValueError(expected("scales", what, describe(self.scales)))

    def __repr__(self) -> str:
        return f"KnownScorer({self.scorer.name!r}, {len(self.thresholds)} classes)"

    @classmethod
    def of(
        cls,
        scorer: Scorer,
        clean: "Dataset[Any]",
        *,
        false_positive_rate: float = 0.01,
        runtime: Runtime | None = None,
    ) -> Self:
        """Calibrate a fitted scorer as a defender does, on clean samples that it was not fitted on.

        The unit of a class is the distance of its median to its 95 % quantile.

        Args:
            scorer: fitted.
            clean: a map-style data set; every class must be in it, and no number of a class be left out.
            false_positive_rate: the defender's, in (0, 1).
            runtime: where to compute; this machine where it is `None`.

        Raises:
            NotFittedError: before a fit.
            TypeError: where the scorer must see the whole set.
            ValueError: where a class is absent, or the rate out of range.
        """
        fraction("false_positive_rate", false_positive_rate)
        scores, labels = score_dataset(scorer, clean, runtime=runtime), labels_of(clean)
        classes = int(labels.max()) + 1
        cuts = class_thresholds(scores, labels, false_positive_rate=false_positive_rate, num_classes=classes)
        spans = [scores[labels == number].quantile(torch.tensor([0.5, 0.95]).double()) for number in range(classes)]
        scales = torch.stack([high - middle for middle, high in spans]).clamp(min=1e-6)
        return cls(scorer, cuts.float(), scales.float())

    def excess(self, samples: Tensor, labels: Tensor) -> Tensor:
        """Return how far scores lie above their thresholds, in units of their classes' scales, `(B,)`.

        Args:
            samples: `(B, ...)`, as a data set returns them.
            labels: int64 `(B,)`.
        """
        scores = self.scorer.score_batch(samples, labels)
        cuts, scales = (each.to(scores.device)[labels] for each in (self.thresholds, self.scales))
        return (scores - cuts) / scales

    def settings(self) -> Mapping[str, Any]:
        """Return what the attacker knew, as JSON can hold it."""
        return {"scorer": self.scorer.name, "thresholds": self.thresholds.tolist(), "scales": self.scales.tolist()}


def worst_excess(defenses: Sequence[KnownScorer], images: Tensor, labels: Tensor, pixels: PixelRange) -> Tensor:
    """Return the largest excess of raw images over several scorers' thresholds, `(B,)`; where it is ≤ 0 they pass.

    Args:
        defenses: one at least.
        images: `(B, ...)`, raw images in [0, 1].
        labels: int64 `(B,)`.
        pixels: how samples are normalized.
    """
    samples = pixels.from_raw(images)
    return torch.stack([defense.excess(samples, labels).to(images.device) for defense in defenses]).amax(0)


def check_differentiable(defenses: Sequence[KnownScorer], images: Tensor, labels: Tensor, pixels: PixelRange) -> None:
    """Check that an attacker can follow the gradient of every score.

    Raises:
        ValueError: naming the scorer whose scores are not differentiable.
    """
    for defense in defenses:
        with torch.enable_grad():
            leaf = images[:1].detach().requires_grad_()
            scores = defense.scorer.score_batch(pixels.from_raw(leaf), labels[:1])
        if isinstance(defense.scorer, CombinedScorer) or not scores.requires_grad:
            hint = "List its members instead." if isinstance(defense.scorer, CombinedScorer) else "Leave it out."
            raise ValueError(
                f"Expected a scorer whose scores are differentiable in the inputs, but those of "
                f"{defense.scorer.name} are not.\nAn attacker cannot follow their gradient. {hint}"
            )
