import math

import pytest
import torch

from lightning_poison import PixelRange, Surrogate, Threat
from lightning_poison.data import labels_of
from lightning_poison_shielding import bilevel
from lightning_poison_shielding.bilevel import (
    PixelBox,
    Shield,
    ShieldCrafter,
    choose_shield,
    normalized_gradient,
    optimize_images,
)
from lightning_poison_shielding.frozen_features import FrozenFeatures
from lightning_poison_shielding.shielding_data import read_data

FREE = PixelRange(levels=None)


class TestPixelBox:
    @pytest.mark.parametrize(("radius", "levels"), [(8 / 255, 256), (0.3, 256), (0.1, 17), (1.0, 2)])
    def test_rounded_images_have_gray_levels_and_stay_in_ball(self, generator, radius, levels):
        bases = (torch.rand(5, 1, 4, 4, generator=generator) * (levels - 1)).round() / (levels - 1)
        wanted = torch.rand(5, 1, 4, 4, generator=generator) * 3 - 1
        found = PixelBox(bases, radius, PixelRange(levels=levels)).round(wanted)
        steps = found * (levels - 1)
        torch.testing.assert_close(steps, steps.round().clamp(0, levels - 1), atol=1e-4, rtol=0)
        assert (found - bases).abs().max() <= radius + 1e-6

    def test_reaches_integer_number_of_levels(self):
        bases = torch.arange(200) / 255
        found = PixelBox(bases, 8 / 255, PixelRange()).round(bases + 1)
        torch.testing.assert_close(found, bases + 8 / 255)

    def test_pixel_without_admissible_level_is_unchanged(self):
        box = PixelBox(torch.tensor([0.27]), 0.01, PixelRange(levels=11))
        assert box.round(torch.tensor([0.9])).tolist() == box.bases.tolist()

    def test_stays_in_range_without_gray_levels(self):
        box = PixelBox(torch.tensor([0.1, 0.9]), 0.3, PixelRange(levels=None))
        torch.testing.assert_close(box.round(torch.tensor([-1.0, 0.75])), torch.tensor([0.0, 0.75]))
        torch.testing.assert_close(box.clamp(torch.tensor([2.0, 2.0])), torch.tensor([0.4, 1.0]))


class ConstantHead:
    """A head with a constant gradient in all features."""

    def __init__(self, value=1.0):
        self.value, self.calls = value, 0

    def gradient(self, features, rows=None):
        self.calls += 1
        return torch.full_like(features, self.value)


def identity_features(count=1):
    model = torch.nn.Flatten()
    return [FrozenFeatures(Surrogate(model, ""), PixelRange(), batch_size=4) for _ in range(count)]


def test_images_move_against_gradient_to_edge_of_ball(generator):
    bases = torch.full((6, 1, 2, 2), 0.5)
    box, stages = PixelBox(bases, 0.2, FREE), [([[ConstantHead()]], 30)]
    found = optimize_images(box, identity_features(), stages, generator=generator)
    torch.testing.assert_close(found, bases - 0.2)


def test_result_has_gray_levels_and_stays_in_ball(generator):
    bases = (torch.rand(6, 1, 2, 2, generator=generator) * 16).round() / 16
    box, stages = PixelBox(bases, 0.2, PixelRange(levels=17)), [([[ConstantHead()]], 2)]
    found = optimize_images(box, identity_features(), stages, generator=generator)
    torch.testing.assert_close(found * 16, (found * 16).round())
    assert (found - bases).abs().max() <= 0.2 + 1e-6


def test_heads_alternate_within_stage(generator):
    first, second, third = (ConstantHead() for _ in range(3))
    box = PixelBox(torch.full((2, 1, 2, 2), 0.5), 0.2, FREE)
    optimize_images(box, identity_features(), [([[first]], 3), ([[second], [third]], 5)], generator=generator)
    assert (first.calls, second.calls, third.calls) == (3, 3, 2)


def test_step_size_decays_in_last_stage():
    box = PixelBox(torch.full((2, 1, 2, 2), 0.5), 0.4, FREE)
    one, two = (
        optimize_images(
            box, identity_features(), [([[ConstantHead()]], steps)], generator=torch.Generator().manual_seed(0)
        )
        for steps in (1, 2)
    )
    torch.testing.assert_close(one - two, torch.full_like(one, 0.4 * 0.125 * 0.55))


def test_surrogates_contribute_equally(generator):
    images = torch.rand(3, 1, 2, 2, generator=generator)
    heads = [ConstantHead(value) for value in (1e-9, 1.0, -1e9)]
    found = normalized_gradient(images, identity_features(3), heads)
    torch.testing.assert_close(found, torch.ones(3, 1, 2, 2))


def test_zero_gradient_gives_zero():
    images = torch.rand(3, 1, 2, 2)
    assert (normalized_gradient(images, identity_features(), [ConstantHead(0.0)]) == 0).all()


@pytest.fixture
def crafter(dataset, pool, surrogate, pixels, generator):
    def build(*, budget=40, copies=2, replace=False, validate=True, steps=(5, 6)):
        threat = Threat(budget, 0.4, pixels=pixels)
        settings = {"protected_class": 3, "others": 300, "validate": validate, "batch_size": 256}
        data = read_data(dataset, threat, [surrogate], pool, generator=generator, **settings)
        return ShieldCrafter(
            data,
            threat,
            3,
            protected_weight=1.0,
            poisons_per_base=copies,
            replace=replace,
            steps=steps,
            generator=generator,
        )

    return build


def test_candidates_have_enough_samples(crafter, dataset):
    counts = labels_of(dataset).bincount() * 2
    candidates = [number for number, count in enumerate(counts.tolist()) if count >= 55 and number != 3]
    assert crafter(budget=55).candidates() == candidates


def test_refuses_budget_above_limit_of_all_classes(crafter):
    with pytest.raises(ValueError, match=r"at most 78, the limit of the largest shield class, but got 79"):
        crafter(budget=79).candidates()


def test_crafts_poison_of_class(crafter, dataset):
    shield = crafter().craft(9)
    assert shield.shield_class == 9
    assert (labels_of(dataset)[shield.bases] == 9).all()
    assert shield.images.shape == (40, 1, 8, 8)
    assert 0 < shield.loss < 2


def test_loss_is_nan_without_validation_images(crafter):
    assert math.isnan(crafter(validate=False).craft(9).loss)


def test_screening_crafts_fewer_poisons(crafter, monkeypatch):
    monkeypatch.setattr(bilevel, "SCREENING_POISONS", 15)
    shield = crafter().screen(9)
    assert len(shield.bases) == len(shield.images) == 15


def test_more_steps_lower_validation_loss(crafter):
    assert crafter(steps=(20, 10)).craft(9).loss < 0.8 * crafter(steps=(1, 1)).craft(9).loss


def test_heads_are_trained_without_replaced_bases(crafter, monkeypatch, dataset):
    head_data = []
    ridge_head = bilevel.RidgeHead
    monkeypatch.setattr(
        bilevel, "RidgeHead", lambda data, *rest, **more: head_data.append(data) or ridge_head(data, *rest)
    )
    crafter(budget=20, copies=1, replace=True).craft(9)
    crafter(budget=20, copies=1).craft(9)
    assert [len(data.training) for data in head_data] == [len(dataset) - 20, len(dataset)]


class FixedLosses:
    """A crafter with given losses."""

    def __init__(self, screened, crafted):
        self.screened, self.crafted, self.calls = screened, crafted, []

    def candidates(self):
        return list(self.screened)

    def screen(self, number):
        return Shield(number, torch.zeros(0), torch.zeros(0), self.screened[number])

    def craft(self, number):
        self.calls.append(number)
        return Shield(number, torch.zeros(0), torch.zeros(0), self.crafted[number])


def test_chooses_best_of_best_screened_classes():
    crafter = FixedLosses({1: 0.5, 2: 0.1, 4: 0.9, 5: 0.2}, {1: 0.0, 2: 0.4, 5: 0.3})
    assert choose_shield(crafter, finalists=2).shield_class == 5
    assert crafter.calls == [2, 5]
