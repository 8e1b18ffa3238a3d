import pytest
import torch

from lightning_poison_collisions.distance import FeatureDistance, squared_norm


def identity(images):
    return images.flatten(1)


@pytest.fixture
def pair():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(4, 1, 3, 3, generator=generator), torch.rand(4, 1, 3, 3, generator=generator)


def test_it_is_one_at_the_base_and_zero_at_the_target(pair):
    bases, targets = pair
    distance = FeatureDistance([identity], bases, targets)
    torch.testing.assert_close(distance(bases), torch.ones(4))
    torch.testing.assert_close(distance(targets), torch.zeros(4))
    torch.testing.assert_close(distance((bases + targets) / 2), torch.full((4,), 0.25))


def test_the_scale_of_the_features_does_not_matter(pair):
    bases, targets = pair
    images = bases.lerp(targets, 0.3)
    small, large = (FeatureDistance([lambda x, c=c: c * identity(x)], bases, targets) for c in (1e-2, 1e3))
    torch.testing.assert_close(small(images), large(images))


def test_several_maps_count_evenly_whatever_their_scale(pair):
    bases, targets = pair

    def top(images):
        return 100 * images[:, :, 0].flatten(1)

    both = FeatureDistance([identity, top], bases, targets)
    moved = targets.clone()
    moved[:, :, 0] = bases[:, :, 0]
    alone = squared_norm(moved - targets) / squared_norm(bases - targets)
    torch.testing.assert_close(both(moved), (alone + 1) / 2)


def test_a_base_that_collides_already_gives_finite_values():
    images = torch.ones(1, 1, 2, 2)
    assert FeatureDistance([identity], images, images)(images).tolist() == [0.0]
