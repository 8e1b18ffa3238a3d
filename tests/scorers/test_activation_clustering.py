import json

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

from lightning_poison.scorers.activation_clustering import ActivationClusteringScorer, clustering_scores
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.protocol import FeatureScorer, LabelFeatureScorer
from lightning_poison.testing.scorers import check_scorer


def two_kinds(count=300, poisoned=25):
    """Return features of two classes; the first samples of class 0 are of another kind."""
    features = torch.randn(count, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 2
    poison = (labels == 0) & (torch.arange(count) < 2 * poisoned)
    features[poison] += 5
    return features, labels, poison


def test_it_keeps_the_contract():
    check_scorer(ActivationClusteringScorer)
    check_scorer(ActivationClusteringScorer(components=2, restarts=1, seed=4))


def test_it_must_see_the_set():
    assert isinstance(ActivationClusteringScorer(), FeatureScorer)
    assert not isinstance(ActivationClusteringScorer(), LabelFeatureScorer)
    assert not ActivationClusteringScorer.is_control


def test_a_score_above_0_is_the_decision_of_the_authors():
    features, labels, poison = two_kinds()
    scores = ActivationClusteringScorer().score_features(features, labels)
    assert torch.equal(scores > 0, poison)
    assert scores.dtype == torch.float32


def test_a_backdoor_that_a_network_has_learned_stands_out(backdoored_features):
    features, labels, poison = backdoored_features
    scores = ActivationClusteringScorer().score_features(features, labels)
    own = labels == 0
    assert roc_auc_score(poison[own], scores[own]) > 0.98
    assert (scores[poison] > 0).float().mean() > 0.7
    assert (scores[~poison] > 0).float().mean() < 0.1


def test_gates_decide_whether_a_class_is_poisoned_at_all():
    features, labels, _ = two_kinds()
    for gate in ({"max_share": 0.1}, {"min_silhouette": 0.95}):
        assert float(ActivationClusteringScorer(**gate).score_features(features, labels).max()) == 0


def test_settings_reach_the_mathematics():
    features, labels, _ = two_kinds()
    settings = {"components": 3, "restarts": 2, "max_share": 0.4, "min_silhouette": 0.2, "seed": 5}
    scores = ActivationClusteringScorer(**settings).score_features(features, labels)
    assert torch.equal(scores, clustering_scores(features, labels, **settings).float())


def test_what_it_was_built_with_shows():
    scorer = ActivationClusteringScorer(FeatureModel(nn.Flatten()), components=3)
    shown = "components=3, restarts=4, max_share=0.35, min_silhouette=0.1, seed=0"
    assert repr(scorer) == f"ActivationClusteringScorer(FeatureModel(Flatten, ''), {shown})"
    assert json.loads(json.dumps(dict(scorer.settings())))["components"] == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [("components", 0), ("restarts", 0), ("max_share", 0), ("max_share", 1), ("min_silhouette", 1), ("seed", -1)],
)
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        ActivationClusteringScorer(**{name: value})


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.rand(4, 2), torch.tensor([0, 0, 0, 1]), "at least 3 samples a class"),
        (torch.ones(6, 2), torch.arange(6) % 2, "different from sample to sample"),
        (torch.full((3, 2), torch.nan), torch.zeros(3).long(), "finite"),
        (torch.rand(3, 2), torch.zeros(2).long(), "one for each of the 3"),
        (torch.rand(3, 2), torch.full((3,), -1), "at least 0"),
    ],
)
def test_sets_that_it_cannot_judge_are_refused(features, labels, message):
    with pytest.raises(ValueError, match=message):
        ActivationClusteringScorer().score_features(features, labels)
