"""`TrainingOpinion`: how well another network learned each label, as evidence about which labels are wrong.

A network learns wrong labels late, against what it has learned from correct ones, so their average training margin is
small (Pleiss et al., NeurIPS 2020, arXiv 2001.10528; see `lightning_poison.models.average_margins`). If the scores are
those of a model that reads other features of the samples, Bayes' rule combines both.
"""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from lightning_poison.statistics.contamination import Contamination, wrong_label_p_values

_TRUST = 0.5
"""Power of the likelihood ratio of the margins: less than 1, since samples that are hard for one model often are for
the other.

Chosen on 10,000 images of CIFAR-10, with features that never saw the labels and a small network that was trained on the
images. Among samples whose label and prediction differ, score and margin have a correlation of .2 to .3 in size if the
label is correct, and of .25 to .4 if it is wrong. With powers of .7 and 1, at most .02 more of the wrong labels are
removed, and up to a third more of the correct ones. Between scores and margins of networks of one kind, the correlation
is .5 to .75, and several times as many clean images as stated would be removed.
"""

_FEWEST = 20.0
"""Expected number of samples with wrong labels, and with correct ones, from which their margins are compared."""

_SUREST = 1e-3
"""Smallest probability of a correct and of a wrong label, before and after the margins, so that no p-value is 0."""

_ITERATIONS = 100


@dataclass(frozen=True)
class TrainingOpinion:
    """Normal distributions of the training margins of wrong and of correct labels, with one standard deviation.

    Only samples whose label and prediction differ count. Margins are relative to the mean of the averages of the label
    and of the predicted class, since some classes are harder than others.

    Args:
        wrong: Mean of wrong labels.
        correct: Mean of correct labels, at least `wrong`.
        spread: Standard deviation of both.
        of_label: Average margin of the samples with each label, float64 `(C,)`.
        of_predicted: Average margin of the samples that are predicted as each class, float64 `(C,)`.

    Example:
        >>> predicted = torch.arange(1000) % 2
        >>> labels = torch.where(torch.arange(1000) < 200, 1 - predicted, predicted)
        >>> margins = torch.where(torch.arange(1000) < 100, -7.0, 1.0)
        >>> margins = margins + torch.randn(1000, generator=torch.Generator().manual_seed(0))
        >>> posterior = torch.cat([torch.full((100,), 0.7), torch.full((100,), 0.3), torch.zeros(800)]).double()
        >>> found = Contamination(0.1, 0.05, 0.15, 0.95, 0.1, (), posterior, posterior, posterior)
        >>> opinion = TrainingOpinion.of(found, labels, predicted, margins)
        >>> weighed = opinion.weigh(found, labels, predicted, margins)
        >>> (weighed.posterior > 0.5).nonzero().flatten().equal(torch.arange(100))
        True
    """

    wrong: float
    correct: float
    spread: float
    of_label: Tensor
    of_predicted: Tensor

    @classmethod
    def of(cls, found: Contamination, labels: Tensor, predicted: Tensor, margins: Tensor) -> Self | None:
        """Fit both distributions by EM, with the posteriors of an estimate as prior probabilities.

        Args:
            found: The estimate, from scores of another model.
            labels: int64 `(N,)`, in `[0, C)`.
            predicted: Label with the lowest score, int64 `(N,)`, in `[0, C)`.
            margins: Average training margins, finite, `(N,)`.

        Returns:
            The distributions, or `None` if fewer than 20 wrong or correct labels are expected among the samples whose
            label and prediction differ, or those of wrong labels are not smaller.
        """
        rows = _opposed(found, labels, predicted)
        prior = found.posterior.cpu()[rows].clamp(_SUREST, 1 - _SUREST)
        if min(float(prior.sum()), float((1 - prior).sum())) < _FEWEST:
            return None
        count = int(torch.maximum(labels.max(), predicted.max())) + 1
        own = cls(0, 0, 1, _averages(margins, labels, count), _averages(margins, predicted, count))
        values = own._relative(labels[rows], predicted[rows], margins[rows])
        wrong = prior
        for _ in range(_ITERATIONS):
            low, high = (float((part * values).sum() / part.sum()) for part in (wrong, 1 - wrong))
            spread = float((wrong * (values - low).square() + (1 - wrong) * (values - high).square()).mean().sqrt())
            if not spread > 0:
                return None
            own = replace(own, wrong=low, correct=high, spread=spread)
            wrong = torch.sigmoid(prior.logit() + own._log_ratio(values))
        return own if own.wrong < own.correct else None

    def weigh(self, found: Contamination, labels: Tensor, predicted: Tensor, margins: Tensor) -> Contamination:
        """Return an estimate whose posteriors allow for the margins; the estimated number stays.

        Args:
            found: As for `of`.
            labels: As for `of`.
            predicted: As for `of`.
            margins: As for `of`.

        Returns:
            The estimate, with other `posterior`, `suspicion` and `p_values`.
        """
        rows = _opposed(found, labels, predicted)
        ratio = self._log_ratio(self._relative(labels[rows], predicted[rows], margins[rows]))
        posterior, suspicion = found.posterior.cpu().clone(), found.suspicion.cpu().double().clone()
        log_odds = posterior[rows].clamp(_SUREST, 1 - _SUREST).logit() + _TRUST * ratio
        posterior[rows] = log_odds.sigmoid().clamp(_SUREST, 1 - _SUREST)
        suspicion[rows] = log_odds + _TIE_BREAK * suspicion[rows]
        p_values = wrong_label_p_values(suspicion, posterior)
        device = found.posterior.device
        return replace(
            found, posterior=posterior.to(device), suspicion=suspicion.to(device), p_values=p_values.to(device)
        )

    def margins_if(
        self, replaced: Tensor, labels: Tensor, predicted: Tensor, margins: Tensor, generator: torch.Generator
    ) -> Tensor:
        """Return margins as if some labels had been replaced by wrong ones before the fit, float64 `(N,)`.

        Those of samples whose label is replaced are drawn, the others stay.

        Args:
            replaced: Labels after the replacement, int64 `(N,)`.
            labels: As for `of`.
            predicted: As for `of`.
            margins: As for `of`.
            generator: The source of randomness.
        """
        rows = (replaced != labels).nonzero().flatten()
        noise = torch.randn(len(rows), generator=generator, dtype=torch.float64)
        drawn = margins.double().clone()
        drawn[rows] = self.wrong + self.spread * noise + self._center(replaced[rows], predicted[rows])
        return drawn

    def _center(self, labels: Tensor, predicted: Tensor) -> Tensor:
        return (self.of_label[labels] + self.of_predicted[predicted]) / 2

    def _relative(self, labels: Tensor, predicted: Tensor, margins: Tensor) -> Tensor:
        return margins.double() - self._center(labels, predicted)

    def _log_ratio(self, values: Tensor) -> Tensor:
        """Return the log-likelihood of margins of wrong labels less that of correct ones."""
        return ((values - self.correct).square() - (values - self.wrong).square()) / (2 * self.spread**2)


_TIE_BREAK = 1e-6
"""Weight of the suspicion by the scores alone, which orders samples with the same posterior."""


def _opposed(found: Contamination, labels: Tensor, predicted: Tensor) -> Tensor:
    """Return the positions of the samples that may be mislabeled, int64 `(D,)`."""
    return ((labels != predicted) & (found.posterior.cpu() > 0)).nonzero().flatten()


def _averages(margins: Tensor, classes: Tensor, count: int) -> Tensor:
    """Return the average margin of each of C classes, float64 `(C,)`; that of all for one without samples."""
    sums = torch.zeros(count, dtype=torch.float64).index_add(0, classes, margins.double())
    counts = classes.bincount(minlength=count)
    return torch.where(counts > 0, sums / counts.clamp_min(1), margins.double().mean())
