import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from torch import nn
from torch.utils.data import TensorDataset

from lightning_poison.errors import NotFittedError
from lightning_poison.models.frozen_features import HEADS, FrozenFeatureClassifier


def points(count=90, classes=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    return TensorDataset(torch.randn(count, 4, generator=generator) + 5 * torch.eye(4)[labels], labels)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))


@pytest.mark.parametrize("head", [*HEADS, LinearSVC(C=100)])
def test_every_head_learns(network, head):
    classifier = FrozenFeatureClassifier(network, "1", head=head).fit(points())
    assert classifier.accuracy(points(seed=1)) > 0.9
    assert classifier.predict(points(seed=1)).dtype == torch.int64
    assert classifier.weights.shape == (3, 16)


def test_clones_given_head(network):
    given = LogisticRegression()
    FrozenFeatureClassifier(network, "1", head=given).fit(points())
    assert not hasattr(given, "coef_")


def test_does_not_modify_network(network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()
    network[1].eval()
    FrozenFeatureClassifier(network, "1").fit(points()).predict(points())
    assert (network.training, network[1].training, network[2].training) == (True, False, True)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_features_are_layer_output_in_evaluation_mode(network):
    data = points(6)
    features, labels = FrozenFeatureClassifier(network.train(), "2").features(data)
    expected = network[1](network[0](data.tensors[0]))
    assert torch.allclose(features.float(), expected, atol=1e-6)
    assert torch.equal(labels, data.tensors[1])


def test_weights_apply_to_unscaled_features(network):
    classifier = FrozenFeatureClassifier(network, "1", head=LogisticRegression(C=10, max_iter=2000)).fit(points())
    features, _ = classifier.features(points(seed=2))
    logits = features @ classifier.weights.T + torch.from_numpy(classifier.head.intercept_)
    assert torch.equal(logits.argmax(1), classifier.predict_features(features))


def test_predictions_do_not_depend_on_scale_of_network(network):
    small = FrozenFeatureClassifier(network, "1").fit(points()).predict(points(seed=3))
    with torch.no_grad():
        network[0].weight.mul_(1e3)
        network[0].bias.mul_(1e3)
    assert torch.equal(FrozenFeatureClassifier(network, "1").fit(points()).predict(points(seed=3)), small)


def test_same_seed_gives_same_head(network):
    first, second, other = (
        FrozenFeatureClassifier(network, "1", head="fc", seed=seed).fit(points()).weights for seed in (0, 0, 1)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_two_classes_have_one_row_of_weights(network):
    assert FrozenFeatureClassifier(network, "1").fit(points(classes=2)).weights.shape == (1, 16)


def test_refuses_invalid_arguments(network):
    with pytest.raises(ValueError, match="one of 'svm', 'logistic', 'ridge', 'fc', but got 'forest'"):
        FrozenFeatureClassifier(network, head="forest")
    with pytest.raises(ValueError, match="one of the layers of Sequential"):
        FrozenFeatureClassifier(network, "fc")
    with pytest.raises(ValueError, match="at least two classes, but got class 0 only"):
        FrozenFeatureClassifier(network).fit(points(classes=1))
    with pytest.raises(NotFittedError, match="Call `fit` first"):
        FrozenFeatureClassifier(network).predict(points())
