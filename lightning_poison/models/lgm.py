"""The large-margin Gaussian mixture: likelihoods, logits with a margin, and the loss, on feature tensors.

The features of class k are taken as normal, N(f; μ_k, Σ_k), with a mean for each class and a covariance that is the
identity or a diagonal (Wan, Zhong, Li, Chen, "Rethinking feature distribution for loss functions in image
classification", CVPR 2018, arXiv:1803.02988, sections 3.2 and 3.3; Yaseen, Aadil, Sargsyan 2020, arXiv:2003.00798,
equations 2 to 5, with the identity).

Everything is computed in float32 at least, also under autocast and on half-precision features.
"""

from contextlib import AbstractContextManager, nullcontext
from math import log, pi
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class LGMLoss(NamedTuple):
    """The large-margin Gaussian mixture loss and its two terms, each a scalar in nats, averaged over the batch.

    Attributes:
        total: L_GM = L_cls + λ L_lkd, what is to be minimized.
        classification: L_cls, the cross-entropy of the logits with a margin.
        likelihood: L_lkd, without λ and without the constant D/2 log 2π.

    Example:
        >>> lgm_loss(torch.tensor([[0.0, 3.0]]), torch.tensor([0]), torch.zeros(1, 2)).likelihood
        tensor(4.5000)
    """

    total: Tensor
    classification: Tensor
    likelihood: Tensor


def half_distances(features: Tensor, means: Tensor, log_variances: Tensor | None = None) -> Tensor:
    """Return half the squared Mahalanobis distance of every feature vector to every class mean.

    The square is expanded into matrix products, so that no `(B, C, D)` tensor is held. Features and means are moved by
    the average mean before that: distances do not change, but what cancels in the expansion stays small. The error
    that remains is about 1e-7 of the centerd squared norms; on a GPU that multiplies in TF32 it can reach
    1e-3 of them. What concerns a sample's own class only is computed from the differences, free of that error.

    Args:
        features: `(B, D)`.
        means: μ, `(C, D)`.
        log_variances: the logarithm of the covariances' diagonals, `(C, D)`; `None` for identity covariances.

    Returns:
        d = ½ (f − μ_k)ᵀ Σ_k⁻¹ (f − μ_k), `(B, C)`, at least 0.

    Example:
        >>> half_distances(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 0.0], [3.0, 2.0]]))
        tensor([[12.5000,  2.0000]])
    """
    with _autocast_off(features.device):
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
    """Return log N(f; μ_k, Σ_k) of every feature vector under every class, in nats (Yaseen et al. 2020, eq. 3).

    Args:
        features: `(B, D)`.
        means: μ, `(C, D)`.
        log_variances: `(C, D)`; `None` for identity covariances.

    Returns:
        `(B, C)`.

    Example:
        >>> log_likelihoods(torch.zeros(1, 2), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        tensor([[-1.8379, -2.8379]])
    """
    return posterior_logits(features, means, log_variances) - 0.5 * means.shape[1] * log(2 * pi)


def own_log_likelihoods(features: Tensor, labels: Tensor, means: Tensor, log_variances: Tensor | None = None) -> Tensor:
    """Return log N(f; μ_y, Σ_y) of every feature vector under the class that its label names, in nats.

    Args:
        features: `(B, D)`.
        labels: class indices, int64 `(B,)`.
        means: μ, `(C, D)`.
        log_variances: `(C, D)`; `None` for identity covariances.

    Returns:
        `(B,)`: what `log_likelihoods` holds at the labels.

    Example:
        >>> own_log_likelihoods(torch.zeros(1, 2), torch.tensor([1]), torch.tensor([[0.0, 0.0], [1.0, 1.0]]))
        tensor([-2.8379])
    """
    return -_own_energies(features, labels, means, log_variances) - 0.5 * means.shape[1] * log(2 * pi)


def posterior_logits(
    features: Tensor, means: Tensor, log_variances: Tensor | None = None, *, log_prior: Tensor | None = None
) -> Tensor:
    """Return logits whose softmax is the posterior p(k | f) of the mixture (Yaseen et al. 2020, eq. 4).

    Args:
        features: `(B, D)`.
        means: μ, `(C, D)`.
        log_variances: `(C, D)`; `None` for identity covariances.
        log_prior: log p(k), `(C,)`; `None` for equally frequent classes.

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
    margin: float = 1.0,
    log_prior: Tensor | None = None,
) -> Tensor:
    """Return posterior logits in which the distance to a sample's own class counts 1 + α times.

    The margin m = α d_y grows with the distance (Wan et al. 2018, section 3.3). One logit a row differs from
    `posterior_logits`: the one that the label names, which is α d_y lower.

    Args:
        features: `(B, D)`.
        labels: class indices, int64 `(B,)`.
        means: μ, `(C, D)`.
        log_variances: `(C, D)`; `None` for identity covariances.
        margin: α, at least 0.
        log_prior: log p(k), `(C,)`; `None` for equally frequent classes.

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
    """Return L_lkd, how far the features lie from their own class's normal distribution (Wan et al. 2018, section 3.2).

    Args:
        features: `(B, D)`.
        labels: class indices, int64 `(B,)`.
        means: μ, `(C, D)`.
        log_variances: `(C, D)`; `None` for identity covariances.

    Returns:
        The average of d_y + ½ log |Σ_y|, a scalar in nats. The paper sums over the batch and has D/2 log 2π in it.

    Example:
        >>> likelihood_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([0]), torch.zeros(1, 2))
        tensor(12.5000)
    """
    return _own_energies(features, labels, means, log_variances).mean()


def lgm_loss(
    features: Tensor,
    labels: Tensor,
    means: Tensor,
    log_variances: Tensor | None = None,
    *,
    margin: float = 1.0,
    likelihood_weight: float = 1.0,
    log_prior: Tensor | None = None,
) -> LGMLoss:
    """Return the large-margin Gaussian mixture loss L_GM = L_cls + λ L_lkd (Yaseen et al. 2020, eq. 5).

    Args:
        features: `(B, D)`.
        labels: class indices, int64 `(B,)`.
        means: μ, `(C, D)`.
        log_variances: `(C, D)`; `None` for identity covariances.
        margin: α, at least 0.
        likelihood_weight: λ, at least 0.
        log_prior: log p(k), `(C,)`; `None` for equally frequent classes.

    Returns:
        The total and its two terms, averaged over the batch.

    Example:
        >>> lgm_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([0]), torch.zeros(1, 2), likelihood_weight=0.1)
        LGMLoss(total=tensor(1.2500), classification=tensor(0.), likelihood=tensor(12.5000))
    """
    logits = margin_logits(features, labels, means, log_variances, margin=margin, log_prior=log_prior)
    classification = F.cross_entropy(logits, labels)
    likelihood = likelihood_loss(features, labels, means, log_variances)
    return LGMLoss(classification + likelihood_weight * likelihood, classification, likelihood)


def _own_half_distances(features: Tensor, labels: Tensor, means: Tensor, log_variances: Tensor | None) -> Tensor:
    """Return d_y, `(B,)`, from the differences themselves."""
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
    """Return ½ log |Σ_k|, `(C,)`, in float32 at least."""
    dtype = torch.promote_types(means.dtype, torch.float32)
    if log_variances is None:
        return means.new_zeros(means.shape[0], dtype=dtype)
    return 0.5 * log_variances.to(dtype).sum(dim=1)


def _promoted(features: Tensor, means: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in one dtype, float32 at least."""
    dtype = torch.promote_types(torch.promote_types(features.dtype, means.dtype), torch.float32)
    return features.to(dtype), means.to(dtype)


def _autocast_off(device: torch.device) -> AbstractContextManager[object]:
    """Switch autocast off where the device has it; the meta device, for one, has not."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()
