import json

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.protocol import FeatureScorer, LabelFeatureScorer
from lightning_poison.scorers.spectral_signatures import SpectralSignatureScorer, spectral_scores
from lightning_poison.testing.scorers import check_scorer


def shifted(count=300, poisoned=15, seed=0):
    """Return features of three classes; the first samples of class 0 lie to one side."""
    features = torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(count) % 3
    poison = (labels == 0) & (torch.arange(count) < 3 * poisoned)
    features[poison, 5] += 6
    return features + 20, labels, poison


def test_it_keeps_the_contract():
    check_scorer(SpectralSignatureScorer)
    check_scorer(SpectralSignatureScorer(directions=1, center="mean"))


def test_it_must_see_the_set_and_cannot_be_asked_for_other_labels():
    scorer = SpectralSignatureScorer()
    assert isinstance(scorer, FeatureScorer)
    assert not isinstance(scorer, LabelFeatureScorer)
    assert not scorer.is_control


def test_a_shifted_part_of_a_class_stands_out():
    features, labels, poison = shifted()
    scores = SpectralSignatureScorer().score_features(features, labels)
    own = labels == 0
    assert roc_auc_score(poison[own], scores[own]) > 0.99
    assert scores.dtype == torch.float32
    assert len(scores.unique()) == len(scores)


def test_a_backdoor_that_a_network_has_learned_stands_out(backdoored_features):
    features, labels, poison = backdoored_features
    scores = SpectralSignatureScorer().score_features(features, labels)
    own = labels == 0
    assert roc_auc_score(poison[own], scores[own]) > 0.95


def test_settings_reach_the_mathematics():
    features, labels, _ = shifted()
    scores = SpectralSignatureScorer(directions=2, center="mean").score_features(features, labels)
    assert torch.equal(scores, spectral_scores(features, labels, directions=2, center="mean").float())


def test_what_it_was_built_with_shows():
    scorer = SpectralSignatureScorer(FeatureModel(nn.Flatten()), directions=2)
    assert repr(scorer) == "SpectralSignatureScorer(FeatureModel(Flatten, ''), directions=2, center='core')"
    settings = json.loads(json.dumps(dict(scorer.settings())))
    assert settings["directions"] == 2
    assert settings["feature_model"]["layer"] == ""
    assert SpectralSignatureScorer().settings() == SpectralSignatureScorer(FeatureModel()).settings()


@pytest.mark.parametrize("directions", [0, -1, 1.5, True])
def test_directions_are_a_positive_integer(directions):
    with pytest.raises(ValueError, match="`directions` to be an integer of at least 1"):
        SpectralSignatureScorer(directions=directions)


def test_the_center_is_one_of_two():
    with pytest.raises(ValueError, match="`center` to be one of 'core', 'mean'"):
        SpectralSignatureScorer(center="median")


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.rand(3, 2), torch.tensor([0, 0, 1]), "at least 2 samples a class"),
        (torch.ones(4, 2), torch.tensor([0, 0, 1, 1]), "different from sample to sample"),
        (torch.full((2, 2), torch.nan), torch.tensor([0, 0]), "finite"),
        (torch.rand(3, 2), torch.tensor([0, 0]), "one for each of the 3"),
        (torch.rand(2, 2), torch.tensor([-1, -1]), "at least 0"),
    ],
)
def test_sets_that_it_cannot_judge_are_refused(features, labels, message):
    with pytest.raises(ValueError, match=message):
        SpectralSignatureScorer().score_features(features, labels)
