import numpy as np
import pytest
import torch
from sklearn.metrics import silhouette_score

from lightning_poison.scorers.activation_clustering import clustering_scores, mean_silhouette, split_in_two


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blobs(count=200, poisoned=20, apart=12.0):
    """Return one class whose first samples lie apart."""
    features = normal(count, 16)
    features[:poisoned, 0] += apart
    return features


def test_the_margin_is_the_difference_of_the_distances_by_hand():
    split = split_in_two(torch.tensor([[0.0], [1.0], [2.0], [10.0]]), components=1)
    torch.testing.assert_close(split.margins, torch.tensor([-9.0, -9.0, -7.0, 9.0]).double(), atol=1e-5, rtol=0)
    assert split.smaller_share == 0.25


def test_the_smaller_cluster_is_found():
    split = split_in_two(blobs())
    assert torch.equal(split.margins > 0, torch.arange(200) < 20)
    assert split.smaller_share == 0.1
    assert split.is_suspicious(max_share=0.11, min_silhouette=0.4)
    assert not split.is_suspicious(max_share=0.1, min_silhouette=0.4)
    assert not split.is_suspicious(max_share=0.11, min_silhouette=0.9)


@pytest.mark.parametrize("count", [30, 1024, 1500])
def test_the_silhouette_is_scikit_learns(count):
    points, second = normal(count, 5), torch.arange(count) % 3 == 0
    points[second] += 1
    assert mean_silhouette(points, second) == pytest.approx(silhouette_score(points, second.numpy()), abs=1e-5)


def test_a_sample_alone_in_its_cluster_has_silhouette_0():
    points, second = torch.tensor([[0.0], [1.0], [9.0]]), torch.tensor([False, False, True])
    assert mean_silhouette(points, second) == pytest.approx(float(silhouette_score(points, second.numpy())), abs=1e-6)


def test_a_class_that_passes_the_gates_keeps_its_margins():
    features = blobs()
    assert torch.equal(clustering_scores(features, torch.zeros(200).long()), split_in_two(features).margins)


@pytest.mark.parametrize("gate", [{"max_share": 0.1}, {"min_silhouette": 0.9}])
def test_a_class_that_fails_a_gate_is_below_0_in_the_same_order(gate):
    features = blobs()
    margins, scores = split_in_two(features).margins, clustering_scores(features, torch.zeros(200).long(), **gate)
    assert float(scores.max()) == 0
    torch.testing.assert_close(scores, margins - margins.max())


def test_classes_are_judged_one_by_one():
    clean, poisoned = normal(200, 16, seed=1) + 100, blobs()
    labels = torch.arange(2).repeat_interleave(200)
    scores = clustering_scores(torch.cat([clean, poisoned]), labels)
    assert float(scores[:200].max()) <= 0
    assert torch.equal(scores[200:] > 0, torch.arange(200) < 20)


def test_scores_have_no_ties():
    assert len(clustering_scores(blobs(), torch.zeros(200).long()).unique()) == 200


def test_the_seed_decides_and_global_random_states_do_not():
    features = normal(300, 12)
    found = []
    for state in (0, 1):
        np.random.seed(state)  # noqa: NPY002
        found.append(split_in_two(features, restarts=1, seed=3).margins)
    assert torch.equal(*found)


def test_few_features_and_few_samples_are_enough():
    assert torch.equal(
        split_in_two(torch.tensor([[0.0], [0.1], [5.0]])).margins > 0, torch.tensor([False, False, True])
    )


@pytest.mark.parametrize(
    ("features", "labels", "settings", "message"),
    [
        (normal(5, 3), [0, 0, 0, 1, 1], {}, "at least 3 samples a class, but got 2 of class 1"),
        (torch.ones(6, 3), [0] * 6, {}, "different from sample to sample"),
        (
            torch.cat([torch.ones(3, 2), normal(3, 2)]),
            [0, 0, 0, 1, 1, 1],
            {},
            "at least 3 vectors of class 0 that differ",
        ),
        (torch.full((3, 1), torch.nan), [0] * 3, {}, "finite"),
        (normal(6, 3), [0] * 5, {}, "one for each of the 6"),
        (normal(6, 3), [-1] * 6, {}, "at least 0"),
        (normal(6, 3), [0] * 6, {"components": 0}, "`components`"),
        (normal(6, 3), [0] * 6, {"restarts": 0}, "`restarts`"),
        (normal(6, 3), [0] * 6, {"max_share": 1.5}, "`max_share`"),
    ],
)
def test_what_cannot_be_clustered_is_refused(features, labels, settings, message):
    with pytest.raises(ValueError, match=message):
        clustering_scores(features, torch.tensor(labels), **settings)


@pytest.mark.parametrize("features", [torch.ones(5, 2), normal(2, 2)])
def test_a_single_class_too(features):
    with pytest.raises(ValueError, match="at least 3 vectors of a class that differ"):
        split_in_two(features)
