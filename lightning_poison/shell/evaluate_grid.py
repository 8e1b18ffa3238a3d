"""The grid of an evaluation, of objects that other processes can load. Needs no torch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning_poison.evaluation.grid import Grid, GridAttack, GridDefense
from lightning_poison.shell.evaluate_parts import Crafting, HeldOutSurrogate, PartsOfSeed, Sanitization, Training
from lightning_poison.shell.evaluate_settings import (
    AttackSettings,
    DefenseSettings,
    EvaluationSettings,
    as_json,
)

KNOWS = " against "
"""Between the names of an adaptive attack and of the defense whose scorer it knows."""


def grid_of(
    settings: EvaluationSettings,
    shared: dict[str, Any],
    device: str,
    adaptive: Sequence[Sequence[str]],
    *,
    needs_preparation: frozenset[str],
) -> Grid:
    """Return the grid: the attacks that are listed, and adaptive attackers of the defenses that have one.

    Args:
        settings: What is evaluated.
        shared: What identifies data and model.
        device: `"cpu"` or `"cuda"`.
        adaptive: See `added_attacks`.
        needs_preparation: Names of the attacks that craft on a surrogate.
    """
    attacks = []
    for attack in [*settings.attacks, *added_attacks(settings, adaptive)]:
        evaded = [defense for name, defense in adaptive if name == attack.name]
        attacks.append(_grid_attack(attack, settings, evaded, needs_preparation=attack.name in needs_preparation))
    return Grid(
        PartsOfSeed(settings.data),
        Training(settings.data, settings.model, device),
        attacks,
        [GridDefense(each.name, Sanitization(each, device), _without_name(each)) for each in settings.defenses],
        settings.seeds,
        shared,
        HeldOutSurrogate(settings.data, settings.model, device),
    )


def _grid_attack(
    attack: AttackSettings, settings: EvaluationSettings, evaded: Sequence[str], *, needs_preparation: bool
) -> GridAttack:
    """Return an attack of the grid: one that knows a scorer meets that defense, an added one those that it evades."""
    key, known = _without_name(attack), None
    defenses = None if attack in settings.attacks else evaded
    if attack.against is not None:
        known = next(each for each in settings.defenses if each.name == attack.against)
        key["known"] = as_json(known)
        defenses = [attack.against]
    return GridAttack(
        attack.name,
        Crafting(attack, settings.data, known),
        key,
        defenses=defenses,
        adaptive_to=evaded,
        needs_preparation=needs_preparation,
    )


def _without_name(settings: AttackSettings | DefenseSettings) -> dict[str, Any]:
    return {key: value for key, value in as_json(settings).items() if key != "name"}


def added_attacks(settings: EvaluationSettings, adaptive: Sequence[Sequence[str]]) -> list[AttackSettings]:
    """Return the adaptive attacks that are not listed, with their default settings.

    Args:
        settings: What is evaluated.
        adaptive: Pairs of the name of an attack and of a defense that it was made to evade. An attack that is not
            listed is named `ATTACK`, or `ATTACK against DEFENSE` if it knows the scorer.
    """
    listed = {each.name for each in settings.attacks}
    added = []
    for name in dict.fromkeys(name for name, _ in adaptive):
        if name not in listed:
            attack, _, against = name.partition(KNOWS)
            added.append(replace(AttackSettings(name, attack), against=against or None))
    return added
