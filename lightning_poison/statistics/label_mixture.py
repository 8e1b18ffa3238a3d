"""Mixture of wrong labels and hard images over the samples whose label and prediction differ.

The *prediction* for a sample is the class with the lowest suspicion score, by a model that was not fitted on it. The
*margin* of another label is how much higher the score is under that label. Images labeled 9 and predicted 4 are of two
kinds, which differ in their margin: a 4 with a wrong label has the margin that any 4 has under the label 9, as observed
on the images that are both labeled and predicted 4; a hard 9 has a small one. The distribution of the first kind is
therefore observed for each pair of classes, and that of the second is a short exponential shared by all pairs, or,
where many samples are hard, the tail of a normal distribution (`lightning_poison.statistics.normal_tails`).
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lightning_poison.statistics.lowest_scores import LowestScores

_BINS = 40
"""Bins between a margin of 0 and the pair's typical wrong-label margin. One more bin has all larger margins."""

_SMOOTHING = 0.06
"""Standard deviation of the kernel that smooths a wrong-label distribution, in units of the typical margin."""

_POOLED_COUNT = 20.0
"""Weight of the distribution pooled over all pairs in that of one pair, in samples."""

_MIN_FOR_SCALE = 5
"""Minimum number of agreeing samples in a class. With fewer, its pairs use the typical margin of the other pairs."""

_CLASS_STRENGTH = 0.5
"""Shape of the Gamma prior that shrinks the two counts of a pair toward an even spread."""

HARD_SCALE, _HARD_SCALE_COUNT, MAX_HARD_SCALE = 0.25, 50.0, 0.5
"""Mean margin of hard images in units of the typical wrong-label margin: prior, prior weight in samples, maximum."""

_JACKKNIFE_GROUPS = 20

_ITERATIONS = 300

_AT_ONCE = 2**20
"""Largest number of weights, of several fits together, that are handled at once."""


@dataclass(frozen=True)
class Disagreements:
    """The D samples whose label and prediction differ, and the P pairs of classes that occur among them.

    Args:
        index: Position of each sample in the data set, `(D,)`.
        pair: Row of the pair of each sample, `(D,)`.
        margin: Margin of each sample, in units of the median margin of wrong labels of its pair, `(D,)`.
        labeled: Label of each pair, `(P,)`.
        predicted: Prediction of each pair, `(P,)`.
        wrong: Distribution of a wrong label's margin over the bins, `(P, bins + 1)`. Rows sum to 1.
        spread: Share of all disagreements that each pair would have if they were spread evenly over images, `(P,)`.
        agreeing: Number of samples with the label of each pair that are predicted as it, float64 `(P,)`.

    Example:
        >>> label_scores, labels = torch.tensor([[0.0, 2.0], [0.0, 1.5]]).double(), torch.tensor([0, 1])
        >>> found = find_disagreements(label_scores, labels)
        >>> found.index, found.labeled, found.predicted
        (tensor([1]), tensor([1]), tensor([0]))
    """

    index: Tensor
    pair: Tensor
    margin: Tensor
    labeled: Tensor
    predicted: Tensor
    wrong: Tensor
    spread: Tensor
    agreeing: Tensor


@dataclass(frozen=True)
class Mixture:
    """A fitted mixture.

    Args:
        posterior: Probability that the label is wrong, for each disagreement, `(D,)`.
        counts: Expected number of wrong labels in each pair, `(P,)`.
        hard_scale: Mean margin of hard images, in units of the typical wrong-label margin.

    Example:
        >>> label_scores, labels = 5 - 5 * torch.eye(2).double().repeat(50, 1), torch.tensor([0, 1] * 48 + [1, 0] * 2)
        >>> fit_mixture(find_disagreements(label_scores, labels)).counts.round()
        tensor([2., 2.], dtype=torch.float64)
    """

    posterior: Tensor
    counts: Tensor
    hard_scale: float


def find_disagreements(label_scores: Tensor, labels: Tensor, *, lowest: LowestScores | None = None) -> Disagreements:
    """Collect the samples whose label and prediction differ, with the wrong-label distribution of each pair.

    Args:
        label_scores: Finite suspicion of every sample under every label, floating-point `(N, C)`. Of a sample whose
            label and prediction agree, the scores under those labels are read that wrong labels of its class have.
        labels: Labels, `(N,)`.
        lowest: The lowest of these scores. Default: they are computed.

    Example:
        >>> label_scores = torch.tensor([[0.0, 2.0]] * 9 + [[0.0, 1.0]]).double()
        >>> find_disagreements(label_scores, torch.tensor([0] * 9 + [1])).margin  # half the margin of the other nine
        tensor([0.5000], dtype=torch.float64)
    """
    classes = label_scores.shape[1]
    nearest = LowestScores.of(label_scores) if lowest is None else lowest
    smallest, predictions = nearest.lowest, nearest.predicted
    index = (predictions != labels).nonzero().flatten()
    codes, pair = torch.unique(predictions[index] * classes + labels[index], return_inverse=True)
    predicted, labeled = codes // classes, codes % classes

    typical = smallest.new_zeros(len(codes))
    histogram = smallest.new_zeros(len(codes), 2 * _BINS + 1)
    agreeing = (predictions == labels).nonzero().flatten()
    agreeing = agreeing[predictions[agreeing].argsort(stable=True)]
    members = torch.split(agreeing, torch.bincount(predictions[agreeing], minlength=classes).tolist())
    pairs = torch.split(torch.arange(len(codes)), torch.bincount(predicted, minlength=classes).tolist())
    for own, rows in zip(members, pairs, strict=True):
        if not len(rows) or len(own) < _MIN_FOR_SCALE:
            continue
        margins = label_scores[own[:, None], labeled[rows]].double() - smallest[own, None]
        typical[rows] = margins.median(0).values
        histogram[rows] = _histogram(margins / _positive(typical[rows]))
    known = typical > 0
    typical = torch.where(known, typical, typical[known].median() if known.any() else smallest.new_ones(()))

    margin = (label_scores[index, labels[index]].double() - smallest[index]) / typical[pair]
    spread = EvenSpread.of(predictions, labels, classes).shares(predicted, labeled)
    right = torch.bincount(labels[agreeing], minlength=classes).double()[labeled]
    return Disagreements(index, pair, margin, labeled, predicted, _smooth(histogram), spread, right)


def fit_mixture(
    found: Disagreements,
    *,
    start: Mixture | None = None,
    iterations: int = _ITERATIONS,
    expected_scale: float = HARD_SCALE,
    tails: Tensor | None = None,
) -> Mixture:
    """Fit the numbers of wrong labels and hard images in each pair, and the mean margin of hard images, by EM.

    Each pair has its own two counts. A Gamma prior shrinks each of them toward an even spread over the pairs: pairs
    with a single image borrow strength from the others, pairs with many images are hardly affected.

    Args:
        found: The disagreements.
        start: Initial fit. Default: half of the labels are wrong.
        iterations: Maximum number of EM steps. Default: 300.
        expected_scale: Mean margin that hard images are expected to have, which counts as much as 50 of them. Default:
            a quarter of the typical wrong-label margin.
        tails: Distribution of the margins of hard images of each pair, which is then not fitted, `(P, bins + 1)`; see
            `lightning_poison.statistics.normal_tails`.

    Example:
        >>> label_scores, labels = 5 - 5 * torch.eye(2).double().repeat(50, 1), torch.tensor([0, 1] * 48 + [1, 0] * 2)
        >>> fit_mixture(find_disagreements(label_scores, labels)).posterior > 0.99
        tensor([True, True, True, True])
    """
    weights = torch.ones_like(found.margin)[None]
    counts = start.counts if start is not None else _sum_by_pair(found, weights)[0] / 2
    scale = torch.tensor([start.hard_scale if start is not None else expected_scale], dtype=torch.float64)
    posterior, counts, scale = _fit_each(found, weights, counts[None], scale, iterations, expected_scale, tails)
    return Mixture(posterior[0], counts[0], float(scale[0]))


def _fit_each(
    found: Disagreements,
    weights: Tensor,
    counts: Tensor,
    scale: Tensor,
    iterations: int,
    expected_scale: float,
    tails: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fit G mixtures to the same disagreements with different weights at once; each ends when it has converged.

    Args:
        found: The disagreements.
        weights: Weights of the disagreements in each fit, `(G, D)`.
        counts: Initial counts of each, `(G, P)`.
        scale: Initial mean margin of hard images of each, `(G,)`.
        iterations: Maximum number of EM steps.
        expected_scale: See `fit_mixture`.
        tails: See `fit_mixture`.

    Returns:
        Posteriors `(G, D)`, counts `(G, P)` and mean margins of hard images `(G,)`.
    """
    bins, exposed = _bins(found.margin, _BINS), found.margin.clamp(max=1)
    below = (found.margin < 1).nonzero().flatten()
    wrong_density = found.wrong[found.pair, bins]
    fixed = None if tails is None else tails[found.pair, bins]
    observed = _sum_by_pair(found, weights)
    posteriors, all_counts, scales = torch.empty_like(weights), counts.clone(), scale.clone()
    running = torch.arange(len(weights))
    for step in range(iterations):
        wrong = _shrunk(counts, found.spread).index_select(1, found.pair) * wrong_density
        rest = _shrunk((observed - counts).clamp_min(0), found.spread).index_select(1, found.pair)
        hard_density = _hard_mass(scale).index_select(1, bins) if fixed is None else fixed
        posterior = wrong / (wrong + rest * hard_density)
        previous, counts = counts, _sum_by_pair(found, weights * posterior)
        scale = _hard_scale(exposed, below, weights * (1 - posterior), expected_scale)
        ended = (counts - previous).abs().sum(1) <= 1e-6 * observed.sum(1)
        if step == iterations - 1:
            ended[:] = True
        if ended.any():
            rows = running[ended]
            posteriors[rows], all_counts[rows], scales[rows] = posterior[ended], counts[ended], scale[ended]
            going = ~ended
            running, weights, observed = running[going], weights[going], observed[going]
            counts, scale = counts[going], scale[going]
            if not len(running):
                break
    return posteriors, all_counts, scales


def log_likelihood(found: Disagreements, mixture: Mixture, *, tails: Tensor | None = None) -> float:
    """Return the log-likelihood of the margins, given the pair of each disagreement.

    Args:
        found: The disagreements.
        mixture: The mixture.
        tails: With which it was fitted; see `fit_mixture`.

    Example:
        >>> label_scores, labels = 5 - 5 * torch.eye(2).double().repeat(50, 1), torch.tensor([0, 1] * 48 + [1, 0] * 2)
        >>> found = find_disagreements(label_scores, labels)
        >>> log_likelihood(found, fit_mixture(found)) > log_likelihood(found, fit_mixture(found, iterations=1))
        True
    """
    bins = _bins(found.margin, _BINS)
    observed = _sum_by_pair(found, torch.ones_like(found.margin)[None])
    wrong, hard = _shrunk(torch.stack([mixture.counts, (observed[0] - mixture.counts).clamp_min(0)]), found.spread)
    share = (wrong / (wrong + hard))[found.pair]
    masses = (
        _hard_mass(torch.tensor([mixture.hard_scale]).double())[0, bins] if tails is None else tails[found.pair, bins]
    )
    return float((share * found.wrong[found.pair, bins] + (1 - share) * masses).log().sum())


def count_variances(
    found: Disagreements, mixture: Mixture, *, expected_scale: float = HARD_SCALE, tails: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Estimate the variance of the number of wrong labels by a grouped jackknife that omits every 20th disagreement.

    Args:
        found: The disagreements.
        mixture: The mixture fitted on all of them.
        expected_scale: With which it was fitted; see `fit_mixture`.
        tails: With which it was fitted; see `fit_mixture`.

    Returns:
        Variance of each pair's count, `(P,)`, and variance of the total, a scalar.

    Example:
        >>> label_scores, labels = 5 - 5 * torch.eye(2).double().repeat(50, 1), torch.tensor([0, 1] * 48 + [1, 0] * 2)
        >>> found = find_disagreements(label_scores, labels)
        >>> per_pair, total = count_variances(found, fit_mixture(found))
        >>> per_pair.shape, total > 0
        (torch.Size([2]), tensor(True))
    """
    group = torch.arange(len(found.index)) % _JACKKNIFE_GROUPS
    kept_share = 1 - 1 / _JACKKNIFE_GROUPS
    together = max(1, _AT_ONCE // max(1, len(group)))
    refitted = []
    for first in range(0, _JACKKNIFE_GROUPS, together):
        left_out = torch.arange(first, min(first + together, _JACKKNIFE_GROUPS))
        weights = (group != left_out[:, None]).double()
        starts = mixture.counts.expand(len(left_out), -1)
        scales = torch.full((len(left_out),), mixture.hard_scale, dtype=torch.float64)
        refitted.append(_fit_each(found, weights, starts, scales, _ITERATIONS, expected_scale, tails)[1] / kept_share)
    counts = torch.cat(refitted)
    deviations = counts - counts.mean(0)
    return kept_share * (deviations**2).sum(0), kept_share * (deviations.sum(1) ** 2).sum()


@dataclass(frozen=True)
class EvenSpread:
    """The share of all disagreements that each pair of classes would have if they were spread evenly over the samples.

    Shares are computed for the pairs that are asked for, since there are C² pairs.

    Args:
        predicted: Number of samples that are predicted as each class, float64 `(C,)`.
        labeled: Number of samples that carry each label, float64 `(C,)`.

    Example:
        >>> spread = EvenSpread.of(torch.tensor([0, 1]), torch.tensor([0, 1]), 2)
        >>> spread.shares(torch.tensor([0, 1]), torch.tensor([1, 1]))
        tensor([0.5000, 0.0000], dtype=torch.float64)
    """

    predicted: Tensor
    labeled: Tensor

    @classmethod
    def of(cls, predictions: Tensor, labels: Tensor, classes: int) -> Self:
        """Count predicted classes, int64 `(N,)`, and labels, int64 `(N,)`, of C classes."""
        counts = (torch.bincount(each, minlength=classes).double() for each in (predictions, labels))
        return cls(*counts)

    def shares(self, predicted: Tensor, labeled: Tensor) -> Tensor:
        """Return the shares of pairs, float64; they are 0 for a class with itself, and sum to 1 over all pairs.

        Args:
            predicted: Predicted class of each pair.
            labeled: Label of each pair, of a shape that is broadcast with that of `predicted`.
        """
        product = self.predicted[predicted] * self.labeled[labeled]
        total = self.predicted.sum() * self.labeled.sum() - (self.predicted * self.labeled).sum()
        return torch.where(predicted == labeled, 0.0, product) / total


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
    """Return distributions: add the pooled counts, smooth with reflection at 0, merge bins above the typical margin."""
    pooled = histogram.sum(0) + torch.finfo(histogram.dtype).tiny
    counts = histogram + _POOLED_COUNT * pooled / pooled.sum()
    centers = (torch.arange(histogram.shape[1]).double() + 0.5) / _BINS
    distance = torch.stack([centers[:, None] - centers, centers[:, None] + centers])
    kernel = (-0.5 * (distance / _SMOOTHING) ** 2).exp().sum(0)
    smooth = counts @ (kernel / kernel.sum(1, keepdim=True))
    merged = torch.cat([smooth[:, :_BINS], smooth[:, _BINS:].sum(1, keepdim=True)], 1)
    return merged / merged.sum(1, keepdim=True)


def _sum_by_pair(found: Disagreements, values: Tensor) -> Tensor:
    """Return the sums over the disagreements of each pair, `(G, P)`, of values `(G, D)`."""
    return values.new_zeros(len(values), len(found.spread)).index_add(1, found.pair, values)


def _shrunk(counts: Tensor, spread: Tensor) -> Tensor:
    """Return the posterior mean of Poisson rates `(G, P)` under a Gamma prior whose mean is the evenly spread total."""
    expected = _positive(spread * counts.sum(1, keepdim=True))
    return (counts + _CLASS_STRENGTH) / (1 + _CLASS_STRENGTH / expected)


def _hard_mass(scale: Tensor) -> Tensor:
    """Return the mass of exponentials of means `(G,)` in each bin, the last of which has all margins from 1 on."""
    survival = (-torch.arange(_BINS + 1).double() / _BINS / scale[:, None]).exp()
    return torch.cat([survival[:, :-1] - survival[:, 1:], survival[:, -1:]], 1)


def _hard_scale(exposed: Tensor, below: Tensor, weights: Tensor, expected_scale: float) -> Tensor:
    """Fit the means of exponentials censored at 1, by maximum likelihood with the prior's pseudo-samples.

    Args:
        exposed: The margins, censored at 1, `(D,)`.
        below: Positions of those below 1.
        weights: Their weights in each fit, `(G, D)`.
        expected_scale: Mean of the prior.
    """
    exposure = (weights * exposed).sum(1) + _HARD_SCALE_COUNT * expected_scale
    events = weights.index_select(1, below).sum(1) + _HARD_SCALE_COUNT
    return (exposure / events).clamp(max=MAX_HARD_SCALE)
