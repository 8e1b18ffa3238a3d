import pytest
import torch
from torch import nn

from lightning_poison.models.fitting import FitSettings
from lightning_poison.scorers.networks import (
    BackboneWithHead,
    build_classifier,
    check_inputs,
    evaluating_on,
    fit_classifier,
    network_state,
    restore_network,
)

QUICK = FitSettings(epochs=2, batch_size=32, min_steps=40)


def fitted(data, seed=0, **parts):
    settings = {"feature_size": 8, "settings": QUICK} | parts
    return fit_classifier(data, generator=torch.Generator().manual_seed(seed), **settings)


def restored(state, feature_size=8):
    def build(shape, num_classes):
        return build_classifier(shape, num_classes, backbone=None, feature_size=feature_size, seed=0)

    return restore_network(state, build, "scorer")


def test_learns(blobs):
    data = blobs(300)
    model = fitted(data)
    points, labels = data.tensors
    assert float((model(points).argmax(1) == labels).float().mean()) > 0.95
    assert model(points[:2]).dtype == torch.float32
    torch.testing.assert_close(model.head(model.features(points)), model(points))


@pytest.mark.slow
def test_weights_depend_on_the_generator(blobs):
    data = blobs(120)
    points = data.tensors[0]
    assert torch.equal(fitted(data)(points), fitted(data)(points))
    assert not torch.equal(fitted(data)(points), fitted(data, seed=1)(points))


def test_copies_the_backbone(blobs):
    backbone = nn.Linear(4, 8)
    before = backbone.weight.clone()
    fitted(blobs(120), backbone=backbone)
    assert torch.equal(backbone.weight, before)


def test_restores_network_from_state(blobs):
    data = blobs(120)
    model = fitted(data)
    network = restored(network_state(model, model.shape))
    assert torch.equal(network(data.tensors[0]), model(data.tensors[0]))
    assert not network.training


@pytest.mark.slow
@pytest.mark.parametrize(("dropped", "size"), [("sample_shape", 8), ("model.head.bias", 8), (None, 9)])
def test_refuses_another_state(blobs, dropped, size):
    model = fitted(blobs(120))
    state = network_state(model, model.shape)
    state.pop(dropped, None)
    with pytest.raises(ValueError, match="`state` to be the state of 'scorer', but got one of another scorer"):
        restored(state, size)


@pytest.mark.parametrize(("movable", "device"), [(True, "meta"), (False, "cpu")])
def test_evaluates_on_the_device_of_the_inputs_or_the_network(movable, device):
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    with evaluating_on(network, torch.zeros(1, 2, device="meta" if movable else "cpu"), movable=movable) as inputs:
        assert not network.training
        assert network(inputs).device.type == device
    assert network.training


def test_refuses_integer_inputs():
    with pytest.raises(ValueError, match="`inputs` to be floating-point samples"):
        check_inputs(torch.zeros(2, 3, dtype=torch.uint8), (3,))


def test_refuses_samples_of_another_shape():
    model = build_classifier((1, 8, 8), 3, backbone=None, feature_size=4, seed=0)
    with pytest.raises(ValueError, match=r"fitted on, but got \(1, 9, 9\)\.\nGive all data the same transform"):
        model(torch.zeros(2, 1, 9, 9))


def test_refuses_features_of_another_size():
    with pytest.raises(ValueError, match="Set `feature_size=4`"):
        BackboneWithHead(nn.Flatten(), nn.Linear(5, 2), shape=(1, 2, 2), feature_size=5)(torch.zeros(3, 1, 2, 2))


def test_logits_are_float32_under_autocast():
    model = BackboneWithHead(nn.Flatten(), nn.Linear(4, 2), shape=(4,), feature_size=4).eval()
    rows = torch.linspace(1, 1.001, 200)[:, None].expand(-1, 4) * torch.tensor([1.0, 2.0, 4.0, 8.0])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert len(model(rows)[:, 0].unique()) > 100
