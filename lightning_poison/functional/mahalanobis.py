"""Normal distributions of the features of each class, and Mahalanobis distances to them."""

from typing import Literal, NamedTuple

import torch
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from torch import Tensor

from lightning_poison.checks import expected, one_of
from lightning_poison.functional.feature_sets import check_feature_set
from lightning_poison.functional.lgm import half_distances
from lightning_poison.functional.precision import full_precision

CovarianceKind = Literal["shared", "class"]
EstimatorKind = Literal["ledoit-wolf", "empirical"]
ESTIMATORS = {"ledoit-wolf": LedoitWolf, "empirical": EmpiricalCovariance}


class ClassNormals(NamedTuple):
    """A normal distribution for each class.

    Attributes:
        means: μ, float32 `(C, D)`.
        factors: L with L Lᵀ = Σ⁻¹, float32 `(1, D, D)` where the covariance is shared and `(C, D, D)` where it is not.
        log_determinants: log |Σ_k|, float32 `(1,)` or `(C,)`.
        present: whether a class had samples, bool `(C,)`.

    Example:
        >>> normals = fit_normals(torch.tensor([[0.0], [2.0], [7.0], [9.0]]), torch.tensor([0, 0, 2, 2]))
        >>> normals.means.flatten(), normals.present
        (tensor([1., 0., 8.]), tensor([ True, False,  True]))
    """

    means: Tensor
    factors: Tensor
    log_determinants: Tensor
    present: Tensor


def fit_normals(
    features: Tensor,
    labels: Tensor,
    *,
    covariance: CovarianceKind = "shared",
    estimator: EstimatorKind = "ledoit-wolf",
) -> ClassNormals:
    """Estimate a mean for each class, and one covariance for all of them or one for each.

    Lee, Lee, Lee, Shin, "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
    NeurIPS 2018, arXiv 1807.03888, equation 1: the shared covariance is that of the differences from the class means.
    The estimators are scikit-learn's; the paper's is the empirical one, which has no inverse where there are fewer
    samples than features. Ledoit and Wolf's (J. Multivariate Anal. 88, 2004) shrinks it towards a multiple of the
    identity, the more the fewer samples there are.

    Args:
        features: floating-point `(N, D)`.
        labels: int64 `(N,)`.
        covariance: `"shared"`, or `"class"` for one of each class.
        estimator: `"ledoit-wolf"` or `"empirical"`.

    Returns:
        The distributions, for labels from 0 to the largest, on the device of the features.

    Raises:
        ValueError: where a class has fewer than two samples, a covariance has no inverse, or features and labels are
            not what `check_feature_set` asks for.

    Example:
        >>> features = torch.tensor([[-3.0], [3.0], [7.0], [13.0]])
        >>> fit_normals(features, torch.tensor([0, 0, 1, 1]), estimator="empirical").factors
        tensor([[[0.3333]]])
    """
    one_of("covariance", covariance, ("shared", "class"))
    one_of("estimator", estimator, tuple(ESTIMATORS))
    check_feature_set(features, labels, why="One sample has no covariance.")
    rows, labels = features.detach().double().cpu(), labels.cpu()
    counts = torch.bincount(labels)
    means = torch.zeros(len(counts), rows.shape[1], dtype=rows.dtype).index_add(0, labels, rows)
    means = means / counts.clamp_min(1)[:, None]
    centred = rows - means[labels]
    if covariance == "shared":
        groups = {"all classes": centred}
    else:
        groups = {f"class {number}": centred[labels == number] for number in torch.unique(labels).tolist()}
    factors = {name: _inverse_factor(group, estimator, name) for name, group in groups.items()}
    if covariance == "shared":
        stacked = torch.stack(list(factors.values()))
    else:
        stacked = torch.eye(rows.shape[1], dtype=rows.dtype).repeat(len(counts), 1, 1)
        stacked[counts > 0] = torch.stack(list(factors.values()))
    log_determinants = -2 * stacked.diagonal(dim1=1, dim2=2).log().sum(1)
    found = (means.float(), stacked.float(), log_determinants.float(), counts > 0)
    return ClassNormals(*(each.to(features.device) for each in found))


def mahalanobis_scores(features: Tensor, normals: ClassNormals) -> Tensor:
    """Compute how far feature vectors lie from each class.

    Where classes have covariances of their own, log |Σ_k| is added, which makes the score −2 log N(f; μ_k, Σ_k) up to a
    constant: without it the class of the widest covariance would look nearest to everything.

    Args:
        features: floating-point `(B, D)`.
        normals: what `fit_normals` returned.

    Returns:
        (f − μ_k)ᵀ Σ⁻¹ (f − μ_k), or that with Σ_k⁻¹ and + log |Σ_k|, float32 `(B, C)`; differentiable in `features`. A
        class that had no samples has the largest score of the others plus 1 at each sample.

    Example:
        >>> features = torch.tensor([[-3.0], [3.0], [7.0], [13.0]])
        >>> normals = fit_normals(features, torch.tensor([0, 0, 1, 1]), estimator="empirical")
        >>> mahalanobis_scores(torch.tensor([[6.0]]), normals).round(decimals=3)
        tensor([[4.0000, 1.7780]])
    """
    if features.ndim != 2 or features.shape[1] != normals.means.shape[1]:
        what = f"of shape (B, {normals.means.shape[1]}), as those that were fitted"
        raise ValueError(expected("features", what, str(tuple(features.shape))))
    with full_precision(features.device):
        features, means = features.float(), normals.means
        if len(normals.factors) == 1:
            factor = normals.factors[0]
            scores = 2 * half_distances(features @ factor, means @ factor)
        else:
            parts = zip(means, normals.factors, normals.log_determinants, strict=True)
            columns = [((features - mean) @ factor).square().sum(1) + log for mean, factor, log in parts]
            scores = torch.stack(columns, dim=1)
    worst = scores.masked_fill(~normals.present, -torch.inf).amax(1, keepdim=True)
    return torch.where(normals.present, scores, worst + 1)


def _inverse_factor(centred: Tensor, estimator: EstimatorKind, whose: str) -> Tensor:
    """Return L, upper triangular with a positive diagonal, such that L Lᵀ is the inverse covariance."""
    covariance = torch.from_numpy(ESTIMATORS[estimator](assume_centered=True).fit(centred.numpy()).covariance_)
    lower, failed = torch.linalg.cholesky_ex(covariance)
    tiny = torch.finfo(torch.float64).eps * len(covariance) * float(covariance.diagonal().max().clamp_min(0))
    ways = ['Use `estimator="ledoit-wolf"`.'] if estimator != "ledoit-wolf" else []
    ways += ['Use `covariance="shared"`.'] if whose != "all classes" else []
    if int(failed) or not bool((lower.diagonal().square() > tiny).all()):
        raise ValueError(
            expected("features", "varied enough for a covariance with an inverse", f"those of {whose}, which are not")
            + f"\n{' '.join([*ways, 'Take features of another layer, or more samples.'])}"
        )
    identity = torch.eye(len(lower), dtype=lower.dtype)
    factor: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False).T.contiguous()
    return factor
