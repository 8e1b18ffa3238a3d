"""`KnownScorer`: a fitted scorer and its decision thresholds, known to the attacker."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import PixelRange
from lightning_poison.checks import describe, expected, fraction, instance
from lightning_poison.data import SanitizedDataset, labels_of
from lightning_poison.runtime import Runtime
from lightning_poison.sanitization import score_samples
from lightning_poison.scorers import Scorer
from lightning_poison.statistics import class_thresholds

_HELD_OUT = 0.3
"""Share of the samples of the attacker on which a copy of a scorer is calibrated, as a defender does."""


@dataclass(frozen=True, eq=False)
class KnownScorer:
    """A fitted scorer and its thresholds, known to the attacker.

    Args:
        scorer: Fitted scorer whose scores are differentiable with respect to the inputs.
        thresholds: Decision threshold of each class, finite, `(C,)`. A sample passes if its score is at most the
            threshold of its class.
        scales: Unit of the scores of each class, above 0, `(C,)`: the spread of clean scores.

    Raises:
        TypeError: If `scorer` is not a scorer of single samples.
        ValueError: If thresholds and scales are not vectors of one length, or out of range.

    Example:
        >>> from lightning_poison import LikelihoodScorer
        >>> KnownScorer(LikelihoodScorer(), torch.tensor([3.0, 4.0]), torch.ones(2))
        KnownScorer('likelihood', 2 classes)
    """

    scorer: Scorer
    thresholds: Tensor
    scales: Tensor

    def __post_init__(self) -> None:
        instance("scorer", self.scorer, Scorer, hint="For a `CombinedScorer`, create one of each member.")
        if self.thresholds.ndim != 1 or not torch.isfinite(self.thresholds).all():
            raise ValueError(expected("thresholds", "a finite vector (C,)", describe(self.thresholds)))
        if self.scales.shape != self.thresholds.shape or not bool((self.scales > 0).all()):
            what = f"above 0 and of shape {tuple(self.thresholds.shape)}, like `thresholds`"
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
        """Calibrate a fitted scorer as a defender does, on known-clean samples that were not used for the fit.

        The unit of a class is the distance between the median and the 95 % quantile of its scores.

        Args:
            scorer: Fitted scorer.
            clean: Map-style data set with samples of every class, numbered without gaps.
            false_positive_rate: False positive rate of the defender, in (0, 1).
            runtime: Where to compute. Default: `LocalRuntime()`, the CPU.

        Raises:
            NotFittedError: If the scorer is not fitted.
            TypeError: If the scorer scores whole sets.
            ValueError: If a class is absent, or the rate is out of range.
        """
        fraction("false_positive_rate", false_positive_rate)
        scores, labels = score_samples(scorer, clean, runtime=runtime), labels_of(clean)
        classes = int(labels.max()) + 1
        thresholds = class_thresholds(scores, labels, false_positive_rate=false_positive_rate, num_classes=classes)
        quantiles = [scores[labels == number].quantile(torch.tensor([0.5, 0.95]).double()) for number in range(classes)]
        scales = torch.stack([high - median for median, high in quantiles]).clamp(min=1e-6)
        return cls(scorer, thresholds.float(), scales.float())

    @classmethod
    def copy_of(
        cls,
        scorer: Scorer,
        clean: "Dataset[Any]",
        *,
        false_positive_rate: float = 0.01,
        runtime: Runtime | None = None,
        generator: torch.Generator | None = None,
    ) -> Self:
        """Fit a copy of an unfitted scorer on most of the samples of an attacker, and calibrate it on the others.

        Args:
            scorer: Scorer. It is not changed. One that is fitted is calibrated on all samples.
            clean: Map-style data set with samples of every class, numbered without gaps.
            false_positive_rate: False positive rate of the defender, in (0, 1).
            runtime: Where to compute. Default: `LocalRuntime()`, the CPU.
            generator: The only source of randomness. Default: a fixed seed.

        Raises:
            TypeError: If the scorer does not score single samples.
            ValueError: If a class has fewer than two samples, or the rate is out of range.
        """
        instance("scorer", scorer, Scorer, hint="An attacker has no gradient to follow. Leave it out.")
        calibrated: Dataset[Any] = clean
        if not scorer.is_fitted:
            generator = generator or torch.Generator().manual_seed(0)
            part = held_out_part(labels_of(clean), generator)
            calibrated = SanitizedDataset(clean, part)
            scorer = copy.deepcopy(scorer).fit(SanitizedDataset(clean, ~part), runtime=runtime, generator=generator)
        return cls.of(scorer, calibrated, false_positive_rate=false_positive_rate, runtime=runtime)

    def excess(self, samples: Tensor, labels: Tensor) -> Tensor:
        """Return by how much scores exceed the thresholds, in units of the scales of their classes, `(B,)`.

        Args:
            samples: Samples as a data set returns them, `(B, ...)`.
            labels: Labels, int64 `(B,)`.
        """
        scores = self.scorer.score_batch(samples, labels)
        thresholds, scales = (each.to(scores.device)[labels] for each in (self.thresholds, self.scales))
        return (scores - thresholds) / scales

    def settings(self) -> Mapping[str, Any]:
        """Return name, thresholds and scales as JSON values."""
        return {"scorer": self.scorer.name, "thresholds": self.thresholds.tolist(), "scales": self.scales.tolist()}


def held_out_part(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return a mask of 30 % of the samples of each class, at least one, bool `(N,)`.

    Args:
        labels: Labels, int64 `(N,)`.
        generator: The only source of randomness.

    Raises:
        ValueError: If a class has fewer than two samples.

    Example:
        >>> labels = torch.tensor([0] * 10 + [1] * 3)
        >>> labels[held_out_part(labels, torch.Generator().manual_seed(0))]
        tensor([0, 0, 0, 1])
    """
    mask = torch.zeros(len(labels), dtype=torch.bool)
    for label in sorted(set(labels.tolist())):
        members = (labels == label).nonzero().flatten()
        if len(members) < 2:
            raise ValueError(expected("clean", "at least two samples of each class", f"one of class {label}"))
        chosen = torch.randperm(len(members), generator=generator)[: max(1, round(_HELD_OUT * len(members)))]
        mask[members[chosen]] = True
    return mask


def worst_excess(defenses: Sequence[KnownScorer], images: Tensor, labels: Tensor, pixels: PixelRange) -> Tensor:
    """Return the largest excess of raw images over the thresholds of several scorers, `(B,)`; they pass at ≤ 0.

    Args:
        defenses: At least one scorer.
        images: Raw images in [0, 1], `(B, ...)`.
        labels: Labels, int64 `(B,)`.
        pixels: Normalization of the samples.
    """
    samples = pixels.from_raw(images)
    return torch.stack([defense.excess(samples, labels).to(images.device) for defense in defenses]).amax(0)


def check_differentiable(defenses: Sequence[KnownScorer], images: Tensor, labels: Tensor, pixels: PixelRange) -> None:
    """Check that the scores of all scorers are differentiable with respect to the inputs.

    Raises:
        ValueError: If those of a scorer are not.
    """
    for defense in defenses:
        with torch.enable_grad():
            leaf = images[:1].detach().requires_grad_()
            scores = defense.scorer.score_batch(pixels.from_raw(leaf), labels[:1])
        if not scores.requires_grad:
            raise ValueError(
                "Expected scorers whose scores are differentiable with respect to the inputs, but those of "
                f"{defense.scorer.name} are not.\nAn attacker has no gradient to follow. Leave it out."
            )
