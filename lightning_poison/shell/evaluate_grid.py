"""The grid of an evaluation, of objects that other processes can load. Needs no torch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lightning_poison.evaluation.grid import Grid, GridAttack, GridDefense
from lightning_poison.shell.evaluate_parts import Crafting, HeldOutSurrogate, PartsOfSeed, Sanitization, Training
from lightning_poison.shell.evaluate_settings import AttackSettings, EvaluationSettings, as_json

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
    by_name = {each.name: each for each in settings.defenses}
    attacks = []
    for attack in [*settings.attacks, *added_attacks(settings, adaptive)]:
        against = [defense for name, defense in adaptive if name == attack.name]
        known = by_name[attack.against] if attack.against is not None else None
        key = as_json(attack)
        del key["name"]
        if known is not None:
            key["known"] = as_json(known)
        listed = any(each.name == attack.name for each in settings.attacks)
        attacks.append(
            GridAttack(
                attack.name,
                Crafting(attack, settings.data, known),
                key,
                defenses=[attack.against] if attack.against is not None else None if listed else against,
                adaptive_to=against,
                needs_preparation=attack.name in needs_preparation,
            )
        )
    defenses = []
    for defense in settings.defenses:
        key = as_json(defense)
        del key["name"]
        defenses.append(GridDefense(defense.name, Sanitization(defense, device), key))
    return Grid(
        PartsOfSeed(settings.data),
        Training(settings.data, settings.model, device),
        attacks,
        defenses,
        settings.seeds,
        shared,
        HeldOutSurrogate(settings.data, settings.model, device),
    )


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
