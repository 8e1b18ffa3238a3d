"""What of an evaluation depends on the installed plug-ins: names, adaptive attackers, and who needs a surrogate."""

from typing import Any

from lightning_poison.checks import describe, expected, printable
from lightning_poison.registry.registry import adaptive_attacks, attack_factory, get_attack
from lightning_poison.shell.evaluate_grid import KNOWS, added_attacks
from lightning_poison.shell.evaluate_parts import built_settings, scorer_of
from lightning_poison.shell.evaluate_settings import AttackSettings, EvaluationSettings


def check_names(settings: EvaluationSettings) -> None:
    """Build every attack and scorer once, so that a wrong name or setting is an error before anything is computed.

    Raises:
        UnknownNameError: If a name is unknown. The message has the closest ones.
        ValueError: If there is no such setting, or it is refused.
    """
    try:
        for attack in settings.attacks:
            knows = getattr(attack_factory(attack.attack), "knows_scorer", False)
            if knows != (attack.against is not None):
                what = "the name of the defense that the attack knows" if knows else "left out: the attack knows none"
                shown = printable(attack.name)
                raise ValueError(expected(f"against of {shown}", what, describe(attack.against)))
            if not knows:
                get_attack(attack.attack, **built_settings(attack.settings))
        for defense in settings.defenses:
            scorer_of(defense)
    except TypeError as error:
        raise ValueError(str(error)) from error


def adaptive_pairs(settings: EvaluationSettings) -> list[list[str]]:
    """Return pairs of the names of an adaptive attack and of a defense that it was made to evade.

    Those of attacks that are listed come first. With `adaptive`, the installed ones that are not listed follow.
    """
    pairs: list[list[str]] = []
    for attack in settings.attacks:
        evaded = _evaded(attack)
        names = [each.name for each in settings.defenses if each.scorer in evaded]
        pairs += [[attack.name, name] for name in names if attack.against in (None, name)]
    if settings.adaptive:
        for defense in settings.defenses:
            for entry in adaptive_attacks(defense.scorer):
                if any(each.attack == entry.name and each.against in (None, defense.name) for each in settings.attacks):
                    continue
                knows = getattr(entry.factory, "knows_scorer", False)
                pairs.append([f"{entry.name}{KNOWS}{defense.name}" if knows else entry.name, defense.name])
    return pairs


def needing_surrogates(settings: EvaluationSettings, adaptive: list[list[str]]) -> frozenset[str]:
    """Return the names of the attacks that craft on surrogates, or do not say that they do not."""
    attacks = [*settings.attacks, *added_attacks(settings, adaptive)]
    return frozenset(
        attack.name for attack in attacks if getattr(attack_factory(attack.attack), "needs_surrogates", True)
    )


def _evaded(attack: AttackSettings) -> tuple[str, ...]:
    factory: Any = attack_factory(attack.attack)
    return tuple(getattr(factory, "adaptive_to", ()))
