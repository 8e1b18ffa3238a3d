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
from lightning_poison.scorers.batchnorm_statistics import RunningCentroids, centroid_distances, channel_statistics
from lightning_poison.scorers.characteristic_vectors import CharacteristicVectorScorer
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.protocol import LabelScorer, RehearsableScorer
from lightning_poison.testing.scorers import check_scorer

QUICK = FitSettings(epochs=1, batch_size=32, min_steps=20)
RUNTIME = LocalRuntime(precision="32", threads=1)


def quick(**settings):
    return CharacteristicVectorScorer(FeatureModel(feature_size=8, fit_settings=QUICK), **settings)


@pytest.fixture
def stripes():
    """Images of two classes: rows and columns of light, with noise."""
    generator = torch.Generator().manual_seed(0)
    images, labels = 0.3 * torch.rand(60, 1, 8, 8, generator=generator), torch.arange(60) % 2
    images[labels == 0, :, ::2] += 0.7
    images[labels == 1, :, :, ::2] += 0.7
    return TensorDataset(images, labels)


def test_it_keeps_the_contract():
    check_scorer(quick())


def test_it_keeps_the_contract_on_a_network_that_was_handed_in(stripes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6))
    check_scorer(CharacteristicVectorScorer(FeatureModel(model)), stripes, separates=True)


def test_it_can_be_asked_for_every_label_and_timed():
    assert isinstance(quick(), LabelScorer)
    assert isinstance(quick(), RehearsableScorer)
    assert not quick().is_control


def test_the_score_is_the_distance_to_the_own_centroid_less_that_to_the_nearest_other(stripes):
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)).eval()
    scorer = CharacteristicVectorScorer(FeatureModel(model), mean_weight=0.3).fit(stripes, runtime=RUNTIME)
    images, labels = stripes[:]
    with torch.no_grad():
        statistics = channel_statistics(model, images)
        running = RunningCentroids(2)
        running.add(statistics, labels)
        distances = centroid_distances(statistics, running.centroids(), mean_weight=0.3)
        expected = torch.stack([distances[:, 0] - distances[:, 1], distances[:, 1] - distances[:, 0]], 1)
        torch.testing.assert_close(scorer.score_labels(images), expected, atol=1e-6, rtol=1e-4)


def test_flipped_digits_are_suspicious(digits):
    settings = FitSettings(epochs=4, batch_size=64, min_steps=0)
    scorer = CharacteristicVectorScorer(FeatureModel(fit_settings=settings)).fit(
        Subset(digits, range(1000)), runtime=RUNTIME
    )
    images, labels = digits[1000:]
    wrong = torch.arange(len(labels)) % 5 == 0
    with torch.no_grad():
        scores = scorer.score_batch(
            images, torch.where(wrong, (labels + 1 + torch.arange(len(labels)) % 9) % 10, labels)
        )
    assert roc_auc_score(wrong, scores) > 0.9
    assert (scores[wrong] > 0).float().mean() > 0.9


def test_a_network_that_was_handed_in_stays_as_it_is(stripes):
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scorer = CharacteristicVectorScorer(FeatureModel(model)).fit(stripes, runtime=RUNTIME)
    loaded = copy.deepcopy(scorer).load(scorer.state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert torch.equal(loaded.score_labels(stripes[:][0]), scorer.score_labels(stripes[:][0]))


def test_a_class_without_samples_is_never_the_nearest(stripes):
    images, labels = stripes[:]
    scorer = quick().fit(TensorDataset(images, 2 * labels), runtime=RUNTIME)
    with torch.no_grad():
        scores = scorer.score_labels(images)
    assert scores.isfinite().all()
    assert torch.equal(scores.argmax(1), torch.ones(60).long())


def test_vectors_have_means_alone(blobs):
    scorer = quick().fit(blobs(90), runtime=RUNTIME)
    with torch.no_grad():
        scores = scorer.score_labels(blobs(90)[:][0])
    assert (scores.argmin(1) == blobs(90)[:][1]).float().mean() > 0.8
    assert scorer.state()["variances.0"].shape == (3, 0)


def test_the_gradient_reaches_the_inputs(stripes):
    images = stripes[:10][0].clone().requires_grad_()
    scores = quick().fit(stripes, runtime=RUNTIME).score_batch(images, torch.zeros(10).long())
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_a_rehearsal_says_how_many_steps_a_fit_takes(stripes):
    scorer = quick()
    assert scorer.rehearse(stripes, steps=2, runtime=RUNTIME) == QUICK.total_steps(60)
    assert CharacteristicVectorScorer(FeatureModel(nn.BatchNorm2d(1))).rehearse(stripes, steps=2) == 0
    assert not scorer.is_fitted


def test_what_it_was_built_with_shows():
    assert repr(quick(mean_weight=0.3)) == "CharacteristicVectorScorer(FeatureModel(feature_size=8), mean_weight=0.3)"
    scorer = CharacteristicVectorScorer(FeatureModel(nn.Sequential(nn.BatchNorm2d(1))))
    assert repr(scorer) == "CharacteristicVectorScorer(FeatureModel(Sequential, ''), mean_weight=0.5)"
    assert json.loads(json.dumps(dict(scorer.settings())))["mean_weight"] == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_model": FeatureModel(nn.Linear(2, 2))}, "one with batch norm, but got Linear"),
        ({"feature_model": FeatureModel(backbone=nn.Linear(2, 2))}, "one with batch norm, but got Linear"),
        ({"feature_model": FeatureModel(nn.Sequential(nn.BatchNorm1d(2)), "0")}, "without a layer's name, but got '0'"),
        ({"mean_weight": 1.5}, "`mean_weight` to be a number in \\[0, 1\\]"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        CharacteristicVectorScorer(**settings)


def test_it_refuses_one_class_and_scoring_before_a_fit():
    with pytest.raises(ValueError, match="at least two classes"):
        quick().fit(TensorDataset(torch.rand(4, 2), torch.zeros(4).long()))
    for ask in (lambda: quick().score_labels(torch.zeros(1, 4)), quick().state):
        with pytest.raises(NotFittedError):
            ask()


def test_the_state_of_another_scorer_is_refused():
    with pytest.raises(ValueError, match="that of another scorer"):
        quick().load({"means.0": torch.zeros(2, 3)})


def test_features_that_are_no_numbers_are_refused_in_fit_and_seen_in_scores(stripes):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    scorer = CharacteristicVectorScorer(FeatureModel(network)).fit(stripes, runtime=RUNTIME)
    with torch.no_grad():
        network[0].weight.fill_(torch.nan)
        assert scorer.score_labels(stripes[:][0]).isnan().all()
    with pytest.raises(ValueError, match="finite at every batch-norm layer"):
        scorer.fit(stripes, runtime=RUNTIME)
