import json

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from lightning_poison.data.fingerprints import architecture_of
from lightning_poison.errors import NotFittedError
from lightning_poison.models.fitting import FitSettings
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.protocol import FeatureSource, Scorer, SetScorer


class Distance(Scorer):
    """The distance to the mean of the trusted samples, plus a constant per label."""

    name = "distance"
    scores_labels = True
    fitted_tensors = ("mean",)

    def __init__(self, penalty=1.0, *, network=None, fit_settings=None):
        self.penalty = penalty
        self.network = network
        self.fit_settings = fit_settings

    def fit(self, trusted, *, runtime=None, generator=None):
        self.mean = trusted.tensors[0].mean(0)
        return self

    def score_labels(self, inputs):
        self.check_fitted()
        return (inputs - self.mean).norm(dim=1)[:, None] + self.penalty * torch.arange(3)


def fit(self, trusted, *, runtime=None, generator=None):
    return self


def score(self, *arguments):
    return torch.zeros(1)


POINTS = TensorDataset(torch.eye(4), torch.arange(4) % 3)
FITTED = {"fit": fit, "fitted_tensors": ("mean",)}
STATE = {"is_fitted": property(score), "state": score, "load": score}
GROUPS = {"find_groups": score, "stands_apart": score, "is_poison": score}


def test_state_follows_from_fitted_tensors():
    scorer = Distance()
    assert not scorer.is_fitted
    scorer.fit(POINTS)
    assert scorer.is_fitted
    state = scorer.state()
    loaded = Distance().load(state)
    assert torch.equal(loaded.score_labels(torch.eye(4)), scorer.score_labels(torch.eye(4)))
    state["mean"].zero_()
    assert float(scorer.mean.sum()) == 1


def test_refuses_unfitted_scorer():
    for call in (Distance().state, Distance().check_fitted, lambda: Distance().score_batch(*POINTS[:2])):
        with pytest.raises(NotFittedError, match=r"Expected a fitted Distance.*\nCall `fit\(trusted\)`"):
            call()


@pytest.mark.parametrize(("state", "received"), [({}, "nothing"), ({"means": torch.zeros(4)}, "means")])
def test_refuses_state_of_another_scorer(state, received):
    with pytest.raises(ValueError, match=rf"the state of Distance\(\), but got one with {received}"):
        Distance().load(state)


def test_score_batch_is_the_column_of_the_label():
    scorer = Distance(penalty=10.0).fit(POINTS)
    inputs, labels = POINTS.tensors
    assert torch.equal(scorer.score_batch(inputs, labels), scorer.score_labels(inputs)[torch.arange(4), labels])


def test_rehearse_returns_none_by_default():
    assert Distance().rehearse(POINTS, steps=1) is None


def test_settings_are_the_constructor_arguments_as_json():
    network = nn.Linear(2, 2)
    settings = Distance(0.5, network=network, fit_settings=FitSettings(epochs=3)).settings()
    assert settings == {
        "penalty": 0.5,
        "network": architecture_of(network),
        "fit_settings": vars(FitSettings(epochs=3)),
    }
    assert json.loads(json.dumps(settings)) == settings
    assert Distance(network=FeatureModel()).settings()["network"] == FeatureModel().settings()


def test_settings_of_a_class_without_constructor_are_empty():
    scorer = type("Whole", (SetScorer,), {"name": "whole", "score_features": score})()
    assert scorer.settings() == {}
    assert repr(scorer) == "Whole()"


def test_settings_require_attributes_of_the_arguments():
    class Forgetful(Distance):
        def __init__(self, scale=1.0):
            super().__init__()
            self._scale = scale

    with pytest.raises(TypeError, match="Expected `Forgetful` to keep its argument `scale` in an attribute"):
        Forgetful().settings()


def test_repr_contains_changed_arguments():
    assert repr(Distance()) == "Distance()"
    assert repr(Distance(2.0)) == "Distance(penalty=2.0)"


def test_check_set_accepts_any_labels_by_default():
    scorer = type("Whole", (SetScorer,), {"name": "whole", "score_features": score})()
    assert scorer.check_set(torch.tensor([0])) is None


@pytest.mark.parametrize("method", [name for name in vars(FeatureSource) if not name.startswith("_")])
def test_feature_model_is_a_feature_source(method):
    assert hasattr(FeatureModel, method)


@pytest.mark.parametrize(
    "methods",
    [
        {**FITTED, "score_batch": score},
        {**FITTED, "score_labels": score, "scores_labels": True},
        {"fit": fit, **STATE, "score_batch": score},
        {**FITTED, "state": score, "load": score, "score_batch": score, "from_module": score, "helper": score},
    ],
)
def test_accepts_complete_scorers(methods):
    assert type("Own", (Scorer,), methods)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({**FITTED}, "to define `score_batch` or `score_labels`"),
        ({"fitted_tensors": ("mean",), "score_batch": score}, "to define `fit`"),
        ({"fit": fit, "score_batch": score}, "to declare `fitted_tensors`"),
        ({"fit": fit, "score_batch": score, "state": score, "load": score}, "to declare `fitted_tensors`"),
        ({**FITTED, "scores_labels": True}, "to define `score_labels`, since it declares `scores_labels = True`"),
        ({**FITTED, "score_labels": score}, "to declare `scores_labels = True`, since it defines `score_labels`"),
        ({**FITTED, "score_batches": score}, "defines `score_batches`.*\n.*`score_batch`"),
        ({**FITTED, "score_batch": score, "rehearsal": score}, "defines `rehearsal`.*\n.*`rehearse`"),
        ({**FITTED, "score_batch": score, "is_fited": property(score)}, "defines `is_fited`.*\n.*`is_fitted`"),
        ({**FITTED, "score_batch": score, "score_labels": score, "score_label": True}, "declaration .*`scores_labels`"),
    ],
)
def test_refuses_scorers_whose_methods_and_declarations_differ(methods, message):
    with pytest.raises(TypeError, match=f"(?s){message}"):
        type("Own", (Scorer,), methods)


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ({}, "to define `score_features`"),
        ({"score_feature": score}, "defines `score_feature`.*\n.*`score_features`"),
        ({"score_features": score, "scores_labels": True}, "to define `score_feature_labels`"),
        ({"score_features": score, "score_feature_labels": score}, "to declare `scores_labels = True`"),
        ({"score_features": score, "finds_groups": True, "find_groups": score}, "to define `stands_apart`"),
        ({"score_features": score, **GROUPS}, "to declare `finds_groups = True`"),
        ({"score_features": score, "check_sets": score}, "defines `check_sets`.*\n.*`check_set`"),
    ],
)
def test_refuses_set_scorers_whose_methods_and_declarations_differ(methods, message):
    with pytest.raises(TypeError, match=f"(?s){message}"):
        type("Own", (SetScorer,), methods)


def test_subclasses_inherit_declarations():
    class Scaled(Distance):
        def score_labels(self, inputs):
            return 2 * super().score_labels(inputs)

    assert Scaled.scores_labels
    assert Scaled().fit(POINTS).is_fitted
