import pytest
import torch

from lightning_poison_collisions import FeatureDistance, collide_within, squared_norm
from lightning_poison_collisions.distances import MeanDistance, group_means

TARGET_OF = torch.tensor([0, 0, 0, 1, 1])


def identity(images):
    return images.flatten(1)


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(4, 1, 3, 3, generator=generator), torch.rand(4, 1, 3, 3, generator=generator)


@pytest.fixture
def linear(generator):
    """A linear map, five images for two targets, and the targets."""
    weight = torch.randn(4, 6, generator=generator)
    return (
        (lambda images: images @ weight.T),
        torch.rand(5, 6, generator=generator),
        torch.rand(2, 6, generator=generator),
    )


class TestFeatureDistance:
    def test_is_one_at_base_and_zero_at_target(self, pair):
        bases, targets = pair
        distance = FeatureDistance([identity], bases, targets)
        torch.testing.assert_close(distance(bases), torch.ones(4))
        torch.testing.assert_close(distance(targets), torch.zeros(4))
        torch.testing.assert_close(distance((bases + targets) / 2), torch.full((4,), 0.25))

    def test_is_independent_of_feature_scale(self, pair):
        bases, targets = pair
        images = bases.lerp(targets, 0.3)
        small, large = (FeatureDistance([lambda x, c=c: c * identity(x)], bases, targets) for c in (1e-2, 1e3))
        torch.testing.assert_close(small(images), large(images))

    def test_averages_maps_independent_of_their_scale(self, pair):
        bases, targets = pair

        def top(images):
            return 100 * images[:, :, 0].flatten(1)

        both = FeatureDistance([identity, top], bases, targets)
        moved = targets.clone()
        moved[:, :, 0] = bases[:, :, 0]
        alone = squared_norm(moved - targets) / squared_norm(bases - targets)
        torch.testing.assert_close(both(moved), (alone + 1) / 2)

    def test_is_finite_if_base_equals_target(self):
        images = torch.ones(1, 1, 2, 2)
        assert FeatureDistance([identity], images, images)(images).tolist() == [0.0]


class TestMeanDistance:
    def test_group_means(self):
        values = torch.tensor([[1.0, 0.0], [3.0, 4.0], [5.0, 5.0]])
        assert group_means(values, torch.tensor([1, 1, 0]), 2).tolist() == [[5.0, 5.0], [2.0, 2.0]]

    def test_matches_closed_form_for_linear_features(self, linear):
        extract, images, targets = linear
        values = MeanDistance([extract], targets, TARGET_OF)(images)
        for number, members in enumerate((slice(0, 3), slice(3, 5))):
            gap = extract(images[members].mean(0)) - extract(targets[number])
            expected = 0.5 * gap.square().sum() / extract(targets[number]).square().sum()
            torch.testing.assert_close(values[members], expected.expand_as(values[members]))

    def test_gradient_matches_finite_differences(self, linear):
        extract, images, targets = linear
        weight = extract(torch.eye(6)).T.double()

        def curved(inputs):
            return torch.tanh(inputs @ weight.T)

        distance = MeanDistance([curved], targets.double(), TARGET_OF)
        assert torch.autograd.gradcheck(distance, images.double().requires_grad_())

    def test_mean_reaches_target_that_no_single_image_reaches(self):
        bases, targets = torch.tensor([[0.2, 0.5], [0.8, 0.5]]), torch.tensor([[0.5, 0.6]])
        distance = MeanDistance([lambda images: images], targets, torch.tensor([0, 0]))
        found = collide_within(distance, bases, epsilon=0.12, steps=50)
        assert distance(found).max() < 1e-4
        assert (found - targets).norm(dim=1).min() > 0.15

    def test_targets_are_independent(self, linear):
        extract, images, targets = linear
        both = MeanDistance([extract], targets, TARGET_OF)(images)
        alone = MeanDistance([extract], targets[1:], torch.tensor([0, 0]))(images[3:])
        torch.testing.assert_close(both[3:], alone)

    def test_averages_maps_independent_of_their_scale(self, linear):
        extract, images, targets = linear
        maps = [extract, lambda inputs: 100 * inputs[:, :2]]
        terms = [MeanDistance([each], targets, TARGET_OF)(images) for each in maps]
        torch.testing.assert_close(MeanDistance(maps, targets, TARGET_OF)(images), torch.stack(terms).mean(0))
