"""`MahalanobisScorer`: how far the features of a sample are from the class that it is labeled as.

Lee, Lee, Lee, Shin, "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
NeurIPS 2018, arXiv 1807.03888, equations 1 and 2.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self, get_args

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.checks import expected, one_of
from lightning_poison.contexts import full_precision
from lightning_poison.models.lgm import half_distances
from lightning_poison.runtime import Runtime
from lightning_poison.scorers.feature_model import FeatureModel, checked_feature_model
from lightning_poison.scorers.label_scores import surprisals
from lightning_poison.scorers.protocol import Scorer
from lightning_poison.scorers.training_data import TrainingData
from lightning_poison.statistics.covariances import CovarianceSums, EstimatorKind, class_means
from lightning_poison.statistics.feature_sets import check_class_sizes, check_feature_set
from lightning_poison.statistics.row_blocks import row_blocks

CovarianceKind = Literal["shared", "class"]
DistanceKind = Literal["distance", "posterior"]

ESTIMATORS = get_args(EstimatorKind)


class ClassNormals(NamedTuple):
    """A normal distribution for each class.

    Attributes:
        means: μ, float32 `(C, D)`.
        factors: L with L Lᵀ = Σ⁻¹, float32 `(1, D, D)` for a shared covariance, otherwise `(C, D, D)`.
        log_determinants: log |Σ_k|, float32 `(1,)` or `(C,)`.
        present: Whether a class has samples, bool `(C,)`.

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
    """Estimate a mean for each class, and one covariance for all classes or one for each.

    Equation 1 of Lee et al. 2018: the shared covariance is that of the differences from the class means. The paper uses
    the empirical one, which has no inverse if there are fewer samples than features. Ledoit and Wolf's (J. Multivariate
    Anal. 88, 2004) shrinks it toward a multiple of the identity, the more the fewer samples there are. Sums are float64
    and over a block of samples at a time, so that float32 features are not copied as a whole.

    Args:
        features: Floating-point `(N, D)`.
        labels: int64 `(N,)`.
        covariance: `"shared"`, or `"class"` for one per class. Default: `"shared"`.
        estimator: `"ledoit-wolf"` or `"empirical"`. Default: `"ledoit-wolf"`.

    Returns:
        Distributions for the labels from 0 to the largest, on the device of the features.

    Raises:
        ValueError: If a class has fewer than two samples, a covariance has no inverse, or `check_feature_set` rejects
            features and labels.

    Example:
        >>> features = torch.tensor([[-3.0], [3.0], [7.0], [13.0]])
        >>> fit_normals(features, torch.tensor([0, 0, 1, 1]), estimator="empirical").factors
        tensor([[[0.3333]]])
    """
    one_of("covariance", covariance, ("shared", "class"))
    one_of("estimator", estimator, ESTIMATORS)
    check_feature_set(features, labels, why="One sample has no covariance.")
    rows, labels = features.detach().cpu(), labels.cpu()
    means, counts = class_means(rows, labels)
    if covariance == "shared":
        sums = CovarianceSums(rows.shape[1])
        for part in row_blocks(*rows.shape):
            sums.add(rows[part].double() - means[labels[part]])
        factors = _inverse_factor(sums.covariance(estimator), estimator, "all classes")[None]
    else:
        factors = torch.eye(rows.shape[1], dtype=means.dtype).repeat(len(counts), 1, 1)
        members = torch.split(labels.argsort(stable=True), counts.tolist())
        for label in counts.nonzero().flatten().tolist():
            sums = CovarianceSums(rows.shape[1])
            for part in row_blocks(len(members[label]), rows.shape[1]):
                sums.add(rows[members[label][part]].double() - means[label])
            factors[label] = _inverse_factor(sums.covariance(estimator), estimator, f"class {label}")
    log_determinants = -2 * factors.diagonal(dim1=1, dim2=2).log().sum(1)
    found = (means.float(), factors.float(), log_determinants.float(), counts > 0)
    return ClassNormals(*(each.to(features.device) for each in found))


def mahalanobis_scores(features: Tensor, normals: ClassNormals) -> Tensor:
    """Compute the distance of feature vectors to each class.

    If each class has its own covariance, log |Σ_k| is added, so that the score is −2 log N(f; μ_k, Σ_k) up to a
    constant. Otherwise the class with the widest covariance would be the nearest to all samples.

    Args:
        features: Floating-point `(B, D)`.
        normals: Result of `fit_normals`.

    Returns:
        (f − μ_k)ᵀ Σ⁻¹ (f − μ_k), or with Σ_k⁻¹ and + log |Σ_k|, float32 `(B, C)`; differentiable in `features`. The
        score under a class without samples is the largest score of the sample plus 1.

    Example:
        >>> features = torch.tensor([[-3.0], [3.0], [7.0], [13.0]])
        >>> normals = fit_normals(features, torch.tensor([0, 0, 1, 1]), estimator="empirical")
        >>> mahalanobis_scores(torch.tensor([[6.0]]), normals).round(decimals=3)
        tensor([[4.0000, 1.7780]])
    """
    if features.ndim != 2 or features.shape[1] != normals.means.shape[1]:
        what = f"of shape (B, {normals.means.shape[1]}), as in the fit"
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


def _inverse_factor(covariance: Tensor, estimator: EstimatorKind, whose: str) -> Tensor:
    """Return L, upper triangular with a positive diagonal, such that L Lᵀ is the inverse covariance."""
    lower, failed = torch.linalg.cholesky_ex(covariance)
    tiny = torch.finfo(torch.float64).eps * len(covariance) * float(covariance.diagonal().max().clamp_min(0))
    ways = ['Use `estimator="ledoit-wolf"`.'] if estimator != "ledoit-wolf" else []
    ways += ['Use `covariance="shared"`.'] if whose != "all classes" else []
    if int(failed) or not bool((lower.diagonal().square() > tiny).all()):
        raise ValueError(
            expected("features", "varied enough for a covariance with an inverse", f"those of {whose}, which are not")
            + f"\n{' '.join([*ways, 'Use features of another layer, or more samples.'])}"
        )
    identity = torch.eye(len(lower), dtype=lower.dtype)
    factor: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False).T.contiguous()
    return factor


class MahalanobisScorer(Scorer):
    """Scores by the squared Mahalanobis distance of a sample's features to the class that it is labeled as.

    The features of known-clean samples give each class a mean, and all classes one covariance, or one each. The
    distance is large for every sample that differs from its class, whether it belongs to another class or to none. That
    is a handicap in a search for wrong labels only: hard samples are far from every class. The posterior does not have
    it.

    It differs from the paper in the class that counts, which there is the nearest one, since the paper considers no
    label; and in what is left out: the paper adds a little noise to its inputs against the distance, and weights the
    distances of several layers by a regression on examples of what should be detected.

    Args:
        feature_model: Network whose features are scored. A trained network does not change; otherwise a classifier is
            trained on the known-clean samples. Default: `FeatureModel()`.
        covariance: `"shared"` for one covariance, or `"class"` for one per class; log |Σ_k| is then added, so that
            labels can be compared. Default: `"shared"`.
        score: `"distance"`, or `"posterior"` for −log p(y | f) of the same normal distributions with equally frequent
            classes, which depends on the label alone and is not in the paper. Default: `"distance"`.
        estimator: `"ledoit-wolf"` or `"empirical"`. The paper uses the empirical one; the other
            has an inverse even if a class has fewer samples than there are features. Default: `"ledoit-wolf"`.

    Raises:
        ValueError: If an argument is not one of these.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> generator = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(60) % 2
        >>> points = torch.randn(60, 4, generator=generator) + 6 * labels[:, None]
        >>> scorer = MahalanobisScorer(FeatureModel(torch.nn.Flatten())).fit(TensorDataset(points, labels))
        >>> scorer.score_batch(points[:2], torch.tensor([0, 0])) > 30
        tensor([False,  True])
    """

    name = "mahalanobis"
    scores_labels = True
    fitted_tensors = ClassNormals._fields
    feature_model: FeatureModel

    def __init__(
        self,
        feature_model: FeatureModel | None = None,
        *,
        covariance: CovarianceKind = "shared",
        score: DistanceKind = "distance",
        estimator: EstimatorKind = "ledoit-wolf",
    ) -> None:
        self.feature_model = checked_feature_model(feature_model)
        self.covariance: CovarianceKind = one_of("covariance", covariance, ("shared", "class"))
        self.score: DistanceKind = one_of("score", score, ("distance", "posterior"))
        self.estimator: EstimatorKind = one_of("estimator", estimator, ESTIMATORS)

    def fit(
        self, trusted: "Dataset[Any]", *, runtime: Runtime | None = None, generator: torch.Generator | None = None
    ) -> Self:
        """Fit the normal distributions, after a classifier if no network was passed in, and return the scorer.

        See `Scorer.fit`.

        Raises:
            ValueError: If there are fewer than two classes, a class has one sample, or the features of a class are not
                finite or vary too little.
            UnreadableSampleError: If a sample cannot be read.
        """
        generator = generator or torch.Generator().manual_seed(0)
        data = TrainingData.of(trusted, why="A distance to one class has nothing to compare with.")
        check_class_sizes(data.labels, 2, "One sample to fit on has no covariance.")
        network = self.feature_model.for_fit().fit(trusted, runtime=runtime, generator=generator)
        features = data.compute(
            lambda block: network.features(block.inputs),
            runtime=runtime,
            generator=generator,
            description="Computing class statistics",
            dtype=torch.float32,
        )
        self._set(fit_normals(features, data.labels, covariance=self.covariance, estimator=self.estimator))
        self._network = network
        return self

    def rehearse(self, trusted: "Dataset[Any]", *, steps: int, runtime: Runtime | None = None) -> int:
        """Run the first steps of a fit on a temporary copy; see `FeatureModel.rehearse`."""
        return self.feature_model.rehearse(trusted, steps=steps, runtime=runtime)

    def score_labels(self, inputs: Tensor) -> Tensor:
        """Score each sample under each label; see `Scorer.score_labels`. Scores are differentiable in `inputs`.

        Raises:
            NotFittedError: Before a fit.
            ValueError: If samples differ in shape from those that the scorer was fitted on.
        """
        self.check_fitted()
        features = self._network.features(inputs)
        normals = ClassNormals(*(getattr(self, name).to(features.device) for name in self.fitted_tensors))
        self._set(normals)
        distances = mahalanobis_scores(features, normals)
        return surprisals(-0.5 * distances) if self.score == "posterior" else distances

    def state(self) -> Mapping[str, Tensor]:
        """Return copies of the weights of the network and of the normal distributions.

        Raises:
            NotFittedError: Before a fit.
        """
        normals = super().state()
        return {**self._network.state(), **normals}

    def load(self, state: Mapping[str, Tensor]) -> Self:
        """Load what `state` of a scorer with the same settings returned, and return the scorer.

        A network that was passed in does not change.

        Raises:
            ValueError: If it is the state of another scorer, or of one with other settings.
        """
        if self.covariance == "shared" and len(state.get("factors", ())) > 1:
            raise ValueError(expected("state", f"the state of {self!r}", "one with a covariance for each class"))
        network = self.feature_model.for_fit().load(state)
        super().load({name: state[name] for name in self.fitted_tensors if name in state})
        self._network = network
        return self

    def _set(self, normals: ClassNormals) -> None:
        self.means, self.factors, self.log_determinants, self.present = normals
