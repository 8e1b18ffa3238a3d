import pytest

from lightning_poison.shell.evaluate_grid import added_attacks
from lightning_poison.shell.evaluate_plan import adaptive_pairs, check_names, needing_surrogates
from lightning_poison.shell.evaluate_settings import read_settings


def settings(attacks, defenses, **more):
    return read_settings(None, {"data": "digits", "attacks": attacks, "defenses": defenses} | more)


def test_adaptive_attackers_of_the_defenses_are_added():
    asked = settings(["badnets"], ["likelihood", {"name": "groups", "scorer": "spectral-signatures"}])
    pairs = adaptive_pairs(asked)
    assert ["adaptive-frog against likelihood", "likelihood"] in pairs
    assert ["adaptive-patch", "groups"] in pairs
    added = {attack.name: attack for attack in added_attacks(asked, pairs)}
    frog = added["adaptive-frog against likelihood"]
    assert (frog.attack, frog.against) == ("adaptive-frog", "likelihood")
    assert (added["adaptive-patch"].attack, added["adaptive-patch"].against) == ("adaptive-patch", None)
    assert needing_surrogates(asked, pairs) == {"adaptive-frog against likelihood"}


def test_listed_adaptive_attacks_are_not_added_again():
    frog = {"name": "evading", "attack": "adaptive-frog", "against": "likelihood"}
    asked = settings([frog, "adaptive-patch"], ["likelihood", "balanced"])
    pairs = adaptive_pairs(asked)
    assert pairs[:2] == [["evading", "likelihood"], ["adaptive-patch", "balanced"]]
    assert [attack.name for attack in added_attacks(asked, pairs)] == ["adaptive-blend"]


def test_none_is_added_on_request():
    assert adaptive_pairs(settings(["badnets"], ["balanced"], adaptive=False)) == []


def test_attack_that_knows_a_scorer_needs_a_defense():
    with pytest.raises(ValueError, match="against"):
        check_names(settings(["adaptive-frog"], ["likelihood"]))
