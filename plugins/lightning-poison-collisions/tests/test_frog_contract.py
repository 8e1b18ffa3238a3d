"""What `FrogAttack` promises before it is run: its settings, its entry point, and the contract of attacks."""

from importlib.metadata import entry_points

import pytest

import lightning_poison_collisions
from lightning_poison.entry_points import GROUP
from lightning_poison.testing import check_attack
from lightning_poison_collisions import FrogAttack


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"beta": 0}, "`beta` to be a finite number above 0, but got 0"),
        ({"steps": 0}, "`steps` to be an integer of at least 1"),
        ({"placement": "prepend"}, "`placement` to be one of 'append', 'replace'"),
        ({"base_choice": "far"}, "`base_choice` to be one of 'nearest', 'random'"),
        ({"opacity": 1}, "`opacity` to be below 1"),
        ({"source_class": 3, "base_class": 3}, "`base_class` to be another class than `source_class`"),
        ({"source_class": -1}, "`source_class` to be an integer of at least 0"),
    ],
)
def test_settings_out_of_range(setting, message):
    with pytest.raises(ValueError, match=message):
        FrogAttack(**setting)


def test_it_is_found_by_its_entry_point():
    (entry,) = [entry for entry in entry_points(group=GROUP) if entry.dist.name == "lightning-poison-collisions"]
    assert entry.load() is lightning_poison_collisions
    attack = lightning_poison_collisions.lightning_poison_attacks()["poison-frog"]()
    assert (attack.name, attack.clean_label) == ("poison-frog", True)


def test_it_keeps_the_contract_of_attacks():
    check_attack(FrogAttack)
    check_attack(FrogAttack(placement="replace", base_choice="random"))
