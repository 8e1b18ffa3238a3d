import pytest
import torch
from torch import nn

from lightning_poison.errors import PluginError
from lightning_poison.scorers.characteristic_vectors import CharacteristicVectorScorer
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.confidence import ConfidenceScorer
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.inspection import (
    AnyScorer,
    feature_model_of,
    is_own,
    members_of,
    settings_of,
    weights_of,
)
from lightning_poison.scorers.mahalanobis import MahalanobisScorer
from lightning_poison.scorers.protocol import SetScorer


class Total(SetScorer):
    name = "total"

    def __init__(self, feature_model=None):
        self.feature_model = feature_model

    def score_features(self, features, labels):
        return features.sum(1)


class Derived(ConfidenceScorer):
    pass


def test_derived_scorer_is_of_another_package():
    assert is_own(ConfidenceScorer())
    assert not is_own(Derived())
    assert not is_own(object())


def test_members_by_name(centroid_scorer):
    one, other = centroid_scorer(), Total()
    assert members_of(one) == {"centroid": one}
    assert members_of(CombinedScorer([one, other])) == {"centroid": one, "total": other}


def test_settings_contain_the_feature_model(centroid_scorer):
    assert settings_of(centroid_scorer()) == {"name": "centroid"}
    small = Total(FeatureModel(feature_size=8))
    assert settings_of(Total())["feature_model"]["feature_size"] == 64
    assert (
        settings_of(CombinedScorer([centroid_scorer(), small]))["members"]["total"]["feature_model"]["feature_size"]
        == 8
    )
    assert feature_model_of(small) is small.feature_model


def test_weights_are_those_fitted_before_the_decision(centroid_scorer, blobs):
    network = nn.Linear(4, 2)
    assert weights_of(centroid_scorer()) is None
    assert weights_of(Total()) is None
    assert weights_of(CombinedScorer([centroid_scorer(), Total()])) is None
    fitted, borrowed = centroid_scorer().fit(blobs(60)), Total(FeatureModel(network))
    before = [weights_of(each) for each in (fitted, borrowed, CombinedScorer([fitted, borrowed]))]
    assert None not in before
    with torch.no_grad():
        network.weight.add_(1)
    after = [weights_of(each) for each in (fitted, borrowed, CombinedScorer([fitted, borrowed]))]
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, False]


def test_weights_exclude_a_borrowed_module():
    assert weights_of(ConfidenceScorer.from_module(nn.Linear(4, 2))) is None


@pytest.mark.parametrize("scorer", [Total(), MahalanobisScorer(), CombinedScorer([Total(), MahalanobisScorer()])])
def test_any_scorer_is_single_or_combined(scorer):
    assert isinstance(scorer, AnyScorer)


def test_weights_include_a_trained_network_before_a_fit():
    network = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    scorers = [MahalanobisScorer(FeatureModel(network)), CharacteristicVectorScorer(FeatureModel(network))]
    before = [weights_of(each) for each in scorers]
    assert None not in before
    with torch.no_grad():
        network[0].weight.add_(1)
    assert all(weights_of(each) != was for each, was in zip(scorers, before, strict=True))
    assert weights_of(MahalanobisScorer()) is None


def test_member_whose_settings_fail_is_named():
    failing = type("Failing", (Total,), {"settings": lambda scorer: 1 / 0})()
    with pytest.raises(PluginError, match="Expected `settings` of the scorer `total` to succeed"):
        settings_of(CombinedScorer([MahalanobisScorer(), failing]))
