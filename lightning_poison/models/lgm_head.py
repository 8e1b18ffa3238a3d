"""`LGMHead`: a last layer that models the features of each class as a normal distribution."""

from math import log
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison.checks import describe, expected, not_negative, one_of, positive_int
from lightning_poison.models import lgm
from lightning_poison.models.lgm import LGMLoss
from lightning_poison.models.lgm_normalization import FIRST_VARIANCE, FeatureNormalization

Covariance = Literal["identity", "diagonal"]

LOG_VARIANCE_BOUND = 10.0
"""Log-variances are clamped to this absolute value: beyond e^±10, a float32 distance has no information."""

_UNIT_SIZE = 32
"""Feature size above which the initial means are scaled down to keep their distances."""

_MEANS_SCALE = 0.1
"""Deviation of the initial means of a normalizing head, relative to that of the features."""


class LGMHead(nn.Module):
    """Last layer of a classifier whose features follow a Gaussian mixture with one component per class.

    Replaces the last `nn.Linear`: it maps features to logits. Training with `loss` pulls the features of a class toward
    a normal distribution around the class mean. The likelihood of a feature vector under its label then measures how
    well the two agree (Wan et al. 2018, arXiv:1803.02988, section 3; Yaseen, Aadil, Sargsyan 2020, arXiv:2003.00798,
    equations 2 to 5). It differs from the former in that the likelihood term is averaged over the batch rather than
    summed, and in the scale of the initial means.

    The plain loss can be reduced by shrinking all features and means to one point instead of separating the classes,
    and a network behind a ReLU or dropout does not recover from that. By default the head therefore normalizes features
    as batch normalization does, but with one scale for all of them, so that their total variance is given. The margin
    and λ start at 0 and grow with skill³; the skill is the share of the uncertainty about labels that is explained.
    The total variance falls at the same time, which makes the clusters of the classes compact (`FeatureNormalization`).
    Likelihoods are those of the normalized features, and in evaluation mode and for `log_likelihood` the statistics are
    fixed. With `normalize=False` the loss is that of the paper from the first step.

    Logits and likelihoods are float32 or higher, regardless of the precision of the features and of autocast. Exclude
    `means` and `log_variances` from weight decay: see `lgm_parameter_groups`.

    Args:
        feature_size: D, the length of a feature vector.
        num_classes: C, at least 2.
        margin: α, at least 0. In training, the distance to a sample's own class is scaled by 1 + α. Default: 1.
        likelihood_weight: λ, at least 0, the weight of the likelihood term in `loss`. Default: 1.
        covariance: `"identity"`, or `"diagonal"` for one learned variance per class and feature. Default: `"identity"`.
        prior: p(k), `(C,)`, positive numbers that sum to 1. Default: equally frequent classes.
        normalize: Normalize features, and let the margin and λ grow with what the head has learned. Default: `True`.
        generator: Source of the initial means, close to 0 if features are normalized. Otherwise they are drawn from
            N(0, 1), or from N(0, 32 / D) if D is above 32, so that the expected squared distance between two of them is
            at most 64. PyTorch's global generator is not used. Default: a fixed seed.

    Attributes:
        means: μ, parameter `(C, D)`, of the normalized features.
        log_variances: Parameter `(C, D)`, or `None` for identity covariances. Clamped to [−10, 10] when used. For
            normalized features, whose scale is given, the mean over each class is subtracted: |Σ_k| = 1.
        log_prior: log p(k), buffer `(C,)`.
        normalization: The statistics of the features and the skill of the head, or `None` without normalization.

    Raises:
        ValueError: If an argument is out of range. Every method raises it for a wrong shape, dtype or label.

    Example:
        >>> head = LGMHead(feature_size=2, num_classes=3)
        >>> features, labels = torch.zeros(4, 2), torch.tensor([0, 1, 2, 0])
        >>> head(features).shape, head.log_likelihood(features, labels).shape
        (torch.Size([4, 3]), torch.Size([4]))
        >>> head.loss(features, labels).total.backward()
    """

    log_prior: Tensor

    def __init__(
        self,
        feature_size: int,
        num_classes: int,
        *,
        margin: float = 1.0,
        likelihood_weight: float = 1.0,
        covariance: Covariance = "identity",
        prior: Tensor | None = None,
        normalize: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.feature_size = positive_int("feature_size", feature_size)
        self.num_classes = positive_int("num_classes", num_classes, minimum=2)
        self.margin = not_negative("margin", margin)
        self.likelihood_weight = not_negative("likelihood_weight", likelihood_weight)
        self.covariance: Covariance = one_of("covariance", covariance, ("identity", "diagonal"))
        self.means = nn.Parameter(torch.empty(num_classes, feature_size))
        diagonal = covariance == "diagonal"
        self.log_variances = nn.Parameter(torch.empty_like(self.means)) if diagonal else None
        self.normalization = FeatureNormalization(feature_size, num_classes) if normalize else None
        self.register_buffer("log_prior", _log_prior(prior, num_classes))
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new means, set all variances to 1 and forget the statistics of the features.

        Args:
            generator: Source of the means. Default: a fixed seed.
        """
        generator = generator or torch.Generator().manual_seed(0)
        drawn = torch.randn(self.means.shape, generator=generator, device=generator.device)
        scale = min(1.0, _UNIT_SIZE / self.feature_size) ** 0.5
        if self.normalization is not None:
            self.normalization.reset_parameters()
            scale = _MEANS_SCALE * (FIRST_VARIANCE * log(self.num_classes) / self.feature_size) ** 0.5
        with torch.no_grad():
            self.means.copy_(drawn * scale)
            if self.log_variances is not None:
                self.log_variances.zero_()

    def normalized(self, features: Tensor) -> Tensor:
        """Return features as the means describe them, normalized with the running statistics.

        Args:
            features: Features, `(B, D)`.

        Returns:
            `(B, D)`. Without normalization and before the first training step, the features.
        """
        normalized: Tensor = features if self.normalization is None else self.normalization(features)
        return normalized

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits.

        A head that normalizes uses the statistics of the batch in training mode, and updates its own.

        Args:
            features: Features, `(B, D)`.
            labels: Class indices, `(B,)`. If given, the margin is applied to each sample's own class, in training and
                evaluation mode, as the cross-entropy requires. Omit them to predict.

        Returns:
            Logits `(B, C)`. Without labels, their softmax is the posterior p(k | f).
        """
        self._check(features, labels)
        features = self._features(features, update=True)
        if labels is None:
            return self._posterior_logits(features)
        return self._margin_logits(features, labels)

    def loss(self, features: Tensor, labels: Tensor) -> LGMLoss:
        """Return the training loss and its two terms, averaged over the batch.

        Args:
            features: Features, `(B, D)`.
            labels: Class indices, `(B,)`.

        Returns:
            `total`, `classification` and `likelihood`, scalars.
        """
        self._check(features, labels)
        features = self._features(features, update=True)
        classification = F.cross_entropy(self._margin_logits(features, labels), labels)
        likelihood = lgm.likelihood_loss(features, labels, self.means, self._log_variances())
        return LGMLoss(classification + self.current_likelihood_weight * likelihood, classification, likelihood)

    def likelihood_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return only the likelihood term of `loss`, unweighted, to combine with another classification loss.

        Args:
            features: Features, `(B, D)`.
            labels: Class indices, `(B,)`.

        Returns:
            A scalar. Its weight is `current_likelihood_weight`.
        """
        self._check(features, labels)
        return lgm.likelihood_loss(self._features(features), labels, self.means, self._log_variances())

    @property
    def normalize(self) -> bool:
        """Whether the head normalizes features."""
        return self.normalization is not None

    @property
    def current_likelihood_weight(self) -> float | Tensor:
        """λ, times the ramp of a head that normalizes: the weight of the likelihood term at this point of training."""
        if self.normalization is None:
            return self.likelihood_weight
        return self.likelihood_weight * self.normalization.ramp

    def log_likelihood(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return log p(f | y), or without labels the marginal log p(f), in nats.

        Filters use log p(f | y), which measures whether features and label agree. The marginal log p(f) does not depend
        on the label.

        Args:
            features: Features, `(B, D)`.
            labels: Class indices, `(B,)`.

        Returns:
            `(B,)`.
        """
        self._check(features, labels)
        if labels is None:
            return torch.logsumexp(self.log_likelihoods(features) + self.log_prior, dim=1)
        return lgm.own_log_likelihoods(self.normalized(features), labels, self.means, self._log_variances())

    def log_likelihoods(self, features: Tensor) -> Tensor:
        """Return log p(f | k) under every class, in nats.

        Args:
            features: Features, `(B, D)`.

        Returns:
            `(B, C)`.

        Raises:
            ValueError: If the shape is wrong.
        """
        self._check(features, None)
        return lgm.log_likelihoods(self.normalized(features), self.means, self._log_variances())

    def extra_repr(self) -> str:
        """Show the settings in `repr`."""
        return (
            f"feature_size={self.feature_size}, num_classes={self.num_classes}, margin={self.margin:g}, "
            f"likelihood_weight={self.likelihood_weight:g}, covariance={self.covariance!r}, normalize={self.normalize}"
        )

    def _features(self, features: Tensor, *, update: bool = False) -> Tensor:
        """Return normalized features; in training mode with the statistics of this batch."""
        return features if self.normalization is None else self.normalization.of_batch(features, update=update)

    def _margin_logits(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the logits of normalized features with the present margin, after an update of the skill."""
        margin: float | Tensor = self.margin
        if self.normalization is not None:
            with torch.no_grad():
                self.normalization.learn(self._posterior_logits(features), labels)
            margin = self.margin * self.normalization.ramp
        return lgm.margin_logits(
            features, labels, self.means, self._log_variances(), margin=margin, log_prior=self.log_prior
        )

    def _posterior_logits(self, features: Tensor) -> Tensor:
        return lgm.posterior_logits(features, self.means, self._log_variances(), log_prior=self.log_prior)

    def _log_variances(self) -> Tensor | None:
        if self.log_variances is None:
            return None
        logs: Tensor = self.log_variances
        if self.normalize:
            logs = logs - logs.mean(dim=1, keepdim=True)
        return logs.clamp(-LOG_VARIANCE_BOUND, LOG_VARIANCE_BOUND)

    def _check(self, features: Tensor, labels: Tensor | None) -> None:
        if features.ndim != 2 or features.shape[1] != self.feature_size:
            hint = "Set `feature_size` to the length of the features, or flatten them to two dimensions."
            raise ValueError(expected("features", f"of shape (B, {self.feature_size})", describe(features), hint))
        if labels is not None:
            _check_labels(labels, len(features), self.num_classes)


def lgm_parameter_groups(module: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Return the parameters of a module in two optimizer groups, those of its LGM heads without weight decay.

    Weight decay would pull the class means together and counteract the margin.

    Args:
        module: Module with any number of LGM heads.
        weight_decay: Weight decay of all other parameters.

    Returns:
        The groups, other parameters first. Empty groups are omitted.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 2), LGMHead(2, num_classes=3))
        >>> optimizer = torch.optim.AdamW(lgm_parameter_groups(net, weight_decay=0.01), lr=1e-3)
        >>> [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]
        [(2, 0.01), (1, 0.0)]
    """
    heads = {id(parameter) for part in module.modules() if isinstance(part, LGMHead) for parameter in part.parameters()}
    others = [parameter for parameter in module.parameters() if id(parameter) not in heads]
    exempt = [parameter for parameter in module.parameters() if id(parameter) in heads]
    groups = ({"params": others, "weight_decay": weight_decay}, {"params": exempt, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]


def _log_prior(prior: Tensor | None, num_classes: int) -> Tensor:
    if prior is None:
        return torch.full((num_classes,), 1 / num_classes).log()
    if prior.shape != (num_classes,) or not bool((prior > 0).all()) or abs(float(prior.sum()) - 1) > 1e-3:
        came = prior.tolist() if prior.numel() <= 20 else describe(prior)
        hint = "For the frequencies of labels: `torch.bincount(labels, minlength=num_classes) / len(labels)`."
        raise ValueError(expected("prior", f"{num_classes} positive numbers that sum to 1", came, hint))
    return prior.detach().to(torch.get_default_dtype()).log()


def _check_labels(labels: Tensor, count: int, num_classes: int) -> None:
    """Check labels, and their range only if that needs no synchronization and no graph break."""
    if labels.dtype != torch.int64 or labels.shape != (count,):
        hint = "Pass class indices: soft and one-hot labels are not supported."
        raise ValueError(expected("labels", f"an int64 tensor of shape ({count},)", describe(labels), hint))
    readable = labels.device.type == "cpu" and count > 0 and not torch.compiler.is_compiling()
    if readable and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        came = f"{int(labels.min())} to {int(labels.max())}"
        raise ValueError(
            expected("labels", f"in [0, {num_classes})", came, "Set `num_classes` to the number of classes.")
        )
