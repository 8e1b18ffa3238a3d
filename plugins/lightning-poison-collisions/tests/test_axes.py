import pytest
import torch

from lightning_poison_collisions.axes import fit_head, positions_along, rotation_axes


@pytest.fixture
def blobs(generator):
    """Three classes, 2, 5 and 9, around the corners of a triangle."""
    centers = 10 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]])
    labels = torch.arange(90) % 3
    return centers[labels] + torch.randn(90, 2, generator=generator), torch.tensor([2, 5, 9])[labels]


@pytest.mark.parametrize("kind", ["svm", "logistic"])
def test_the_head_tells_the_classes_apart(blobs, kind):
    features, labels = blobs
    head = fit_head(features, labels, kind=kind, c=10.0, seed=0)
    assert head.classes.tolist() == [2, 5, 9]
    assert torch.equal(head.classes[(features @ head.weights.T).argmax(1)], labels)
    assert head.scale == pytest.approx(float(features.norm(dim=1).mean()))


@pytest.mark.parametrize("kind", ["svm", "logistic"])
def test_of_two_classes_the_rows_are_opposite(blobs, kind):
    features, labels = (part[blobs[1] != 9] for part in blobs)
    head = fit_head(features, labels, kind=kind, c=1.0, seed=0)
    assert torch.equal(head.weights[0], -head.weights[1])
    assert torch.equal(head.classes[(features @ head.weights.T).argmax(1)], labels)


def test_a_support_vector_machine_has_a_closed_form():
    features = torch.tensor([[2.0, 0.0], [4.0, 0.0]]).repeat(50, 1)
    head = fit_head(features, torch.arange(100) % 2, kind="svm", c=1e4, seed=0)
    w = float((head.weights[1] - head.weights[0])[0])
    assert w / head.scale == pytest.approx(1.0, abs=0.02)  # the widest margin lies between 2 and 4


def test_the_scale_of_the_features_does_not_matter(blobs):
    features, labels = blobs
    one, other = (fit_head(factor * features, labels, kind="svm", c=1.0, seed=0) for factor in (1.0, 64.0))
    torch.testing.assert_close(one.weights, other.weights, rtol=1e-3, atol=1e-4)
    assert other.scale == pytest.approx(64 * one.scale)


def test_axes_lead_from_each_class_to_the_one_some_places_on():
    weights = torch.tensor([[3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
    torch.testing.assert_close(rotation_axes(weights, 1), torch.tensor([[-0.6, 0.8], [0.0, -1.0], [1.0, 0.0]]))
    torch.testing.assert_close(rotation_axes(weights, 2), torch.tensor([[-1.0, 0.0], [0.6, -0.8], [0.0, 1.0]]))


def test_of_two_classes_the_axes_turn_the_head_around():
    weights = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    torch.testing.assert_close(rotation_axes(weights, 1), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))


def test_positions_are_products_in_units_of_the_scale():
    axes = torch.tensor([[0.6, 0.8], [1.0, 0.0]])
    found = positions_along(torch.tensor([[10.0, 5.0], [-4.0, 9.0]]), axes, 2.0)
    torch.testing.assert_close(found, torch.tensor([5.0, -2.0]))
