import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from lightning_poison.scorers.spectral_signatures import spectral_scores, top_directions


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_direction_is_known_where_the_matrix_is_diagonal():
    directions = top_directions(torch.diag(torch.tensor([2.0, 5.0, 1.0])), 2)
    torch.testing.assert_close(directions.abs(), torch.tensor([[0, 1.0], [1, 0], [0, 0]]).double())


@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (9, 9)])
def test_tall_and_wide_matrices_agree_with_the_singular_value_decomposition(shape):
    rows = normal(*shape)
    expected = torch.linalg.svd(rows, full_matrices=False).Vh[:3].T
    found = top_directions(rows, 3)
    torch.testing.assert_close((found.T @ expected).abs(), torch.eye(3).double(), atol=1e-9, rtol=0)


def test_there_are_no_more_directions_than_rows_vary_in():
    assert top_directions(torch.tensor([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]), 3).shape == (3, 1)
    assert top_directions(torch.tensor([[1.0, 0.0]] * 5), 2).shape == (2, 1)


PAPER = {"directions": 1, "center": "mean"}


def test_the_score_of_the_paper_is_the_squared_projection_by_hand():
    features = torch.tensor([[1.0, 5.0], [3.0, 5.0], [8.0, 5.0]])  # mean 4 along the one direction
    found = spectral_scores(features, torch.zeros(3).long(), **PAPER)
    torch.testing.assert_close(found, torch.tensor([9.0, 1.0, 16.0]).double())


def test_the_core_is_the_half_nearest_to_the_median():
    features = torch.tensor([[0.0], [1.0], [2.0], [9.0], [50.0]])  # median 2; the core is 2, 1 and 0
    found = spectral_scores(features, torch.zeros(5).long())
    torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 1.0, 64.0, 49.0**2]).double())


def test_each_class_has_its_own_center_and_direction():
    features = torch.tensor([[0.0, 9.0], [2.0, 9.0], [50.0, 0.0], [50.0, 4.0]])
    labels = torch.tensor([0, 0, 3, 3])
    torch.testing.assert_close(spectral_scores(features, labels, **PAPER), torch.tensor([1.0, 1.0, 4.0, 4.0]).double())


def test_all_directions_together_give_the_squared_distance_to_the_mean():
    features = normal(30, 4)
    found = spectral_scores(features, torch.zeros(30).long(), directions=100, center="mean")
    torch.testing.assert_close(found, (features - features.mean(0)).square().sum(1))


def test_a_third_of_poison_does_not_move_the_core():
    poison = torch.arange(300) < 100
    features = normal(300, 8)
    features[poison, 0] += 5
    core, mean = (spectral_scores(features, torch.zeros(300).long(), directions=1, center=c) for c in ("core", "mean"))
    assert roc_auc_score(poison, core) > 0.99
    assert roc_auc_score(poison, mean) < 0.97


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 1000), shift=st.floats(-100, 100), scale=st.floats(0.1, 10))
def test_shifts_do_nothing_and_scales_square(seed, shift, scale):
    features, labels = normal(24, 5, seed=seed), torch.arange(24) % 2
    for settings_ in ({}, PAPER):
        found = spectral_scores(scale * features + shift, labels, **settings_)
        torch.testing.assert_close(
            found, scale**2 * spectral_scores(features, labels, **settings_), rtol=1e-5, atol=1e-7
        )


def test_what_is_projected_must_be_centerd():
    """Poison that pulls toward the origin is first by the centerd projection, and last by the uncenterd one."""
    poison = torch.arange(200) < 10
    features = 0.3 * normal(200, 8) + 10 * torch.eye(8)[0]
    features[poison, 0] -= 5
    centerd = features - features.mean(0)
    uncenterd = (features @ top_directions(centerd, 1)).abs().flatten()
    for settings_ in ({}, PAPER):
        assert roc_auc_score(poison, spectral_scores(features, torch.zeros(200).long(), **settings_)) > 0.99
    assert roc_auc_score(poison, uncenterd) == 0


def test_it_is_the_same_under_autocast():
    features, labels = normal(50, 8).float(), torch.arange(50) % 2
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = spectral_scores(features, labels)
    assert torch.equal(found, spectral_scores(features, labels))


@pytest.mark.parametrize(
    ("features", "labels", "directions", "message"),
    [
        (normal(4, 3), [0, 0, 0, 1], 1, "at least 2 samples a class, but got 1 of class 1"),
        (torch.ones(4, 3), [0, 0, 1, 1], 1, "different from sample to sample"),
        (torch.tensor([[1.0], [1.0], [2.0], [3.0]]), [0, 0, 1, 1], 1, "the same vector in all of class 0"),
        (normal(4, 3), [0, 0, 1, 1], 0, "`directions` to be an integer of at least 1"),
        (torch.tensor([[1.0], [float("nan")]]), [0, 0], 1, "NaN or infinite values in row 1"),
        (normal(4, 3), [0, 0, -1, -1], 1, "at least 0"),
        (normal(4, 3), [0, 0, 0], 1, "one for each of the 4"),
    ],
)
def test_what_has_no_signature_is_refused(features, labels, directions, message):
    with pytest.raises(ValueError, match=message):
        spectral_scores(features, torch.tensor(labels), directions=directions)
