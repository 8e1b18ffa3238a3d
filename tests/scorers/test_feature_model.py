import json

import pytest
import torch
from torch import nn
from torch.utils.data import Subset, TensorDataset

from lightning_poison import scorers
from lightning_poison.adversarial.adversaries import FGSM, PGD
from lightning_poison.adversarial.pgd import perturb_against
from lightning_poison.adversarial.trades import TRADES
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.errors import NotFittedError
from lightning_poison.models.encoders import Encoder
from lightning_poison.models.fitting import FitSettings
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers import feature_model
from lightning_poison.scorers.feature_model import FeatureModel

QUICK = FitSettings(epochs=1, batch_size=32, min_steps=30)


def quick(**parts):
    return FeatureModel(feature_size=8, fit_settings=QUICK, **parts)


def test_features_are_the_output_of_a_layer():
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    model = FeatureModel(network, "0")
    points = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.features(points), network[0](points))
    assert network.training
    assert model.is_fitted
    assert model.settings()["layer"] == "0"
    assert sorted(model.state()) == sorted(f"model.{name}" for name in network.state_dict())
    assert model.load({}) is model
    assert model.fit(None) is model
    assert model.rehearse([(torch.zeros(4), 0)] * 600, steps=1) == 3  # blocks of 256 samples


def test_features_of_a_fitted_classifier(blobs):
    data = blobs(120)
    model = quick()
    assert not model.is_fitted
    assert model.fit(data, generator=torch.Generator().manual_seed(0)) is model
    features = model.features(data.tensors[0])
    assert features.shape == (120, 8)
    assert features.dtype == torch.float32
    again = quick().fit(data, generator=torch.Generator().manual_seed(0))
    assert torch.equal(again.features(data.tensors[0]), features)
    assert torch.equal(quick().load(model.state()).features(data.tensors[0]), features)


def test_fit_records_how_well_each_label_is_learned(blobs):
    data = blobs(120)
    labels = data.tensors[1].clone()
    labels[7] = (labels[7] + 1) % (int(labels.max()) + 1)
    model = quick()
    assert model.training_margins is None
    model.fit(TensorDataset(data.tensors[0], labels), generator=torch.Generator().manual_seed(0))
    assert model.training_margins.shape == (120,)
    assert int(model.training_margins.argmin()) == 7
    network = nn.Linear(4, 3)
    assert FeatureModel(network).fit(data).training_margins is None


@pytest.mark.parametrize(
    "scorer",
    [
        scorers.ActivationClusteringScorer,
        scorers.CharacteristicVectorScorer,
        scorers.DeepKNNScorer,
        scorers.LayerAbnormalityScorer,
        scorers.LinearProbeScorer,
        scorers.MahalanobisScorer,
        scorers.NetworkGroupScorer,
        scorers.PredictionStabilityScorer,
        scorers.QuantumEntropyScorer,
        scorers.RobustFeatureScorer,
        scorers.SpectralSignatureScorer,
    ],
)
def test_scorers_refuse_a_network_in_place_of_a_feature_model(scorer):
    with pytest.raises(TypeError, match=r"`feature_model` to be a `FeatureModel`, but got .*Flatten.*\nWrite `feature"):
        scorer(nn.Flatten())


def test_settings_are_json_and_distinguish_models():
    network = nn.Linear(4, 3)
    kinds = [quick(), FeatureModel(), quick(backbone=network), FeatureModel(network), FeatureModel(network, "")]
    texts = [json.dumps(dict(kind.settings())) for kind in kinds]
    assert len(set(texts)) == 4
    assert texts[3] == texts[4]


def test_rehearse_leaves_model_unfitted(blobs):
    model = quick()
    assert model.rehearse(blobs(120), steps=1) == QUICK.total_steps(120)
    assert not model.is_fitted


def test_shared_key_is_equal_for_the_same_network_or_settings():
    network = nn.Linear(4, 3)
    same = [quick(), quick()], [quick(backbone=network)] * 2, [FeatureModel(network), FeatureModel(network)]
    keys = [{model.shared_key() for model in models} for models in same]
    assert [len(each) for each in keys] == [1, 1, 1]
    assert len(set.union(*keys, {FeatureModel().shared_key(), FeatureModel(nn.Linear(4, 3)).shared_key()})) == 5


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.features(torch.zeros(1, 4)),
        lambda model: model.logits(torch.zeros(2, 4)),
        FeatureModel.state,
    ],
)
def test_refuses_unfitted_model(call):
    with pytest.raises(NotFittedError, match=r"Expected a fitted FeatureModel\.\nCall `fit"):
        call(quick())


def test_refuses_invalid_arguments():
    with pytest.raises(ValueError, match="Expected `model` or `backbone`, but got both"):
        FeatureModel(nn.Linear(2, 2), backbone=nn.Linear(2, 2))
    with pytest.raises(ValueError, match="`layer` to be one of the layers of Sequential"):
        FeatureModel(nn.Sequential(nn.Linear(2, 2)), "penultimate")
    with pytest.raises(ValueError, match="`feature_size` to be an integer of at least 1"):
        FeatureModel(feature_size=0)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"adversary": 0.03}, "`adversary` to be an object with the method `perturb`, but got the float 0.03"),
        ({"adversary": TRADES()}, "`adversary` to be an object with the method `perturb`, but got TRADES"),
        ({"adversary": FGSM}, "`adversary` to be an object with the method `perturb`, but got the class FGSM"),
        ({"model": FGSM(0.3)}, "`model` to be a `Module`, but got FGSM"),
    ],
)
def test_refuses_arguments_of_other_types(parts, message):
    with pytest.raises(TypeError, match=rf"{message}\.\n.*`FeatureModel\(adversary=FGSM\(0\.3\)\)`"):
        FeatureModel(**parts)


def test_network_is_passed_in_or_fitted(blobs):
    network = nn.Linear(4, 3)
    given = FeatureModel(network)
    assert given.network is network
    assert given.for_fit() is given
    setting = quick()
    fitted = setting.for_fit().fit(blobs(60))
    assert fitted.network(blobs(60)[:][0]).shape == (60, 3)
    assert not setting.is_fitted
    with pytest.raises(NotFittedError, match="Call `fit"):
        _ = setting.network


@pytest.mark.slow
def test_adversarially_trained_model_is_robust(digits):
    images, labels = digits[1400:]
    data, accuracies = Subset(digits, range(1100)), []
    for adversary in (None, FGSM(0.2)):
        settings = FitSettings(epochs=5, batch_size=64, min_steps=0, shift=0)
        runtime = LocalRuntime(precision="32", threads=1)
        model = FeatureModel(adversary=adversary, fit_settings=settings).fit(data, runtime=runtime)
        changed = perturb_against(model.network, images, labels, epsilon=0.2, steps=10)
        accuracies.append(float((model.network(changed).argmax(1) == labels).float().mean()))
    assert accuracies[1] > accuracies[0] + 0.2


def test_repr_and_settings_contain_adversary():
    model = quick(adversary=FGSM(0.1), pixels=PixelRange(mean=(0.5,), std=(0.5,)))
    assert repr(model) == "FeatureModel(feature_size=8, adversary=FGSM(epsilon=0.1, step_size=None, random_start=True))"
    found = json.loads(json.dumps(dict(model.settings())))
    assert found["adversary"] == {"FGSM": {"epsilon": 0.1, "step_size": None, "random_start": True}}
    assert found["pixels"]["mean"] == [0.5]
    assert "adversary" not in quick().settings()
    with pytest.raises(ValueError, match="`model` or `adversary`, but got both"):
        FeatureModel(nn.Linear(2, 2), adversary=PGD(0.1))


def test_logits_match_network_with_shifted_features(blobs):
    data = blobs(120)
    model = quick().fit(data, generator=torch.Generator().manual_seed(0))
    inputs, shift = data.tensors[0][:7], torch.linspace(-1, 1, 8)
    with torch.no_grad():
        torch.testing.assert_close(model.logits(inputs), model.network(inputs).float())
        expected = model.network.head(model.features(inputs) + shift)
        torch.testing.assert_close(model.logits(inputs, shift=shift), expected)


def test_logits_of_a_network_passed_in():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Dropout(), nn.Linear(18, 3))
    images = torch.randn(5, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    model, shift = FeatureModel(network, "0"), torch.linspace(-1, 1, 18)
    with torch.no_grad():
        network.eval()
        expected = network[1:](network[0](images) + shift.view(1, 2, 3, 3))
        network.train()
        torch.testing.assert_close(model.logits(images, shift=shift), expected)
        torch.testing.assert_close(model.logits(images, shift=torch.zeros(18)), model.logits(images))
    assert network.training
    assert not network[0]._forward_hooks


@pytest.mark.parametrize(
    ("network", "layer"), [(nn.Linear(4, 3), ""), (nn.Sequential(nn.Linear(4, 3), nn.Flatten(0)), "0")]
)
def test_refuses_logits_of_a_network_without_logits(network, layer):
    with pytest.raises(ValueError, match="a network that maps the features to logits"):
        FeatureModel(network, layer).logits(torch.zeros(2, 4))


NAMED = "torchvision:shufflenet_v2_x0_5"


@pytest.fixture
def named(monkeypatch):
    """Encoders by name are small networks that count how often they were built."""
    built = []

    def build(name, layer="", **settings):
        built.append((name, layer, settings))
        return Encoder(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten()), image_size=8)

    monkeypatch.setattr(feature_model, "fast_encoder", build)
    return built


def test_named_network_is_built_once_with_the_settings(named):
    pixels = PixelRange(mean=(0.5,), std=(0.5,))
    model = FeatureModel(NAMED, "conv5", image_size=96, flip_average=True, pixels=pixels)
    assert named == [(NAMED, "conv5", {"image_size": (96, 96), "flip_average": True, "pixels": pixels})]
    assert model.is_fitted
    assert model.for_fit() is model
    assert model.fit(None) is model
    assert model.features(torch.rand(3, 1, 16, 16)).shape == (3, 12)
    assert len(named) == 1
    assert f"FeatureModel({NAMED!r}, layer='conv5', image_size=(96, 96), " in repr(model)


def test_named_networks_share_features_if_their_settings_are_equal(named):
    settings = [{}, {}, {"image_size": 9}, {"flip_average": True}, {"layer": "conv5"}]
    models = [FeatureModel(NAMED, **each) for each in settings]
    keys = [model.shared_key() for model in models]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 4
    assert len({json.dumps(dict(model.settings())) for model in models}) == 4


def test_named_network_has_no_logits(named):
    with pytest.raises(ValueError, match=r"(?s)maps the features to logits.*trained on them"):
        FeatureModel(NAMED, "conv5").logits(torch.rand(3, 1, 16, 16))


def test_default_encoder_takes_vectors_without_loading_a_network():
    model = FeatureModel("auto")
    points = torch.rand(5, 4)
    assert torch.equal(model.features(points), points)
    assert model.state() == {}
    assert model.load({}) is model
    assert FeatureModel("auto").shared_key() == model.shared_key()
    assert repr(model) == "FeatureModel('auto')"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FeatureModel("auto", "conv_head"), "(?s)`layer`.*FeatureModel\\('efficientnet-lite0', 'conv_head'\\)"),
        (lambda: FeatureModel(nn.Flatten(), image_size=96), "(?s)`image_size` with the name.*Encoder\\(network, image"),
        (lambda: FeatureModel(nn.Flatten(), pixels=PixelRange()), "`pixels` with the name of a network only"),
        (lambda: FeatureModel(flip_average=True), "`flip_average` with the name of a network only"),
        (lambda: FeatureModel("auto", image_size=0), "image_size"),
        (lambda: FeatureModel("auto", adversary=FGSM(0.3)), "`model` or `adversary`"),
        (lambda: FeatureModel("resnet18"), "Write 'timm:resnet18'"),
    ],
)
def test_arguments_of_named_networks_that_do_not_fit(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_no_network_and_no_name():
    with pytest.raises(TypeError, match=r"(?s)`model`.*FeatureModel\(\"efficientnet-lite0\"\)"):
        FeatureModel(3)
