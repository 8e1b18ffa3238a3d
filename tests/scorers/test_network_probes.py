import copy

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_poison.errors import NotFittedError
from lightning_poison.models.fitting import FitSettings
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.network_probes import AbnormalityFeatures, StabilityFeatures

QUICK = FitSettings(epochs=1, batch_size=20, min_steps=0)
INPUTS, LABELS = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 3


@pytest.fixture(scope="module")
def fitted():
    return FeatureModel(feature_size=16, fit_settings=QUICK).fit(TensorDataset(INPUTS, LABELS))


def classifier():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 3)).eval()


@pytest.mark.parametrize("kind", [AbnormalityFeatures, StabilityFeatures])
def test_features_come_first_and_numbers_can_be_told_apart(kind, fitted):
    source = kind(fitted)
    found = source.features(INPUTS)
    assert torch.equal(found[:, :16], fitted.features(INPUTS))
    assert found.shape == (60, 16 + source.columns(fitted.network))
    assert torch.equal(source.numbers_in(found), found[:, 16:])
    assert torch.equal(source.numbers_in(found[:, 16:]), found[:, 16:])
    assert not found.requires_grad


@pytest.mark.parametrize("kind", [AbnormalityFeatures, StabilityFeatures])
def test_only_features_are_shifted(kind, fitted):
    source = kind(fitted)
    shift = torch.linspace(-3, 3, 16 + source.columns(fitted.network))
    assert torch.equal(source.logits(INPUTS, shift=shift), fitted.logits(INPUTS, shift=shift[:16]))
    assert torch.equal(source.logits(INPUTS), fitted.logits(INPUTS))


@pytest.mark.parametrize("kind", [AbnormalityFeatures, StabilityFeatures])
def test_weights_are_those_of_the_feature_model(kind, fitted):
    settings = FeatureModel(feature_size=16, fit_settings=QUICK)
    source = kind(settings)
    assert not source.is_fitted
    with pytest.raises(NotFittedError):
        source.features(INPUTS)
    loaded = copy.deepcopy(source).load(fitted.state())
    assert torch.equal(loaded.features(INPUTS), kind(fitted).features(INPUTS))
    trained = source.fit(TensorDataset(INPUTS, LABELS))
    assert all(torch.equal(trained.state()[name], value) for name, value in fitted.state().items())


def test_keys_tell_kinds_and_networks_apart():
    models = [FeatureModel(feature_size=size) for size in (8, 16)]
    sources = [kind(model) for kind in (AbnormalityFeatures, StabilityFeatures) for model in models]
    sources.append(StabilityFeatures(models[0], 2.0))
    assert len({source.shared_key() for source in sources}) == 5
    assert AbnormalityFeatures(FeatureModel(feature_size=8)).shared_key() == sources[0].shared_key()
    assert sources[0].settings() != sources[2].settings() != sources[4].settings()


@pytest.mark.parametrize("kind", [AbnormalityFeatures, StabilityFeatures])
def test_trained_networks_are_read_at_their_layer(kind):
    network = classifier()
    before = copy.deepcopy(network.state_dict())
    source = kind(FeatureModel(network, "3"))
    found = source.features(INPUTS)
    assert source.is_fitted
    assert found.shape == (60, 10)
    assert torch.equal(source.numbers_in(found), found[:, 9:])
    assert source.logits(INPUTS, shift=torch.zeros(10)).shape == (60, 3)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_column_k_has_the_last_k_layers_amplified(fitted):
    network, source = copy.deepcopy(fitted.network).eval(), StabilityFeatures(fitted)
    layers = [part for part in network.modules() if isinstance(part, nn.BatchNorm2d)]
    predictions = fitted.logits(INPUTS).argmax(1)
    for layer in layers[-2:]:
        layer.weight.data *= 1.5
        layer.bias.data *= 1.5
    kept = network(INPUTS).softmax(1).gather(1, predictions[:, None])[:, 0]
    assert torch.allclose(source.numbers_in(source.features(INPUTS))[:, 1].sigmoid(), kept, atol=1e-4)


@pytest.mark.parametrize("kind", [AbnormalityFeatures, StabilityFeatures])
def test_refuses_networks_that_cannot_be_probed(kind):
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 16))
    with pytest.raises(ValueError, match="network with batch norm, but got Sequential without any"):
        kind(FeatureModel(backbone=plain, feature_size=16))
    with pytest.raises(TypeError, match="`base` to be a `FeatureModel`"):
        kind(plain)
    with pytest.raises(ValueError, match=r"a network that has learned the labels.*\n.*FeatureModel\(\)"):
        kind(FeatureModel("auto"))
    unused = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    unused.register_module("aside", nn.BatchNorm1d(3))
    unused.forward = lambda inputs: unused[1](unused[0](inputs))
    with pytest.raises(ValueError, match="Pass a network that"):
        kind(FeatureModel(unused, "1")).features(INPUTS)
