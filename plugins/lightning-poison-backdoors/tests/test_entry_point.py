"""Entry point of the distribution, and loading saved poison in a process that has not imported it."""

import subprocess
import sys

import pytest

from lightning_poison import Poison, available_attacks, get_attack
from lightning_poison.testing import check_attack
from lightning_poison_backdoors import (
    AdaptiveBlend,
    AdaptivePatch,
    BadNets,
    Blended,
    CleanLabelBackdoor,
    Refool,
    SampleSpecific,
    Sig,
    TaCT,
    WaNet,
)

ATTACKS = {
    "badnets": BadNets,
    "blended": Blended,
    "sig": Sig,
    "clean-label-backdoor": CleanLabelBackdoor,
    "adaptive-patch": AdaptivePatch,
    "adaptive-blend": AdaptiveBlend,
    "wanet": WaNet,
    "refool": Refool,
    "sample-specific": SampleSpecific,
    "tact": TaCT,
}


@pytest.mark.parametrize("name", ATTACKS)
def test_entry_point_offers_attack(name):
    (offer,) = [offer for offer in available_attacks() if offer.name == name]
    assert (offer.source.plugin, offer.source.distribution) == ("backdoors", "lightning-poison-backdoors")
    assert offer.summary.endswith(".")
    attack = get_attack(name, target_class=2)
    assert type(attack) is ATTACKS[name]
    assert (attack.name, attack.target_class) == (name, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "attack",
    [
        BadNets(),
        BadNets("next", amplitude=0.5),
        BadNets([0, 2, 1], pattern=[[255, 0]], row=0, column=2),
        BadNets(1, source_class=2),
        Blended(),
        Blended("next", amplitude=0.1, test_amplitude=0.3),
        Sig(1, amplitude=20 / 255, test_amplitude=60 / 255, frequency=2),
        CleanLabelBackdoor(steps=3),
        CleanLabelBackdoor(norm="l2", epsilon=1.5, steps=3, corners=1),
        AdaptivePatch(),
        AdaptiveBlend(2, pieces=2),
        WaNet(),
        WaNet("next", control_points=3, strength=1.5),
        WaNet(cover_share=0.5),
        Refool(),
        Refool(1, clean_label=True, ghost_share=1),
        SampleSpecific(),
        SampleSpecific("next", amplitude=8 / 255),
        TaCT(),
        TaCT(2, source_class=0, cover_share=0.3),
    ],
    ids=repr,
)
def test_satisfies_attack_contract(attack):
    check_attack(attack)


@pytest.mark.parametrize("name", ATTACKS)
def test_settings_rebuild_attack(name, poison_of, images, surrogate_of):
    attack = get_attack(name, target_class=1)
    poison = poison_of(attack, images, surrogates=[surrogate_of(images)])
    assert repr(get_attack(name, **poison.settings)) == repr(attack)


LOAD = """
import os, sys
from lightning_poison.entry_points import DISABLED
from lightning_poison import Poison

print("lightning_poison_backdoors" in sys.modules)
os.environ[DISABLED] = "backdoors"
try:
    Poison.load(sys.argv[1])
except ValueError as error:
    print(error)
del os.environ[DISABLED]
print(type(Poison.load(sys.argv[1]).objective.trigger).__name__)
"""


@pytest.mark.slow
def test_fresh_process_imports_plugin_or_names_distribution(tmp_path, poison_of, images):
    path = tmp_path / "sig.safetensors"
    poison_of(Sig(), images).save(path)
    command = [sys.executable, "-c", LOAD, str(path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()  # noqa: S603
    assert printed[0] == "False"
    assert printed[1].endswith("but got 'sinusoid' of the distribution `lightning-poison-backdoors`.")
    assert printed[2].startswith("Install or update that distribution, and check that LIGHTNING_POISON_DISABLED")
    assert printed[3] == "SinusoidTrigger"


def test_nested_triggers_survive_saving(tmp_path, poison_of, images):
    poison = poison_of(AdaptivePatch(), images)
    poison.save(tmp_path / "poison")
    trigger = Poison.load(tmp_path / "poison").objective.trigger
    assert repr(trigger) == repr(poison.objective.trigger)
    assert (trigger(images.data[0]) == poison.objective.trigger(images.data[0])).all()
