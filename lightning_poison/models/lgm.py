"""The large-margin Gaussian mixture on feature tensors: likelihoods, logits with a margin, and the loss.

The features of class k are modeled as normal, N(f; μ_k, Σ_k), with one mean per class and identity or diagonal
covariances (Wan, Zhong, Li, Chen, "Rethinking feature distribution for loss functions in image classification",
CVPR 2018, arXiv:1803.02988, sections 3.2 and 3.3; Yaseen, Aadil, Sargsyan 2020, arXiv:2003.00798, equations 2 to 5,
with the identity).

All computations are in float32 or higher, even under autocast and for half-precision features.
"""

from math import log, pi
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_poison.contexts import full_precision


class LGMLoss(NamedTuple):
    """The large-margin Gaussian mixture loss and its two terms, each a scalar in nats, averaged over the batch.

    Attributes:
        total: L_GM = L_cls + λ L_lkd, the loss to minimize.
        classification: L_cls, the cross-entropy of the logits with a margin.
        likelihood: L_lkd, without λ and without the constant D/2 log 2π.

    Example:
        >>> lgm_loss_terms(torch.tensor([[0.0, 3.0]]), torch.tensor([0]), torch.zeros(1, 2)).likelihood
        tensor(4.5000)
    """

    total: Tensor
    classification: Tensor
    likelihood: Tensor


def half_distances(features: Tensor, means: Tensor, log_variances: Tensor | None = None) -> Tensor:
    """Compute half the squared Mahalanobis distance of every feature vector to every class mean.

    The square is expanded into matrix products, which avoids a `(B, C, D)` tensor. Features and means are first
    centered on the average mean: distances do not change, but the terms that cancel in the expansion are small. The
    remaining error is about 1e-7 of the centered squared norms, and up to 1e-3 of them on a GPU that multiplies in
    TF32. The functions that need only a sample's own class compute it from the differences, without that error.

    Args:
        features: Features, `(B, D)`.
        means: μ, `(C, D)`.
        log_variances: Logarithm of the variances, `(C, D)`. Default: identity covariances.

    Returns:
        d = ½ (f − μ_k)ᵀ Σ_k⁻¹ (f − μ_k), `(B, C)`, at least 0.

    Example:
        >>> half_distances(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0], [3.0, 2.0]]))
        tensor([[12.5000,  2.0000]])
    """
    with full_precision(features.device):
        features, means = _promoted(features, means)
        center = means.detach().mean(dim=0)
        features, means = features - center, means - center
        if log_variances is None:
            norms = features.square().sum(dim=1, keepdim=True) + means.square().sum(dim=1)
            return 0.5 * (norms - 2 * features @ means.T).clamp_min(0)
        precisions = torch.exp(-log_variances.to(means.dtype))
        weighted = means * precisions
        norms = features.square() @ precisions.T + (means * weighted).sum(dim=1)
        return 0.5 * (norms - 2 * features @ weighted.T).clamp_min(0)


def log_likelihoods(features: Tensor, means: Tensor, log_variances: Tensor | None = None) -> Tensor:
    """Compute log N(f; μ_k, Σ_k) of every feature vector under every class, in nats (Yaseen et al. 2020, eq. 3).

    Args:
        features: Features, `(B, D)`.
        means: μ, `(C, D)`.
        log_variances: Logarithm of the variances, `(C, D)`. Default: identity covariances.

    Returns:
        `(B, C)`.

    Example:
        >>> log_likelihoods(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        tensor([[-1.8379, -2.8379]])
    """
    return posterior_logits(features, means, log_variances) - 0.5 * means.shape[1] * log(2 * pi)


def own_log_likelihoods(features: Tensor, labels: Tensor, means: Tensor, log_variances: Tensor | None = None) -> Tensor:
    """Compute log N(f; μ_y, Σ_y) of every feature vector under the class of its label, in nats.

    Args:
        features: Features, `(B, D)`.
        labels: Class indices, int64 `(B,)`.
        means: μ, `(C, D)`.
        log_variances: Logarithm of the variances, `(C, D)`. Default: identity covariances.

    Returns:
        `(B,)`, the entries of `log_likelihoods` at the labels.

    Example:
        >>> own_log_likelihoods(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        tensor([-2.8379])
    """
    return -_own_energies(features, labels, means, log_variances) - 0.5 * means.shape[1] * log(2 * pi)


def posterior_logits(
    features: Tensor, means: Tensor, log_variances: Tensor | None = None, *, log_prior: Tensor | None = None
) -> Tensor:
    """Compute logits whose softmax is the posterior p(k | f) of the mixture (Yaseen et al. 2020, eq. 4).

    Args:
        features: Features, `(B, D)`.
        means: μ, `(C, D)`.
        log_variances: Logarithm of the variances, `(C, D)`. Default: identity covariances.
        log_prior: log p(k), `(C,)`. Default: equally frequent classes.

    Returns:
        −d_k − ½ log |Σ_k| + log p(k), `(B, C)`: the joint log-density without the constant D/2 log 2π.

    Example:
        >>> posterior_logits(torch.tensor([[0.5, 0.5]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])).softmax(dim=1)
        tensor([[0.5000, 0.5000]])
    """
    logits = -half_distances(features, means, log_variances) - _half_log_determinants(means, log_variances)
    return logits if log_prior is None else logits + log_prior.to(logits.dtype)


def margin_logits(
    features: Tensor,
    labels: Tensor,
    means: Tensor,
    log_variances: Tensor | None = None,
    *,
    margin: float | Tensor = 1.0,
    log_prior: Tensor | None = None,
) -> Tensor:
    """Compute posterior logits with the distance to a sample's own class scaled by 1 + α.

    The margin m = α d_y grows with the distance (Wan et al. 2018, section 3.3). Only the logit of the label differs
    from `posterior_logits`: it is α d_y lower.

    Args:
        features: Features, `(B, D)`.
        labels: Class indices, int64 `(B,)`.
        means: μ, `(C, D)`.
        log_variances: Logarithm of the variances, `(C, D)`. Default: identity covariances.
        margin: α, at least 0; a number or a scalar tensor. Default: 1.
        log_prior: log p(k), `(C,)`. Default: equally frequent classes.

    Returns:
        `(B, C)`.

    Example:
        >>> features, means = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0], [3.0, 2.0]])
        >>> margin_logits(features, torch.tensor([1]), means, margin=0.5)
        tensor([[-12.5000,  -3.0000]])
    """
    logits = posterior_logits(features, means, log_variances, log_prior=log_prior)
    distances = _own_half_distances(features, labels, means, log_variances)
    return logits.scatter_add(1, labels.unsqueeze(1), -margin * distances.unsqueeze(1))


def likelihood_loss(features: Tensor, labels: Tensor, means: Tensor, log_variances: Tensor | None = None) -> Tensor:
    """Compute L_lkd, the negative log-likelihood under the own class without its constant (Wan et al. 2018, sec. 3.2).

    Args:
        features: Features, `(B, D)`.
        labels: Class indices, int64 `(B,)`.
        means: μ, `(C, D)`.
        log_variances: Logarithm of the variances, `(C, D)`. Default: identity covariances.

    Returns:
        Mean of d_y + ½ log |Σ_y|, a scalar in nats. The paper sums over the batch and includes D/2 log 2π.

    Example:
        >>> likelihood_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([0]), torch.zeros(1, 2))
        tensor(12.5000)
    """
    return _own_energies(features, labels, means, log_variances).mean()


def lgm_loss_terms(
    features: Tensor,
    labels: Tensor,
    means: Tensor,
    log_variances: Tensor | None = None,
    *,
    margin: float = 1.0,
    likelihood_weight: float = 1.0,
    log_prior: Tensor | None = None,
) -> LGMLoss:
    """Compute the large-margin Gaussian mixture loss L_GM = L_cls + λ L_lkd (Yaseen et al. 2020, eq. 5).

    Args:
        features: Features, `(B, D)`.
        labels: Class indices, int64 `(B,)`.
        means: μ, `(C, D)`.
        log_variances: Logarithm of the variances, `(C, D)`. Default: identity covariances.
        margin: α, at least 0. Default: 1.
        likelihood_weight: λ, at least 0. Default: 1.
        log_prior: log p(k), `(C,)`. Default: equally frequent classes.

    Returns:
        Total loss and its two terms, averaged over the batch.

    Example:
        >>> lgm_loss_terms(torch.tensor([[3.0, 4.0]]), torch.tensor([0]), torch.zeros(1, 2), likelihood_weight=0.1)
        LGMLoss(total=tensor(1.2500), classification=tensor(0.), likelihood=tensor(12.5000))
    """
    logits = margin_logits(features, labels, means, log_variances, margin=margin, log_prior=log_prior)
    classification = F.cross_entropy(logits, labels)
    likelihood = likelihood_loss(features, labels, means, log_variances)
    return LGMLoss(classification + likelihood_weight * likelihood, classification, likelihood)


def _own_half_distances(features: Tensor, labels: Tensor, means: Tensor, log_variances: Tensor | None) -> Tensor:
    """Return d_y, `(B,)`, computed from the differences."""
    features, means = _promoted(features, means)
    squares = (features - means[labels]).square()
    if log_variances is not None:
        squares = squares * torch.exp(-log_variances.to(means.dtype))[labels]
    return 0.5 * squares.sum(dim=1)


def _own_energies(features: Tensor, labels: Tensor, means: Tensor, log_variances: Tensor | None) -> Tensor:
    """Return d_y + ½ log |Σ_y|, `(B,)`."""
    distances = _own_half_distances(features, labels, means, log_variances)
    return distances + _half_log_determinants(means, log_variances)[labels]


def _half_log_determinants(means: Tensor, log_variances: Tensor | None) -> Tensor:
    """Return ½ log |Σ_k|, `(C,)`, in float32 or higher."""
    dtype = torch.promote_types(means.dtype, torch.float32)
    if log_variances is None:
        return means.new_zeros(means.shape[0], dtype=dtype)
    return 0.5 * log_variances.to(dtype).sum(dim=1)


def _promoted(features: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in a common dtype, float32 or higher."""
    dtype = torch.promote_types(torch.promote_types(features.dtype, means.dtype), torch.float32)
    return features.to(dtype), means.to(dtype)
