import pytest
import torch

from lightning_poison_collisions.bounded import collide_within
from lightning_poison_collisions.polytope import MeanDistance, group_means

TARGET_OF = torch.tensor([0, 0, 0, 1, 1])


@pytest.fixture
def linear(generator):
    """A linear map, five images for two targets, and the targets."""
    weight = torch.randn(4, 6, generator=generator)
    return (lambda images: images @ weight.T), torch.rand(5, 6, generator=generator), torch.rand(2, 6)


def test_group_means():
    values = torch.tensor([[1.0, 0.0], [3.0, 4.0], [5.0, 5.0]])
    assert group_means(values, torch.tensor([1, 1, 0]), 2).tolist() == [[5.0, 5.0], [2.0, 2.0]]


def test_linear_features_have_a_closed_form(linear):
    extract, images, targets = linear
    values = MeanDistance([extract], targets, TARGET_OF)(images)
    for number, members in enumerate((slice(0, 3), slice(3, 5))):
        gap = extract(images[members].mean(0)) - extract(targets[number])
        expected = 0.5 * gap.square().sum() / extract(targets[number]).square().sum()
        torch.testing.assert_close(values[members], expected.expand_as(values[members]))


def test_the_gradient_is_that_of_finite_differences(linear):
    extract, images, targets = linear
    weight = extract(torch.eye(6)).T.double()

    def curved(inputs):
        return torch.tanh(inputs @ weight.T)

    distance = MeanDistance([curved], targets.double(), TARGET_OF)
    assert torch.autograd.gradcheck(distance, images.double().requires_grad_())


def test_a_mean_may_hit_the_bullseye_where_no_single_image_does():
    bases, targets = torch.tensor([[0.2, 0.5], [0.8, 0.5]]), torch.tensor([[0.5, 0.6]])
    distance = MeanDistance([lambda images: images], targets, torch.tensor([0, 0]))
    found = collide_within(distance, bases, epsilon=0.12, steps=50)
    assert distance(found).max() < 1e-4
    assert (found - targets).norm(dim=1).min() > 0.15


def test_targets_have_no_part_in_each_other(linear):
    extract, images, targets = linear
    both = MeanDistance([extract], targets, TARGET_OF)(images)
    alone = MeanDistance([extract], targets[1:], torch.tensor([0, 0]))(images[3:])
    torch.testing.assert_close(both[3:], alone)


def test_several_maps_count_evenly_whatever_their_scale(linear):
    extract, images, targets = linear
    maps = [extract, lambda inputs: 100 * inputs[:, :2]]
    terms = [MeanDistance([each], targets, TARGET_OF)(images) for each in maps]
    torch.testing.assert_close(MeanDistance(maps, targets, TARGET_OF)(images), torch.stack(terms).mean(0))
