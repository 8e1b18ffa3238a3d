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
from lightning_poison.scorers.characteristic_vectors import (
    ChannelStatistics,
    CharacteristicVectorScorer,
    RunningCentroids,
    batchnorm_layers,
    centroid_distances,
    channel_statistics,
)
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.testing.scorers import check_scorer


def images(count=6, seed=0):
    return torch.rand(count, 2, 5, 5, generator=torch.Generator().manual_seed(seed))


def class_centroids(statistics, labels, parts=1):
    running = RunningCentroids(int(labels.max()) + 1)
    for rows in torch.arange(len(labels)).chunk(parts):
        running.add(ChannelStatistics(*(tuple(layer[rows] for layer in layers) for layers in statistics)), labels[rows])
    return running.centroids()


def statistics(means, variances):
    return ChannelStatistics((torch.tensor(means),), (torch.tensor(variances),))


def test_statistics_match_moments_over_positions():
    found = channel_statistics(nn.BatchNorm2d(2).eval(), images())
    torch.testing.assert_close(found.means[0], images().mean((2, 3)))
    torch.testing.assert_close(found.variances[0], images().var((2, 3), correction=0))


def test_statistics_are_computed_at_layer_inputs():
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(27)).eval()
    found = channel_statistics(network, images())
    torch.testing.assert_close(found.means[0], network[0](images()).mean((2, 3)))
    torch.testing.assert_close(found.means[1], network[:4](images()))
    assert [tuple(layer.shape) for layer in found.variances] == [(6, 3), (6, 0)]


@pytest.mark.parametrize("parts", [1, 4])
def test_centroid_matches_batch_norm_of_the_class(parts):
    layer, labels = nn.BatchNorm2d(2, momentum=1.0), torch.tensor([0, 0, 0, 2, 2, 2])
    centroids = class_centroids(channel_statistics(nn.Sequential(layer).eval(), images()), labels, parts)
    for label in (0, 2):
        layer.train()(images()[labels == label])
        torch.testing.assert_close(centroids.means[0][label], layer.running_mean)
        unbiased = 75 / 74  # what batch norm keeps has Bessel's correction: three images of 25 positions
        torch.testing.assert_close(centroids.variances[0][label] * unbiased, layer.running_var)
    assert centroids.means[0][1].isnan().all()


def test_distances_match_closed_form():
    samples = statistics([[3.0, 4.0]], [[1.0, 0.0]])
    classes = statistics([[6.0, 8.0], [4.0, -3.0], [-3.0, -4.0]], [[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    found = centroid_distances(samples, classes, mean_weight=0.25)
    expected = torch.tensor([[0.0, 1.0, 0.25 * 2 + 0.75 * (1 - 0.5**0.5)]])
    torch.testing.assert_close(found, expected)


def test_layers_have_equal_weights_and_vectors_use_means_only():
    one = statistics([[1.0, 0.0]], [[1.0, 0.0]])
    two = ChannelStatistics((*one.means, torch.tensor([[1.0]])), (*one.variances, torch.zeros(1, 0)))
    classes = ChannelStatistics(
        (torch.tensor([[0.0, 1.0]]), torch.tensor([[-1.0]])), (one.variances[0], torch.zeros(1, 0))
    )
    torch.testing.assert_close(centroid_distances(two, classes), torch.tensor([[(0.5 * 1 + 2) / 2]]))


def test_network_does_not_change():
    network = nn.Sequential(nn.BatchNorm2d(2)).eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    channel_statistics(network, images())
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not network[0]._forward_pre_hooks


def test_distances_are_differentiable_under_autocast():
    inputs = images().requires_grad_()
    network = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = channel_statistics(network, inputs)
        distances = centroid_distances(found, class_centroids(found, torch.arange(6) % 2))
    assert distances.dtype == torch.float32
    (gradient,) = torch.autograd.grad(distances.sum(), inputs)
    assert (gradient.flatten(1).abs().amax(1) > 0).all()


class Detour(nn.Module):
    """A network whose forward pass skips its batch norm."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(2)

    def forward(self, inputs):
        return inputs


def test_refuses_networks_without_batch_norm():
    with pytest.raises(ValueError, match="a network with batch norm, but got Sequential without any"):
        batchnorm_layers(nn.Sequential(nn.InstanceNorm2d(2), nn.LayerNorm(3)))
    with pytest.raises(ValueError, match="Detour to pass all 6 samples through its batch norm"):
        channel_statistics(Detour(), images())


def test_refuses_centroids_of_another_network():
    with pytest.raises(ValueError, match="layers with \\(3,\\) channels, but got \\(2,\\)"):
        centroid_distances(statistics([[1.0, 2.0]], [[1.0, 1.0]]), statistics([[1.0, 2.0, 3.0]], [[1.0, 1.0, 1.0]]))


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


@pytest.mark.slow
def test_complies_with_contract():
    check_scorer(quick())


def test_complies_with_contract_with_a_trained_network(stripes):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6))
    check_scorer(CharacteristicVectorScorer(FeatureModel(model)), stripes, separates=True)


def test_declares_label_scores():
    assert quick().scores_labels
    assert not quick().is_control


def test_scores_match_closed_form(stripes):
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


@pytest.mark.slow
def test_detects_flipped_digits(digits):
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


def test_trained_network_does_not_change(stripes):
    model = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    scorer = CharacteristicVectorScorer(FeatureModel(model)).fit(stripes, runtime=RUNTIME)
    loaded = copy.deepcopy(scorer).load(scorer.state())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training
    assert torch.equal(loaded.score_labels(stripes[:][0]), scorer.score_labels(stripes[:][0]))


def test_class_without_samples_is_never_the_nearest(stripes):
    images, labels = stripes[:]
    scorer = quick().fit(TensorDataset(images, 2 * labels), runtime=RUNTIME)
    with torch.no_grad():
        scores = scorer.score_labels(images)
    assert scores.isfinite().all()
    assert torch.equal(scores.argmax(1), torch.ones(60).long())


def test_statistics_of_vectors_are_means(blobs):
    scorer = quick().fit(blobs(90), runtime=RUNTIME)
    with torch.no_grad():
        scores = scorer.score_labels(blobs(90)[:][0])
    assert (scores.argmin(1) == blobs(90)[:][1]).float().mean() > 0.8
    assert scorer.state()["variances.0"].shape == (3, 0)


def test_scores_are_differentiable(stripes):
    images = stripes[:10][0].clone().requires_grad_()
    scores = quick().fit(stripes, runtime=RUNTIME).score_batch(images, torch.zeros(10).long())
    (gradient,) = torch.autograd.grad(scores.sum(), images)
    assert (gradient.flatten(1).norm(dim=1) > 0).all()


def test_rehearse_returns_steps_of_a_fit(stripes):
    scorer = quick()
    assert scorer.rehearse(stripes, steps=2, runtime=RUNTIME) == QUICK.total_steps(60)
    assert CharacteristicVectorScorer(FeatureModel(nn.BatchNorm2d(1))).rehearse(stripes, steps=2) == 1
    assert not scorer.is_fitted


def test_repr_and_settings_contain_arguments():
    shown = "CharacteristicVectorScorer(feature_model=FeatureModel(feature_size=8), mean_weight=0.3)"
    assert repr(quick(mean_weight=0.3)) == shown
    scorer = CharacteristicVectorScorer(FeatureModel(nn.Sequential(nn.BatchNorm2d(1))))
    assert repr(scorer) == "CharacteristicVectorScorer(feature_model=FeatureModel(Sequential, ''))"
    assert json.loads(json.dumps(dict(scorer.settings())))["mean_weight"] == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feature_model": FeatureModel(nn.Linear(2, 2))}, "a network with batch norm, but got Linear"),
        ({"feature_model": FeatureModel(backbone=nn.Linear(2, 2))}, "a network with batch norm, but got Linear"),
        (
            {"feature_model": FeatureModel(nn.Sequential(nn.BatchNorm1d(2)), "0")},
            "a model without a layer, but got '0'",
        ),
        ({"mean_weight": 1.5}, "`mean_weight` to be a number in \\[0, 1\\]"),
    ],
)
def test_refuses_invalid_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        CharacteristicVectorScorer(**settings)


def test_refuses_one_class():
    with pytest.raises(ValueError, match="at least two classes"):
        quick().fit(TensorDataset(torch.rand(4, 2), torch.zeros(4).long()))


@pytest.mark.parametrize("call", [lambda: quick().score_labels(torch.zeros(1, 4)), lambda: quick().state()])
def test_refuses_unfitted_scorer(call):
    with pytest.raises(NotFittedError):
        call()


def test_refuses_state_of_another_scorer():
    with pytest.raises(ValueError, match="one of another scorer"):
        quick().load({"means.0": torch.zeros(2, 3)})


def test_fit_refuses_nan_statistics_and_scores_contain_them(stripes):
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    scorer = CharacteristicVectorScorer(FeatureModel(network)).fit(stripes, runtime=RUNTIME)
    with torch.no_grad():
        network[0].weight.fill_(torch.nan)
        assert scorer.score_labels(stripes[:][0]).isnan().all()
    with pytest.raises(ValueError, match="finite at every batch-norm layer"):
        scorer.fit(stripes, runtime=RUNTIME)
