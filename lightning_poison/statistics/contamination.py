"""Estimate of the number of wrong labels, and of which labels are wrong, from out-of-fold scores alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_poison.statistics.arguments import check_fraction, check_label_vector, describe, invalid
from lightning_poison.statistics.intervals import wilson_interval
from lightning_poison.statistics.label_mixture import (
    MAX_HARD_SCALE,
    Disagreements,
    Mixture,
    count_variances,
    find_disagreements,
    fit_mixture,
)
from lightning_poison.statistics.p_values import share_at_least_as_suspicious

NATURAL_ERROR_RATE = 0.003
"""Share of wrong or undecidable labels without any attack: 0.1 to 0.3 % in curated image data sets."""

MAX_MISCLASSIFIED_SHARE = 0.1
"""Share of correctly labeled samples that are misclassified. Above it, hard samples may pass for wrong labels."""

_PAIR_LEVEL = 0.01
"""Significance level of a pair of classes, after Bonferroni correction for the number of pairs."""


@dataclass(frozen=True)
class SuspectPair:
    """A pair of classes with more wrong labels than an even spread explains.

    Args:
        labeled: Class that the images are labeled as.
        predicted: Class that the model predicts for them.
        count: Number of images with this label and this prediction, including hard ones.
        estimate: Estimated number of wrong labels among them.
        low: Lower end of the interval around `estimate`.
        high: Upper end of the interval.
        p_value: Probability of at least `estimate` wrong labels under a Poisson distribution whose mean is given by the
            wrong labels of the other pairs and the natural error rate within the class. Not corrected for the number of
            pairs.

    Example:
        >>> label_scores, labels = 5 - 5 * torch.eye(2).repeat(50, 1), torch.tensor([0, 1] * 45 + [0, 0] * 5)
        >>> [(pair.labeled, pair.predicted, pair.count) for pair in estimate_contamination(label_scores, labels).pairs]
        [(0, 1, 5)]
    """

    labeled: int
    predicted: int
    count: int
    estimate: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Contamination:
    """Estimate of the wrong labels in a data set.

    Args:
        rate: Estimated share of wrong labels, in [0, 1].
        low: Lower end of the interval around `rate`.
        high: Upper end of the interval.
        confidence: Nominal coverage of the interval, in (0, 1).
        misclassified_share: Estimated share of samples, in [0, 1], that are correctly labeled and misclassified.
        pairs: Pairs of classes with significantly many wrong labels, the largest estimate first.
        posterior: Probability that the label is wrong, float64 `(N,)`. 0 if label and prediction agree.
        p_values: Estimated share of the correctly labeled samples that are at least as suspicious, float64 `(N,)` in
            (0, 1]. Samples are sorted by `posterior`, then by the difference between the score of their label and the
            lowest score of another one. Each is weighted by one minus its posterior.

    Example:
        >>> label_scores, labels = 5 - 5 * torch.eye(2).repeat(50, 1), torch.tensor([0, 1] * 45 + [0, 0] * 5)
        >>> (estimate_contamination(label_scores, labels).posterior > 0.5).nonzero().flatten()
        tensor([91, 93, 95, 97, 99])
    """

    rate: float
    low: float
    high: float
    confidence: float
    misclassified_share: float
    pairs: tuple[SuspectPair, ...]
    posterior: Tensor
    p_values: Tensor


def estimate_contamination(label_scores: Tensor, labels: Tensor, *, confidence: float = 0.95) -> Contamination:
    """Estimate how many labels are wrong, between which classes, and how likely each label is wrong.

    A sample whose label and prediction differ is either mislabeled or hard. For each pair (labeled j, predicted k), the
    samples that are both labeled and predicted k show which margin a mislabeled sample has under the label j; see
    `lightning_poison.statistics.label_mixture`. A mixture model, fitted by EM with the counts of rare pairs shrunk
    toward an even spread, gives the posterior of each sample, and their sum is the estimate. The interval is Wilson's
    (JASA 1927), at the sample size that gives the variance of a grouped jackknife over the disagreements. It is never
    narrower than a binomial one, and so conservative for the share realized in this data set. Its lower end allows for
    hard samples with margins up to half of those of wrong labels, which matters in small data sets. The estimate of
    Northcutt, Jiang and Chuang, *Confident Learning*, JAIR 2021 (arXiv:1911.00068, eq. 1), which counts disagreements,
    differs in that it has no distribution for hard samples and therefore never reports "none".

    Limitations: wrong labels that the model has learned because they are common and consistent (a backdoor in a third
    of a class), images that are unusual under every label, and inaccurate models. On clean CIFAR-10, classified with
    59 % accuracy, the estimate is 10 %; on clean MNIST, classified with 98 to 99 %, it is below 0.1 %.

    Args:
        label_scores: Suspicion of every sample under every label, by a model that was not fitted on the sample,
            `(N, C)`. Finite, larger is more suspicious. Negative log-likelihoods and negative log-probabilities of one
            model have the same margins, and so give the same result.
        labels: Labels in `[0, C)`, `(N,)`.
        confidence: Nominal coverage of the intervals, in (0, 1). Default: 0.95.

    Returns:
        The estimate. Computed in float64 on the CPU; its tensors are on the device of `label_scores`.

    Raises:
        ValueError: If shapes disagree, a label is out of range, a score is not finite, `confidence` is outside (0, 1),
            or label and prediction agree for no sample.

    Example:
        >>> labels = torch.arange(2000) % 4
        >>> label_scores = 3 + torch.rand(2000, 4, generator=torch.Generator().manual_seed(0))
        >>> label_scores[torch.arange(2000), labels] = 0
        >>> labels[:100] = (labels[:100] + 1) % 4
        >>> contamination = estimate_contamination(label_scores, labels)
        >>> round(contamination.rate, 3), contamination.low < 0.05 < contamination.high
        (0.05, True)
        >>> (~select_by_posterior(contamination.posterior, 0.01)).nonzero().flatten().equal(torch.arange(100))
        True
    """
    _check_label_scores(label_scores, labels)
    check_fraction("confidence", confidence)
    scores, own = label_scores.detach().cpu().double(), labels.cpu()
    if not (scores.argmin(1) == own).any():
        hint = "Check the sign of the scores: larger must be more suspicious."
        raise invalid("label_scores", "lowest under the label for some samples", "none", hint)
    found = find_disagreements(scores, own)
    mixture = fit_mixture(found)
    posterior = torch.zeros(len(own), dtype=torch.float64)
    posterior[found.index] = mixture.posterior
    per_pair, total = count_variances(found, mixture)
    low, high = wilson_interval(mixture.counts.sum(), total, len(own), confidence=confidence)
    low = torch.minimum(low, _least_low(found, len(own), confidence))
    return Contamination(
        rate=float(mixture.counts.sum()) / len(own),
        low=float(low) / len(own),
        high=float(high) / len(own),
        confidence=confidence,
        misclassified_share=float((1 - mixture.posterior).sum()) / len(own),
        pairs=_suspect_pairs(found, mixture, per_pair, own, confidence),
        posterior=posterior.to(label_scores.device),
        p_values=_p_values(scores, own, posterior).to(label_scores.device),
    )


def _least_low(found: Disagreements, length: int, confidence: float) -> Tensor:
    """Return the lower end of the interval around the number of wrong labels if hard samples have large margins.

    With few disagreements, the expected margin of hard samples decides how many count as hard. Small models of small
    data sets are as sure of hard samples as of wrong labels, so the least favorable expectation applies.
    """
    mixture = fit_mixture(found, expected_scale=MAX_HARD_SCALE)
    _, total = count_variances(found, mixture, expected_scale=MAX_HARD_SCALE)
    return wilson_interval(mixture.counts.sum(), total, length, confidence=confidence)[0]


def has_evidence(contamination: Contamination, *, natural_error_rate: float = NATURAL_ERROR_RATE) -> bool:
    """Return whether a data set has more wrong labels than expected without an attack.

    If the model misclassifies many samples, hard ones may count as wrong labels: plant some to check the estimate
    (`lightning_poison.statistics.planted_labels`).

    Args:
        contamination: The estimate.
        natural_error_rate: Share of wrong labels without an attack, in [0, 1]. Default: the upper end of the range in
            curated image data sets.

    Returns:
        Whether the lower end of the interval exceeds `natural_error_rate`.

    Example:
        >>> found = Contamination(0.05, 0.04, 0.06, 0.95, 0.01, (), torch.zeros(0), torch.zeros(0))
        >>> has_evidence(found), has_evidence(found, natural_error_rate=0.045)
        (True, False)
    """
    return contamination.low > natural_error_rate


def select_by_posterior(posterior: Tensor, false_positive_rate: float = 0.01) -> Tensor:
    """Select the samples to keep, such that few correctly labeled ones are expected to be removed.

    Samples are removed in order of their posterior, as long as the label is more likely wrong than correct and the
    expected number of correctly labeled samples among those removed, the sum of `1 - posterior`, is at most the stated
    share of those in the whole set. Samples with equal posteriors are either all kept or all removed.

    Args:
        posterior: Probability that the label is wrong, in [0, 1], `(N,)`.
        false_positive_rate: Largest expected share of the correctly labeled samples to remove, in (0, 1). Default:
            0.01.

    Returns:
        Mask of the samples to keep, bool `(N,)`.

    Raises:
        ValueError: If a posterior is outside [0, 1], or `false_positive_rate` is outside (0, 1).

    Example:
        >>> select_by_posterior(torch.tensor([0.999, 0.0, 0.3, 0.0, 0.6]), 0.01)
        tensor([False,  True,  True,  True,  True])
    """
    check_fraction("false_positive_rate", false_positive_rate)
    if posterior.ndim != 1 or not ((posterior >= 0) & (posterior <= 1)).all():
        raise invalid("posterior", "one-dimensional, in [0, 1]", describe(posterior))
    lost = share_at_least_as_suspicious(posterior.double()[:, None], 1 - posterior.double())
    return ~((posterior > 0.5) & (lost <= false_positive_rate))


def _p_values(label_scores: Tensor, labels: Tensor, posterior: Tensor) -> Tensor:
    own = label_scores.gather(1, labels[:, None]).squeeze(1)
    others = label_scores.scatter(1, labels[:, None], torch.inf).min(1).values
    return share_at_least_as_suspicious(torch.stack([posterior, own - others], 1), 1 - posterior)


def _suspect_pairs(
    found: Disagreements, mixture: Mixture, variances: Tensor, labels: Tensor, confidence: float
) -> tuple[SuspectPair, ...]:
    counts = mixture.counts
    spread_evenly = (counts.sum() - counts).clamp_min(0) * found.spread / (1 - found.spread).clamp_min(0.5)
    expected = spread_evenly + NATURAL_ERROR_RATE * torch.bincount(labels)[found.labeled]
    p_values = torch.special.gammainc(counts.clamp_min(1e-9), expected)
    low, high = wilson_interval(counts, variances, len(labels), confidence=confidence)
    observed = torch.bincount(found.pair, minlength=len(counts))
    tested = int(labels.max()) * (int(labels.max()) + 1)
    selected = counts.argsort(descending=True)
    selected = selected[p_values[selected] * tested <= _PAIR_LEVEL]
    columns = (found.labeled, found.predicted, observed, counts, low, high, p_values)
    return tuple(SuspectPair(*values) for values in zip(*(each[selected].tolist() for each in columns), strict=True))


def _check_label_scores(label_scores: Tensor, labels: Tensor) -> None:
    check_label_vector("labels", labels)
    if label_scores.ndim != 2 or len(label_scores) != len(labels) or label_scores.shape[1] < 2 or not len(labels):
        what = f"of shape (N, C), with N = {len(labels)} labels and at least two classes"
        raise invalid("label_scores", what, describe(label_scores))
    if not label_scores.isfinite().all():
        hint = "Compute negative log-probabilities with `log_softmax`, which does not underflow."
        raise invalid("label_scores", "finite", "infinite values or NaN", hint)
    check_label_vector("labels", labels, num_classes=label_scores.shape[1])
