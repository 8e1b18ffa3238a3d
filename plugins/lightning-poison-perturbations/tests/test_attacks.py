import pytest

from lightning_poison import available_attacks, get_attack
from lightning_poison.testing import check_attack
from lightning_poison_perturbations import fgsm, pgd, smooth_pattern

NAMES = ("fgsm", "pgd", "random-sign", "smooth-pattern")


@pytest.mark.parametrize("name", NAMES)
def test_it_is_found_through_its_entry_point(name):
    (offer,) = [offer for offer in available_attacks() if offer.name == name]
    assert (offer.source.plugin, offer.source.distribution) == ("perturbations", "lightning-poison-perturbations")
    assert offer.summary
    assert get_attack(name, source_class=1).name == name


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("settings", [{}, {"source_class": 1, "class_fraction": 0.15}, {"ink_above": 0.4}])
def test_it_keeps_the_contract(name, settings):
    check_attack(get_attack(name, **settings))


def test_several_restarts_keep_it_too():
    check_attack(pgd(restarts=2, steps=2, batch_size=4))
    check_attack(pgd(random_start=False))


def test_settings_are_flat_and_complete(change):
    poison, _ = change(pgd(source_class=3, steps=2))
    assert poison.settings == {
        "source_class": 3,
        "class_fraction": None,
        "epsilon": 0.1,
        "ink_above": None,
        "steps": 2,
        "step_size": 0.25,
        "random_start": True,
        "restarts": 1,
        "batch_size": 256,
    }


class TestRefusals:
    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"epsilon": 8}, "epsilon=8 / 255"),
            ({"epsilon": 0}, "`epsilon`"),
            ({"source_class": -1}, "`source_class` to be an integer of at least 0"),
            ({"class_fraction": 0.5}, "a `source_class` to take `class_fraction` of"),
            ({"source_class": 1, "class_fraction": 0.0}, "`class_fraction` to be above 0"),
            ({"source_class": 1, "class_fraction": 30}, r"`class_fraction` to be a number in \[0, 1\]"),
            ({"ink_above": 25}, r"`ink_above` to be a number in \[0, 1\]"),
            ({"ink_above": 1}, "`ink_above` to be below 1"),
        ],
    )
    @pytest.mark.parametrize("name", NAMES)
    def test_settings(self, name, settings, said):
        with pytest.raises(ValueError, match=said):
            get_attack(name, **settings)

    @pytest.mark.parametrize(
        ("attack", "settings"),
        [
            (pgd, {"steps": 0}),
            (pgd, {"restarts": 0}),
            (pgd, {"step_size": 0.0}),
            (fgsm, {"batch_size": 0}),
            (smooth_pattern, {"cells": 1}),
        ],
    )
    def test_settings_of_a_change(self, attack, settings):
        with pytest.raises(ValueError, match=f"`{next(iter(settings))}`"):
            attack(**settings)
