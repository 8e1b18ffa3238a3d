import torch
from torch import nn

from lightning_poison.scorers.characteristic_vectors import CharacteristicVectorScorer
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.inspection import feature_model_of, members_of, settings_of, weights_of
from lightning_poison.scorers.mahalanobis import MahalanobisScorer


class Total:
    name, is_control = "total", False

    def __init__(self, feature_model=None):
        if feature_model is not None:
            self.feature_model = feature_model

    def score_features(self, features, labels):
        return features.sum(1)


def test_members(centroid_scorer):
    one, other = centroid_scorer(), Total()
    assert members_of(one) == {"centroid": one}
    assert members_of(CombinedScorer([one, other])) == {"centroid": one, "total": other}


def test_features_are_part_of_the_settings(centroid_scorer):
    assert settings_of(centroid_scorer()) == {"name": "centroid"}
    small = Total(FeatureModel(feature_size=8))
    assert settings_of(Total())["feature_model"]["feature_size"] == 64
    assert (
        settings_of(CombinedScorer([centroid_scorer(), small]))["members"]["total"]["feature_model"]["feature_size"]
        == 8
    )
    assert feature_model_of(small) is small.feature_model


def test_weights(centroid_scorer, blobs):
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


def test_a_network_that_was_handed_in_counts_before_a_fit_too():
    network = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    scorers = [MahalanobisScorer(FeatureModel(network)), CharacteristicVectorScorer(FeatureModel(network))]
    before = [weights_of(each) for each in scorers]
    assert None not in before
    with torch.no_grad():
        network[0].weight.add_(1)
    assert all(weights_of(each) != was for each, was in zip(scorers, before, strict=True))
    assert weights_of(MahalanobisScorer()) is None
