import pytest
import torch

from lightning_poison import PixelRange
from lightning_poison_collisions.distance import FeatureDistance, value_and_gradient
from lightning_poison_collisions.evading import EvadingDistance, retreat
from lightning_poison_collisions.known_scorers import KnownScorer
from lightning_poison_collisions.signed_adam import descend_within

RAW = PixelRange()


class Coordinate:
    """Scores by one pixel."""

    is_control, is_fitted = False, True

    def __init__(self, place):
        self.name, self.place = f"coordinate-{place}", place

    def score_batch(self, inputs, labels):
        return inputs.flatten(1)[:, self.place]


def known(place, cuts=(0.4,)):
    return KnownScorer(Coordinate(place), torch.tensor(cuts), torch.full((len(cuts),), 0.1))


def evading(defenses, *, bases, targets, labels=None, **settings):
    settings = {"weight": 50.0, "slack": 0.0} | settings
    labels = torch.zeros(len(bases)).long() if labels is None else labels
    distance = FeatureDistance([lambda images: images.flatten(1)], bases, targets)
    return EvadingDistance(distance, defenses, labels, RAW, **settings)


def descended(distance, bases):
    return descend_within(
        lambda images: value_and_gradient(distance, images), bases, epsilon=1.0, steps=200, step_size=0.05
    )[0]


def test_the_hinge_is_free_below_the_threshold():
    bases, targets = torch.zeros(1, 2), torch.ones(1, 2)
    images = torch.tensor([[0.4, 1.0]])
    plain = FeatureDistance([lambda images: images.flatten(1)], bases, targets)(images)
    torch.testing.assert_close(evading([known(0)], bases=bases, targets=targets)(images), plain)
    over = evading([known(0)], bases=bases, targets=targets)(torch.tensor([[0.5, 1.0]]))
    torch.testing.assert_close(over, torch.tensor([0.125 + 50.0]))


def test_the_soft_penalty_goes_on_below_it():
    bases, targets = torch.zeros(1, 2), torch.ones(1, 2)
    value = evading([known(0)], bases=bases, targets=targets, penalty="soft", weight=1.0)(bases)
    torch.testing.assert_close(value, torch.tensor([1.0 - 4.0]))


def test_it_parks_at_the_thresholds_of_both():
    """The optimum is known: each coordinate as far toward its target as its scorer allows, the third all the way."""
    bases, targets = torch.zeros(1, 3), torch.ones(1, 3)
    distance = evading([known(0), known(1, (0.6,))], bases=bases, targets=targets)
    found = descended(distance, bases)
    torch.testing.assert_close(found, torch.tensor([[0.4, 0.6, 1.0]]), atol=0.02, rtol=0)


def test_thresholds_are_those_of_the_labels():
    bases, targets = torch.zeros(2, 1), torch.ones(2, 1)
    distance = evading([known(0, (0.2, 0.7))], bases=bases, targets=targets, labels=torch.tensor([1, 0]))
    found = descended(distance, bases)
    torch.testing.assert_close(found, torch.tensor([[0.7], [0.2]]), atol=0.02, rtol=0)


@pytest.mark.parametrize("cut", [0.3, 0.9])
def test_what_is_noticed_is_pulled_back_until_it_passes(cut):
    bases, images = torch.zeros(3, 1), torch.tensor([[0.2], [0.6], [1.0]])
    found = retreat(bases, images, lambda moved: moved[:, 0] <= cut)
    torch.testing.assert_close(found, images.clamp(max=cut), atol=1e-3, rtol=0)
    assert bool((found <= cut).all())


def test_what_never_passes_stays():
    images = torch.tensor([[0.6]])
    assert torch.equal(retreat(torch.zeros(1, 1), images, lambda moved: moved[:, 0] < -1), images)
