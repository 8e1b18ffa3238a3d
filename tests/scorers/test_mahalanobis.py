import copy
import json

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn
from torch.utils.data import Subset, TensorDataset

from lightning_poison.errors import NotFittedError
from lightning_poison.models.fitting import FitSettings
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.mahalanobis import MahalanobisScorer, fit_normals, mahalanobis_scores
from lightning_poison.scorers.protocol import LabelScorer, RehearsableScorer
from lightning_poison.testing.scorers import check_scorer

QUICK = FitSettings(epochs=1, batch_size=32, min_steps=20)
RUNTIME = LocalRuntime(precision="32", threads=1)


def quick(**settings):
    return MahalanobisScorer(FeatureModel(feature_size=8, fit_settings=QUICK), **settings)


def as_they_are(**settings):
    """Return a scorer whose features are the inputs."""
    return MahalanobisScorer(FeatureModel(nn.Flatten()), **settings)


@pytest.mark.parametrize("covariance", ["shared", "class"])
def test_it_keeps_the_contract(covariance):
    check_scorer(quick(covariance=covariance), separates=True)
    check_scorer(as_they_are(covariance=covariance))


def test_it_can_be_asked_for_every_label_and_timed():
    assert isinstance(quick(), LabelScorer)
    assert isinstance(quick(), RehearsableScorer)
    assert not quick().is_control


@pytest.mark.parametrize("covariance", ["shared", "class"])
def test_scores_are_the_mathematics_on_the_features(blobs, covariance):
    points, labels = blobs()[:]
    scorer = as_they_are(covariance=covariance, estimator="empirical").fit(blobs(), runtime=RUNTIME)
    normals = fit_normals(points, labels, covariance=covariance, estimator="empirical")
    torch.testing.assert_close(scorer.score_labels(points), mahalanobis_scores(points, normals))


@pytest.mark.parametrize("covariance", ["shared", "class"])
def test_the_posterior_is_that_of_the_normal_distributions(blobs, covariance):
    points = blobs()[:][0]
    fitted = as_they_are(covariance=covariance).fit(blobs(), runtime=RUNTIME)
    other = as_they_are(covariance=covariance, score="posterior").load(fitted.state())
    expected = -(-0.5 * fitted.score_labels(points)).log_softmax(1)
    torch.testing.assert_close(other.score_labels(points), expected, atol=1e-4, rtol=1e-4)


def test_hard_samples_hide_wrong_labels_from_the_distance_and_not_from_the_posterior(blobs):
    points, labels = blobs(600)[:]
    wrong, hard = torch.arange(600) % 10 == 0, torch.arange(600) % 10 == 1
    points = points + 40 * hard[:, None] * torch.eye(4)[3]  # far from every class, and of the right label
    carried = torch.where(wrong, (labels + 1) % 3, labels)
    by = {
        score: as_they_are(score=score).fit(blobs(600), runtime=RUNTIME).score_batch(points, carried)
        for score in ("distance", "posterior")
    }
    assert roc_auc_score(wrong, by["posterior"]) > 0.99
    assert roc_auc_score(wrong, by["distance"]) < 0.95


def test_flipped_digits_are_suspicious(digits):
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


def test_a_network_that_was_handed_in_stays_as_it_is(blobs):
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    scorer = MahalanobisScorer(FeatureModel(network)).fit(blobs(), runtime=RUNTIME)
    loaded = copy.deepcopy(scorer).load(scorer.state())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert network.training
    assert torch.equal(loaded.score_labels(blobs()[:][0]), scorer.score_labels(blobs()[:][0]))


def test_a_rehearsal_says_how_many_steps_a_fit_takes(blobs):
    scorer = quick()
    assert scorer.rehearse(blobs(), steps=2, runtime=RUNTIME) == QUICK.total_steps(600)
    assert as_they_are().rehearse(blobs(), steps=1, runtime=RUNTIME) == 3  # blocks of 256 samples
    assert not scorer.is_fitted


def test_the_gradient_reaches_the_inputs(blobs):
    points = blobs()[:10][0].clone().requires_grad_()
    scores = quick().fit(blobs(), runtime=RUNTIME).score_batch(points, torch.zeros(10).long())
    (gradient,) = torch.autograd.grad(scores.sum(), points)
    assert (gradient.norm(dim=1) > 0).all()


def test_what_it_was_built_with_shows():
    scorer = as_they_are(covariance="class")
    shown = "FeatureModel(Flatten, ''), covariance='class', score='distance', estimator='ledoit-wolf'"
    assert repr(scorer) == f"MahalanobisScorer({shown})"
    assert json.loads(json.dumps(dict(scorer.settings())))["covariance"] == "class"


@pytest.mark.parametrize(("name", "value"), [("covariance", "diagonal"), ("score", "margin"), ("estimator", "mcd")])
def test_unknown_settings_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` to be one of"):
        MahalanobisScorer(**{name: value})


def test_it_refuses_to_score_before_a_fit():
    for ask in (lambda: quick().score_labels(torch.zeros(1, 4)), quick().state):
        with pytest.raises(NotFittedError):
            ask()


@pytest.mark.parametrize(
    ("points", "labels", "message"),
    [
        (torch.rand(3, 2), torch.tensor([0, 0, 1]), "at least 2 samples a class"),
        (torch.rand(3, 2), torch.zeros(3).long(), "at least two classes"),
        (torch.ones(4, 2), torch.arange(4) % 2, "different from sample to sample"),
    ],
)
def test_data_that_give_no_covariance_are_refused(points, labels, message):
    with pytest.raises(ValueError, match=message):
        as_they_are().fit(TensorDataset(points, labels), runtime=RUNTIME)


def test_a_network_that_returns_nan_is_refused(blobs):
    network = nn.Linear(4, 2)
    nn.init.constant_(network.weight, torch.nan)
    with pytest.raises(ValueError, match="NaN"):
        MahalanobisScorer(FeatureModel(network)).fit(blobs(), runtime=RUNTIME)


def test_the_state_of_another_scorer_is_refused(blobs):
    with pytest.raises(ValueError, match="that of another scorer"):
        as_they_are().load({"means": torch.zeros(2)})
    state = as_they_are(covariance="class").fit(blobs(), runtime=RUNTIME).state()
    with pytest.raises(ValueError, match="a covariance for each class"):
        as_they_are().load(state)


def test_samples_of_another_shape_are_refused(blobs):
    scorer = quick().fit(blobs(), runtime=RUNTIME)
    with pytest.raises(ValueError, match="samples of shape"):
        scorer.score_labels(torch.zeros(2, 5))


def test_a_class_of_one_is_refused_before_a_network_is_trained(monkeypatch):
    monkeypatch.setattr(FeatureModel, "fit", lambda *_, **__: pytest.fail("it was trained"))
    with pytest.raises(ValueError, match="got 1 of class 1"):
        MahalanobisScorer().fit(TensorDataset(torch.rand(5, 4), torch.tensor([0, 0, 0, 0, 1])))
