"""Class means and covariances of many samples, summed in float64 over blocks of samples."""

from typing import Literal

import torch
from torch import Tensor

from lightning_poison.statistics.row_blocks import row_blocks

EstimatorKind = Literal["ledoit-wolf", "empirical"]


def class_means(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the mean of each class.

    Args:
        features: Floating-point `(N, D)`.
        labels: int64 `(N,)`, at least 0.

    Returns:
        Means, float64 `(C, D)`, 0 for a class without samples, and the number of samples of each class, int64 `(C,)`.

    Example:
        >>> class_means(torch.tensor([[1.0], [3.0], [5.0]]), torch.tensor([0, 0, 2]))
        (tensor([[2.],
                [0.],
                [5.]], dtype=torch.float64), tensor([2, 0, 1]))
    """
    counts = torch.bincount(labels)
    sums = torch.zeros(len(counts), features.shape[1], dtype=torch.float64, device=features.device)
    for rows in row_blocks(*features.shape):
        sums.index_add_(0, labels[rows], features[rows].double())
    return sums / counts.clamp_min(1)[:, None], counts


class CovarianceSums:
    """Sums over samples with mean zero, from which their covariance is estimated.

    scikit-learn's estimators return the same, but need all samples at once, and several copies of them.

    Args:
        size: Number of features D.

    Example:
        >>> sums = CovarianceSums(2)
        >>> sums.add(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        >>> sums.add(torch.tensor([[0.0, 2.0], [0.0, -2.0]]))
        >>> sums.covariance("empirical")
        tensor([[0.5000, 0.0000],
                [0.0000, 2.0000]], dtype=torch.float64)
    """

    def __init__(self, size: int) -> None:
        self._count = 0
        self._products = torch.zeros(size, size, dtype=torch.float64)
        self._fourth_powers = torch.zeros((), dtype=torch.float64)

    def add(self, centered: Tensor) -> None:
        """Add samples: their features minus the mean, `(B, D)`."""
        centered = centered.double()
        self._count += len(centered)
        self._products += centered.T @ centered
        self._fourth_powers += centered.square().sum(1).square().sum()

    def covariance(self, estimator: EstimatorKind) -> Tensor:
        r"""Return the estimate, float64 `(D, D)`.

        Ledoit and Wolf's (J. Multivariate Anal. 88, 2004, lemmas 3.2 to 3.4) moves the empirical covariance S toward
        the multiple of the identity with the same trace, :math:`\mu I`. The weight of that is

        .. math:: \min\left(1, \frac{\frac{1}{N^2} \sum_n \|x_n x_n^\top - S\|^2}{\|S - \mu I\|^2}\right),

        and the numerator is :math:`\frac{1}{N} (\frac{1}{N} \sum_n \|x_n\|^4 - \|S\|^2)`.

        Args:
            estimator: `"ledoit-wolf"` or `"empirical"`.
        """
        empirical = self._products / self._count
        if estimator == "empirical":
            return empirical
        identity = torch.eye(len(empirical), dtype=empirical.dtype)
        target = empirical.trace() / len(empirical) * identity
        apart = (empirical - target).square().sum()
        error = (self._fourth_powers / self._count - empirical.square().sum()) / self._count
        weight = float((error / apart).clamp(0, 1)) if error > 0 and apart > 0 else 0.0
        return (1 - weight) * empirical + weight * target
