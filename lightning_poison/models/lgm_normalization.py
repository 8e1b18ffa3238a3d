"""`FeatureNormalization`: the scale of the features in front of an LGM head, and how much the head has learned."""

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison.contexts import full_precision

FIRST_VARIANCE, LAST_VARIANCE = 14.0, 0.6
"""Total variance of normalized features at a skill of 0 and of 1, in units of log C nats."""

_VARIANCE_EXPONENT = 0.7
"""The logarithm of the total variance falls with this power of the skill: compact clusters before a skill of 1."""

_CENTERED = 0.9
"""Share of the shift of the features' mean, since the first samples, that is subtracted."""

_FIRST_SAMPLES = 256
"""Number of samples after which the first mean is fixed."""

_FULL_BATCH = 16
"""Batch size from which on the statistics of a batch alone normalize it."""

_RAMP_EXPONENT = 3
"""Margin and likelihood weight grow with this power of the skill: on hard data they stay small."""

_MEAN_MOMENTUM = 0.3
"""Weight of a full batch in the running mean of the features, which moves fast."""

_MOMENTUM = 0.05
"""Weight of a batch in the running variance of the features, in the shares of the labels and in the skill."""

_TINY = 1e-12
"""Smallest total variance that features are divided by, and smallest entropy."""


class FeatureNormalization(nn.Module):
    """Gives the features in front of an LGM head a total variance, which falls as the head learns.

    Like batch normalization without learned parameters, but with one scale for all features. In training mode the
    statistics are those of the batch, so that the loss cannot be reduced by shrinking all features; in evaluation mode
    they are running averages. Batches of fewer than 16 samples are normalized with running statistics in part.

    A tenth of the shift of the mean since the first samples remains. Without it, the loss would not depend on the mean
    of the features, which then drifts faster than its running average follows.

    Args:
        feature_size: D, the length of a feature vector.
        num_classes: C, at least 2.

    Attributes:
        skill: 1 − cross-entropy / entropy of the labels, at least 0, averaged over about 20 training batches; buffer, a
            scalar in [0, 1]. With it the total variance falls from 14 log C to 0.6 log C.
        mean: Running mean of the features, buffer `(D,)`.
        first_mean: Mean of the first 256 features, buffer `(D,)`.
        variance: Running total variance of the features, buffer, a scalar.
        label_shares: Running shares of the labels, buffer `(C,)`.
        samples_seen: Number of samples in the running statistics, buffer, an int64 scalar.

    Example:
        >>> normalization = FeatureNormalization(2, num_classes=3)
        >>> features = normalization.of_batch(100 + torch.randn(64, 2, generator=torch.Generator().manual_seed(0)))
        >>> round(features.square().sum(dim=1).mean().item() / log(3), 3)
        14.0
    """

    skill: Tensor
    mean: Tensor
    first_mean: Tensor
    variance: Tensor
    label_shares: Tensor
    samples_seen: Tensor

    def __init__(self, feature_size: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.register_buffer("skill", torch.empty(()))
        self.register_buffer("mean", torch.empty(feature_size))
        self.register_buffer("first_mean", torch.empty(feature_size))
        self.register_buffer("variance", torch.empty(()))
        self.register_buffer("label_shares", torch.empty(num_classes))
        self.register_buffer("samples_seen", torch.empty((), dtype=torch.int64))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Forget all statistics. Features are then unchanged until the first batch."""
        for buffer in (self.skill, self.mean, self.first_mean, self.samples_seen):
            buffer.zero_()
        self.variance.fill_(FIRST_VARIANCE * log(self.num_classes))
        self.label_shares.fill_(1 / self.num_classes)

    @property
    def ramp(self) -> Tensor:
        """The share of the margin and of the likelihood weight that is applied: skill³, a scalar in [0, 1]."""
        return self.skill.pow(_RAMP_EXPONENT)

    def forward(self, features: Tensor) -> Tensor:
        """Return features `(B, D)` normalized with the running statistics, float32 or higher."""
        return self._scaled(features, self.mean, self.variance)

    def of_batch(self, features: Tensor, *, update: bool = True) -> Tensor:
        """Return features normalized with their own statistics in training mode, else as `forward` does.

        Args:
            features: Features, `(B, D)`.
            update: Update the running statistics, in training mode. Default: `True`.

        Returns:
            `(B, D)`, float32 or higher.
        """
        if not self.training or not len(features):
            return self.forward(features)
        with full_precision(features.device):
            wide = _at_least_float32(features)
            share = min(1.0, len(wide) / _FULL_BATCH)
            batch_mean = wide.mean(dim=0)
            first = len(wide) / (self.samples_seen + len(wide))
            if update:
                _move(self.mean, batch_mean, first.clamp_min(_MEAN_MOMENTUM * share))
                _move(self.first_mean, batch_mean, first * (self.samples_seen < _FIRST_SAMPLES))
            mean = share * batch_mean + (1 - share) * self.mean
            variance = (wide - mean).square().sum(dim=1).mean().clamp_min(_TINY)
            with torch.no_grad():  # the gradient is that of the batch's own variance
                correction = share + (1 - share) * self.variance / variance
            normalized = self._scaled(wide, mean, variance * correction)
            if update:
                _move(self.variance, variance, first.clamp_min(_MOMENTUM * share))
                self.samples_seen += len(wide)
        return normalized

    @torch.no_grad()
    def learn(self, logits: Tensor, labels: Tensor) -> None:
        """Update the skill, in training mode.

        Args:
            logits: Logits of a batch without a margin, `(B, C)`.
            labels: Class indices, int64 `(B,)`.
        """
        if not self.training or not len(labels):
            return
        ones = torch.ones(len(labels), dtype=self.label_shares.dtype, device=labels.device)
        counts = torch.zeros_like(self.label_shares).index_add(0, labels, ones)
        _move(self.label_shares, counts / len(labels), _MOMENTUM)
        entropy = torch.special.entr(_at_least_float32(self.label_shares)).sum().clamp_min(_TINY)
        explained = 1 - F.cross_entropy(logits, labels) / entropy
        _move(self.skill, explained.nan_to_num(0.0).clamp(0, 1), _MOMENTUM)

    def _scaled(self, features: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        with full_precision(features.device):
            center = torch.lerp(_at_least_float32(self.first_mean), _at_least_float32(mean), _CENTERED)
            ratio = (LAST_VARIANCE / FIRST_VARIANCE) ** _at_least_float32(self.skill).pow(_VARIANCE_EXPONENT)
            total = FIRST_VARIANCE * log(self.num_classes) * ratio
            scale = (total / _at_least_float32(variance).clamp_min(_TINY)).sqrt()
            return (_at_least_float32(features) - center) * scale


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@torch.no_grad()
def _move(average: Tensor, value: Tensor, momentum: float | Tensor) -> None:
    """Move a running average toward a value, unless that is not finite, without a synchronization."""
    moved = average + momentum * (value - average)
    average.copy_(torch.where(moved.isfinite(), moved, average))
