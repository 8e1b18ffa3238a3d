"""How much more likely a label is wrong than correct, by the predictions for a sample and by how often labels are."""

import torch
from torch import Tensor

from lightning_poison.statistics.label_mixture import Disagreements, even_spread

_EVEN_COUNT = 10.0
"""Weight of an even spread in the rate of a pair of classes, in wrong labels."""

_TYPICAL_MARGIN = 1.5
"""Median margin, in nats, of samples whose label and prediction agree. Scores in other units are scaled to it.

On 10,000 images of CIFAR-10 and two models, with 1 to 8 nats and weights of 2 to 20, random wrong labels are ranked
almost alike. Those of one class are ranked better the smaller both are.
"""


def label_suspicion(label_scores: Tensor, labels: Tensor, found: Disagreements, counts: Tensor) -> Tensor:
    r"""Compute the logarithm of the odds that a label is wrong, up to a constant.

    With the probability :math:`p_k(x)` of class k given the input, and the rate :math:`T_{kj}` at which samples of
    class k are labeled j, the odds that the label j is wrong are

    .. math:: \frac{\sum_{k \neq j} T_{kj} \, p_k(x)}{T_{jj} \, p_j(x)},

    by Bayes' rule for wrong labels that depend on the class alone (Patrini et al., *Making Deep Neural Networks Robust
    to Label Noise: a Loss Correction Approach*, CVPR 2017, arXiv:1609.03683, theorem 2). The rates are those of the
    fitted counts relative to an even spread, toward which rare pairs are shrunk. A model that was trained on the labels
    predicts a class more often if many samples carry its label wrongly, so :math:`p_k` is divided by its mean.

    Args:
        label_scores: Finite suspicion of every sample under every label, float64 `(N, C)`: negative log-probabilities,
            up to a constant for each sample, in any unit.
        labels: Labels, int64 `(N,)`.
        found: The samples whose label and prediction differ.
        counts: Estimated number of wrong labels in each pair of classes, `(P,)`.

    Returns:
        Log-odds in nats, float64 `(N,)`. Larger is more suspicious.

    Example:
        >>> from lightning_poison.statistics.label_mixture import find_disagreements, fit_mixture
        >>> label_scores, labels = 5 - 5 * torch.eye(2).double().repeat(50, 1), torch.tensor([0, 1] * 48 + [1, 0] * 2)
        >>> found = find_disagreements(label_scores, labels)
        >>> label_suspicion(label_scores, labels, found, fit_mixture(found).counts)[-6:].sign()
        tensor([-1., -1.,  1.,  1.,  1.,  1.], dtype=torch.float64)
    """
    classes = label_scores.shape[1]
    own, lowest = label_scores.gather(1, labels[:, None])[:, 0], label_scores.min(1).values
    other = label_scores.scatter(1, labels[:, None], torch.inf).min(1).values
    margin = (other - own)[own == lowest].median()
    log_p = (-label_scores * (_TYPICAL_MARGIN / margin if margin > 0 else 1)).log_softmax(1)
    log_p = log_p - (log_p.logsumexp(0) - torch.tensor(float(len(labels))).log())
    even = even_spread(label_scores.argmin(1), labels, classes) * counts.sum()
    estimated = torch.zeros_like(even)
    estimated[found.predicted, found.labeled] = counts
    log_rates = ((estimated + _EVEN_COUNT) / (even + _EVEN_COUNT)).log().fill_diagonal_(-torch.inf)
    wrong = (log_p + log_rates.T[labels]).logsumexp(1)
    return wrong - log_p.gather(1, labels[:, None])[:, 0]
