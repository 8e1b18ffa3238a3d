"""Which samples become poison, and which label each class shall be read as."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_poison import checks

TargetClass = int | Literal["next"] | Sequence[int]
"""One class for all; `"next"`, y + 1 modulo the number of classes; or one for each class, in their order."""


def draw(candidates: Tensor, budget: int, what: str, generator: torch.Generator) -> Tensor:
    """Draw as many of the candidates as the budget says.

    Args:
        candidates: bool `(N,)`, the samples that can be used.
        budget: how many are wanted.
        what: what the candidates are, for messages.
        generator: draws.

    Returns:
        int64 `(budget,)`, positions in ascending order.

    Raises:
        ValueError: where there is none, or fewer than the budget.
    """
    places = candidates.nonzero().flatten()
    if not len(places):
        raise ValueError(f"Expected a training set with {what}, but it has none.")
    if budget > len(places):
        raise ValueError(
            f"Expected a budget of at most {len(places)}, the number of {what}, but got {budget}.\n"
            "Give the threat a smaller `budget`."
        )
    return places[torch.randperm(len(places), generator=generator)[:budget]].sort().values


def check_class(name: str, value: int, labels: Tensor) -> int:
    """Return a class if samples carry it.

    Raises:
        ValueError: where none does; the message lists the classes there are.
    """
    present = torch.unique(labels).tolist()
    if value not in present:
        listed = ", ".join(map(str, present[:20])) + (", …" if len(present) > 20 else "")
        raise ValueError(checks.expected(name, f"a class of the training set ({listed})", value))
    return value


def check_target_class(value: Any) -> TargetClass:
    """Return a `target_class` of the right type; a list of classes comes back as a list.

    Raises:
        ValueError: where it is none.
    """
    if value == "next":
        return "next"
    if isinstance(value, str) or not isinstance(value, int | Sequence | Tensor):
        hint = 'Write `target_class="next"` for y + 1.'
        raise ValueError(checks.expected("target_class", 'a class, "next", or a class for each class', value, hint))
    many = [value] if isinstance(value, int) else [int(each) for each in value]
    for each in many:
        checks.positive_int("target_class", each, minimum=0)
    return value if isinstance(value, int) else many


def check_source_class(source_class: int | None, target_class: TargetClass) -> int | None:
    """Return the class whose samples are attacked, `None` for all, if it is not the one that they shall be read as.

    Raises:
        ValueError: where it is, or is no class.
    """
    if source_class is not None and checks.positive_int("source_class", source_class, minimum=0) == target_class:
        raise ValueError(f"Expected `target_class` to be another than `source_class`, but both are {source_class}.")
    return source_class


def wanted_of_classes(target_class: TargetClass, labels: Tensor) -> Tensor:
    """Return what each class shall be read as, int64 `(C,)`.

    Raises:
        ValueError: where a class is not in the training set, or a list has another length or changes nothing.

    Example:
        >>> wanted_of_classes("next", torch.tensor([0, 1, 2, 2]))
        tensor([1, 2, 0])
    """
    classes = int(labels.max()) + 1
    same = torch.arange(classes)
    if target_class == "next":
        return (same + 1) % classes
    if isinstance(target_class, int):
        return torch.full_like(same, check_class("target_class", target_class, labels))
    wanted = torch.tensor(target_class)
    if len(wanted) != classes:
        raise ValueError(checks.expected("target_class", f"a class for each of {classes} classes", f"{len(wanted)}"))
    if int(wanted.max()) >= classes:
        raise ValueError(checks.expected("target_class", f"of classes below {classes}", int(wanted.max())))
    if torch.equal(wanted, same):
        raise ValueError(checks.expected("target_class", "another class for one class at least", "each class itself"))
    return wanted
