"""Per-class p-values and thresholds of suspicion scores, calibrated on held-out trusted samples.

All functions share one tail model per class, so a score exceeds its class's threshold exactly if its p-value is at
most the stated false-positive rate.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_poison.statistics.arguments import check_fraction, check_integer, check_label_vector, describe, invalid

_ANCHOR_RANK = 5
"""Rank of the largest reference score at which the tail starts: the highest with a handful of samples above it."""

_TAIL_SHARE, _TAIL_MINIMUM = 0.1, 10
"""The tail's scale is estimated on the upper tenth of a class's reference scores, and on at least ten of them."""


def tail_p_values(
    scores: Tensor, labels: Tensor, reference_scores: Tensor, reference_labels: Tensor, *, num_classes: int
) -> Tensor:
    """Compute how rarely a trusted sample of the same class is at least as suspicious.

    With `n` reference scores in the class, `e` of which are at or above the score, the p-value is the conformal
    `(e + 1) / (n + 1)` (Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World*, 2005, eq. 2.20; ties
    count against suspicion). Above the fifth largest reference score, or a higher one if the class has fewer than 100,
    it continues as `k / (n + 1) * exp(-(score - u) / scale)`, where `u` is the `k`-th largest reference score. The
    scale is the mean excess over the upper 10 % quantile, increased if necessary so that the tail never falls below
    that of the reference scores. Scores beyond all reference scores therefore still differ, whereas a plain conformal
    p-value is `1 / (n + 1)` for all of them. The extrapolation gives a ranking and the right order of magnitude, but no
    guarantee: if the true tail is heavier than exponential, p-values far below `1 / n` are too small.

    Args:
        scores: Suspicion scores, larger is more suspicious, `(N,)`. May be infinite, but not NaN.
        labels: Labels of these samples, in `[0, num_classes)`, `(N,)`.
        reference_scores: Finite scores of held-out trusted samples, on which the scorer was not fitted, `(M,)`.
        reference_labels: Labels of the trusted samples, `(M,)`. Every class must occur.
        num_classes: Number of classes.

    Returns:
        P-values in (0, 1], float64 `(N,)`. Above `u` they decrease strictly, down to the smallest normal number. If the
        upper tenth of a class's reference scores are all equal, there is no scale to extrapolate with, and all higher
        scores get `1 / (n + 1)`.

    Raises:
        ValueError: If shapes disagree, a label is out of range, a score is NaN, or a class has no reference score.

    Example:
        >>> reference = torch.arange(99.0)
        >>> class_0 = torch.zeros(99, dtype=torch.int64)
        >>> scores = torch.tensor([-1.0, 50.0, 98.0, 110.0, 120.0])
        >>> p = tail_p_values(scores, class_0[:5], reference, class_0, num_classes=1)
        >>> [f"{value:.2g}" for value in p.tolist()]
        ['1', '0.5', '0.023', '0.0026', '0.00042']
    """
    return _per_class(_Tail.p_values, scores, labels, reference_scores, reference_labels, num_classes)


def tail_log_p_values(
    scores: Tensor, labels: Tensor, reference_scores: Tensor, reference_labels: Tensor, *, num_classes: int
) -> Tensor:
    """Compute the natural logarithms of `tail_p_values`, which documents the arguments and errors.

    Far in the tail the p-values underflow, but their logarithms still differ.

    Returns:
        Log p-values, float64 `(N,)`, at most 0.

    Example:
        >>> reference, class_0 = torch.arange(99.0), torch.zeros(99, dtype=torch.int64)
        >>> scores = torch.tensor([50.0, 1e5, 2e5])
        >>> log_p = tail_log_p_values(scores, class_0[:3], reference, class_0, num_classes=1)
        >>> round(float(log_p[0].exp()), 3), bool(log_p[2] < log_p[1])
        (0.5, True)
    """
    return _per_class(_Tail.log_p_values, scores, labels, reference_scores, reference_labels, num_classes)


def class_thresholds(
    reference_scores: Tensor, reference_labels: Tensor, *, false_positive_rate: float = 0.01, num_classes: int
) -> Tensor:
    """Compute, for each class, the score above which a sample is suspicious.

    `score > threshold` is equivalent to `tail_p_values(score) <= false_positive_rate`. In the extrapolated tail, where
    both are computed with logarithms, this holds up to floating-point rounding.

    Args:
        reference_scores: Finite scores of held-out trusted samples, on which the scorer was not fitted, `(M,)`. About
            500 per class are enough for a rate of 1 %.
        reference_labels: Labels of the trusted samples, in `[0, num_classes)`, `(M,)`. Every class must occur.
        false_positive_rate: Accepted share of clean samples above the threshold, in (0, 1). Default: 0.01.
        num_classes: Number of classes.

    Returns:
        Thresholds, float64 `(C,)`. Infinite if the upper reference scores of a class are all equal and too few to
        support the rate.

    Raises:
        ValueError: If `false_positive_rate` is outside (0, 1), shapes disagree, a label is out of range, a score is not
            finite, or a class has no reference score.

    Example:
        >>> reference, class_0 = torch.arange(99.0), torch.zeros(99, dtype=torch.int64)
        >>> class_thresholds(reference, class_0, false_positive_rate=0.1, num_classes=1)
        tensor([89.], dtype=torch.float64)
    """
    check_fraction("false_positive_rate", false_positive_rate)
    tails = _fit_tails(reference_scores, reference_labels, num_classes)
    thresholds = [tail.threshold(false_positive_rate) for tail in tails]
    return torch.tensor(thresholds, dtype=torch.float64, device=reference_scores.device)


@dataclass(frozen=True)
class TrustedReference:
    """Trusted samples of the classes that occur in a set, with these classes numbered from 0.

    Args:
        classes: Class numbers, ascending, int64 `(C,)`.
        labels: Labels of the set, as positions in `classes`, int64 `(N,)`.
        reference_scores: Scores of the trusted samples of these classes, float64 `(M,)`.
        reference_labels: Their labels, as positions in `classes`, int64 `(M,)`.
    """

    classes: Tensor
    labels: Tensor
    reference_scores: Tensor
    reference_labels: Tensor

    @classmethod
    def select(cls, labels: Tensor, trusted_scores: Tensor, trusted_labels: Tensor) -> "TrustedReference":
        """Select the trusted samples of the classes that occur in `labels`."""
        classes, positions = torch.unique(labels, return_inverse=True)
        chosen = torch.isin(trusted_labels, classes)
        return cls(classes, positions, trusted_scores[chosen], torch.searchsorted(classes, trusted_labels[chosen]))


def log_p_by_trusted(scores: Tensor, labels: Tensor, trusted_scores: Tensor, trusted_labels: Tensor) -> Tensor:
    """Compute `tail_log_p_values` with trusted samples as the reference. Labels may have gaps.

    Args:
        scores: Suspicion scores, float64 `(N,)`.
        labels: Labels, int64 `(N,)`.
        trusted_scores: Scores of trusted samples on which the scorer was not fitted, float64 `(M,)`.
        trusted_labels: Labels of the trusted samples, int64 `(M,)`. Every class of `labels` must occur.

    Returns:
        Log p-values, float64 `(N,)`.

    Example:
        >>> trusted, labels = torch.arange(199).double(), torch.zeros(199, dtype=torch.int64)
        >>> log_p_by_trusted(torch.tensor([99.5, 400.0]).double(), labels[:2], trusted, labels).exp()[0]
        tensor(0.5000, dtype=torch.float64)
    """
    known = TrustedReference.select(labels, trusted_scores, trusted_labels)
    return tail_log_p_values(
        scores, known.labels, known.reference_scores, known.reference_labels, num_classes=len(known.classes)
    )


@dataclass(frozen=True)
class _Tail:
    """Tail model of one class: sorted reference scores, and an exponential above the `rank`-th largest of them."""

    ascending: Tensor
    rank: int
    scale: float

    @classmethod
    def fit(cls, scores: Tensor) -> "_Tail":
        ascending = scores.sort().values
        size = len(ascending)
        rank = min(_ANCHOR_RANK, max(1, size // 20))
        upper = min(size, max(_TAIL_MINIMUM, math.ceil(_TAIL_SHARE * size)))
        mean_excess = (ascending[-upper:] - ascending[max(0, size - upper - 1)]).mean()
        ranks = torch.arange(rank - 1, 0, -1, dtype=torch.float64, device=scores.device)
        envelope = (ascending[size - rank + 1 :] - ascending[-rank]) / (rank / ranks).log()
        return cls(ascending, rank, float(torch.cat([mean_excess[None], envelope]).max()))

    @property
    def start(self) -> float:
        return float(self.ascending[-self.rank])

    def p_values(self, scores: Tensor) -> Tensor:
        empirical = self._empirical(scores)
        if self.scale == 0:
            return empirical
        extrapolated = self.rank / (len(self.ascending) + 1) * torch.exp(-(scores - self.start) / self.scale)
        smallest = torch.finfo(torch.float64).tiny
        return torch.where(scores > self.start, extrapolated.clamp_min(smallest), empirical)

    def log_p_values(self, scores: Tensor) -> Tensor:
        empirical = self._empirical(scores).log()
        if self.scale == 0:
            return empirical
        extrapolated = math.log(self.rank / (len(self.ascending) + 1)) - (scores - self.start) / self.scale
        return torch.where(scores > self.start, extrapolated, empirical)

    def threshold(self, rate: float) -> float:
        size = len(self.ascending)
        steps = torch.arange(1, size + 1, device=self.ascending.device).double() / (size + 1)
        allowed = int((steps <= rate).sum())
        if allowed >= self.rank or (self.scale == 0 and allowed):
            return float(self.ascending[-allowed])
        if self.scale == 0:
            return math.inf
        return self.start + self.scale * math.log(self.rank / (size + 1) / rate)

    def _empirical(self, scores: Tensor) -> Tensor:
        size = len(self.ascending)
        exceeding = size - torch.searchsorted(self.ascending, scores.contiguous(), right=False)
        return (exceeding + 1).double() / (size + 1)


def _per_class(
    evaluate: Callable[[_Tail, Tensor], Tensor],
    scores: Tensor,
    labels: Tensor,
    reference_scores: Tensor,
    reference_labels: Tensor,
    num_classes: int,
) -> Tensor:
    """Evaluate the tail of each class on the scores of its samples."""
    _check_scores("scores", scores, "labels", labels, num_classes)
    values = torch.empty(len(scores), dtype=torch.float64, device=scores.device)
    for label, tail in enumerate(_fit_tails(reference_scores, reference_labels, num_classes)):
        members = labels == label
        values[members] = evaluate(tail, scores[members].double())
    return values


def _fit_tails(scores: Tensor, labels: Tensor, num_classes: int) -> list[_Tail]:
    _check_scores("reference_scores", scores, "reference_labels", labels, num_classes)
    if not scores.isfinite().all():
        raise invalid("reference_scores", "finite", "infinite values")
    counts = torch.bincount(labels, minlength=num_classes)
    if (counts == 0).any():
        absent = ", ".join(map(str, (counts == 0).nonzero().flatten().tolist()))
        raise ValueError(
            f"Expected `reference_labels` to contain each of the {num_classes} classes, but got none of class "
            f"{absent}.\nAdd trusted samples of it, or remove the class from the samples to score."
        )
    return [_Tail.fit(scores[labels == label].double()) for label in range(num_classes)]


def _check_scores(scores_name: str, scores: Tensor, labels_name: str, labels: Tensor, num_classes: int) -> None:
    check_integer("num_classes", num_classes)
    check_label_vector(labels_name, labels)
    if scores.shape != labels.shape or not scores.is_floating_point():
        what = f"floating-point, of the shape of `{labels_name}`, {tuple(labels.shape)}"
        raise invalid(scores_name, what, describe(scores))
    if scores.isnan().any():
        hint = "Check the inputs and the model of the scorer for NaN."
        raise invalid(scores_name, "free of NaN", f"{int(scores.isnan().sum())} NaN values", hint)
    check_label_vector(labels_name, labels, num_classes=num_classes)
