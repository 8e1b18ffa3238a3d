"""How much more likely a label is wrong than correct, by the predictions for a sample and by how often labels are."""

import torch
from torch import Tensor

from lightning_poison.statistics.label_mixture import Disagreements, EvenSpread
from lightning_poison.statistics.lowest_scores import LowestScores
from lightning_poison.statistics.row_blocks import AT_ONCE, row_blocks, small_row_blocks

_EVEN_COUNT = 10.0
"""Weight of an even spread in the rate of a pair of classes, in wrong labels."""

_TYPICAL_MARGIN = 1.5
"""Median margin, in nats, of samples whose label and prediction agree. Scores in other units are scaled to it.

On 10,000 images of CIFAR-10 and two models, with 1 to 8 nats and weights of 2 to 20, random wrong labels are ranked
almost alike. Those of one class are ranked better the smaller both are.
"""

_LEAST_EXPONENT = -80.0
"""Exponent below which odds do not count beside those of the likeliest other label, which are 1.

Smaller ones have results that processors compute five times as slowly.
"""

_SMALLEST_MEAN = 1e-30
"""Mean probability of a class that is never predicted, at least."""


def label_suspicion(
    label_scores: Tensor,
    labels: Tensor,
    found: Disagreements,
    counts: Tensor,
    *,
    lowest: LowestScores | None = None,
    only_disagreements: bool = False,
) -> Tensor:
    r"""Compute the logarithm of the odds that a label is wrong, up to a constant.

    With the probability :math:`p_k(x)` of class k given the input, and the rate :math:`T_{kj}` at which samples of
    class k are labeled j, the odds that the label j is wrong are

    .. math:: \frac{\sum_{k \neq j} T_{kj} \, p_k(x)}{T_{jj} \, p_j(x)},

    by Bayes' rule for wrong labels that depend on the class alone (Patrini et al., *Making Deep Neural Networks Robust
    to Label Noise: a Loss Correction Approach*, CVPR 2017, arXiv:1609.03683, theorem 2). The rates are those of the
    fitted counts relative to an even spread, toward which rare pairs are shrunk. A model that was trained on the labels
    predicts a class more often if many samples carry its label wrongly, so :math:`p_k` is divided by its mean. In the
    odds, the normalization of :math:`p_k(x)` cancels.

    Args:
        label_scores: Finite suspicion of every sample under every label, floating-point `(N, C)`: negative
            log-probabilities, up to a constant for each sample, in any unit.
        labels: Labels, int64 `(N,)`.
        found: The samples whose label and prediction differ.
        counts: Estimated number of wrong labels in each pair of classes, `(P,)`.
        lowest: The lowest of these scores. Default: they are computed.
        only_disagreements: Whether the odds of samples whose label and prediction agree are not needed; those returned
            for them are then −∞. Default: they are.

    Returns:
        Log-odds in nats, float64 `(N,)`. Larger is more suspicious.

    Example:
        >>> from lightning_poison.statistics.label_mixture import find_disagreements, fit_mixture
        >>> label_scores, labels = 5 - 5 * torch.eye(2).double().repeat(50, 1), torch.tensor([0, 1] * 48 + [1, 0] * 2)
        >>> found = find_disagreements(label_scores, labels)
        >>> label_suspicion(label_scores, labels, found, fit_mixture(found).counts)[-6:].sign()
        tensor([-1., -1.,  1.,  1.,  1.,  1.], dtype=torch.float64)
    """
    nearest = LowestScores.of(label_scores) if lowest is None else lowest
    own, other = label_scores.gather(1, labels[:, None])[:, 0].double(), nearest.under_other_labels(labels)
    margin = (other - own)[own <= other].median()
    scale = float(_TYPICAL_MARGIN / margin) if margin > 0 else 1.0
    means = torch.zeros(label_scores.shape[1], dtype=torch.float64)
    for part in small_row_blocks(*label_scores.shape):
        means += (-scale * label_scores[part]).softmax(1).sum(0, dtype=torch.float64)
    means = (means / len(labels)).clamp_min(_SMALLEST_MEAN)
    predictions = labels.clone()
    predictions[found.index] = found.predicted[found.pair]
    rates = _PairRates(found, counts, EvenSpread.of(predictions, labels, len(means)), means, label_scores.dtype)
    of_others = torch.zeros(len(labels), dtype=torch.float64)
    number = len(found.index) if only_disagreements else len(labels)
    for part in (small_row_blocks if rates.cover_all else row_blocks)(number, label_scores.shape[1]):
        rows: Tensor | slice = found.index[part] if only_disagreements else part
        odds = other[rows, None].to(label_scores.dtype) - label_scores[rows]
        odds.mul_(scale).clamp_min_(_LEAST_EXPONENT).exp_()
        odds.scatter_(1, labels[rows, None], 0)
        of_others[rows] = odds.mul_(rates.of(labels[rows])).sum(1).double()
    return of_others.log() - scale * (other - own) + means[labels].log()


class _PairRates:
    """The rates T of wrong labels, relative to an even spread, divided by the mean probability of the predicted class.

    If there are many pairs of classes, rates are computed for the labels of a block of samples at a time.
    """

    def __init__(
        self, found: Disagreements, counts: Tensor, spread: EvenSpread, means: Tensor, dtype: torch.dtype
    ) -> None:
        self._found, self._counts, self._spread, self._means, self._dtype = found, counts, spread, means, dtype
        self._classes = torch.arange(len(means))
        self._all = self._compute(self._classes) if len(means) ** 2 <= AT_ONCE else None

    @property
    def cover_all(self) -> bool:
        """Whether the rates are known for all labels."""
        return self._all is not None

    def of(self, labels: Tensor) -> Tensor:
        """Return the rates of all predicted classes for each of some labels, `(B, C)`."""
        if self._all is not None:
            return self._all[labels]
        present, place = torch.unique(labels, return_inverse=True)
        return self._compute(present)[place]

    def _compute(self, labels: Tensor) -> Tensor:
        """Return the rates for labels, which are sorted, `(L, C)`."""
        even = self._spread.shares(self._classes, labels[:, None]) * self._counts.sum()
        estimated = torch.zeros_like(even)
        place = torch.searchsorted(labels, self._found.labeled).clamp_max(len(labels) - 1)
        occurs = labels[place] == self._found.labeled
        estimated[place[occurs], self._found.predicted[occurs]] = self._counts[occurs]
        return ((estimated + _EVEN_COUNT) / (even + _EVEN_COUNT) / self._means).to(self._dtype)
