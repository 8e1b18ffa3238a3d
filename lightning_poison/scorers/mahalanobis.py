"""`MahalanobisScorer`: how far a sample's features lie from the class that it is labeled as.

Lee, Lee, Lee, Shin, "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks",
NeurIPS 2018, arXiv 1807.03888, equations 1 and 2.
"""

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, Self

import torch
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.checks import expected, one_of
from lightning_poison.contexts import full_precision
from lightning_poison.data.blocks import BLOCK_SIZE
from lightning_poison.data.inference import score_set
from lightning_poison.errors import NotFittedError
from lightning_poison.models.lgm import half_distances
from lightning_poison.runtime import LocalRuntime, Runtime
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.label_scores import surprisals
from lightning_poison.scorers.training_data import TrainingData
from lightning_poison.statistics.feature_sets import check_class_sizes, check_feature_set

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
    samples than features. Ledoit and Wolf's (J. Multivariate Anal. 88, 2004) shrinks it toward a multiple of the
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
    centerd = rows - means[labels]
    if covariance == "shared":
        groups = {"all classes": centerd}
    else:
        groups = {f"class {number}": centerd[labels == number] for number in torch.unique(labels).tolist()}
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


def _inverse_factor(centerd: Tensor, estimator: EstimatorKind, whose: str) -> Tensor:
    """Return L, upper triangular with a positive diagonal, such that L Lᵀ is the inverse covariance."""
    covariance = torch.from_numpy(ESTIMATORS[estimator](assume_centered=True).fit(centerd.numpy()).covariance_)
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


ScoreKind = Literal["distance", "posterior"]


class MahalanobisScorer:
    """Scores by the squared Mahalanobis distance of a sample's features to the class that it is labeled as.

    The features of samples that are believed give each class a mean, and all classes one covariance, or each its own.
    The distance is large for whatever is unlike the class, of no class or of another. Where only wrong labels are
    looked for that is a handicap: what is hard to read lies far from every class. The posterior leaves it out.

    It differs from the paper in the class that counts, which there is the nearest one, since the paper has no label to
    doubt; and in what is left out: the paper adds a little noise to its inputs against the distance, and weighs the
    distances of several layers by a regression on examples of what shall be found.

    Args:
        feature_model: the network whose features are looked at. One of its own is trained on the samples that are
            believed; `None` for one with default settings. A network that was handed to it stays as it is.
        covariance: `"shared"` for one covariance, or `"class"` for one of each class; log |Σ_k| is then added, so that
            labels can be compared.
        score: `"distance"`, or `"posterior"` for −log p(y | f) of the same normal distributions with equally frequent
            classes, which asks for the label alone and is not in the paper.
        estimator: `"ledoit-wolf"` or `"empirical"`, both scikit-learn's. The paper's is the empirical one; the other
            has an inverse also where a class has fewer samples than there are features.

    Raises:
        ValueError: where an argument is none of these.

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
    is_control = False

    def __init__(
        self,
        feature_model: FeatureModel | None = None,
        *,
        covariance: CovarianceKind = "shared",
        score: ScoreKind = "distance",
        estimator: EstimatorKind = "ledoit-wolf",
    ) -> None:
        self.feature_model = feature_model if feature_model is not None else FeatureModel()
        self.covariance: CovarianceKind = one_of("covariance", covariance, ("shared", "class"))
        self.score: ScoreKind = one_of("score", score, ("distance", "posterior"))
        self.estimator: EstimatorKind = one_of("estimator", estimator, tuple(ESTIMATORS))
        self._fitted_model: FeatureModel | None = None
        self._normals: ClassNormals | None = None

    def __repr__(self) -> str:
        chosen = f"covariance={self.covariance!r}, score={self.score!r}, estimator={self.estimator!r}"
        return f"MahalanobisScorer({self.feature_model!r}, {chosen})"

    @property
    def is_fitted(self) -> bool:
        """Whether it can score."""
        return self._normals is not None

    def fit(
        self, trusted: "Dataset[Any]", *, runtime: Runtime | None = None, generator: torch.Generator | None = None
    ) -> Self:
        """Train a network of its own where none was handed in, measure the classes, and return itself.

        See `Scorer.fit`.

        Raises:
            ValueError: where there are fewer than two classes, a class has one sample, or the features of a class are
                not finite or vary too little.
            UnreadableSampleError: where a sample cannot be read.
        """
        generator = generator or torch.Generator().manual_seed(0)
        runtime = runtime or LocalRuntime()
        data = TrainingData.of(trusted, why="A distance to one class has nothing to compare with.")
        check_class_sizes(data.labels, 2, "One sample to fit on has no covariance.")
        model = self.feature_model.for_fit()
        if model.model is None:
            model.fit(trusted, runtime=runtime, generator=generator)
        features = score_set(
            trusted,
            torch.arange(len(data.labels)),
            lambda block: model.features(block.inputs),
            sample=data.sample,
            runtime=runtime,
            seed=int(torch.randint(2**31, (1,), generator=generator)),
            labels=data.labels,
            description="measuring the classes",
            share=False,
        )
        self._normals = fit_normals(features, data.labels, covariance=self.covariance, estimator=self.estimator)
        self._fitted_model = model
        return self

    def rehearse(self, trusted: "Dataset[Any]", *, steps: int, runtime: Runtime | None = None) -> int:
        """Do the first steps of a fit on a throw-away network; return the steps of a whole fit.

        Of a network that was handed in a step is a block of samples that are read.
        """
        model = self.feature_model.for_fit()
        if model.model is None:
            return model.rehearse(trusted, steps=steps, runtime=runtime)
        data = TrainingData.of(trusted)
        first = torch.arange(min(len(data.labels), steps * BLOCK_SIZE))
        score_set(
            trusted,
            first,
            lambda block: model.features(block.inputs),
            sample=data.sample,
            runtime=runtime or LocalRuntime(),
            seed=0,
            share=False,
        )
        return -(-len(data.labels) // BLOCK_SIZE)

    def score_labels(self, inputs: Tensor) -> Tensor:
        """Return the score of each sample under each label.

        Args:
            inputs: float `(B, ...)`, as the data set returns them.

        Returns:
            float32 `(B, C)`; differentiable in `inputs`.

        Raises:
            NotFittedError: before a fit.
            ValueError: where samples have another shape than those that it was fitted on.
        """
        model, normals = self._fitted()
        features = model.features(inputs)
        if normals.means.device != features.device:
            normals = self._normals = ClassNormals(*(each.to(features.device) for each in normals))
        distances = mahalanobis_scores(features, normals)
        return surprisals(-0.5 * distances) if self.score == "posterior" else distances

    def score_batch(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the score of each sample under the label that it carries, float32 `(B,)`; see `score_labels`."""
        return self.score_labels(inputs).gather(1, labels[:, None])[:, 0]

    def settings(self) -> Mapping[str, Any]:
        """Return what the scorer was built with, as JSON can hold it."""
        chosen = {"covariance": self.covariance, "score": self.score, "estimator": self.estimator}
        return {"feature_model": dict(self.feature_model.settings()), **chosen}

    def state(self) -> Mapping[str, Tensor]:
        """Return the weights of the network, and the means and covariances of the classes.

        Raises:
            NotFittedError: before a fit.
        """
        model, normals = self._fitted()
        measured = {f"normals.{name}": value.clone() for name, value in normals._asdict().items()}
        return {**model.state(), **measured}

    def load(self, state: Mapping[str, Tensor]) -> Self:
        """Take over what `state` of a scorer of the same settings returned, and return itself.

        A network that was handed in keeps the weights that it has.

        Raises:
            ValueError: where it is the state of another scorer.
        """
        missing = [name for name in ClassNormals._fields if f"normals.{name}" not in state]
        factors = state.get("normals.factors")
        if missing or factors is None or (self.covariance == "shared" and len(factors) != 1):
            came = "that of another scorer" if missing else "that of one with a covariance for each class"
            raise ValueError(expected("state", f"that of {self!r}", came))
        weights = {name: value for name, value in state.items() if not name.startswith("normals.")}
        self._fitted_model = self.feature_model.for_fit().load(weights)
        self._normals = ClassNormals(*(state[f"normals.{name}"] for name in ClassNormals._fields))
        return self

    def _fitted(self) -> tuple[FeatureModel, ClassNormals]:
        if self._fitted_model is None or self._normals is None:
            raise NotFittedError("Expected a fitted MahalanobisScorer.\nCall `fit(trusted)`.")
        return self._fitted_model, self._normals
