"""Wrong labels that are planted into the data themselves, to learn what an estimate and a decision would find."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from scipy.optimize import bisect
from torch import Tensor

from lightning_poison.statistics.arguments import check_fraction, check_integer, check_label_vector, invalid
from lightning_poison.statistics.contamination import Contamination, wrong_label_p_values

RELIABLE_RESPONSE = 0.5
"""Response from which posteriors are corrected, and a large estimate is used if many samples are misclassified."""


@dataclass(frozen=True)
class PlantedResult:
    """What happens to a decision when some labels are replaced by random ones.

    Args:
        power: Share of the planted wrong labels that is removed, in [0, 1].
        response: Increase of the estimated share of wrong labels, divided by the planted share. Close to 1 for an
            estimate that tells wrong labels from hard samples; close to 0 for one that does not.
        share: Share of the labels that was planted, in (0, 1).
    """

    power: float
    response: float
    share: float


def plant_labels(labels: Tensor, share: float, *, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Replace some labels by others, drawn uniformly from the other classes that occur.

    Args:
        labels: Labels in `[0, C)`, int64 `(N,)`.
        share: Share of the labels to replace, in (0, 1). At least one is replaced.
        num_classes: C, at least 2.
        seed: Seed of the choice of samples and labels.

    Returns:
        The labels, and the positions of those that were replaced, int64 `(P,)`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> labels = torch.arange(100) % 3
        >>> replaced, planted = plant_labels(labels, 0.05, num_classes=3, seed=0)
        >>> len(planted), bool((replaced[planted] != labels[planted]).all()), int((replaced != labels).sum())
        (5, True, 5)
    """
    check_fraction("share", share)
    check_integer("num_classes", num_classes, minimum=2)
    check_label_vector("labels", labels, num_classes=num_classes)
    if len(torch.unique(labels)) < 2:
        raise invalid("labels", "of at least two classes", f"{len(torch.unique(labels))}")
    generator = torch.Generator().manual_seed(seed)
    count = max(1, round(share * len(labels)))
    planted = torch.randperm(len(labels), generator=generator)[:count]
    replaced = labels.clone()
    present = torch.unique(labels)
    steps = torch.randint(1, len(present), (count,), generator=generator)
    replaced[planted] = present[(torch.searchsorted(present, labels[planted]) + steps) % len(present)]
    return replaced, planted


def planted_result(
    labels: Tensor,
    estimate: Callable[[Tensor], Contamination],
    decide: Callable[[Contamination, float, Tensor], Tensor],
    *,
    rate: float,
    num_classes: int,
    share: float = 0.05,
    repeats: int = 2,
) -> PlantedResult:
    """Plant wrong labels, estimate and decide anew, and measure what changes.

    The scores do not change: a sample is scored under every label by a model that was not fitted on it, and a few
    planted labels change the models of the other folds little. With few samples, a larger share is planted, so that at
    least 20 labels are.

    Args:
        labels: Labels in `[0, C)`, int64 `(N,)`.
        estimate: Maps labels to an estimate of the wrong ones.
        decide: Maps an estimate, the response and the labels with those that were planted to the mask of the samples
            to keep.
        rate: The estimated share for `labels`.
        num_classes: C, at least 2.
        share: Share of the labels that is replaced, in (0, 1). Default: 0.05.
        repeats: Number of plantings, over which the result is averaged. Default: 2.

    Example:
        >>> from lightning_poison.statistics.contamination import estimate_contamination, select_by_posterior
        >>> labels = torch.arange(1000) % 2
        >>> label_scores = 5 - 5 * torch.eye(2)[labels]
        >>> planted_result(
        ...     labels,
        ...     lambda labels: estimate_contamination(label_scores, labels),
        ...     lambda found, response, replaced: select_by_posterior(found.posterior, found.p_values),
        ...     rate=0,
        ...     num_classes=2,
        ... ).power
        1.0
    """
    check_integer("repeats", repeats)
    share = min(0.2, max(share, _FEWEST / len(labels)))
    plantings = [plant_labels(labels, share, num_classes=num_classes, seed=seed) for seed in range(repeats)]
    estimates = [estimate(replaced) for replaced, _ in plantings]
    increase = sum(found.rate - rate for found in estimates) / repeats
    response = increase * len(labels) / len(plantings[0][1])
    powers = [
        float((~decide(found, response, replaced)[planted]).double().mean())
        for found, (replaced, planted) in zip(estimates, plantings, strict=True)
    ]
    return PlantedResult(sum(powers) / repeats, response, share)


def corrected_for_response(found: Contamination, response: float) -> Contamination:
    """Allow for hard samples that an estimate takes for wrong labels, and for wrong labels that it takes for hard ones.

    An estimate that sees only a part of planted wrong labels cannot tell the two apart. It is too low where there are
    many wrong labels, and too high where there are none: on clean images of CIFAR-10, the estimated share was .18 to
    .27 of the misclassified share times the part of planted labels that was not seen. The estimate is reduced by a
    quarter of this product, and the lower end of the interval by .3 of it. The upper end is divided by the response,
    estimate and posteriors by its power of .4: planted labels are random, and what part is seen of others is not known.

    In small data sets the estimate is too high, not too low, since few hard samples show their margins. There, the
    interval is wide. If its lower end is below .8 of the estimate, estimate and posteriors are raised less, and not at
    all below .6. There, the posteriors are reduced with the estimate, so that they add up to it.

    If less than half is seen, posteriors are not corrected, so that only labels that are almost certainly wrong exceed
    one half.

    Args:
        found: The estimate.
        response: Share of planted wrong labels that it sees; see `planted_result`.

    Returns:
        The estimate, with other `rate`, `low`, `high`, `posterior` and `p_values`.

    Example:
        >>> posterior = torch.tensor([0.9, 0.4, 0.0]).double()
        >>> found = Contamination(0.06, 0.05, 0.07, 0.95, 0.2, (), posterior, posterior, posterior)
        >>> corrected = corrected_for_response(found, 0.64)
        >>> [round(each, 4) for each in (corrected.rate, corrected.low, corrected.high, *corrected.posterior.tolist())]
        [0.0502, 0.0284, 0.1094, 0.999, 0.4782, 0.0]
        >>> vague = corrected_for_response(replace(found, low=0.03), 0.64)
        >>> [round(each, 4) for each in (vague.rate, *vague.posterior.tolist())]
        [0.042, 0.7376, 0.1724, 0.0]
    """
    seen = min(1.0, max(_LEAST_RESPONSE, response))
    missed = found.misclassified_share * (1 - min(1.0, max(0.0, response)))
    low = max(0.0, found.low - _MOST_HARD_AS_WRONG * missed)
    high = min(1.0, found.high / seen)
    precision = _precision(found)
    raised = seen ** (_PART * precision)
    rate = min(high, max(low, (found.rate - _HARD_AS_WRONG * missed) / raised))
    posterior = found.posterior
    if response >= RELIABLE_RESPONSE:
        posterior = (posterior / raised).clamp(max=_SUREST)
        if precision < 1:
            kept = max(low, found.rate - _HARD_AS_WRONG * missed) / found.rate
            posterior = _with_sum(posterior, float(posterior.sum()) * (precision + (1 - precision) * kept))
    p_values = wrong_label_p_values(found.suspicion, posterior)
    return replace(found, rate=rate, low=low, high=high, posterior=posterior, p_values=p_values)


def _precision(found: Contamination) -> float:
    """Return how precise an estimate is, by its interval: from 0, so little that posteriors are not raised, to 1."""
    if found.rate <= 0:
        return 1.0
    vague, precise = _LOW_OF_RATE
    return min(1.0, max(0.0, (found.low / found.rate - vague) / (precise - vague)))


def _with_sum(posterior: Tensor, total: float) -> Tensor:
    """Multiply the odds of all probabilities by one factor, so that they have a sum, or the nearest that they can have.

    Example:
        >>> _with_sum(torch.tensor([0.9, 0.5, 0.0]).double(), 1.0)
        tensor([0.7500, 0.2500, 0.0000], dtype=torch.float64)
    """
    log_odds = torch.logit(posterior)

    def excess(shift: float) -> float:
        return float(torch.sigmoid(log_odds + shift).sum()) - total

    least, most = -_MOST_SHIFT, _MOST_SHIFT
    if excess(least) >= 0 or excess(most) <= 0:
        return torch.sigmoid(log_odds + (least if excess(least) >= 0 else most))
    return torch.sigmoid(log_odds + bisect(excess, least, most))


_HARD_AS_WRONG, _MOST_HARD_AS_WRONG = 0.25, 0.3
"""Share of missed and misclassified samples that are taken for wrong labels: typical, and at most."""

_PART = 0.4
"""Power of the response by which estimates and posteriors are divided.

Between 0, no correction, and 1. On 10,000 images of CIFAR-10 with 10 % random wrong labels and a small network, .5
removes half of them at 1.1 to 1.7 % of the clean images, and .25 about .36 at .4 %.
"""

_LOW_OF_RATE = (0.6, 0.8)
"""Lower end of an interval, as a share of the estimate, up to which posteriors are not raised, and from which fully.

On CIFAR-10 with 10 % random wrong labels, it is .8 to .93 of 10,000 images, and .45 to .67 of 600 to 2,000.
"""

_MOST_SHIFT = 60.0
"""Largest change of log-odds."""

_SUREST = 0.999
"""Largest posterior after the correction, so that p-values do not become 0."""

_LEAST_RESPONSE = 0.3
"""Response below which the upper end of an interval is not raised further."""

_FEWEST = 20
"""Smallest number of labels to plant."""
