"""`LGMHead`: a classifier's last layer whose likelihood can be asked."""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from lightning_poison.checks import describe, expected, not_negative, one_of, positive_int
from lightning_poison.models import lgm
from lightning_poison.models.lgm import LGMLoss

Covariance = Literal["identity", "diagonal"]

LOG_VARIANCE_BOUND = 10.0
"""Log-variances count as at most this in absolute value: beyond e^±10 a float32 distance holds no information."""

_UNIT_SIZE = 32
"""Up to this feature size the initial means are unit normal; beyond it they are scaled down to the same distances."""


class LGMHead(nn.Module):
    """Last layer of a classifier whose features follow a Gaussian mixture, one component a class.

    Takes the place of the last `nn.Linear`: features go in, logits come out. Trained with `loss`, it pulls the features
    of a class toward a normal distribution around the class's mean, so that the likelihood of a feature vector under
    the label that its sample carries becomes a score of how well the two agree (Wan et al. 2018, arXiv:1803.02988,
    section 3; Yaseen, Aadil, Sargsyan 2020, arXiv:2003.00798, equations 2 to 5). It differs from the former in that the
    likelihood term is averaged over the batch and not summed, and in the scale of the initial means.

    Logits and likelihoods are float32 at least, whatever the precision of the features and of autocast. `means` and
    `log_variances` are best left out of weight decay: see `lgm_parameter_groups`.

    Args:
        feature_size: D, the length of a feature vector.
        num_classes: C, at least 2.
        margin: α, at least 0: in training, the distance to a sample's own class counts 1 + α times.
        likelihood_weight: λ, at least 0: the weight of the likelihood term in `loss`.
        covariance: "identity", or "diagonal" for one learned variance for each class and feature.
        prior: p(k), `(C,)`, positive numbers that sum to 1; `None` for equally frequent classes.
        generator: draws the initial means, from N(0, 1), or N(0, 32 / D) where D is above 32, so that the expected
            squared distance between two of them does not exceed 64; `None` for a fixed seed. PyTorch's global generator
            is left alone.

    Attributes:
        means: μ, parameter `(C, D)`.
        log_variances: parameter `(C, D)`, or `None` for identity covariances. Values count as if clamped to [−10, 10].
        log_prior: log p(k), buffer `(C,)`.

    Raises:
        ValueError: where an argument is out of its range; by every method, where a shape, a dtype or a label does not
            fit.

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
        self.register_buffer("log_prior", _log_prior(prior, num_classes))
        self.reset_parameters(generator)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the means anew and set all variances to 1.

        Args:
            generator: where the means are drawn from; `None` for a fixed seed.
        """
        generator = generator or torch.Generator().manual_seed(0)
        drawn = torch.randn(self.means.shape, generator=generator, device=generator.device)
        with torch.no_grad():
            self.means.copy_(drawn * min(1.0, _UNIT_SIZE / self.feature_size) ** 0.5)
            if self.log_variances is not None:
                self.log_variances.zero_()

    def forward(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return logits.

        Args:
            features: `(B, D)`.
            labels: class indices, `(B,)`. Where they are given, in whatever mode the module is, the margin is applied
                to each sample's own class: what the cross-entropy is trained on. Leave them out to predict.

        Returns:
            `(B, C)`; without labels their softmax is the posterior p(k | f).
        """
        self._check(features, labels)
        if labels is None:
            return lgm.posterior_logits(features, self.means, self._log_variances(), log_prior=self.log_prior)
        return lgm.margin_logits(
            features, labels, self.means, self._log_variances(), margin=self.margin, log_prior=self.log_prior
        )

    def loss(self, features: Tensor, labels: Tensor) -> LGMLoss:
        """Return the loss to train on and its two terms, averaged over the batch.

        Args:
            features: `(B, D)`.
            labels: class indices, `(B,)`.

        Returns:
            `total`, `classification` and `likelihood`, scalars.
        """
        self._check(features, labels)
        return lgm.lgm_loss(
            features,
            labels,
            self.means,
            self._log_variances(),
            margin=self.margin,
            likelihood_weight=self.likelihood_weight,
            log_prior=self.log_prior,
        )

    def likelihood_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the likelihood term of `loss` alone, unweighted: for a classification loss that is computed elsewhere.

        Args:
            features: `(B, D)`.
            labels: class indices, `(B,)`.

        Returns:
            A scalar.
        """
        self._check(features, labels)
        return lgm.likelihood_loss(features, labels, self.means, self._log_variances())

    def log_likelihood(self, features: Tensor, labels: Tensor | None = None) -> Tensor:
        """Return log p(f | y), or without labels the marginal log p(f), in nats.

        The first is the one to filter on: it asks whether the features agree with the label. A flipped label leaves the
        second as it is.

        Args:
            features: `(B, D)`.
            labels: class indices, `(B,)`.

        Returns:
            `(B,)`.
        """
        self._check(features, labels)
        if labels is None:
            return torch.logsumexp(self.log_likelihoods(features) + self.log_prior, dim=1)
        return lgm.own_log_likelihoods(features, labels, self.means, self._log_variances())

    def log_likelihoods(self, features: Tensor) -> Tensor:
        """Return log p(f | k) under every class, in nats.

        Args:
            features: `(B, D)`.

        Returns:
            `(B, C)`.

        Raises:
            ValueError: where the shape does not fit.
        """
        self._check(features, None)
        return lgm.log_likelihoods(features, self.means, self._log_variances())

    def extra_repr(self) -> str:
        """Show the settings in `repr`."""
        return (
            f"feature_size={self.feature_size}, num_classes={self.num_classes}, margin={self.margin:g}, "
            f"likelihood_weight={self.likelihood_weight:g}, covariance={self.covariance!r}"
        )

    def _log_variances(self) -> Tensor | None:
        if self.log_variances is None:
            return None
        return self.log_variances.clamp(-LOG_VARIANCE_BOUND, LOG_VARIANCE_BOUND)

    def _check(self, features: Tensor, labels: Tensor | None) -> None:
        if features.ndim != 2 or features.shape[1] != self.feature_size:
            hint = "Set `feature_size` to the length of the extractor's output, or flatten that to two dimensions."
            raise ValueError(expected("features", f"of shape (B, {self.feature_size})", describe(features), hint))
        if labels is not None:
            _check_labels(labels, len(features), self.num_classes)


def lgm_parameter_groups(module: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Return a module's parameters in two groups for an optimizer, those of its LGM heads without weight decay.

    Weight decay would pull the class means together, against the margin.

    Args:
        module: a module with any number of LGM heads in it.
        weight_decay: what all other parameters get.

    Returns:
        The groups, others first; an empty one is left out.

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
    """Refuse labels that do not fit; their range is read where that costs no synchronization and no graph break."""
    if labels.dtype != torch.int64 or labels.shape != (count,):
        hint = "Soft and one-hot labels have no own class; pass class indices."
        raise ValueError(expected("labels", f"an int64 tensor of shape ({count},)", describe(labels), hint))
    readable = labels.device.type == "cpu" and count > 0 and not torch.compiler.is_compiling()
    if readable and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        came = f"{int(labels.min())} to {int(labels.max())}"
        raise ValueError(
            expected("labels", f"in [0, {num_classes})", came, "Set `num_classes` to the number of classes.")
        )
