"""How curved the loss of a logistic regression is, by which a fit of many classes needs fewer steps."""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_poison.statistics.covariances import class_means
from lightning_poison.statistics.row_blocks import row_blocks

_LENGTHS = (0.0, 0.125, 0.25, 0.35, 0.5, 0.7, 1.0)
"""Lengths of a Newton step that are tried. A whole one is too long if classes are well separated."""

_CERTAINTY = 0.3
"""Curvature near the minimum, relative to that at weights of 0. Twice or half of it take as many steps."""

_AXES, _PER_FEATURE = 8, 8
"""Square of the number of features for each score, up to which principal axes pay; samples for each feature."""


@dataclass(frozen=True)
class LossCurvature:
    """The curvature of the mean cross-entropy at weights of 0, with the frequencies of the classes as predictions.

    It neglects that classes compete. Then it is, for each class, the covariance of the features times the frequency, so
    that all classes share the principal axes of the features. Where finding these takes as long as a fit, the
    correlation of the features is neglected too.

    Args:
        features: Features, floating-point `(N, D)`, standardized.
        labels: Labels, int64 `(N,)`.
        shares: Share of the samples that carry each label, above 0, `(C,)`.
        center: Mean of the features, `(D,)`.
        descent: Derivative of the loss by the weights for centered features, negated, `(D, C)`.
        variances: Variances of the features along the axes, `(D,)`.
        axes: Orthogonal axes, `(D, D)`, or `None` for those of the features.

    Example:
        >>> features, labels = torch.tensor([[-1.0], [-0.9], [0.9], [1.0]]), torch.tensor([0, 0, 1, 1])
        >>> LossCurvature.of(features, labels, 2).newton_step(0.1)[0].sign()
        tensor([-1.,  1.])
    """

    features: Tensor
    labels: Tensor
    shares: Tensor
    center: Tensor
    descent: Tensor
    variances: Tensor
    axes: Tensor | None

    @classmethod
    def of(cls, features: Tensor, labels: Tensor, num_classes: int) -> Self:
        """Compute it from the samples of a fit, and their labels in [0, C)."""
        means, counts = class_means(features, labels)
        center = counts.double() @ means / len(labels)
        descent = features.new_zeros(features.shape[1], num_classes)
        descent[:, : len(counts)] = ((means - center) * (counts / len(labels))[:, None]).T
        shares = torch.bincount(labels, minlength=num_classes).clamp_min(0.5).to(features) / len(labels)
        center = center.to(features)
        return cls(features, labels, shares, center, descent, *_principal_axes(features, center, num_classes))

    def newton_step(self, penalty: float) -> Tensor:
        """Return the coefficients `(D + 1, C)` after a step of Newton's method from weights of 0, with a penalty.

        Each class becomes likelier than its frequency on its side of the middle between its mean and that of all. The
        length of the step is that of the smallest loss of some samples.
        """
        rotated = self._rotated(self.descent) / (self.variances[:, None] * self.shares + penalty)
        weights = rotated if self.axes is None else self.axes @ rotated
        middle = (self.descent * weights).sum(0) / self.shares / 2
        block = next(row_blocks(len(self.features), len(self.shares)))
        some = slice(None, None, -(-len(self.features) // block.stop))
        features, labels = self.features[some], self.labels[some]

        def after(length: float) -> Tensor:
            bias = self.shares.log() - length**2 * middle - length * (self.center @ weights)
            return torch.cat([length * weights, bias[None]])

        def loss(coefficients: Tensor) -> float:
            logits = torch.addmm(coefficients[-1], features, coefficients[:-1])
            return float(F.cross_entropy(logits, labels) + penalty / 2 * coefficients[:-1].square().sum())

        return min((after(length) for length in _LENGTHS), key=loss)

    def coordinates(self, penalty: float) -> "EvenCoordinates":
        """Return coordinates in which the loss with a penalty is about as curved in all directions."""
        curvature = _CERTAINTY * torch.cat([self.variances[:, None] * self.shares, self.shares[None]])
        curvature[:-1] += penalty
        return EvenCoordinates(self, curvature.sqrt_())

    def _rotated(self, rows: Tensor) -> Tensor:
        """Return the rows of features `(D, C)` along the axes."""
        return rows if self.axes is None else self.axes.T @ rows


@dataclass(frozen=True)
class EvenCoordinates:
    """Coordinates of coefficients: for centered features, along principal axes, scaled.

    Args:
        curvature: What they depend on.
        scale: Factors of the coefficients along the axes, `(D + 1, C)`.

    Example:
        >>> features, labels = torch.tensor([[-1.0], [-0.9], [0.9], [1.2]]), torch.tensor([0, 0, 1, 1])
        >>> coordinates = LossCurvature.of(features, labels, 2).coordinates(0.1)
        >>> coordinates.coefficients(coordinates.of(torch.eye(2)))
        tensor([[1., 0.],
                [0., 1.]])
    """

    curvature: LossCurvature
    scale: Tensor

    def of(self, coefficients: Tensor) -> Tensor:
        """Return the coordinates of coefficients, `(D + 1, C)`."""
        weights, bias = coefficients[:-1], coefficients[-1] + self.curvature.center @ coefficients[:-1]
        return torch.cat([self.curvature._rotated(weights), bias[None]]) * self.scale

    def coefficients(self, coordinates: Tensor) -> Tensor:
        """Return the coefficients at coordinates, `(D + 1, C)`."""
        along = coordinates / self.scale
        weights = along[:-1] if self.curvature.axes is None else self.curvature.axes @ along[:-1]
        return torch.cat([weights, (along[-1] - self.curvature.center @ weights)[None]])

    def gradient(self, gradient: Tensor) -> Tensor:
        """Return the derivative by coordinates of what has a derivative by coefficients, `(D + 1, C)`."""
        of_weights = gradient[:-1] - torch.outer(self.curvature.center, gradient[-1])
        return torch.cat([self.curvature._rotated(of_weights), gradient[-1:]]) / self.scale


def _principal_axes(features: Tensor, center: Tensor, num_classes: int) -> tuple[Tensor, Tensor | None]:
    """Return variances `(D,)` and the axes that they are along, `(D, D)`, of some of the samples."""
    length, size = features.shape
    centered = features[:: -(-length // (_PER_FEATURE * size))] - center
    if size**2 > _AXES * length * num_classes:
        return centered.square().mean(0), None
    variances, axes = torch.linalg.eigh(centered.T @ centered / len(centered))
    return variances.clamp_min_(0), axes
