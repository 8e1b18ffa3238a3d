import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import nn

from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.spectral_signatures import SpectralSignatureScorer, spectral_scores, top_directions
from lightning_poison.testing.scorers import check_scorer


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_directions_of_a_diagonal_matrix():
    directions = top_directions(torch.diag(torch.tensor([2.0, 5.0, 1.0])), 2)
    torch.testing.assert_close(directions.abs(), torch.tensor([[0, 1.0], [1, 0], [0, 0]]).double())


@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (9, 9)])
def test_directions_match_singular_value_decomposition(shape):
    rows = normal(*shape)
    expected = torch.linalg.svd(rows, full_matrices=False).Vh[:3].T
    found = top_directions(rows, 3)
    torch.testing.assert_close((found.T @ expected).abs(), torch.eye(3).double(), atol=1e-9, rtol=0)


def test_number_of_directions_is_limited_by_the_rank():
    assert top_directions(torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]), 3).shape == (3, 1)
    assert top_directions(torch.tensor([[1.0, 0.0]] * 5), 2).shape == (2, 1)


PAPER = {"directions": 1, "center": "mean"}


def test_paper_score_is_the_squared_projection():
    features = torch.tensor([[1.0, 5.0], [3.0, 5.0], [8.0, 5.0]])  # mean 4 along the one direction
    found = spectral_scores(features, torch.zeros(3).long(), **PAPER)
    torch.testing.assert_close(found, torch.tensor([9.0, 1.0, 16.0]).double())


def test_core_is_the_half_nearest_to_the_median():
    features = torch.tensor([[0.0], [1.0], [2.0], [9.0], [50.0]])  # median 2; the core is 2, 1 and 0
    found = spectral_scores(features, torch.zeros(5).long())
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 1.0, 64.0, 49.0**2]).double())


def test_classes_have_their_own_center_and_direction():
    features = torch.tensor([[0.0, 9.0], [2.0, 9.0], [50.0, 0.0], [50.0, 4.0]])
    labels = torch.tensor([0, 0, 3, 3])
    torch.testing.assert_close(spectral_scores(features, labels, **PAPER), torch.tensor([1.0, 1.0, 4.0, 4.0]).double())


def test_all_directions_give_the_squared_distance_to_the_mean():
    features = normal(30, 4)
    found = spectral_scores(features, torch.zeros(30).long(), directions=100, center="mean")
    torch.testing.assert_close(found, (features - features.mean(0)).square().sum(1))


def test_core_is_robust_to_a_third_of_poison():
    poison = torch.arange(300) < 100
    features = normal(300, 8)
    features[poison, 0] += 5
    core, mean = (spectral_scores(features, torch.zeros(300).long(), directions=1, center=c) for c in ("core", "mean"))
    assert roc_auc_score(poison, core) > 0.99
    assert roc_auc_score(poison, mean) < 0.97


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), shift=st.floats(-100, 100), scale=st.floats(0.1, 10))
def test_scores_are_invariant_to_shifts_and_quadratic_in_scale(seed, shift, scale):
    features, labels = normal(24, 5, seed=seed), torch.arange(24) % 2
    for settings_ in ({}, PAPER):
        found = spectral_scores(scale * features + shift, labels, **settings_)
        torch.testing.assert_close(
            found, scale**2 * spectral_scores(features, labels, **settings_), rtol=1e-5, atol=1e-7
        )


def test_uncentered_projection_ranks_poison_last():
    """Poison that moves toward the origin is ranked first by the centered projection and last by the uncentered one."""
    poison = torch.arange(200) < 10
    features = 0.3 * normal(200, 8) + 10 * torch.eye(8)[0]
    features[poison, 0] -= 5
    centered = features - features.mean(0)
    uncentered = (features @ top_directions(centered, 1)).abs().flatten()
    for settings_ in ({}, PAPER):
        assert roc_auc_score(poison, spectral_scores(features, torch.zeros(200).long(), **settings_)) > 0.99
    assert roc_auc_score(poison, uncentered) == 0


def test_ignores_autocast():
    features, labels = normal(50, 8).float(), torch.arange(50) % 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = spectral_scores(features, labels)
    assert torch.equal(found, spectral_scores(features, labels))


@pytest.mark.parametrize(
    ("features", "labels", "directions", "message"),
    [
        (normal(4, 3), [0, 0, 0, 1], 1, "at least 2 samples per class, but got 1 of class 1"),
        (torch.ones(4, 3), [0, 0, 1, 1], 1, "different from sample to sample"),
        (torch.tensor([[1.0], [1.0], [2.0], [3.0]]), [0, 0, 1, 1], 1, "the same vector in all of class 0"),
        (normal(4, 3), [0, 0, 1, 1], 0, "`directions` to be an integer of at least 1"),
        (torch.tensor([[1.0], [float("nan")]]), [0, 0], 1, "NaN or infinite values in row 1"),
        (normal(4, 3), [0, 0, -1, -1], 1, "at least 0"),
        (normal(4, 3), [0, 0, 0], 1, "one for each of the 4"),
    ],
)
def test_spectral_scores_refuses_invalid_arguments(features, labels, directions, message):
    with pytest.raises(ValueError, match=message):
        spectral_scores(features, torch.tensor(labels), directions=directions)


def shifted(count=300, poisoned=15, seed=0):
    """Return features of three classes; the first samples of class 0 are shifted."""
    features = torch.randn(count, 12, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(count) % 3
    poison = (labels == 0) & (torch.arange(count) < 3 * poisoned)
    features[poison, 5] += 6
    return features + 20, labels, poison


def test_complies_with_contract():
    check_scorer(SpectralSignatureScorer)
    check_scorer(SpectralSignatureScorer(directions=1, center="mean"))


def test_declares_no_label_scores():
    assert not SpectralSignatureScorer.scores_labels
    assert not SpectralSignatureScorer.is_control


def test_detects_a_shifted_part_of_a_class():
    features, labels, poison = shifted()
    scores = SpectralSignatureScorer().score_features(features, labels)
    own = labels == 0
    assert roc_auc_score(poison[own], scores[own]) > 0.99
    assert scores.dtype == torch.float32
    assert len(scores.unique()) == len(scores)


@pytest.mark.slow
def test_detects_a_learned_backdoor(backdoored_features):
    features, labels, poison = backdoored_features
    scores = SpectralSignatureScorer().score_features(features, labels)
    own = labels == 0
    assert roc_auc_score(poison[own], scores[own]) > 0.95


def test_passes_settings_to_spectral_scores():
    features, labels, _ = shifted()
    scores = SpectralSignatureScorer(directions=2, center="mean").score_features(features, labels)
    assert torch.equal(scores, spectral_scores(features, labels, directions=2, center="mean").float())


def test_repr_and_settings_contain_arguments():
    scorer = SpectralSignatureScorer(FeatureModel(nn.Flatten()), directions=2)
    assert repr(scorer) == "SpectralSignatureScorer(feature_model=FeatureModel(Flatten, ''), directions=2)"
    found = json.loads(json.dumps(dict(scorer.settings())))
    assert found["directions"] == 2
    assert found["feature_model"]["layer"] == ""
    assert SpectralSignatureScorer().settings() == SpectralSignatureScorer(FeatureModel()).settings()


@pytest.mark.parametrize("directions", [0, -1, 1.5, True])
def test_refuses_directions_out_of_range(directions):
    with pytest.raises(ValueError, match="`directions` to be an integer of at least 1"):
        SpectralSignatureScorer(directions=directions)


def test_refuses_unknown_center():
    with pytest.raises(ValueError, match="`center` to be one of 'core', 'mean'"):
        SpectralSignatureScorer(center="median")


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.rand(3, 2), torch.tensor([0, 0, 1]), "at least 2 samples per class"),
        (torch.ones(4, 2), torch.tensor([0, 0, 1, 1]), "different from sample to sample"),
        (torch.full((2, 2), torch.nan), torch.tensor([0, 0]), "finite"),
        (torch.rand(3, 2), torch.tensor([0, 0]), "one for each of the 3"),
        (torch.rand(2, 2), torch.tensor([-1, -1]), "at least 0"),
    ],
)
def test_refuses_invalid_sets(features, labels, message):
    with pytest.raises(ValueError, match=message):
        SpectralSignatureScorer().score_features(features, labels)
