"""Estimate of the number of wrong labels, and of which labels are wrong, from out-of-fold scores alone."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from sklearn.isotonic import IsotonicRegression
from torch import Tensor

from lightning_poison.statistics.arguments import check_fraction, check_label_vector, describe, invalid
from lightning_poison.statistics.intervals import wilson_interval
from lightning_poison.statistics.label_mixture import (
    HARD_SCALE,
    MAX_HARD_SCALE,
    Disagreements,
    Mixture,
    count_variances,
    find_disagreements,
    fit_mixture,
    log_likelihood,
)
from lightning_poison.statistics.label_suspicion import label_suspicion
from lightning_poison.statistics.lowest_scores import LowestScores
from lightning_poison.statistics.normal_tails import fit_normal_mixture
from lightning_poison.statistics.p_values import share_at_least_as_suspicious

NATURAL_ERROR_RATE = 0.003
"""Share of wrong or undecidable labels without any attack: 0.1 to 0.3 % in curated image data sets."""

MAX_MISCLASSIFIED_SHARE = 0.1
"""Share of correctly labeled samples that are misclassified. Above it, hard samples may pass for wrong labels."""

HardMargins = Literal["exponential", "normal"]
"""Distribution of the margins of hard samples: one exponential, or the tails of normal ones (`normal_tails`)."""

_MARGIN_WEIGHT = 0.2
"""Weight of the log-odds by the margin in the suspicion, beside the log-odds by Bayes' rule.

On hard images (CIFAR-10), Bayes' rule ranks random wrong labels much better; on easy ones (MNIST, digits), and between
two classes, the margin does. Of .1, .25, .5 and 1, small weights keep most of both.
"""

_TRAINING_WEIGHT = 0.5
"""Weight of training margins in the suspicion, in units of the standard deviations of both.

On 10,000 images of CIFAR-10, it raises the share of random wrong labels that are found at 1 % of the clean images from
.46 to .51 (10 % wrong) and from .45 to .50 (2 %), and keeps that of labels of the next class (.37, .47), which weights
of 1 and 2 lower.
"""

_NOT_LEARNED, _LEARNED = 0.1, 0.2
"""Share of a label that is wrong up to which training margins have their whole weight, and from which they have none.

A network learns wrong labels that are a large part of their class like correct ones: with a tenth of all images labeled
0, half of the images of that label, full weight lowers the share that is found at 1 % of the clean from .38 to .17.
"""

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
        suspicion: How suspicious the label is, float64 `(N,)`, in the order of which samples are removed: log-odds by
            `lightning_poison.statistics.label_suspicion`, and, with less weight, by the margin.
        posterior: Probability that the label is wrong, float64 `(N,)`. 0 if label and prediction agree; otherwise, it
            does not decrease with the suspicion.
        p_values: Estimated share of the correctly labeled samples that are at least as suspicious, float64 `(N,)` in
            (0, 1]. Samples whose label and prediction differ come first, by `suspicion`. Each is weighted by one minus
            its posterior.
        log_likelihood: That of the margins of samples whose label and prediction differ.

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
    suspicion: Tensor
    posterior: Tensor
    p_values: Tensor
    log_likelihood: float = 0.0


def estimate_contamination(
    label_scores: Tensor,
    labels: Tensor,
    *,
    confidence: float = 0.95,
    margins: Tensor | None = None,
    lowest: LowestScores | None = None,
    hard: HardMargins = "exponential",
    only_disagreements: bool = False,
) -> Contamination:
    """Estimate how many labels are wrong, between which classes, and how likely each label is wrong.

    A sample whose label and prediction differ is either mislabeled or hard. For each pair (labeled j, predicted k), the
    samples that are both labeled and predicted k show which margin a mislabeled sample has under the label j; see
    `lightning_poison.statistics.label_mixture`. A mixture model, fitted by EM with the counts of rare pairs shrunk
    toward an even spread, gives a probability for each sample, and their sum is the estimate. How suspicious a sample
    is compared with others follows mainly from Bayes' rule (`label_suspicion`), and the probabilities are averaged so
    that they do not decrease with it, by isotonic regression, which preserves their sum. The interval is Wilson's
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
        margins: By how much the logit of the label exceeds the largest other one, averaged over the epochs of fits that
            saw the sample (`lightning_poison.models.average_margins`), finite, `(N,)`. A second opinion about which
            labels are wrong; the estimated number does not depend on it. Optional.
        lowest: The lowest of these scores, if several estimates read the same scores. Default: they are computed.
        hard: How the margins of hard samples are distributed. Default: one exponential.
        only_disagreements: Whether samples whose label and prediction agree need no order among themselves, which takes
            most of the time with many classes. They are never removed. Default: they do.

    Returns:
        The estimate. Computed on the CPU, in blocks of samples; its tensors are on the device of `label_scores`.

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
        >>> keep = select_by_posterior(contamination.posterior, contamination.p_values, 0.01)
        >>> (~keep).nonzero().flatten().equal(torch.arange(100))
        True
    """
    _check_shape(label_scores, labels)
    scores, own = label_scores.detach().cpu(), labels.cpu()
    lowest = LowestScores.of(scores) if lowest is None else lowest
    _check_finite(lowest)
    check_label_vector("labels", labels, num_classes=label_scores.shape[1])
    check_fraction("confidence", confidence)
    if hard not in get_args(HardMargins):
        raise invalid("hard", " or ".join(get_args(HardMargins)), describe(hard))
    if margins is not None and (margins.shape != labels.shape or not bool(margins.isfinite().all())):
        raise invalid("margins", f"finite, one for each of {len(labels)} samples", describe(margins))
    found = find_disagreements(scores, own, lowest=lowest)
    if len(found.index) == len(own):
        hint = "Check the sign of the scores: larger must be more suspicious."
        raise invalid("label_scores", "lowest under the label for some samples", "none", hint)
    fit, least = _fits(found, hard)
    mixture = fit.mixture
    suspicion = label_suspicion(
        scores, own, found, mixture.counts, lowest=lowest, only_disagreements=only_disagreements
    )
    suspicion[found.index] += _MARGIN_WEIGHT * mixture.posterior.logit(eps=1e-4)
    if margins is not None:
        weight = _training_weight(own, found, mixture)
        suspicion[found.index] += weight * _second_opinion(suspicion[found.index], margins.cpu()[found.index])
    posterior = torch.zeros(len(own), dtype=torch.float64)
    posterior[found.index] = _increasing(mixture.posterior, suspicion[found.index])
    per_pair, low, high = fit.interval(found, len(own), confidence)
    low = torch.minimum(low, least.interval(found, len(own), confidence)[1])
    return Contamination(
        rate=float(mixture.counts.sum()) / len(own),
        low=float(low) / len(own),
        high=float(high) / len(own),
        confidence=confidence,
        misclassified_share=float((1 - mixture.posterior).sum()) / len(own),
        pairs=_suspect_pairs(found, mixture, per_pair, own, confidence),
        suspicion=suspicion.to(label_scores.device),
        posterior=posterior.to(label_scores.device),
        p_values=wrong_label_p_values(suspicion, posterior).to(label_scores.device),
        log_likelihood=log_likelihood(found, mixture, tails=fit.tails),
    )


@dataclass(frozen=True)
class _Fit:
    """A fitted mixture, and how it was fitted."""

    mixture: Mixture
    tails: Tensor | None = None
    scale: float = HARD_SCALE

    def interval(self, found: Disagreements, length: int, confidence: float) -> tuple[Tensor, Tensor, Tensor]:
        """Return the variance of each pair's count, and the interval around the number of wrong labels."""
        per_pair, total = count_variances(found, self.mixture, expected_scale=self.scale, tails=self.tails)
        return per_pair, *wilson_interval(self.mixture.counts.sum(), total, length, confidence=confidence)


def _fits(found: Disagreements, hard: HardMargins) -> tuple[_Fit, _Fit]:
    """Return the fit to use, and a less favorable one, for the lower end of the interval.

    With few disagreements, the expected margin of hard samples decides how many count as hard. Small models of small
    data sets are as sure of hard samples as of wrong labels, so the least favorable expectation applies.
    """
    if hard == "normal":
        mixture, tails, least, longest = fit_normal_mixture(found)
        return _Fit(mixture, tails), _Fit(least, longest)
    return _Fit(fit_mixture(found)), _Fit(fit_mixture(found, expected_scale=MAX_HARD_SCALE), scale=MAX_HARD_SCALE)


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
        >>> found = Contamination(0.05, 0.04, 0.06, 0.95, 0.01, (), torch.zeros(0), torch.zeros(0), torch.zeros(0))
        >>> has_evidence(found), has_evidence(found, natural_error_rate=0.045)
        (True, False)
    """
    return contamination.low > natural_error_rate


def select_by_posterior(posterior: Tensor, p_values: Tensor, false_positive_rate: float = 0.01) -> Tensor:
    """Select the samples to keep, such that few correctly labeled ones are expected to be removed.

    A sample is removed if its label is more likely wrong than correct, and the expected share of the correctly labeled
    samples that are at least as suspicious is at most the stated one.

    Args:
        posterior: Probability that the label is wrong, in [0, 1], `(N,)`.
        p_values: Expected share of the correctly labeled samples that are at least as suspicious, `(N,)`; see
            `wrong_label_p_values`.
        false_positive_rate: Largest expected share of the correctly labeled samples to remove, in (0, 1). Default:
            0.01.

    Returns:
        Mask of the samples to keep, bool `(N,)`.

    Raises:
        ValueError: If a posterior is outside [0, 1], the shapes differ, or `false_positive_rate` is outside (0, 1).

    Example:
        >>> posterior = torch.tensor([0.999, 0.0, 0.3, 0.0, 0.6]).double()
        >>> select_by_posterior(posterior, wrong_label_p_values(posterior, posterior), 0.01)
        tensor([False,  True,  True,  True,  True])
    """
    check_fraction("false_positive_rate", false_positive_rate)
    if posterior.ndim != 1 or not ((posterior >= 0) & (posterior <= 1)).all():
        raise invalid("posterior", "one-dimensional, in [0, 1]", describe(posterior))
    if p_values.shape != posterior.shape:
        raise invalid("p_values", f"of shape {tuple(posterior.shape)}", describe(p_values))
    return ~((posterior > 0.5) & (p_values <= false_positive_rate))


def wrong_label_p_values(suspicion: Tensor, posterior: Tensor) -> Tensor:
    """Estimate the share of the correctly labeled samples that are at least as suspicious as each sample.

    Args:
        suspicion: Suspicion of each sample, `(N,)`, larger is more suspicious.
        posterior: Probability that the label is wrong, in [0, 1], float64 `(N,)`. Samples for which it is 0 come last.

    Returns:
        Shares in (0, 1], float64 `(N,)`.

    Example:
        >>> wrong_label_p_values(torch.tensor([2.0, 1.0, 3.0]), torch.tensor([0.5, 0.0, 0.5]).double())
        tensor([0.5000, 1.0000, 0.2500], dtype=torch.float64)
    """
    return share_at_least_as_suspicious(torch.stack([(posterior > 0).double(), suspicion], 1), 1 - posterior)


def _training_weight(labels: Tensor, found: Disagreements, mixture: Mixture) -> float:
    """Return the weight of training margins: less if wrong labels are a large part of the labels that they have."""
    counts = labels.bincount().double()
    wrong = torch.zeros_like(counts).index_add(0, found.labeled, mixture.counts)
    unlearned = ((_LEARNED - wrong / counts.clamp_min(1)) / (_LEARNED - _NOT_LEARNED)).clamp(0, 1)
    return _TRAINING_WEIGHT * float((wrong * unlearned).sum() / wrong.sum().clamp_min(1e-9))


def _second_opinion(suspicion: Tensor, margins: Tensor) -> Tensor:
    """Return training margins of samples whose label and prediction differ, negated, on the scale of the suspicion."""
    if len(suspicion) < 2:
        return torch.zeros_like(suspicion)
    spread = margins.double().std()
    if not spread > 0:
        return torch.zeros_like(suspicion)
    return suspicion.std() * (margins.double().mean() - margins) / spread


def _increasing(posterior: Tensor, suspicion: Tensor) -> Tensor:
    """Average probabilities so that they do not decrease with the suspicion; the equally suspicious have equal ones."""
    if not len(posterior):
        return posterior
    fitted = IsotonicRegression(y_min=0, y_max=1).fit_transform(suspicion.numpy(), posterior.numpy())
    return torch.from_numpy(fitted).double()


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


def _check_shape(label_scores: Tensor, labels: Tensor) -> None:
    check_label_vector("labels", labels)
    if label_scores.ndim != 2 or len(label_scores) != len(labels) or label_scores.shape[1] < 2 or not len(labels):
        what = f"of shape (N, C), with N = {len(labels)} labels and at least two classes"
        raise invalid("label_scores", what, describe(label_scores))


def _check_finite(lowest: LowestScores) -> None:
    if not lowest.is_finite:
        hint = "Compute negative log-probabilities with `log_softmax`, which does not underflow."
        raise invalid("label_scores", "finite", "infinite values or NaN", hint)
