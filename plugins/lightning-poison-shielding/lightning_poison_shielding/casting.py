"""Which samples play which part: bases that carry the poison, and images that the attacker's loss is measured on."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_poison import checks

VALIDATION_SHARE = 0.25
"""How much of the owner's pool is kept back where the shield class has to be chosen."""


def draw_bases(
    labels: Tensor, shield_class: int, budget: int, *, poisons_per_base: int, generator: torch.Generator
) -> Tensor:
    """Draw the samples that poison is made from, each as often as the others, or once more.

    Args:
        labels: int64 `(N,)`, of the training set.
        shield_class: their class.
        budget: how many poisons.
        poisons_per_base: how often a sample may serve at most.
        generator: draws which.

    Returns:
        int64 `(budget,)`, positions in the training set.

    Raises:
        ValueError: where the class has no sample, or too few for the budget.

    Example:
        >>> draw_bases(torch.tensor([0, 1, 1]), 0, 2, poisons_per_base=2, generator=torch.Generator())
        tensor([0, 0])
    """
    members = members_of(labels, shield_class, "shield_class", "training set")
    if budget > poisons_per_base * len(members):
        raise ValueError(
            checks.expected(
                "budget",
                f"at most {poisons_per_base * len(members)}, as class {shield_class} has {len(members)} samples and "
                f"`poisons_per_base` is {poisons_per_base}",
                budget,
            )
            + f"\nLower it, or append copies: `poisons_per_base={math.ceil(budget / len(members))}`."
        )
    rounds = [members[torch.randperm(len(members), generator=generator)] for _ in range(-(-budget // len(members)))]
    return torch.cat(rounds)[:budget]


def members_of(labels: Tensor, class_index: int, name: str, where: str) -> Tensor:
    """Return the positions of a class's samples.

    Raises:
        ValueError: where there is none; the message lists the classes there are.
    """
    members = (labels == class_index).nonzero().flatten()
    if not len(members):
        there = ", ".join(map(str, torch.unique(labels).tolist()))
        raise ValueError(checks.expected(name, f"a class of the {where}, which holds {there}", class_index))
    return members


@dataclass(frozen=True)
class Pool:
    """Positions in the owner's pool: what the loss is measured on while crafting, and what is kept back.

    Args:
        outer: int64 `(M,)`.
        validation: int64 `(V,)`; empty where nothing has to be chosen.
    """

    outer: Tensor
    validation: Tensor


def divide_pool(
    labels: Tensor, protected_class: int, *, others: int, validate: bool, generator: torch.Generator
) -> Pool:
    """Divide the owner's pool: all protected images, and a random part of the others.

    Args:
        labels: int64 `(H,)`, of the pool.
        protected_class: all of its images are used: with few, the poison fits them and no others.
        others: how many images of other classes are used at most.
        validate: whether `VALIDATION_SHARE` of either kind is kept back.
        generator: draws which.

    Raises:
        ValueError: where the pool holds no protected image, no other one, or too few to keep some back.
    """
    protected = members_of(labels, protected_class, "protected_class", "held-out set")
    rest = (labels != protected_class).nonzero().flatten()
    if not len(rest) or (validate and len(protected) < 2):
        raise ValueError(
            checks.expected(
                "holdout",
                "a pool of protected images and others, with two protected ones where a shield class is to be chosen",
                f"{len(protected)} images of class {protected_class} and {len(rest)} others",
            )
        )
    kept, back = [], []
    for group, most in ((protected, len(protected)), (rest, others)):
        shuffled = group[torch.randperm(len(group), generator=generator)][:most]
        held = math.ceil(VALIDATION_SHARE * len(shuffled)) if validate else 0
        back.append(shuffled[:held])
        kept.append(shuffled[held:])
    return Pool(torch.cat(kept), torch.cat(back))
