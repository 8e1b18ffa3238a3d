import math

import pytest
import torch

from lightning_poison import Threat
from lightning_poison.data import labels_of
from lightning_poison_shielding import shields
from lightning_poison_shielding.scene import look
from lightning_poison_shielding.shields import Shield, ShieldMaker, choose_shield


@pytest.fixture
def maker(dataset, pool, surrogate, pixels, generator):
    def build(*, budget=40, copies=2, replaces=False, validate=True, steps=(5, 6)):
        threat = Threat(budget, 0.4, pixels=pixels)
        settings = {"protected_class": 3, "others": 300, "validate": validate, "batch_size": 256}
        scene = look(dataset, threat, [surrogate], pool, generator=generator, **settings)
        return ShieldMaker(
            scene,
            threat,
            3,
            protected_weight=1.0,
            poisons_per_base=copies,
            replaces=replaces,
            steps=steps,
            generator=generator,
        )

    return build


def test_candidates_have_samples_enough(maker, dataset):
    counts = labels_of(dataset).bincount() * 2
    able = [one for one, count in enumerate(counts.tolist()) if count >= 55 and one != 3]
    assert maker(budget=55).candidates() == able


def test_no_candidate(maker):
    with pytest.raises(ValueError, match=r"at most 78, what the largest shield class allows, but got 79"):
        maker(budget=79).candidates()


def test_a_shield_of_the_class(maker, dataset):
    made = maker().in_full(9)
    assert made.shield_class == 9
    assert (labels_of(dataset)[made.bases] == 9).all()
    assert made.images.shape == (40, 1, 8, 8)
    assert 0 < made.loss < 2


def test_without_images_kept_back_there_is_no_loss(maker):
    assert math.isnan(maker(validate=False).in_full(9).loss)


def test_in_short_there_are_fewer_poisons(maker, monkeypatch):
    monkeypatch.setattr(shields, "SCREENING_POISONS", 15)
    made = maker().in_short(9)
    assert len(made.bases) == len(made.images) == 15


def test_more_steps_lower_the_loss_on_what_was_kept_back(maker):
    assert maker(steps=(20, 10)).in_full(9).loss < 0.8 * maker(steps=(1, 1)).in_full(9).loss


def test_replaced_bases_are_not_seen_by_the_head(maker, monkeypatch, dataset):
    seen = []
    real = shields.RidgeHead
    monkeypatch.setattr(shields, "RidgeHead", lambda known, *rest, **more: seen.append(known) or real(known, *rest))
    maker(budget=20, copies=1, replaces=True).in_full(9)
    maker(budget=20, copies=1).in_full(9)
    assert [len(known.training) for known in seen] == [len(dataset) - 20, len(dataset)]


class Told:
    """A maker whose losses are known."""

    def __init__(self, short, full):
        self.short, self.full, self.asked = short, full, []

    def candidates(self):
        return list(self.short)

    def in_short(self, one):
        return Shield(one, torch.zeros(0), torch.zeros(0), self.short[one])

    def in_full(self, one):
        self.asked.append(one)
        return Shield(one, torch.zeros(0), torch.zeros(0), self.full[one])


def test_the_best_in_short_are_tried_in_full_and_the_best_of_these_wins():
    told = Told({1: 0.5, 2: 0.1, 4: 0.9, 5: 0.2}, {1: 0.0, 2: 0.4, 5: 0.3})
    assert choose_shield(told, finalists=2).shield_class == 5
    assert told.asked == [2, 5]
