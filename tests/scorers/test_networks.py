import json

import numpy as np
import pytest
import torch
from torch import nn

from lightning_poison.data.inputs import stack_inputs
from lightning_poison.models.fitting import FitSettings
from lightning_poison.models.lgm_head import LGMHead
from lightning_poison.scorers.confidence import ConfidenceScorer
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.likelihood import LikelihoodScorer
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


class Words(nn.Module):
    """Features of token ids: alone, in a dict with a mask, or in a tuple."""

    def __init__(self):
        super().__init__()
        self.words, self.seen = nn.Embedding(30, 8), set()

    def forward(self, inputs):
        parts = list(inputs.values()) if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple) else [inputs]
        self.seen |= {type(inputs).__name__, *(str(part.dtype) for part in parts)}
        return self.words(parts[0]).mean(1)


class Classifier(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.body, self.head = Words(), head

    def forward(self, inputs):
        return self.head(self.body(inputs))


def tokens(form):
    """90 samples of 3 classes with words of their own."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(90) % 3
    ids = 10 * labels[:, None] + torch.randint(10, (90, 6), generator=generator)
    return [(form(row), int(label)) for row, label in zip(ids, labels, strict=True)]


FORMS = {
    "ids": (lambda ids: ids, {"Tensor", "torch.float32", "torch.int64"}),
    "dict": (lambda ids: {"ids": ids, "mask": ids > 3}, {"dict", "torch.int64", "torch.bool"}),
    "tuple": (lambda ids: (ids, ids.float()), {"tuple", "torch.int64", "torch.float32"}),
}
SHORT = FitSettings(epochs=1, batch_size=30, min_steps=60, learning_rate=0.05)


def scores_of(scorer, data):
    inputs = stack_inputs([each for each, _ in data], range(len(data)))
    return scorer.score_labels(inputs)


@pytest.mark.slow
@pytest.mark.parametrize("scorer", [LikelihoodScorer, ConfidenceScorer])
@pytest.mark.parametrize("form", FORMS)
def test_tokens_reach_a_backbone_as_they_are(scorer, form):
    data, labels = tokens(FORMS[form][0]), torch.arange(90) % 3
    fitted = scorer(backbone=Words(), feature_size=8, fit_settings=SHORT).fit(data)
    assert fitted._network.backbone.seen == FORMS[form][1]
    scores = scores_of(fitted, data)
    assert (scores.argmin(1) == labels).float().mean() > 0.9
    again = scorer(backbone=Words(), feature_size=8, fit_settings=SHORT).load(fitted.state())
    assert torch.equal(scores_of(again, data), scores)


@pytest.mark.parametrize("form", FORMS)
def test_tokens_reach_a_trained_module_as_they_are(form):
    data = tokens(FORMS[form][0])
    inputs = stack_inputs([each for each, _ in data], range(len(data)))
    classifier, with_lgm = Classifier(nn.Linear(8, 3)), Classifier(LGMHead(8, 3))
    assert ConfidenceScorer.from_module(classifier).score_labels(inputs).shape == (90, 3)
    assert LikelihoodScorer.from_module(with_lgm).score_labels(inputs).shape == (90, 3)
    model = FeatureModel(classifier, "body")
    assert model.features(inputs).shape == (90, 8)
    assert model.logits(inputs, shift=torch.zeros(8)).shape == (90, 3)
    assert classifier.body.seen == with_lgm.body.seen == FORMS[form][1]


def test_several_inputs_need_a_backbone():
    with pytest.raises(ValueError, match="`backbone` of the likelihood scorer for samples with several inputs"):
        LikelihoodScorer(fit_settings=SHORT).fit(tokens(FORMS["dict"][0]))


@pytest.mark.parametrize(
    ("scorer", "owner"),
    [
        (lambda **given: LikelihoodScorer(**given), "the likelihood scorer"),
        (lambda **given: ConfidenceScorer(**given), "the confidence scorer"),
        (lambda **given: FeatureModel(**given), "the feature model"),
    ],
)
def test_backbone_for_other_data_is_found_before_a_fit(scorer, owner):
    data = [(torch.zeros(1, 8, 8) + index, index % 2) for index in range(8)]
    with pytest.raises(ValueError, match=rf"Conv2d takes, but it raised RuntimeError: .*\n.*\n.*`backbone` of {owner}"):
        scorer(backbone=nn.Conv2d(3, 4, 3), feature_size=8).fit(data)
    with pytest.raises(ValueError, match=rf"features \(1, 8\), but got .*\nSet `feature_size=64`.*\n.* of {owner}"):
        scorer(backbone=nn.Flatten(), feature_size=8).fit(data)


@pytest.mark.parametrize("scorer", [LikelihoodScorer, ConfidenceScorer, FeatureModel])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backbone": "resnet18"}, "`backbone` of {} to be a `torch.nn.Module`, but got 'resnet18'"),
        ({"backbone": nn.Linear}, "`backbone` of {} to be a `torch.nn.Module`, but got the class Linear"),
        ({"fit_settings": {}}, "`fit_settings` of {} to be `FitSettings`, but got dict"),
        ({"fit_settings": FitSettings}, "`fit_settings` of {} to be `FitSettings`, but got the class FitSettings"),
    ],
)
def test_wrong_arguments_name_the_scorer(scorer, given, message):
    with pytest.raises(TypeError, match=message.format(scorer.__name__)):
        scorer(**given)


def test_numpy_numbers_are_json_values():
    scorer = LikelihoodScorer(feature_size=np.int64(8), margin=np.float32(0.5), likelihood_weight=np.int64(1))
    assert json.loads(json.dumps(scorer.settings()))["margin"] == 0.5
