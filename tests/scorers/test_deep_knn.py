import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from torch import nn

from lightning_poison.scorers import deep_knn
from lightning_poison.scorers.deep_knn import DeepKNNScorer, nearest_neighbors, neighbor_scores
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.testing.scorers import check_scorer


def normal(*shape, seed=0, offset=0.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) + offset


def brute_force(queries, references, k, *, exclude_self=False):
    distances = torch.cdist(queries.double(), references.double(), compute_mode="donot_use_mm_for_euclid_dist")
    if exclude_self:
        distances.fill_diagonal_(torch.inf)
    return distances.topk(k, largest=False)


def test_neighbors_on_a_line():
    points = torch.tensor([[0.0], [1.0], [3.0], [7.0]])
    distances, indices = nearest_neighbors(points, points, 2, exclude_self=True)
    assert indices.tolist() == [[1, 2], [0, 2], [1, 0], [2, 1]]
    assert distances.tolist() == [[1, 3], [1, 2], [2, 3], [4, 6]]


def test_sample_is_its_own_neighbor_by_default():
    points = normal(20, 3)
    distances, indices = nearest_neighbors(points, points, 1)
    assert indices[:, 0].tolist() == list(range(20))
    assert float(distances.max()) == 0


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    queries=st.integers(1, 40),
    references=st.integers(5, 70),
    block=st.integers(1, 80),
    offset=st.sampled_from([0.0, 50.0]),
)
def test_matches_brute_force(seed, queries, references, block, offset):
    rows, others = normal(queries, 6, seed=seed, offset=offset), normal(references, 6, seed=seed + 1, offset=offset)
    distances, indices = nearest_neighbors(rows, others, 5, block=block)
    expected = brute_force(rows, others, 5)
    torch.testing.assert_close(distances.double(), expected.values, atol=1e-5, rtol=1e-5)
    assert torch.equal(indices, expected.indices)


@pytest.mark.parametrize("block", [1, 7, 50, 1000])
def test_excludes_self_in_every_tile(block, monkeypatch):
    monkeypatch.setattr(deep_knn, "_QUERIES", 16)
    points = normal(50, 4)
    points[10] = points[30]
    distances, indices = nearest_neighbors(points, points, 4, block=block, exclude_self=True)
    assert not (indices == torch.arange(50)[:, None]).any()
    assert (int(indices[10, 0]), float(distances[10, 0])) == (30, 0)
    torch.testing.assert_close(distances.double(), brute_force(points, points, 4, exclude_self=True).values)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), width=st.integers(3, 300), ties=st.booleans())
def test_smallest_matches_topk(seed, width, ties):
    tile = normal(7, width, seed=seed)
    tile = tile.round() if ties else tile
    values, columns = deep_knn._smallest(tile, 3)
    torch.testing.assert_close(values.sort(1).values, tile.topk(3, largest=False).values)
    assert torch.equal(tile.gather(1, columns), values)
    assert all(len(set(row)) == 3 for row in columns.tolist())


def test_more_queries_than_a_tile():
    points = normal(2500, 3)
    distances, _ = nearest_neighbors(points, points, 3, block=600, exclude_self=True)
    torch.testing.assert_close(distances.double(), brute_force(points, points, 3, exclude_self=True).values)


def test_ignores_autocast_and_keeps_inputs():
    points = normal(60, 5)
    before = points.clone()
    plain = nearest_neighbors(points, points, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = nearest_neighbors(points, points, 3)
    assert torch.equal(plain[0], cast[0])
    assert torch.equal(plain[1], cast[1])
    assert torch.equal(points, before)


def test_computes_half_in_float32_and_double_in_float64():
    points = normal(20, 4)
    assert nearest_neighbors(points.half(), points.half(), 2)[0].dtype == torch.float32
    assert nearest_neighbors(points.double(), points.double(), 2)[0].dtype == torch.float64


@pytest.mark.parametrize(
    ("queries", "references", "k", "settings", "message"),
    [
        (normal(3, 2), normal(3, 2), 4, {}, "`k` to be at most the 3 references there are, but got 4"),
        (normal(3, 2), normal(3, 2), 3, {"exclude_self": True}, "at most the 2 other samples"),
        (normal(3, 2), normal(3, 2), 0, {}, "`k` to be an integer of at least 1"),
        (normal(3, 2), normal(3, 2), 1, {"block": 0}, "`block`"),
        (normal(3, 2), normal(3, 4), 1, {}, "of 4 features"),
        (normal(2, 2), normal(3, 2), 1, {"exclude_self": True}, "the 3 references themselves"),
        (torch.full((3, 2), torch.nan), normal(3, 2), 1, {}, "finite"),
        (normal(3, 2), torch.full((3, 2), torch.inf), 1, {}, "finite"),
    ],
)
def test_nearest_neighbors_refuses_invalid_arguments(queries, references, k, settings, message):
    with pytest.raises(ValueError, match=message):
        nearest_neighbors(queries, references, k, **settings)


def test_neighbor_scores_match_closed_form():
    distances, labels = torch.tensor([[1.0, 2.0]]), torch.tensor([[0, 1]])
    near, far = torch.tensor([-0.5, -2.0]).double().exp()
    shares = torch.stack([near + 0.5, far + 0.5]) / (near + far + 1)
    torch.testing.assert_close(neighbor_scores(distances, labels, num_classes=2)[0], -shares.log())


def test_nearer_neighbors_have_larger_weights():
    labels = torch.tensor([[0, 1], [0, 1]])
    scores = neighbor_scores(torch.tensor([[1.0, 2.0], [1.5, 2.0]]), labels, num_classes=2)
    assert (scores[:, 0] < scores[:, 1]).all()
    assert scores[0, 0] < scores[1, 0]


def test_neighbors_at_distance_zero_have_weight_one():
    scores = neighbor_scores(torch.zeros(1, 3), torch.tensor([[0, 0, 1]]), num_classes=2)
    torch.testing.assert_close(scores[0], -torch.tensor([2.5 / 4, 1.5 / 4]).double().log())


def test_complies_with_contract():
    check_scorer(DeepKNNScorer)
    check_scorer(DeepKNNScorer(k=3, block=16))


def test_detects_wrong_labels(mislabeled_digits):
    images, labels, truth, _, _ = mislabeled_digits
    scorer = DeepKNNScorer(k=20)
    scores = scorer.score_features(images, labels)
    assert scorer.scores_labels
    assert not scorer.is_control
    assert scores.dtype == torch.float32
    assert roc_auc_score(labels != truth, scores) > 0.98
    assert len(scores.unique()) == len(scores)


def test_scores_every_label(mislabeled_digits):
    images, labels, truth, _, _ = mislabeled_digits
    scorer = DeepKNNScorer(k=20)
    each = scorer.score_feature_labels(images, labels)
    assert each.shape == (len(labels), 10)
    assert torch.equal(each.gather(1, labels[:, None])[:, 0], scorer.score_features(images, labels))
    assert (each.argmin(1) == truth).float().mean() > 0.95


def test_agrees_with_the_rule_of_the_paper(mislabeled_digits):
    images, labels, truth, _, _ = mislabeled_digits
    _, near = nearest_neighbors(images, images, 20, exclude_self=True)
    votes = nn.functional.one_hot(labels[near], 10).sum(1)
    removed = votes.gather(1, labels[:, None])[:, 0] < votes.amax(1)
    wrong = labels != truth
    assert removed[wrong].float().mean() > 0.95
    assert removed[~wrong].float().mean() < 0.05
    assert roc_auc_score(removed, DeepKNNScorer(k=20).score_features(images, labels)) > 0.99


def test_scores_do_not_depend_on_the_block(mislabeled_digits):
    images, labels = mislabeled_digits[0][:300], mislabeled_digits[1][:300]
    whole, tiled = (DeepKNNScorer(k=10, block=block).score_features(images, labels) for block in (1000, 37))
    torch.testing.assert_close(whole, tiled)


def test_repr_and_settings_contain_arguments():
    scorer = DeepKNNScorer(FeatureModel(nn.Flatten()), k=7)
    assert repr(scorer) == "DeepKNNScorer(feature_model=FeatureModel(Flatten, ''), k=7)"
    assert json.loads(json.dumps(dict(scorer.settings())))["k"] == 7


@pytest.mark.parametrize(("name", "value"), [("k", 0), ("k", 2.0), ("block", 0)])
def test_refuses_numbers_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"`{name}` to be an integer of at least 1"):
        DeepKNNScorer(**{name: value})


@pytest.mark.parametrize(
    ("features", "labels", "message"),
    [
        (torch.rand(4, 2), torch.tensor([0, 0, 1, 1]), "smaller than the number of samples, but got 4 with 4 samples"),
        (torch.rand(5, 2), torch.tensor([0, 0, 0, 0, 1]), "at least 2 samples per class"),
        (torch.ones(6, 2), torch.arange(6) % 2, "different from sample to sample"),
        (torch.full((6, 2), torch.nan), torch.arange(6) % 2, "finite"),
        (torch.rand(6, 2), torch.arange(5) % 2, "one for each of the 6"),
        (torch.rand(6, 2), torch.arange(6) % 2 - 1, "at least 0"),
    ],
)
def test_refuses_invalid_sets(features, labels, message):
    with pytest.raises(ValueError, match=message):
        DeepKNNScorer(k=4).score_features(features, labels)
