import torch

from lightning_poison import PixelRange, Surrogate
from lightning_poison_shielding.box import PixelBox
from lightning_poison_shielding.frozen_features import FrozenFeatures
from lightning_poison_shielding.optimizer import images_gradient, shield

FREE = PixelRange(levels=None)


class Towards:
    """A head whose loss falls as the features fall, or rise where `way` is negative."""

    def __init__(self, way=1.0):
        self.way, self.calls = way, 0

    def gradient(self, features, measured=None):
        self.calls += 1
        return torch.full_like(features, self.way)


def plain(count=1):
    model = torch.nn.Flatten()
    return [FrozenFeatures(Surrogate(model, ""), PixelRange(), batch_size=4) for _ in range(count)]


def test_images_go_against_the_gradient_to_the_edge(generator):
    bases = torch.full((6, 1, 2, 2), 0.5)
    found = shield(PixelBox(bases, 0.2, FREE), plain(), [([[Towards()]], 30)], generator=generator)
    torch.testing.assert_close(found, bases - 0.2)


def test_what_comes_back_lies_on_the_grid_and_in_the_ball(generator):
    bases = (torch.rand(6, 1, 2, 2, generator=generator) * 16).round() / 16
    found = shield(PixelBox(bases, 0.2, PixelRange(levels=17)), plain(), [([[Towards()]], 2)], generator=generator)
    torch.testing.assert_close(found * 16, (found * 16).round())
    assert (found - bases).abs().max() <= 0.2 + 1e-6


def test_teams_take_turns_stage_by_stage(generator):
    first, second, third = (Towards() for _ in range(3))
    box = PixelBox(torch.full((2, 1, 2, 2), 0.5), 0.2, FREE)
    shield(box, plain(), [([[first]], 3), ([[second], [third]], 5)], generator=generator)
    assert (first.calls, second.calls, third.calls) == (3, 3, 2)


def test_steps_shrink_in_the_last_stage(generator):
    box = PixelBox(torch.full((2, 1, 2, 2), 0.5), 0.4, FREE)
    near = [shield(box, plain(), [([[Towards()]], 1)], generator=torch.Generator().manual_seed(0))]
    near.append(shield(box, plain(), [([[Towards()]], 2)], generator=torch.Generator().manual_seed(0)))
    torch.testing.assert_close(near[0] - near[1], torch.full_like(near[0], 0.4 * 0.125 * 0.55))


def test_each_surrogate_counts_the_same(generator):
    images = torch.rand(3, 1, 2, 2, generator=generator)
    found = images_gradient(images, plain(3), [Towards(1e-9), Towards(1.0), Towards(-1e9)])
    torch.testing.assert_close(found, torch.ones(3, 1, 2, 2))


def test_no_gradient_no_move():
    images = torch.rand(3, 1, 2, 2)
    assert (images_gradient(images, plain(), [Towards(0.0)]) == 0).all()
