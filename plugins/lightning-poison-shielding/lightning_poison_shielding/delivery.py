"""What both attacks ask for, and hand over."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_poison import checks
from lightning_poison.objectives import Objective
from lightning_poison.poison import Poison
from lightning_poison.threat import Threat


def check_roles(protected_class: int, shield_class: int | None) -> None:
    """Check that the classes are two.

    Raises:
        ValueError: where one is no integer of at least 0, or they are the same.
    """
    checks.positive_int("protected_class", protected_class, minimum=0)
    if shield_class is None:
        return
    checks.positive_int("shield_class", shield_class, minimum=0)
    if shield_class == protected_class:
        raise ValueError(
            checks.expected("shield_class", f"another class than `protected_class` ({protected_class})", "the same")
        )


def check_placement(placement: str, poisons_per_base: int, threat: Threat | None = None) -> None:
    """Check that poison can be placed as asked.

    Raises:
        ValueError: where copies shall replace one base, or the threat forbids to append.
    """
    checks.one_of("placement", placement, ("append", "replace"))
    checks.positive_int("poisons_per_base", poisons_per_base)
    if placement == "replace" and poisons_per_base > 1:
        raise ValueError(
            checks.expected("poisons_per_base", 'one where `placement` is "replace"', poisons_per_base)
            + '\nCopies can only be appended: `placement="append"`.'
        )
    if placement == "append" and threat is not None and not threat.may_append:
        raise ValueError('Expected a threat that may append, but got one that may not.\nSet `placement="replace"`.')


def delivered(
    images: Tensor,
    bases: Tensor,
    shield_class: int,
    *,
    threat: Threat,
    length: int,
    placement: Literal["append", "replace"],
    objective: Objective,
    attack: str,
    settings: Mapping[str, Any],
) -> Poison:
    """Return the poison.

    Args:
        images: raw `(P, ...)` in [0, 1].
        bases: int64 `(P,)`, what they were made from.
        shield_class: their label.
        threat: says how samples are normalised.
        length: how many training samples there are.
        placement: where the poison goes.
        objective: what the attack wants.
        attack: its name.
        settings: what it was built with; the shield class is set to the one that was used.
    """
    appends = placement == "append"
    return Poison(
        indices=length + torch.arange(len(bases)) if appends else bases,
        base_indices=bases if appends else None,
        inputs=threat.pixels.from_raw(images.cpu()),
        labels=torch.full((len(bases),), shield_class),
        objective=objective,
        attack=attack,
        settings={**settings, "shield_class": shield_class},
    )
