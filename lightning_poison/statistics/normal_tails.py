"""Mixtures of wrong labels and hard samples in which the margins of hard samples are the tail of a normal distribution.

Where many samples of a class are hard, as of cats and dogs, those that are misclassified have larger margins than the
exponential of `lightning_poison.statistics.label_mixture` allows, so that some would count as wrong labels. If the
signed margins of a class are normally distributed, the share that is misclassified says how large these margins are.
"""

import torch
from torch import Tensor

from lightning_poison.statistics.label_mixture import Disagreements, Mixture, fit_mixture

_MOST_ERRORS = 0.45
"""Misclassified share up to which the margins of these samples increase with it."""

_REFITS, _SETTLED = 10, 1e-3
"""Most fits with the tails that the last one implies, and the share of disagreements by which the last one changes."""


def normal_tails(errors: Tensor, bins: int) -> Tensor:
    """Return the distribution of the margins of misclassified samples, if those of their class are normal.

    Signed margins are above 0 for correct predictions. With .02, .1 and .2 of a class below 0, these have, on average,
    .2, .3 and .5 of the margin of the others.

    Args:
        errors: The misclassified share of each pair, in [0, 1], float64 `(P,)`. From .45 on, .45 is used.
        bins: Number of bins between 0 and the median margin of correct predictions. One more bin has all larger ones.

    Returns:
        Mass of each bin, `(P, bins + 1)`.

    Example:
        >>> normal_tails(torch.tensor([0.02, 0.2]).double(), 4)[:, 0]  # up to a quarter of the median
        tensor([0.7483, 0.3383], dtype=torch.float64)
    """
    share = errors.clamp(1e-4, _MOST_ERRORS)[:, None]
    mean = -torch.special.ndtri(share)
    median = mean - torch.special.ndtri((1 - share) / 2)
    survival = torch.special.ndtr(-mean - median * torch.arange(bins + 1).double() / bins) / share
    return torch.cat([survival[:, :-1] - survival[:, 1:], survival[:, -1:]], 1)


def fit_normal_mixture(found: Disagreements) -> tuple[Mixture, Tensor, Mixture, Tensor]:
    """Fit mixtures in which the margins of hard samples are the tail of a normal distribution, pair by pair.

    How long the tail is depends on how many samples of a class are hard, and so on the fit, which is repeated with what
    the last one found.

    Args:
        found: The disagreements.

    Returns:
        The mixture and its tails, `(P, bins + 1)`, and those with the longest tails: as if all disagreements were hard.

    Example:
        >>> from lightning_poison.statistics.label_mixture import find_disagreements
        >>> label_scores, labels = 5 - 5 * torch.eye(2).double().repeat(50, 1), torch.tensor([0, 1] * 48 + [1, 0] * 2)
        >>> fit_normal_mixture(find_disagreements(label_scores, labels))[0].counts.round()
        tensor([2., 2.], dtype=torch.float64)
    """
    bins = found.wrong.shape[1] - 1
    observed = torch.bincount(found.pair, minlength=len(found.spread)).double()
    tails = longest = normal_tails(observed / (observed + found.agreeing), bins)
    mixture = least = fit_mixture(found, tails=tails)
    for _ in range(_REFITS):
        hard = (observed - mixture.counts).clamp_min(0)
        tails = normal_tails(hard / (hard + found.agreeing).clamp_min(1), bins)
        previous, mixture = mixture, fit_mixture(found, start=mixture, tails=tails)
        if float((mixture.counts - previous.counts).abs().sum()) <= _SETTLED * len(found.index):
            break
    return mixture, tails, least, longest
