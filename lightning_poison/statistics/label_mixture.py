"""Wrong labels against hard images: a mixture over the samples whose label and reading differ.

A sample is *read as* the class under which its suspicion score is lowest, by a model that was not fitted on it. The
*margin* of another label is how much higher the score is there. Images labeled 9 and read as 4 are of two kinds, and
the margin tells them apart: a 4 that carries a wrong label has the margin that every other 4 would have under a 9,
which the images read as 4 *and* labeled 4 show; a hard 9 has a small one. So the distribution of the first kind is
observed, pair by pair, and that of the second is a short exponential which all pairs share.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

_BINS = 40
"""Bins between a margin of 0 and the pair's typical wrong-label margin; whatever is larger shares one more bin."""

_SMOOTHING = 0.06
"""Standard deviation of the kernel that smooths a wrong-label distribution, in units of the typical margin."""

_POOLED_COUNT = 20.0
"""How many samples the distribution pooled over all pairs counts for in that of one pair."""

_FEWEST_FOR_SCALE = 5
"""Below so many agreeing samples in a class its pairs take their typical margin from the other pairs."""

_CLASS_STRENGTH = 0.5
"""Shape of the Gamma prior that draws the two counts of a pair toward what even spreading would give it."""

_HARD_SCALE, _HARD_SCALE_COUNT, _LARGEST_HARD_SCALE = 0.25, 50.0, 0.5
"""Mean margin of hard images in units of the typical wrong-label margin: prior, its weight in samples, and bound."""

_JACKKNIFE_GROUPS = 20


@dataclass(frozen=True)
class Disagreements:
    """The D samples whose label and reading differ, and the P pairs of classes that occur among them.

    Args:
        index: position of each sample in the data set, `(D,)`.
        pair: the row of its pair, `(D,)`.
        margin: its margin, in units of the median margin that wrong labels of this pair have, `(D,)`.
        labeled: the label of each pair, `(P,)`.
        read_as: the reading of each pair, `(P,)`.
        wrong: distribution of a wrong label's margin over the bins, `(P, bins + 1)`, rows sum to 1.
        spread: share of all disagreements that a pair would get if they were spread evenly over images, `(P,)`.

    Example:
        >>> label_scores, labels = torch.tensor([[0.0, 2.0], [0.0, 1.5]]).double(), torch.tensor([0, 1])
        >>> found = find_disagreements(label_scores, labels)
        >>> found.index, found.labeled, found.read_as
        (tensor([1]), tensor([1]), tensor([0]))
    """

    index: Tensor
    pair: Tensor
    margin: Tensor
    labeled: Tensor
    read_as: Tensor
    wrong: Tensor
    spread: Tensor


@dataclass(frozen=True)
class Mixture:
    """A fitted mixture.

    Args:
        posterior: probability that the label is wrong, for each disagreement, `(D,)`.
        counts: expected number of wrong labels in each pair, `(P,)`.
        hard_scale: mean margin of hard images, in units of the typical wrong-label margin.

    Example:
        >>> label_scores, labels = 5 - 5 * torch.eye(2).double().repeat(50, 1), torch.tensor([0, 1] * 48 + [1, 0] * 2)
        >>> fit_mixture(find_disagreements(label_scores, labels)).counts.round()
        tensor([2., 2.], dtype=torch.float64)
    """

    posterior: Tensor
    counts: Tensor
    hard_scale: float


def find_disagreements(label_scores: Tensor, labels: Tensor) -> Disagreements:
    """Collect the samples whose label and reading differ, with the wrong-label distribution of each pair.

    Args:
        label_scores: finite float64 suspicion of every sample under every label, `(N, C)`.
        labels: the labels that the samples carry, `(N,)`.

    Example:
        >>> label_scores = torch.tensor([[0.0, 2.0]] * 9 + [[0.0, 1.0]]).double()
        >>> find_disagreements(label_scores, torch.tensor([0] * 9 + [1])).margin  # half of what the nine would have
        tensor([0.5000], dtype=torch.float64)
    """
    classes = label_scores.shape[1]
    lowest, reading = label_scores.min(1)
    index = (reading != labels).nonzero().flatten()
    codes, pair = torch.unique(reading[index] * classes + labels[index], return_inverse=True)
    read_as, labeled = codes // classes, codes % classes

    typical = label_scores.new_zeros(len(codes))
    histogram = label_scores.new_zeros(len(codes), 2 * _BINS + 1)
    for class_read in read_as.unique():
        rows = (read_as == class_read).nonzero().flatten()
        agreeing = (reading == labels) & (reading == class_read)
        if agreeing.sum() < _FEWEST_FOR_SCALE:
            continue
        margins = (label_scores[agreeing] - lowest[agreeing, None])[:, labeled[rows]]
        typical[rows] = margins.median(0).values
        histogram[rows] = _histogram(margins / _positive(typical[rows]))
    known = typical > 0
    typical = torch.where(known, typical, typical[known].median() if known.any() else lowest.new_ones(()))

    margin = (label_scores[index, labels[index]] - lowest[index]) / typical[pair]
    spread = _even_spread(reading, labels, classes)[read_as, labeled]
    return Disagreements(index, pair, margin, labeled, read_as, _smooth(histogram), spread)


def fit_mixture(
    found: Disagreements, *, weights: Tensor | None = None, start: Mixture | None = None, iterations: int = 300
) -> Mixture:
    """Fit the number of wrong and of hard images in each pair, and the margin of hard ones, by EM.

    Each pair has its own two counts. A Gamma prior draws each toward what the pair would get if the kind were spread
    evenly, so that pairs with a single image borrow from the others while one with many speaks for itself.

    Args:
        found: the disagreements.
        weights: the weight of each of them, `(D,)`; all 1 by default.
        start: the fit to begin from; half of everything is wrong by default.
        iterations: the largest number of EM steps.

    Example:
        >>> label_scores, labels = 5 - 5 * torch.eye(2).double().repeat(50, 1), torch.tensor([0, 1] * 48 + [1, 0] * 2)
        >>> fit_mixture(find_disagreements(label_scores, labels)).posterior > 0.99
        tensor([True, True, True, True])
    """
    weights = torch.ones_like(found.margin) if weights is None else weights
    observed = _sum_by_pair(found, weights)
    counts = start.counts if start is not None else observed / 2
    scale = start.hard_scale if start is not None else _HARD_SCALE
    wrong_density = found.wrong[found.pair, _bins(found.margin, _BINS)]
    for _ in range(iterations):
        wrong = _shrunk(counts, found.spread)[found.pair] * wrong_density
        hard = _shrunk((observed - counts).clamp_min(0), found.spread)[found.pair] * _hard_density(found.margin, scale)
        posterior = wrong / (wrong + hard)
        previous, counts = counts, _sum_by_pair(found, weights * posterior)
        scale = _hard_scale(found.margin, weights * (1 - posterior))
        if (counts - previous).abs().sum() <= 1e-6 * observed.sum():
            break
    return Mixture(posterior, counts, scale)


def count_variances(found: Disagreements, mixture: Mixture) -> tuple[Tensor, Tensor]:
    """Estimate the variance of the number of wrong labels by a jackknife that leaves out every 20th disagreement.

    Args:
        found: the disagreements.
        mixture: the mixture fitted on all of them.

    Returns:
        The variance of each pair's count, `(P,)`, and that of the sum of all pairs, a scalar tensor.

    Example:
        >>> label_scores, labels = 5 - 5 * torch.eye(2).double().repeat(50, 1), torch.tensor([0, 1] * 48 + [1, 0] * 2)
        >>> found = find_disagreements(label_scores, labels)
        >>> per_pair, of_all = count_variances(found, fit_mixture(found))
        >>> per_pair.shape, of_all > 0
        (torch.Size([2]), tensor(True))
    """
    group = torch.arange(len(found.index)) % _JACKKNIFE_GROUPS
    kept_share = 1 - 1 / _JACKKNIFE_GROUPS
    refitted = [
        fit_mixture(found, weights=(group != left_out).double(), start=mixture).counts / kept_share
        for left_out in range(_JACKKNIFE_GROUPS)
    ]
    counts = torch.stack(refitted)
    deviations = counts - counts.mean(0)
    return kept_share * (deviations**2).sum(0), kept_share * (deviations.sum(1) ** 2).sum()


def _even_spread(reading: Tensor, labels: Tensor, classes: int) -> Tensor:
    read = torch.bincount(reading, minlength=classes).double()
    labeled = torch.bincount(labels, minlength=classes).double()
    product = read[:, None] * labeled
    product.fill_diagonal_(0)
    return product / product.sum()


def _bins(margin: Tensor, last: int) -> Tensor:
    return (margin * _BINS).clamp(max=last).long()


def _positive(values: Tensor) -> Tensor:
    return values.clamp_min(torch.finfo(values.dtype).tiny)


def _histogram(margins: Tensor) -> Tensor:
    """Count the margins `(n, pairs)` of every pair in bins up to twice the typical margin, `(pairs, 2 bins + 1)`."""
    width = 2 * _BINS + 1
    offset = torch.arange(margins.shape[1]) * width
    cells = _bins(margins, width - 1) + offset
    return torch.bincount(cells.flatten(), minlength=width * margins.shape[1]).view(-1, width).double()


def _smooth(histogram: Tensor) -> Tensor:
    """Turn counts into distributions: add the pooled one, smooth with reflection at 0, merge all above typical."""
    pooled = histogram.sum(0) + torch.finfo(histogram.dtype).tiny
    counts = histogram + _POOLED_COUNT * pooled / pooled.sum()
    centers = (torch.arange(histogram.shape[1]).double() + 0.5) / _BINS
    distance = torch.stack([centers[:, None] - centers, centers[:, None] + centers])
    kernel = (-0.5 * (distance / _SMOOTHING) ** 2).exp().sum(0)
    smooth = counts @ (kernel / kernel.sum(1, keepdim=True))
    merged = torch.cat([smooth[:, :_BINS], smooth[:, _BINS:].sum(1, keepdim=True)], 1)
    return merged / merged.sum(1, keepdim=True)


def _sum_by_pair(found: Disagreements, values: Tensor) -> Tensor:
    return torch.zeros_like(found.spread).index_add(0, found.pair, values)


def _shrunk(counts: Tensor, spread: Tensor) -> Tensor:
    """Posterior mean of Poisson rates under a Gamma prior whose mean is the evenly spread total."""
    expected = _positive(spread * counts.sum())
    return (counts + _CLASS_STRENGTH) / (1 + _CLASS_STRENGTH / expected)


def _hard_density(margin: Tensor, scale: float) -> Tensor:
    """Mass of the exponential in the bin of each margin."""
    survival = (-torch.arange(_BINS + 1).double() / _BINS / scale).exp()
    mass = torch.cat([survival[:-1] - survival[1:], survival[-1:]])
    return mass[_bins(margin, _BINS)]


def _hard_scale(margin: Tensor, weights: Tensor) -> float:
    """Mean of an exponential that is censored at 1, by maximum likelihood with the prior's pseudo-samples."""
    exposure = (weights * margin.clamp(max=1)).sum() + _HARD_SCALE_COUNT * _HARD_SCALE
    events = weights[margin < 1].sum() + _HARD_SCALE_COUNT
    return min(float(exposure / events), _LARGEST_HARD_SCALE)
