import copy
import json
import subprocess
import sys

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.distributions import MultivariateNormal
from torch.utils.data import Subset, TensorDataset

from lightning_poison.errors import NotFittedError
from lightning_poison.models.fitting import FitSettings
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.mahalanobis import ClassNormals, MahalanobisScorer, fit_normals, mahalanobis_scores
from lightning_poison.statistics import row_blocks
from lightning_poison.testing.scorers import check_scorer

LABELS = torch.arange(300) % 3


def skewed(seed=0, features=4):
    """Return 300 samples of three classes, one wider than the others, and correlated features."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(300, features, generator=generator)
    mixing = torch.randn(features, features, generator=generator)
    points[LABELS == 2] *= 4
    return points @ mixing + 10 * torch.eye(features)[LABELS]


def by_hand(features, covariance):
    """Return squared Mahalanobis distances, plus log-determinants for a covariance per class."""
    rows = features.double()
    means = torch.stack([rows[label == LABELS].mean(0) for label in range(3)])
    away = rows - means[LABELS]
    groups = [away] * 3 if covariance == "shared" else [away[label == LABELS] for label in range(3)]
    sigmas = [group.T @ group / len(group) for group in groups]
    columns = []
    for mean, sigma in zip(means, sigmas, strict=True):
        difference = rows - mean
        column = (difference @ torch.linalg.inv(sigma) * difference).sum(1)
        columns.append(column + (torch.logdet(sigma) if covariance == "class" else 0))
    return torch.stack(columns, 1)


@pytest.mark.parametrize("covariance", ["shared", "class"])
def test_distances_match_closed_form(covariance):
    features = skewed()
    normals = fit_normals(features, LABELS, covariance=covariance, estimator="empirical")
    expected = by_hand(features, covariance)
    torch.testing.assert_close(mahalanobis_scores(features, normals).double(), expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("covariance", ["shared", "class"])
@pytest.mark.parametrize("estimator", ["ledoit-wolf", "empirical"])
def test_normals_do_not_depend_on_blocks(covariance, estimator, monkeypatch):
    features = skewed()
    whole = fit_normals(features, LABELS, covariance=covariance, estimator=estimator)
    monkeypatch.setattr(row_blocks, "AT_ONCE", 4 * 37)
    for found, expected in zip(
        fit_normals(features, LABELS, covariance=covariance, estimator=estimator), whole, strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


MEMORY_OF_A_FIT = """
import resource
import torch
from lightning_poison.scorers.mahalanobis import fit_normals
peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
labels = torch.arange(2_000_000) % 7
fit_normals(torch.eye(64)[labels[:1000]] + torch.randn(1000, 64), labels[:1000])
features = torch.randn(2_000_000, 64)
before = peak()
fit_normals(features, labels)
print((peak() - before) / features.nbytes)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory in Linux's units")
def test_fit_holds_no_copy_of_the_features():
    """A float64 copy would be twice their size; what remains are blocks of at most 2²² numbers."""
    command = [sys.executable, "-c", MEMORY_OF_A_FIT]
    assert float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) < 0.6


def test_score_with_class_covariances_is_twice_the_negative_log_likelihood():
    features = skewed()
    normals = fit_normals(features, LABELS, covariance="class")
    scores = mahalanobis_scores(features, normals).double()
    for label in range(3):
        factor = normals.factors[label].double()
        normal = MultivariateNormal(normals.means[label].double(), precision_matrix=factor @ factor.T)
        expected = -2 * normal.log_prob(features.double())
        constant = 4 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
        torch.testing.assert_close(scores[:, label] + constant, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("covariance", ["shared", "class"])
def test_scores_are_invariant_to_linear_maps(covariance):
    features, mixing = skewed().double(), torch.tensor([[2.0, 1, 0, 0], [0, 1, 0, 0], [0, 3, 1, 0], [1, 0, 0, 5]])
    moved = features @ mixing.double() + 7
    before, after = (
        mahalanobis_scores(rows, fit_normals(rows, LABELS, covariance=covariance, estimator="empirical"))
        for rows in (features, moved)
    )
    constant = 2 * torch.logdet(mixing) if covariance == "class" else 0
    torch.testing.assert_close(after, before + constant, rtol=1e-3, atol=1e-2)


def test_ledoit_wolf_allows_fewer_samples_than_features():
    features, labels = skewed(features=40)[:12], torch.arange(12) % 3
    scores = mahalanobis_scores(features, fit_normals(features, labels, covariance="class"))
    assert scores.isfinite().all()
    assert torch.equal(scores.argmin(1), labels)
    with pytest.raises(ValueError, match="covariance with an inverse, but got those of class 0"):
        fit_normals(features, labels, covariance="class", estimator="empirical")
    with pytest.raises(ValueError, match="those of all classes"):
        fit_normals(features, labels, estimator="empirical")


def test_class_without_samples_has_the_largest_score():
    features, labels = skewed(), torch.where(LABELS == 1, 2, LABELS)
    for covariance in ("shared", "class"):
        normals = fit_normals(features, labels, covariance=covariance)
        assert normals.present.tolist() == [True, False, True]
        scores = mahalanobis_scores(features, normals)
        assert torch.equal(scores.argmax(1), torch.ones(300).long())
        assert scores.isfinite().all()


def test_scores_are_differentiable_and_ignore_autocast():
    features = skewed()
    normals = fit_normals(features, LABELS)
    moving = features.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = mahalanobis_scores(moving, normals)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, mahalanobis_scores(features, normals))
    (gradient,) = torch.autograd.grad(scores[:, 0].sum(), moving)
    factor = normals.factors[0]
    expected = 2 * (features - normals.means[0]) @ factor @ factor.T
    torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("features", "labels", "settings", "message"),
    [
        (skewed()[:3], torch.tensor([0, 0, 1]), {}, "at least 2 samples per class, but got 1 of class 1"),
        (torch.ones(4, 2), torch.tensor([0, 0, 1, 1]), {}, "different from sample to sample"),
        (torch.full((4, 2), torch.nan), torch.tensor([0, 0, 1, 1]), {}, "finite"),
        (skewed(), LABELS[:5], {}, "one for each of the 300"),
        (skewed(), LABELS - 1, {}, "at least 0"),
        (skewed(), LABELS, {"covariance": "diagonal"}, "one of 'shared', 'class'"),
        (skewed(), LABELS, {"estimator": "mcd"}, "one of 'ledoit-wolf', 'empirical'"),
        (torch.arange(2.0).repeat(3)[:, None].repeat(1, 2), torch.arange(2).repeat(3), {}, "an inverse"),
    ],
)
def test_fit_normals_refuses_invalid_arguments(features, labels, settings, message):
    with pytest.raises(ValueError, match=message):
        fit_normals(features, labels, **settings)


def test_refuses_features_of_another_length():
    normals = ClassNormals(torch.zeros(2, 3), torch.eye(3)[None], torch.zeros(1), torch.ones(2, dtype=torch.bool))
    with pytest.raises(ValueError, match="of shape \\(B, 3\\)"):
        mahalanobis_scores(torch.zeros(5, 4), normals)


QUICK = FitSettings(epochs=1, batch_size=32, min_steps=20)
RUNTIME = LocalRuntime(precision="32", threads=1)


def quick(**settings):
    return MahalanobisScorer(FeatureModel(feature_size=8, fit_settings=QUICK), **settings)


def on_inputs(**settings):
    """Return a scorer whose features are the inputs."""
    return MahalanobisScorer(FeatureModel(nn.Flatten()), **settings)


@pytest.mark.slow
@pytest.mark.parametrize("covariance", ["shared", "class"])
def test_complies_with_contract(covariance):
    check_scorer(quick(covariance=covariance), separates=True)
    check_scorer(on_inputs(covariance=covariance))


def test_declares_label_scores():
    assert quick().scores_labels
    assert not quick().is_control


@pytest.mark.parametrize("covariance", ["shared", "class"])
def test_scores_match_functions_on_features(blobs, covariance):
    points, labels = blobs()[:]
    scorer = on_inputs(covariance=covariance, estimator="empirical").fit(blobs(), runtime=RUNTIME)
    normals = fit_normals(points, labels, covariance=covariance, estimator="empirical")
    torch.testing.assert_close(scorer.score_labels(points), mahalanobis_scores(points, normals))


@pytest.mark.parametrize("covariance", ["shared", "class"])
def test_posterior_is_the_softmax_of_distances(blobs, covariance):
    points = blobs()[:][0]
    fitted = on_inputs(covariance=covariance).fit(blobs(), runtime=RUNTIME)
    other = on_inputs(covariance=covariance, score="posterior").load(fitted.state())
    expected = -(-0.5 * fitted.score_labels(points)).log_softmax(1)
    torch.testing.assert_close(other.score_labels(points), expected, atol=1e-4, rtol=1e-4)


def test_posterior_detects_wrong_labels_among_hard_samples(blobs):
    points, labels = blobs(600)[:]
    wrong, hard = torch.arange(600) % 10 == 0, torch.arange(600) % 10 == 1
    points = points + 40 * hard[:, None] * torch.eye(4)[3]  # far from every class, and of the right label
    carried = torch.where(wrong, (labels + 1) % 3, labels)
    by = {
        score: on_inputs(score=score).fit(blobs(600), runtime=RUNTIME).score_batch(points, carried)
        for score in ("distance", "posterior")
    }
    assert roc_auc_score(wrong, by["posterior"]) > 0.99
    assert roc_auc_score(wrong, by["distance"]) < 0.95


@pytest.mark.slow
def test_detects_flipped_digits(digits):
    model = FeatureModel(feature_size=16, fit_settings=FitSettings(epochs=4, batch_size=64, min_steps=0))
    scorer = MahalanobisScorer(model).fit(Subset(digits, range(1000)), runtime=RUNTIME)
    images, labels = digits[1000:]
    wrong = torch.arange(len(labels)) % 5 == 0
    with torch.no_grad():
        scores = scorer.score_batch(
            images, torch.where(wrong, (labels + 1 + torch.arange(len(labels)) % 9) % 10, labels)
        )
    assert roc_auc_score(wrong, scores) > 0.95
    assert not model.is_fitted


def test_trained_network_does_not_change(blobs):
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    scorer = MahalanobisScorer(FeatureModel(network)).fit(blobs(), runtime=RUNTIME)
    loaded = copy.deepcopy(scorer).load(scorer.state())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert torch.equal(loaded.score_labels(blobs()[:][0]), scorer.score_labels(blobs()[:][0]))


def test_rehearse_returns_steps_of_a_fit(blobs):
    scorer = quick()
    assert scorer.rehearse(blobs(), steps=2, runtime=RUNTIME) == QUICK.total_steps(600)
    assert on_inputs().rehearse(blobs(), steps=1, runtime=RUNTIME) == 3  # blocks of 256 samples
    assert not scorer.is_fitted


def test_scores_of_a_fitted_network_are_differentiable(blobs):
    points = blobs()[:10][0].clone().requires_grad_()
    scores = quick().fit(blobs(), runtime=RUNTIME).score_batch(points, torch.zeros(10).long())
    (gradient,) = torch.autograd.grad(scores.sum(), points)
    assert (gradient.norm(dim=1) > 0).all()


def test_repr_and_settings_contain_arguments():
    scorer = on_inputs(covariance="class")
    assert repr(scorer) == "MahalanobisScorer(feature_model=FeatureModel(Flatten, ''), covariance='class')"
    assert json.loads(json.dumps(dict(scorer.settings())))["covariance"] == "class"


@pytest.mark.parametrize(("name", "value"), [("covariance", "diagonal"), ("score", "margin"), ("estimator", "mcd")])
def test_refuses_unknown_settings(name, value):
    with pytest.raises(ValueError, match=f"`{name}` to be one of"):
        MahalanobisScorer(**{name: value})


@pytest.mark.parametrize("call", [lambda: quick().score_labels(torch.zeros(1, 4)), lambda: quick().state()])
def test_refuses_unfitted_scorer(call):
    with pytest.raises(NotFittedError):
        call()


@pytest.mark.parametrize(
    ("points", "labels", "message"),
    [
        (torch.rand(3, 2), torch.tensor([0, 0, 1]), "at least 2 samples per class"),
        (torch.rand(3, 2), torch.zeros(3).long(), "at least two classes"),
        (torch.ones(4, 2), torch.arange(4) % 2, "different from sample to sample"),
    ],
)
def test_fit_refuses_invalid_data(points, labels, message):
    with pytest.raises(ValueError, match=message):
        on_inputs().fit(TensorDataset(points, labels), runtime=RUNTIME)


def test_fit_refuses_network_that_returns_nan(blobs):
    network = nn.Linear(4, 2)
    nn.init.constant_(network.weight, torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        MahalanobisScorer(FeatureModel(network)).fit(blobs(), runtime=RUNTIME)


def test_refuses_state_of_another_scorer(blobs):
    with pytest.raises(ValueError, match=r"the state of MahalanobisScorer.*, but got one with means"):
        on_inputs().load({"means": torch.zeros(2)})
    state = on_inputs(covariance="class").fit(blobs(), runtime=RUNTIME).state()
    with pytest.raises(ValueError, match="a covariance for each class"):
        on_inputs().load(state)


def test_refuses_samples_of_another_shape(blobs):
    scorer = quick().fit(blobs(), runtime=RUNTIME)
    with pytest.raises(ValueError, match="samples of shape"):
        scorer.score_labels(torch.zeros(2, 5))


def test_refuses_class_of_one_before_a_network_is_trained(monkeypatch):
    monkeypatch.setattr(FeatureModel, "fit", lambda *_, **__: pytest.fail("a network was trained"))
    with pytest.raises(ValueError, match="got 1 of class 1"):
        MahalanobisScorer().fit(TensorDataset(torch.rand(5, 4), torch.tensor([0, 0, 0, 0, 1])))
