import torch

from lightning_poison_collisions.bounded import collide_within
from lightning_poison_collisions.distance import FeatureDistance


def test_linear_features_have_a_closed_form():
    weight = torch.tensor([1.0, -2.0, 0.5, 0.0])
    bases, targets = torch.full((1, 4), 0.5), torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    distance = FeatureDistance([lambda images: images @ weight[:, None]], bases, targets)
    found = collide_within(distance, bases, epsilon=0.1, steps=20)
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.4, 0.6, 0.5]]))


def test_it_stays_in_ball_and_range(nonlinear):
    bases, distance = nonlinear
    images = collide_within(distance, bases, epsilon=0.1, steps=15)
    assert (images - bases).abs().max() <= 0.1 + 1e-6
    assert images.min() >= 0
    assert images.max() <= 1
    assert (distance(images) < 0.95).all()


def test_the_best_point_is_kept(nonlinear):
    bases, distance = nonlinear
    wild = collide_within(distance, bases, epsilon=0.3, steps=5, step_size=0.6)
    assert (distance(wild) <= 1 + 1e-6).all()


def test_a_start_outside_the_ball_is_projected(nonlinear):
    bases, distance = nonlinear
    images = collide_within(distance, bases, epsilon=0.05, steps=1, start=torch.ones_like(bases))
    assert (images - bases).abs().max() <= 0.05 + 1e-6
