"""Tests that hold for all scorers that propose groups by something else than clusters of features."""

import json

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset

from lightning_poison.adversarial.adversaries import FGSM
from lightning_poison.models.fitting import FitSettings
from lightning_poison.registry.registry import get_scorer
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.layer_abnormality import LayerAbnormalityScorer
from lightning_poison.scorers.prediction_stability import PredictionStabilityScorer
from lightning_poison.scorers.quantum_entropy import QuantumEntropyScorer
from lightning_poison.statistics.subgroups import Subgroup
from lightning_poison.testing.scorers import check_scorer

KINDS = [LayerAbnormalityScorer, PredictionStabilityScorer, QuantumEntropyScorer]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_complies_with_contract(kind):
    check_scorer(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_is_registered_by_name(kind):
    assert isinstance(get_scorer(kind.name, min_size=25), kind)
    assert get_scorer(kind.name, min_size=25).min_size == 25


@pytest.mark.parametrize("kind", KINDS)
def test_effects_decide_and_not_the_score(kind):
    scorer = kind(min_transfer=0.6, min_resemblance=0.4)
    assert scorer.finds_groups
    assert scorer.is_poison(transfer=0.6, resemblance=0)
    assert scorer.is_poison(transfer=0, resemblance=0.4)
    assert not scorer.is_poison(transfer=0.59, resemblance=0.39)
    positions, log_odds = torch.arange(99), torch.where(torch.arange(99) < 20, 1.0, -1.0).double()
    assert scorer.stands_apart(Subgroup(0, positions, log_odds, 4.0))
    assert not scorer.stands_apart(Subgroup(0, positions, log_odds, 3.9))
    assert not scorer.stands_apart(Subgroup(0, positions[1:], log_odds[1:], 9.0))


@pytest.mark.parametrize("kind", KINDS)
def test_exclusion_model_has_the_settings_of_the_feature_model_but_is_plain(kind):
    backbone, settings = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(9)), FitSettings(epochs=3)
    model = FeatureModel(backbone=backbone, feature_size=9, fit_settings=settings, adversary=FGSM(0.3))
    exclusion = kind(model).exclusion_model
    assert (exclusion.backbone, exclusion.feature_size, exclusion.fit_settings) == (backbone, 9, settings)
    assert exclusion.adversary is None
    assert kind(FeatureModel(nn.Sequential(nn.BatchNorm1d(4)), "0")).exclusion_model.model is None


@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_json_and_distinguish_scorers(kind):
    scorers = [kind(), kind(min_transfer=0.7), kind(FeatureModel(feature_size=8)), kind(min_separation=5.0)]
    texts = {json.dumps([scorer.settings(), scorer.feature_model.settings()], sort_keys=True) for scorer in scorers}
    assert len(texts) == 4
    assert "min_transfer=0.7" in repr(scorers[1])


@pytest.mark.parametrize("kind", KINDS)
def test_refuses_small_classes_and_values_out_of_range(kind):
    with pytest.raises(ValueError, match="at least 12 samples per class, but got 11 of class 4"):
        kind().check_set(torch.tensor([0] * 30 + [4] * 11))
    features = torch.randn(60, 9)
    features[7] = torch.nan
    with pytest.raises(ValueError, match="`features` to be finite, but got NaN or infinite values in row 7"):
        kind().score_features(features, torch.arange(60) % 3)
    for name in ("min_separation", "min_size", "min_transfer", "min_resemblance"):
        with pytest.raises(ValueError, match=f"`{name}`"):
            kind(**{name: 0})
    with pytest.raises(TypeError, match=r"`feature_model` to be a `FeatureModel`, but got Linear\.\nWrite"):
        kind(nn.Linear(4, 4))
    with pytest.raises(TypeError, match="`exclusion_model` to be a `FeatureModel`"):
        kind(exclusion_model="plain")


@pytest.fixture(scope="module")
def learned():
    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels[:600] / 16).float().view(-1, 1, 8, 8), torch.tensor(labels[:600]))
    settings = FitSettings(epochs=4, batch_size=40, learning_rate=4e-3, min_steps=0)
    return data, FeatureModel(fit_settings=settings).fit(data, runtime=LocalRuntime(threads=1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_clean_data_are_kept_whatever_stands_apart(kind, learned):
    data, model = learned
    scorer = kind(model, exclusion_model=model, min_separation=1.5, min_size=3)
    verdict = sanitize(data, scorer, runtime=LocalRuntime(threads=1))
    assert verdict.evidence.groups
    assert not any(group.is_poison for group in verdict.evidence.groups)
    assert verdict.keep.all()
    assert verdict.calibration == "group tests"
