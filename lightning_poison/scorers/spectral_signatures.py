"""`SpectralSignatureScorer`: how far a sample lies out along the direction in which its class varies most.

Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks", NeurIPS 2018, arXiv 1811.00636, algorithm 1.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_poison.checks import expected, one_of, positive_int
from lightning_poison.contexts import full_precision
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.statistics.feature_sets import check_class_sizes, check_feature_set

CenterKind = Literal["core", "mean"]


def top_directions(rows: Tensor, count: int) -> Tensor:
    """Return the right singular vectors of a matrix that belong to its largest singular values.

    They are eigenvectors of the smaller of MᵀM and MMᵀ, so that the cost is O(N D min(N, D)). Nothing is drawn at
    random.

    Args:
        rows: M, floating-point `(N, D)`, centerd by the caller.
        count: how many, or as many as there are directions in which the rows vary.

    Returns:
        float64 `(D, count)`, orthonormal columns, the largest singular value first; each sign is arbitrary.

    Example:
        >>> top_directions(torch.tensor([[3.0, 0.0], [-3.0, 0.0], [0.0, 1.0]]), 1).abs().flatten()
        tensor([1., 0.], dtype=torch.float64)
    """
    with full_precision(rows.device):
        rows = rows.double()
        wide = rows.shape[1] > rows.shape[0]
        values, vectors = torch.linalg.eigh(rows @ rows.T if wide else rows.T @ rows)
        smallest = torch.finfo(torch.float64).eps * max(rows.shape) * float(values[-1].clamp_min(0))
        found = vectors.flip(1)[:, : min(count, int((values > smallest).sum()))]
        return torch.nn.functional.normalize(rows.T @ found, dim=0) if wide else found


def spectral_scores(features: Tensor, labels: Tensor, *, directions: int = 10, center: CenterKind = "core") -> Tensor:
    """Compute how far feature vectors reach from the center of their class along its top singular vectors.

    With R̄ the mean of class y and V the top right singular vectors of the matrix of rows R(x) − R̄, the score is
    ‖Vᵀ(R(x) − c)‖². With one direction and c = R̄ it is τ of Tran, Li, Madry, "Spectral Signatures in Backdoor Attacks",
    NeurIPS 2018, arXiv 1811.00636, algorithm 1. What is projected must be centerd too, as the paper says: R(x) · v
    ranks samples by where the class lies, and puts poison last that pulls toward the origin.

    `"core"` is not in the paper: c is the mean of the half of the class that lies nearest to the median along V. A
    third of a class of poison moves the mean so far that clean samples lie nearly as far from it as poison does.

    Args:
        features: floating-point `(N, D)`.
        labels: int64 `(N,)`.
        directions: how many singular vectors, or as many as there are directions in which a class varies.
        center: `"core"`, or `"mean"` for R̄.

    Returns:
        float64 `(N,)`, at least 0, in squared units of the features; comparable within a class.

    Raises:
        ValueError: where a class has fewer than two samples or features that do not vary, or features and labels are
            not what `check_feature_set` asks for.

    Example:
        >>> features = torch.tensor([[10.0], [10.0], [10.0], [6.0]])
        >>> spectral_scores(features, torch.tensor([0, 0, 0, 0]), center="mean")
        tensor([1., 1., 1., 9.], dtype=torch.float64)
        >>> spectral_scores(features, torch.tensor([0, 0, 0, 0]))
        tensor([ 0.,  0.,  0., 16.], dtype=torch.float64)
    """
    positive_int("directions", directions)
    one_of("center", center, ("core", "mean"))
    check_feature_set(features, labels, why="A single sample lies at its own mean.")
    scores = torch.empty(len(features), dtype=torch.float64, device=features.device)
    for number in torch.unique(labels).tolist():
        members = labels == number
        own = features[members].double()
        centerd = own - own.mean(0)
        if not bool((own != own[0]).any()):
            raise ValueError(
                expected("features", "different within a class", f"the same vector in all of class {number}")
                + "\nLook at features of another layer, or leave the class out."
            )
        with full_precision(features.device):
            projected = centerd @ top_directions(centerd, directions)
        if center == "core":
            projected = projected - _core(projected)
        scores[members] = projected.square().sum(1)
    return scores


def _core(points: Tensor) -> Tensor:
    """Return the mean of the half of the points that lie nearest to their median."""
    distances = (points - points.median(0).values).square().sum(1)
    return points[distances.argsort(stable=True)[: (len(points) + 1) // 2]].mean(0)


class SpectralSignatureScorer:
    """Scores by the squared projection of centerd features on the top singular vectors of their class.

    A backdoor that the network has learned is often what a class's features vary by most. Where something else is, such
    as a class of two kinds of images, the score follows that.

    It differs from the paper, which is `directions=1, center="mean"`, in the defaults. In the six runs of
    `benchmarks/filters_against_art.py`, BadNets on MNIST, the features of a small network gave an AUROC of .994 at
    least, the paper's .82 to .97; the defaults were chosen on those runs among others. It also differs in what is done
    with the score: the paper is told the share of poison ε and removes the top 1.5 ε of every class; here a threshold
    is calibrated on trusted samples, or samples are ranked.

    Several well-known codes center the matrix whose singular vector they take and project the uncenterd features on it,
    ART's among them (version 1.20). Such a score depends on where a class lies: in those runs it was between .22 and 1.

    Args:
        feature_model: the network whose features are looked at; a classifier of its own where it is `None`.
        directions: how many singular vectors, or as many as there are directions in which a class varies.
        center: `"core"` for the mean of the half of a class that lies nearest to its median, or `"mean"`.

    Raises:
        ValueError: where `directions` is no positive integer, or `center` is none of these.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> features = torch.randn(100, 8, generator=generator)
        >>> features[:5, 0] += 9
        >>> scores = SpectralSignatureScorer().score_features(features, torch.zeros(100, dtype=torch.int64))
        >>> scores.topk(5).indices.sort().values
        tensor([0, 1, 2, 3, 4])
    """

    name = "spectral-signatures"
    is_control = False

    def __init__(
        self, feature_model: FeatureModel | None = None, *, directions: int = 10, center: CenterKind = "core"
    ) -> None:
        self.feature_model = feature_model if feature_model is not None else FeatureModel()
        self.directions = positive_int("directions", directions)
        self.center: CenterKind = one_of("center", center, ("core", "mean"))

    def __repr__(self) -> str:
        return f"SpectralSignatureScorer({self.feature_model!r}, directions={self.directions}, center={self.center!r})"

    def score_features(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the score of each sample, float32 `(N,)`, at least 0.

        Args:
            features: float32 `(N, D)`, of all samples.
            labels: int64 `(N,)`, the labels that they carry.

        Raises:
            ValueError: where a class has fewer than two samples or does not vary, or features are not finite.
        """
        return spectral_scores(features, labels, directions=self.directions, center=self.center).float()

    def check_labels(self, labels: Tensor) -> None:
        """Raise where a class has fewer than two samples; see `CheckingScorer`."""
        check_class_sizes(labels, 2, "A single sample lies at its own mean.")

    def settings(self) -> Mapping[str, Any]:
        """Return what the scorer was built with, as JSON can hold it."""
        model = dict(self.feature_model.settings())
        return {"feature_model": model, "directions": self.directions, "center": self.center}
