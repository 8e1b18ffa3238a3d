"""How many labels are wrong, and which, without any trusted sample: judged by out-of-fold scores alone."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_poison import checks
from lightning_poison.statistics.intervals import wilson_interval
from lightning_poison.statistics.label_mixture import (
    Disagreements,
    Mixture,
    count_variances,
    find_disagreements,
    fit_mixture,
)
from lightning_poison.statistics.p_values import share_at_least_as_suspicious

NATURAL_ERROR_RATE = 0.003
"""Curated image sets carry 0.1 to 0.3 % of labels that are wrong or undecidable without anybody's intent."""

LARGEST_MISREAD_SHARE = 0.1
"""A model that misreads more of the rightly labeled samples than this cannot tell wrong labels from hard images."""
_PAIR_LEVEL = 0.01
"""A pair stands out where its p-value, times the number of pairs, is at most this."""


@dataclass(frozen=True)
class SuspectPair:
    """A pair of classes with more wrong labels than even spreading explains.

    Args:
        labeled: the class that the images are labeled.
        read_as: the class that the model reads them as.
        count: the number of images so labeled and read, the hard ones among them.
        estimate: how many of them carry a wrong label.
        low: lower end of the interval around `estimate`.
        high: upper end of it.
        p_value: probability of at least `estimate` wrong labels if those of the other pairs, and the natural error
            rate within the class, were all that is at work (Poisson); not corrected for the number of pairs.

    Example:
        >>> label_scores, labels = 5 - 5 * torch.eye(2).repeat(50, 1), torch.tensor([0, 1] * 45 + [0, 0] * 5)
        >>> [(pair.labeled, pair.read_as, pair.count) for pair in estimate_contamination(label_scores, labels).pairs]
        [(0, 1, 5)]
    """

    labeled: int
    read_as: int
    count: int
    estimate: float
    low: float
    high: float
    p_value: float


@dataclass(frozen=True)
class Contamination:
    """What out-of-fold scores say about the labels of a data set.

    Args:
        rate: estimated share of wrong labels, in [0, 1].
        low: lower end of the interval around `rate`.
        high: upper end of it.
        confidence: nominal coverage of the interval, in (0, 1).
        misread_share: estimated share of samples, in [0, 1], that are rightly labeled and read as something else.
        pairs: the pairs of classes that stand out, the one with most wrong labels first.
        posterior: probability that the label is wrong, float64 `(N,)`; 0 where the label is what the sample is read as.
        p_values: for each sample the estimated share of the rightly labeled samples that look at least as suspicious,
            float64 `(N,)` in (0, 1]. Samples are ordered by `posterior`, then by the excess of the score under their
            label over the lowest under another, and each counts with one minus its posterior.
        suggested_labels: what the sample is read as where its label is more likely wrong than right, its own label
            elsewhere, `(N,)`.

    Example:
        >>> label_scores, labels = 5 - 5 * torch.eye(2).repeat(50, 1), torch.tensor([0, 1] * 45 + [0, 0] * 5)
        >>> estimate_contamination(label_scores, labels).suggested_labels[88:94]
        tensor([0, 1, 0, 1, 0, 1])
    """

    rate: float
    low: float
    high: float
    confidence: float
    misread_share: float
    pairs: tuple[SuspectPair, ...]
    posterior: Tensor
    p_values: Tensor
    suggested_labels: Tensor


def estimate_contamination(label_scores: Tensor, labels: Tensor, *, confidence: float = 0.95) -> Contamination:
    """Estimate how many labels are wrong, between which classes, and how likely each one is.

    Of the samples whose label is not what they are read as, some are mislabeled and others are merely hard. For each
    pair (labeled j, read as k) the margin of the mislabeled ones is known from the samples read as k and labeled k,
    under the label j; see `lightning_poison.statistics.label_mixture`. A mixture, fitted by EM with the counts of rare
    pairs drawn toward even spreading, gives each sample its posterior, and their sum is the estimate. The interval is
    Wilson's (JASA 1927), at the sample size that gives the variance of a grouped jackknife over the disagreements; it
    is never narrower than a binomial one, and so conservative for the share realised in this very data set. The
    estimate by counting disagreements of Northcutt, Jiang and Chuang, *Confident Learning*, JAIR 2021
    (arXiv:1911.00068, eq. 1) differs in that it has no distribution for hard samples, and so never says "none".

    Blind spots: a wrong label that the model itself believes, because it is common and consistent (a backdoor in a
    third of a class); images that are odd under every label; and a model that reads badly. On clean CIFAR-10, read
    with 59 % accuracy, the estimate is 10 %; on clean MNIST, read with 98 to 99 %, it is below 0.1 %.

    Args:
        label_scores: suspicion of every sample under every label, by a model that was not fitted on the sample,
            `(N, C)`; finite, larger is more suspicious. Negative log-likelihoods and negative log-probabilities of one
            model have the same margins, and so give the same result.
        labels: the labels that the samples carry, in `[0, C)`, `(N,)`.
        confidence: nominal coverage of the intervals, in (0, 1).

    Returns:
        The estimate. It is computed in float64 on the CPU, and its tensors are on the device of `label_scores`.

    Raises:
        ValueError: where shapes disagree, a label is out of range, a score is not finite, `confidence` is outside
            (0, 1), or no sample is read as what it is labeled.

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
    checks.fraction("confidence", confidence)
    scores, own = label_scores.detach().cpu().double(), labels.cpu()
    reading = scores.argmin(1)
    if not (reading == own).any():
        hint = "Is their sign right? Larger is more suspicious."
        raise ValueError(checks.expected("label_scores", "lowest under the label for some samples", "none", hint))
    found = find_disagreements(scores, own)
    mixture = fit_mixture(found)
    posterior = torch.zeros(len(own), dtype=torch.float64)
    posterior[found.index] = mixture.posterior
    per_pair, total = count_variances(found, mixture)
    low, high = wilson_interval(mixture.counts.sum(), total, len(own), confidence=confidence)
    return Contamination(
        rate=float(mixture.counts.sum()) / len(own),
        low=float(low) / len(own),
        high=float(high) / len(own),
        confidence=confidence,
        misread_share=float((1 - mixture.posterior).sum()) / len(own),
        pairs=_suspect_pairs(found, mixture, per_pair, own, confidence),
        posterior=posterior.to(label_scores.device),
        p_values=_p_values(scores, own, posterior).to(label_scores.device),
        suggested_labels=torch.where(posterior > 0.5, reading, own).to(label_scores.device),
    )


def has_evidence(
    contamination: Contamination,
    *,
    natural_error_rate: float = NATURAL_ERROR_RATE,
    largest_misread_share: float = LARGEST_MISREAD_SHARE,
) -> bool:
    """Say whether more labels are wrong than a data set carries by nature.

    There is no evidence in the scores of a model that misreads too much: `False` then means that it cannot be said.

    Args:
        contamination: the estimate.
        natural_error_rate: share of wrong labels, in [0, 1], that is no sign of poison; the default is the upper end
            of what curated image sets carry.
        largest_misread_share: the largest `misread_share`, in [0, 1], at which the estimate is believed.

    Returns:
        `True` where the lower end of the interval lies above `natural_error_rate` and the model reads well enough.

    Raises:
        ValueError: where one of the two shares is outside [0, 1].

    Example:
        >>> found = Contamination(0.05, 0.04, 0.06, 0.95, 0.01, (), *[torch.zeros(0)] * 3)
        >>> has_evidence(found), has_evidence(found, natural_error_rate=0.045)
        (True, False)
    """
    readable = contamination.misread_share <= checks.share("largest_misread_share", largest_misread_share)
    return readable and contamination.low > checks.share("natural_error_rate", natural_error_rate)


def select_by_posterior(posterior: Tensor, false_positive_rate: float = 0.01) -> Tensor:
    """Choose which samples stay, so that few rightly labeled ones are expected to go.

    Samples go in order of their posterior, for as long as the label is more likely wrong than right and the expected
    number of rightly labeled ones among those gone, the sum of `1 - posterior`, is at most the stated share of those
    in the whole set. Samples of equal posterior go or stay together.

    Args:
        posterior: probability that the label is wrong, in [0, 1], `(N,)`.
        false_positive_rate: the largest expected share of the rightly labeled samples to lose, in (0, 1).

    Returns:
        A boolean mask, `True` stays, `(N,)`.

    Raises:
        ValueError: where a posterior is outside [0, 1] or `false_positive_rate` outside (0, 1).

    Example:
        >>> select_by_posterior(torch.tensor([0.999, 0.0, 0.3, 0.0, 0.6]), 0.01)
        tensor([False,  True,  True,  True,  True])
    """
    checks.fraction("false_positive_rate", false_positive_rate)
    if posterior.ndim != 1 or not ((posterior >= 0) & (posterior <= 1)).all():
        raise ValueError(checks.expected("posterior", "one-dimensional, in [0, 1]", checks.describe(posterior)))
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
    chosen = counts.argsort(descending=True)
    chosen = chosen[p_values[chosen] * tested <= _PAIR_LEVEL]
    columns = (found.labeled, found.read_as, observed, counts, low, high, p_values)
    return tuple(SuspectPair(*values) for values in zip(*(each[chosen].tolist() for each in columns), strict=True))


def _check_label_scores(label_scores: Tensor, labels: Tensor) -> None:
    checks.index_vector("labels", labels)
    if label_scores.ndim != 2 or len(label_scores) != len(labels) or label_scores.shape[1] < 2 or not len(labels):
        what = f"of shape (N, C) with N = {len(labels)} labels and two classes or more"
        raise ValueError(checks.expected("label_scores", what, checks.describe(label_scores)))
    if not label_scores.isfinite().all():
        hint = "Take negative log-probabilities from `log_softmax`, which does not underflow."
        raise ValueError(checks.expected("label_scores", "finite", "infinite values or NaN", hint))
    if not 0 <= int(labels.min()) <= int(labels.max()) < label_scores.shape[1]:
        came = f"labels from {int(labels.min())} to {int(labels.max())}"
        raise ValueError(checks.expected("labels", f"in [0, {label_scores.shape[1]})", came))
