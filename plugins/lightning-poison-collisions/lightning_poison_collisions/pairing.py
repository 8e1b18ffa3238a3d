"""Which samples become poison, and which test samples they shall collide with."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_poison.checks import expected


@dataclass(frozen=True)
class Pairs:
    """Poison by poison, grouped by target.

    Args:
        bases: int64 `(P,)`, positions in the training set.
        targets: int64 `(T,)`, positions in the held-out set.
        target_of: int64 `(P,)`, which of the targets each poison is meant for, ascending.
        wanted: int64 `(T,)`, the label of each target's bases.
    """

    bases: Tensor
    targets: Tensor
    target_of: Tensor
    wanted: Tensor


def group_sizes(budget: int, poisons_per_target: int) -> list[int]:
    """Share a budget out over targets: as many as get `poisons_per_target` or more, evenly; one at least.

    Example:
        >>> group_sizes(10, 4), group_sizes(3, 4)
        ([5, 5], [3])
    """
    return shared_out(budget, max(1, budget // poisons_per_target))


def shared_out(budget: int, count: int) -> list[int]:
    """Share a budget out over so many targets, evenly.

    Example:
        >>> shared_out(10, 4)
        [3, 3, 2, 2]
    """
    return [budget // count + (position < budget % count) for position in range(count)]


def draw_targets(
    labels: Tensor, count: int, *, source_class: int | None, base_class: int | None, generator: torch.Generator
) -> Tensor:
    """Draw targets from the held-out set: of the class to be misread, or of any but the bases'.

    Args:
        labels: int64 `(M,)`, of the held-out set.
        count: how many.
        source_class: the class to be misread; any where it is `None`.
        base_class: the class of the bases; any where it is `None`.
        generator: the source of randomness.

    Returns:
        int64 `(count,)`, positions in the held-out set, each once.

    Raises:
        ValueError: where there are too few.
    """
    allowed = torch.ones_like(labels, dtype=torch.bool) if source_class is None else labels == source_class
    if base_class is not None:
        allowed &= labels != base_class
    found = allowed.nonzero().flatten()
    if len(found) < count:
        other = "" if base_class is None else f" of a class other than {base_class}"
        which = other if source_class is None else f" of class {source_class}"
        raise ValueError(
            expected("holdout", f"a data set with at least {count} samples{which}, one a target", f"{len(found)}")
            + "\nHold out more samples, lower the budget, or raise `poisons_per_target`."
        )
    return found[torch.randperm(len(found), generator=generator)[:count]]


def draw_pool(labels: Tensor, size: int, *, base_class: int | None, generator: torch.Generator) -> Tensor:
    """Draw the training samples among which bases are looked for.

    Args:
        labels: int64 `(N,)`, of the training set.
        size: how many at most.
        base_class: the class of the bases; any where it is `None`.
        generator: the source of randomness.

    Returns:
        int64 `(size or fewer,)`, positions in the training set, each once.

    Raises:
        ValueError: where the training set has no sample of the class.
    """
    allowed = torch.ones_like(labels, dtype=torch.bool) if base_class is None else labels == base_class
    found = allowed.nonzero().flatten()
    if not len(found):
        classes = ", ".join(str(label) for label in sorted(set(labels.tolist()))[:40])
        raise ValueError(expected("base_class", f"a class of the training set ({classes})", base_class))
    return found[torch.randperm(len(found), generator=generator)[:size]]


def pick_bases(
    costs: Iterable[Tensor], sizes: list[int], pool_labels: Tensor, target_labels: Tensor, *, once: bool
) -> tuple[list[Tensor], Tensor]:
    """Pick each target's bases: the cheapest of one class, that of the cheapest sample of a class with enough of them.

    Args:
        costs: for each target, what each sample of the pool costs, `(M,)`.
        sizes: how many bases each target gets.
        pool_labels: int64 `(M,)`.
        target_labels: int64 `(T,)`; the bases are of another class than their target.
        once: a sample is the base of one poison at most.

    Returns:
        For each target, positions in the pool; and the class of its bases, int64 `(T,)`.

    Raises:
        ValueError: where no class has enough bases for a target.
    """
    free = torch.ones_like(pool_labels, dtype=torch.bool)
    picked, wanted = [], torch.empty_like(target_labels)
    for position, (cost, size) in enumerate(zip(costs, sizes, strict=True)):
        allowed = free & (pool_labels != target_labels[position])
        counts = torch.bincount(pool_labels[allowed], minlength=int(pool_labels.max()) + 1)
        if int(counts.max()) < size:
            raise ValueError(
                f"Expected {size} bases of one class for each target, but got at most {int(counts.max())} among "
                f"{len(pool_labels)} candidates.\n"
                'Raise `candidates`, lower the budget or `poisons_per_target`, or set `placement="append"`.'
            )
        allowed &= counts[pool_labels] >= size
        wanted[position] = pool_labels[torch.where(allowed, cost, torch.inf).argmin()]
        allowed &= pool_labels == wanted[position]
        chosen = torch.where(allowed, cost, torch.inf).argsort(stable=True)[:size]
        free[chosen] &= not once
        picked.append(chosen)
    return picked, wanted
