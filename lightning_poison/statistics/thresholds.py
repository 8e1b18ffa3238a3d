"""Per-class p-values and thresholds of suspicion scores, calibrated on trusted samples that no scorer was fitted on.

All public functions read the same tail model of each class, so that a score lies above its class's threshold exactly
where its p-value is at most the stated false-positive rate.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_poison import checks

_ANCHOR_RANK = 5
"""The tail starts at the fifth largest reference score: the highest that still has a handful of samples behind it."""


_TAIL_SHARE = 0.1


_TAIL_MINIMUM = 10
"""The tail's scale is estimated on the upper tenth of a class's reference scores, on ten of them at least."""


def tail_p_values(
    scores: Tensor, labels: Tensor, reference_scores: Tensor, reference_labels: Tensor, *, num_classes: int
) -> Tensor:
    """Compute how rarely a trusted sample of the same class looks at least as suspicious.

    With `n` reference scores in the class and `e` of them at or above the score, the p-value is `(e + 1) / (n + 1)`,
    the conformal one (Vovk, Gammerman and Shafer, *Algorithmic Learning in a Random World*, 2005, eq. 2.20; ties count
    against suspicion). Above the fifth largest reference score (a higher one where the class has fewer than 100) it
    continues as `k / (n + 1) * exp(-(score - u) / scale)`, where `u` is the `k`-th largest reference score. The scale
    is the mean excess over the upper 10 % quantile, or as much more as it takes for the tail not to fall below the
    reference scores' own. So scores beyond all reference scores still differ, where a bare conformal p-value ties
    them at `1 / (n + 1)`. The extrapolation is a ranking with the right order of magnitude and no guarantee: where
    the true tail is heavier than exponential, p-values far below `1 / n` are too small.

    Args:
        scores: suspicion of the samples to judge, larger is more suspicious, `(N,)`; infinite is allowed, NaN is not.
        labels: their labels, in `[0, num_classes)`, `(N,)`.
        reference_scores: finite scores of held-out trusted samples, which the scorer was not fitted on, `(M,)`.
        reference_labels: their labels, `(M,)`.
        num_classes: the number of classes, each of which must occur in `reference_labels`.

    Returns:
        P-values in (0, 1], float64 `(N,)`. Above `u` they decrease strictly, down to the smallest normal number.
        Where the upper tenth of a class's reference scores are all equal there is no scale to continue with, and
        whatever lies above them gets `1 / (n + 1)`.

    Raises:
        ValueError: where shapes disagree, a label is out of range, a score is NaN, or a class has no reference score.

    Example:
        >>> reference = torch.arange(99.0)
        >>> of_class_0 = torch.zeros(99, dtype=torch.int64)
        >>> scores = torch.tensor([-1.0, 50.0, 98.0, 110.0, 120.0])
        >>> p = tail_p_values(scores, of_class_0[:5], reference, of_class_0, num_classes=1)
        >>> [f"{value:.2g}" for value in p.tolist()]
        ['1', '0.5', '0.023', '0.0026', '0.00042']
    """
    _check_scores("scores", scores, "labels", labels, num_classes)
    tails = _fit_tails(reference_scores, reference_labels, num_classes)
    p_values = torch.ones(len(scores), dtype=torch.float64, device=scores.device)
    for label, tail in enumerate(tails):
        of_class = labels == label
        p_values[of_class] = tail.p_values(scores[of_class].double())
    return p_values


def tail_log_p_values(
    scores: Tensor, labels: Tensor, reference_scores: Tensor, reference_labels: Tensor, *, num_classes: int
) -> Tensor:
    """Compute the natural logarithms of `tail_p_values`, which takes the same arguments and raises alike.

    Far in the tail p-values are too small for a number; their logarithms go on, so that scores still differ.

    Returns:
        float64 `(N,)`, at most 0.

    Example:
        >>> reference, of_class_0 = torch.arange(99.0), torch.zeros(99, dtype=torch.int64)
        >>> scores = torch.tensor([50.0, 1e5, 2e5])
        >>> log_p = tail_log_p_values(scores, of_class_0[:3], reference, of_class_0, num_classes=1)
        >>> round(float(log_p[0].exp()), 3), bool(log_p[2] < log_p[1])
        (0.5, True)
    """
    _check_scores("scores", scores, "labels", labels, num_classes)
    tails = _fit_tails(reference_scores, reference_labels, num_classes)
    log_p = torch.zeros(len(scores), dtype=torch.float64, device=scores.device)
    for label, tail in enumerate(tails):
        of_class = labels == label
        log_p[of_class] = tail.log_p_values(scores[of_class].double())
    return log_p


def class_thresholds(
    reference_scores: Tensor, reference_labels: Tensor, *, false_positive_rate: float = 0.01, num_classes: int
) -> Tensor:
    """Find for each class the score above which a sample is called suspicious.

    `score > threshold` holds exactly where `tail_p_values(score) <= false_positive_rate`; in the extrapolated tail,
    where both are computed with logarithms, up to floating-point rounding.

    Args:
        reference_scores: finite scores of held-out trusted samples, which the scorer was not fitted on, `(M,)`; some
            500 a class hold a rate of 1 % well.
        reference_labels: their labels, in `[0, num_classes)`, `(M,)`.
        false_positive_rate: the share of clean samples, in (0, 1), that may be called suspicious.
        num_classes: the number of classes, each of which must occur in `reference_labels`.

    Returns:
        Thresholds, float64 `(C,)`; infinite where all upper reference scores of a class are equal and too few to
        support the rate.

    Raises:
        ValueError: where `false_positive_rate` is outside (0, 1), shapes disagree, a label is out of range, a score
            is not finite, or a class has no reference score.

    Example:
        >>> reference, of_class_0 = torch.arange(99.0), torch.zeros(99, dtype=torch.int64)
        >>> class_thresholds(reference, of_class_0, false_positive_rate=0.1, num_classes=1)
        tensor([89.], dtype=torch.float64)
    """
    rate = checks.fraction("false_positive_rate", false_positive_rate)
    tails = _fit_tails(reference_scores, reference_labels, num_classes)
    thresholds = [tail.threshold(rate) for tail in tails]
    return torch.tensor(thresholds, dtype=torch.float64, device=reference_scores.device)


@dataclass(frozen=True)
class _Tail:
    """One class: its reference scores in ascending order, and the exponential above the `rank`-th largest of them."""

    ascending: Tensor
    rank: int
    scale: float

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

    def _empirical(self, scores: Tensor) -> Tensor:
        size = len(self.ascending)
        exceeding = size - torch.searchsorted(self.ascending, scores.contiguous(), right=False)
        return (exceeding + 1).double() / (size + 1)

    def threshold(self, rate: float) -> float:
        size = len(self.ascending)
        steps = torch.arange(1, size + 1, device=self.ascending.device).double() / (size + 1)
        allowed = int((steps <= rate).sum())
        if allowed >= self.rank or (self.scale == 0 and allowed):
            return float(self.ascending[-allowed])
        if self.scale == 0:
            return math.inf
        return self.start + self.scale * math.log(self.rank / (size + 1) / rate)


def _fit_tails(scores: Tensor, labels: Tensor, num_classes: int) -> list[_Tail]:
    _check_scores("reference_scores", scores, "reference_labels", labels, num_classes)
    if not scores.isfinite().all():
        raise ValueError(checks.expected("reference_scores", "finite", "infinite values"))
    counts = torch.bincount(labels, minlength=num_classes)
    if (counts == 0).any():
        absent = ", ".join(map(str, (counts == 0).nonzero().flatten().tolist()))
        raise ValueError(
            f"Expected `reference_labels` to hold every class of {num_classes}, but got none of class {absent}.\n"
            "Add trusted samples of it, or leave the class out of what is judged."
        )
    return [_fit_tail(scores[labels == label].double()) for label in range(num_classes)]


def _fit_tail(scores: Tensor) -> _Tail:
    ascending = scores.sort().values
    size = len(ascending)
    rank = min(_ANCHOR_RANK, max(1, size // 20))
    upper = min(size, max(_TAIL_MINIMUM, math.ceil(_TAIL_SHARE * size)))
    mean_excess = (ascending[-upper:] - ascending[max(0, size - upper - 1)]).mean()
    ranks = torch.arange(rank - 1, 0, -1, dtype=torch.float64, device=scores.device)
    envelope = (ascending[size - rank + 1 :] - ascending[-rank]) / (rank / ranks).log()
    return _Tail(ascending, rank, float(torch.cat([mean_excess[None], envelope]).max()))


def _check_scores(scores_name: str, scores: Tensor, labels_name: str, labels: Tensor, num_classes: int) -> None:
    checks.positive_int("num_classes", num_classes)
    checks.index_vector(labels_name, labels)
    if scores.shape != labels.shape or not scores.is_floating_point():
        what = f"floating-point, of the shape of `{labels_name}`, {tuple(labels.shape)}"
        raise ValueError(checks.expected(scores_name, what, checks.describe(scores)))
    if scores.isnan().any():
        hint = "A scorer that returns NaN has seen inputs or a model that hold some."
        raise ValueError(checks.expected(scores_name, "free of NaN", f"{int(scores.isnan().sum())} of them", hint))
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        came = f"labels from {int(labels.min())} to {int(labels.max())}"
        raise ValueError(checks.expected(labels_name, f"in [0, {num_classes})", came))


def log_p_by_trusted(scores: Tensor, labels: Tensor, trusted_scores: Tensor, trusted_labels: Tensor) -> Tensor:
    """Return the natural logarithms of the p-values that held-out trusted samples of each class give.

    Args:
        scores: float64 `(N,)`.
        labels: int64 `(N,)`.
        trusted_scores: float64 `(M,)`, of samples that the scorer was not fitted on.
        trusted_labels: int64 `(M,)`; every class of `labels` must be among them.

    Returns:
        float64 `(N,)`.

    Example:
        >>> trusted, labels = torch.arange(199).double(), torch.zeros(199, dtype=torch.int64)
        >>> log_p_by_trusted(torch.tensor([99.5, 400.0]).double(), labels[:2], trusted, labels).exp()[0]
        tensor(0.5000, dtype=torch.float64)
    """
    known = TrustedReference.of(labels, trusted_scores, trusted_labels)
    return tail_log_p_values(scores, known.own, known.scores, known.labels, num_classes=len(known.present))


@dataclass(frozen=True)
class TrustedReference:
    """The trusted samples of the classes that are judged, classes numbered without gaps."""

    present: Tensor
    own: Tensor
    scores: Tensor
    labels: Tensor

    @classmethod
    def of(cls, labels: Tensor, trusted_scores: Tensor, trusted_labels: Tensor) -> "TrustedReference":
        """Select the trusted samples of the classes that occur in `labels`."""
        present, own = torch.unique(labels, return_inverse=True)
        reference = torch.isin(trusted_labels, present)
        return cls(present, own, trusted_scores[reference], torch.searchsorted(present, trusted_labels[reference]))
