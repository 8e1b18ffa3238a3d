import pytest
import torch
from torch import nn

from lightning_poison.models.fitting import FitSettings
from lightning_poison.scorers.classifier import (
    Classifier,
    build_classifier,
    classifier_state,
    fit_classifier,
    loaded_classifier,
)

QUICK = FitSettings(epochs=2, batch_size=32, min_steps=40)


def fitted(data, seed=0, **parts):
    settings = {"backbone": None, "feature_size": 8, "settings": QUICK} | parts
    return fit_classifier(data, generator=torch.Generator().manual_seed(seed), **settings)


def test_it_learns(blobs):
    data = blobs(300)
    model = fitted(data)
    points, labels = data.tensors
    assert float((model(points).argmax(1) == labels).float().mean()) > 0.95
    assert model(points[:2]).dtype == torch.float32
    torch.testing.assert_close(model.linear(model.features(points)), model(points))


def test_same_seed_same_network(blobs):
    data = blobs(120)
    points = data.tensors[0]
    assert torch.equal(fitted(data)(points), fitted(data)(points))
    assert not torch.equal(fitted(data)(points), fitted(data, seed=1)(points))


def test_a_backbone_is_copied(blobs):
    backbone = nn.Linear(4, 8)
    before = backbone.weight.clone()
    fitted(blobs(120), backbone=backbone)
    assert torch.equal(backbone.weight, before)


def test_state_restores_it(blobs):
    data = blobs(120)
    model = fitted(data)
    again = loaded_classifier(classifier_state(model), backbone=None, feature_size=8, scorer="it")
    assert torch.equal(again(data.tensors[0]), model(data.tensors[0]))


@pytest.mark.parametrize(("drop", "size"), [("sample_shape", 8), ("model.linear.bias", 8), (None, 9)])
def test_another_state_is_refused(blobs, drop, size):
    state = classifier_state(fitted(blobs(120)))
    state.pop(drop, None)
    with pytest.raises(ValueError, match="Expected the state of it, but"):
        loaded_classifier(state, backbone=None, feature_size=size, scorer="it")


def test_samples_of_another_shape():
    model = build_classifier((1, 8, 8), 3, backbone=None, feature_size=4, seed=0)
    with pytest.raises(ValueError, match=r"fitted on, but got \(1, 9, 9\)\.\nGive all data the same transform"):
        model(torch.zeros(2, 1, 9, 9))


def test_features_of_another_size():
    with pytest.raises(ValueError, match="Set `feature_size=4`"):
        Classifier(nn.Flatten(), 5, 2, shape=(1, 2, 2))(torch.zeros(3, 1, 2, 2))


def test_logits_are_told_apart_under_autocast():
    model = Classifier(nn.Flatten(), 4, 2, shape=(4,)).eval()
    rows = torch.linspace(1, 1.001, 200)[:, None].expand(-1, 4) * torch.tensor([1.0, 2.0, 4.0, 8.0])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert len(model(rows)[:, 0].unique()) > 100
