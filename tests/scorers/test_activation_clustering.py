import json

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score, silhouette_score
from torch import nn

from lightning_poison.scorers.activation_clustering import (
    ActivationClusteringScorer,
    clustering_scores,
    mean_silhouette,
)
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.testing.scorers import check_scorer

PERMISSIVE = {"max_share": 0.99, "min_silhouette": -1.0}
"""Settings under which every class counts as poisoned, so that scores are margins."""


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blobs(count=200, poisoned=20, apart=12.0):
    """Return one class whose first samples form a second cluster."""
    features = normal(count, 16)
    features[:poisoned, 0] += apart
    return features


def one_class(features, **settings):
    return clustering_scores(features, torch.zeros(len(features)).long(), **settings)


def test_margin_is_difference_of_distances_to_centers():
    scores = one_class(torch.tensor([[0.0], [1.0], [2.0], [10.0]]), components=1)
    torch.testing.assert_close(scores, torch.tensor([-9.0, -9.0, -7.0, 9.0]).double(), atol=1e-5, rtol=0)


def test_smaller_cluster_counts_as_poison_within_both_limits():
    smaller = torch.arange(200) < 20
    assert torch.equal(one_class(blobs(), max_share=0.11, min_silhouette=0.4) > 0, smaller)
    assert float(one_class(blobs(), max_share=0.1, min_silhouette=0.4).max()) == 0
    assert float(one_class(blobs(), max_share=0.11, min_silhouette=0.9).max()) == 0


@pytest.mark.parametrize("count", [30, 1024, 1500])
def test_silhouette_agrees_with_scikit_learn(count):
    points, second = normal(count, 5), torch.arange(count) % 3 == 0
    points[second] += 1
    assert mean_silhouette(points, second) == pytest.approx(silhouette_score(points, second.numpy()), abs=1e-5)


def test_single_sample_of_a_cluster_has_silhouette_zero():
    points, second = torch.tensor([[0.0], [1.0], [9.0]]), torch.tensor([False, False, True])
    assert mean_silhouette(points, second) == pytest.approx(float(silhouette_score(points, second.numpy())), abs=1e-6)


def test_scores_of_a_poisoned_class_are_margins():
    assert torch.equal(one_class(blobs()), one_class(blobs(), **PERMISSIVE))


@pytest.mark.parametrize("limit", [{"max_share": 0.1}, {"min_silhouette": 0.9}])
def test_scores_of_a_clean_class_are_at_most_zero_in_the_same_order(limit):
    margins, scores = one_class(blobs(), **PERMISSIVE), one_class(blobs(), **limit)
    assert float(scores.max()) == 0
    torch.testing.assert_close(scores, margins - margins.max())


def test_classes_are_clustered_separately():
    clean, poisoned = normal(200, 16, seed=1) + 100, blobs()
    labels = torch.arange(2).repeat_interleave(200)
    scores = clustering_scores(torch.cat([clean, poisoned]), labels)
    assert float(scores[:200].max()) <= 0
    assert torch.equal(scores[200:] > 0, torch.arange(200) < 20)


def test_scores_have_no_ties():
    assert len(one_class(blobs()).unique()) == 200


def test_scores_depend_on_the_seed_and_not_on_global_random_states():
    features = normal(300, 12)
    found = []
    for state in (0, 1):
        np.random.seed(state)  # noqa: NPY002
        found.append(one_class(features, restarts=1, seed=3, **PERMISSIVE))
    assert torch.equal(*found)


def test_clusters_three_samples_of_one_feature():
    scores = one_class(torch.tensor([[0.0], [0.1], [5.0]]), **PERMISSIVE)
    assert torch.equal(scores > 0, torch.tensor([False, False, True]))


@pytest.mark.parametrize(
    ("features", "labels", "settings", "message"),
    [
        (normal(5, 3), [0, 0, 0, 1, 1], {}, "at least 3 samples per class, but got 2 of class 1"),
        (torch.ones(6, 3), [0] * 6, {}, "different from sample to sample"),
        (
            torch.cat([torch.ones(3, 2), normal(3, 2)]),
            [0, 0, 0, 1, 1, 1],
            {},
            "different within class 0, but got the same vector in all of it",
        ),
        (torch.full((3, 1), torch.nan), [0] * 3, {}, "finite"),
        (normal(6, 3), [0] * 5, {}, "one for each of the 6"),
        (normal(6, 3), [-1] * 6, {}, "at least 0"),
        (normal(6, 3), [0] * 6, {"components": 0}, "`components`"),
        (normal(6, 3), [0] * 6, {"restarts": 0}, "`restarts`"),
        (normal(6, 3), [0] * 6, {"max_share": 1.5}, "`max_share`"),
    ],
)
def test_refuses_invalid_arguments(features, labels, settings, message):
    with pytest.raises(ValueError, match=message):
        clustering_scores(features, torch.tensor(labels), **settings)


def two_kinds(count=300, poisoned=25):
    """Return features of two classes; the first samples of class 0 form a second cluster."""
    features = torch.randn(count, 12, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % 2
    poison = (labels == 0) & (torch.arange(count) < 2 * poisoned)
    features[poison] += 5
    return features, labels, poison


def test_complies_with_contract():
    check_scorer(ActivationClusteringScorer)
    check_scorer(ActivationClusteringScorer(components=2, restarts=1, seed=4))


def test_declares_no_label_scores():
    assert not ActivationClusteringScorer.scores_labels
    assert not ActivationClusteringScorer.is_control


def test_scores_above_zero_are_the_decision_of_the_paper():
    features, labels, poison = two_kinds()
    scores = ActivationClusteringScorer().score_features(features, labels)
    assert torch.equal(scores > 0, poison)
    assert scores.dtype == torch.float32


@pytest.mark.slow
def test_detects_a_learned_backdoor(backdoored_features):
    features, labels, poison = backdoored_features
    scores = ActivationClusteringScorer().score_features(features, labels)
    own = labels == 0
    assert roc_auc_score(poison[own], scores[own]) > 0.98
    assert (scores[poison] > 0).float().mean() > 0.7
    assert (scores[~poison] > 0).float().mean() < 0.1


def test_limits_determine_whether_a_class_is_poisoned():
    features, labels, _ = two_kinds()
    for limit in ({"max_share": 0.1}, {"min_silhouette": 0.95}):
        assert float(ActivationClusteringScorer(**limit).score_features(features, labels).max()) == 0


def test_passes_settings_to_clustering_scores():
    features, labels, _ = two_kinds()
    settings = {"components": 3, "restarts": 2, "max_share": 0.4, "min_silhouette": 0.2, "seed": 5}
    scores = ActivationClusteringScorer(**settings).score_features(features, labels)
    assert torch.equal(scores, clustering_scores(features, labels, **settings).float())


def test_repr_and_settings_contain_arguments():
    scorer = ActivationClusteringScorer(FeatureModel(nn.Flatten()), components=3)
    assert repr(scorer) == "ActivationClusteringScorer(feature_model=FeatureModel(Flatten, ''), components=3)"
    assert json.loads(json.dumps(dict(scorer.settings())))["components"] == 3


@pytest.mark.parametrize(
    ("name", "value"),
    [("components", 0), ("restarts", 0), ("max_share", 0), ("max_share", 1), ("min_silhouette", 1), ("seed", -1)],
)
def test_refuses_numbers_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"`{name}`"):
        ActivationClusteringScorer(**{name: value})


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.rand(4, 2), torch.tensor([0, 0, 0, 1]), "at least 3 samples per class"),
        (torch.ones(6, 2), torch.arange(6) % 2, "different from sample to sample"),
        (torch.full((3, 2), torch.nan), torch.zeros(3).long(), "finite"),
        (torch.rand(3, 2), torch.zeros(2).long(), "one for each of the 3"),
        (torch.rand(3, 2), torch.full((3,), -1), "at least 0"),
    ],
)
def test_refuses_invalid_sets(features, labels, message):
    with pytest.raises(ValueError, match=message):
        ActivationClusteringScorer().score_features(features, labels)
