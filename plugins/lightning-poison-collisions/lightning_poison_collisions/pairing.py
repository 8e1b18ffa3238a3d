"""Pairing of bases with targets: group sizes, random draws, and the choice of the cheapest bases."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_poison.attacks import known_class
from lightning_poison.checks import expected
from lightning_poison_collisions.distances import squared_norm


@dataclass(frozen=True)
class Pairs:
    """Bases and targets of poison grouped by target.

    Args:
        bases: Positions in the training set, int64 `(P,)`.
        targets: Positions in the held-out set, int64 `(T,)`.
        target_of: Target of each poison, int64 `(P,)`, ascending.
        wanted: Label of the bases of each target, int64 `(T,)`.
    """

    bases: Tensor
    targets: Tensor
    target_of: Tensor
    wanted: Tensor


def group_sizes(budget: int, poisons_per_target: int) -> list[int]:
    """Divide a budget evenly among as many targets as can have at least `poisons_per_target`, at least one target.

    Example:
        >>> group_sizes(10, 4), group_sizes(3, 4)
        ([5, 5], [3])
    """
    return even_sizes(budget, max(1, budget // poisons_per_target))


def even_sizes(budget: int, count: int) -> list[int]:
    """Divide a budget evenly among `count` targets.

    Example:
        >>> even_sizes(10, 4)
        [3, 3, 2, 2]
    """
    return [budget // count + (position < budget % count) for position in range(count)]


def whole_groups(sizes: Sequence[int], limit: int) -> list[Tensor]:
    """Split poison grouped by target into blocks that contain all poisons of their targets.

    Args:
        sizes: Number of poisons of each target.
        limit: Maximum number of poisons in a block. A block with a single target may exceed it.

    Returns:
        Positions of each block, int64 `(B,)`.

    Example:
        >>> whole_groups([2, 2, 3], 4)
        [tensor([0, 1, 2, 3]), tensor([4, 5, 6])]
    """
    lengths: list[int] = []
    for size in sizes:
        if lengths and lengths[-1] + size <= limit:
            lengths[-1] += size
        else:
            lengths.append(size)
    return list(torch.split(torch.arange(sum(sizes)), lengths))


def draw_targets(
    labels: Tensor, count: int, *, source_class: int | None, base_class: int | None, generator: torch.Generator
) -> Tensor:
    """Draw targets from the held-out set.

    Args:
        labels: Labels of the held-out set, int64 `(M,)`.
        count: Number of targets.
        source_class: Class of the targets. `None`: any class but `base_class`.
        base_class: Class of the bases. `None`: any class.
        generator: The only source of randomness.

    Returns:
        Distinct positions in the held-out set, int64 `(count,)`.

    Raises:
        ValueError: If there are too few.
    """
    allowed = torch.ones_like(labels, dtype=torch.bool) if source_class is None else labels == source_class
    if base_class is not None:
        allowed &= labels != base_class
    eligible = allowed.nonzero().flatten()
    if len(eligible) < count:
        other = "" if base_class is None else f" of a class other than {base_class}"
        which = other if source_class is None else f" of class {source_class}"
        what = f"a data set with at least {count} samples{which}, one for each target"
        hint = "Hold out more samples, lower the budget, or raise `poisons_per_target`."
        raise ValueError(expected("holdout", what, len(eligible), hint))
    return eligible[torch.randperm(len(eligible), generator=generator)[:count]]


def draw_pool(labels: Tensor, size: int, *, base_class: int | None, generator: torch.Generator) -> Tensor:
    """Draw the training samples from which bases are chosen.

    Args:
        labels: Labels of the training set, int64 `(N,)`.
        size: Maximum number of samples.
        base_class: Class of the bases. `None`: any class.
        generator: The only source of randomness.

    Returns:
        Distinct positions in the training set, int64 `(size or fewer,)`.

    Raises:
        ValueError: If the training set has no sample of the class.
    """
    allowed = torch.ones_like(labels, dtype=torch.bool)
    if base_class is not None:
        allowed = labels == known_class("base_class", base_class, labels)
    eligible = allowed.nonzero().flatten()
    return eligible[torch.randperm(len(eligible), generator=generator)[:size]]


def pick_bases(
    costs: Iterable[Tensor], sizes: list[int], pool_labels: Tensor, target_labels: Tensor, *, once: bool
) -> tuple[list[Tensor], Tensor]:
    """Pick the cheapest bases of one class for each target: the class of the cheapest sample with enough bases.

    Args:
        costs: Cost of each sample of the pool, `(M,)`, for each target.
        sizes: Number of bases of each target.
        pool_labels: Labels of the pool, int64 `(M,)`.
        target_labels: Labels of the targets, int64 `(T,)`. Bases have another class than their target.
        once: Whether a sample can be the base of only one poison.

    Returns:
        Positions in the pool for each target, and the class of its bases, int64 `(T,)`.

    Raises:
        ValueError: If no class has enough bases for a target.
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


def distances_to_each(targets: Sequence[Tensor], candidates: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield, for each target, its squared feature distance to each candidate, `(M,)`, on the CPU.

    The distances of each feature map are divided by their mean and then summed over the maps.

    Args:
        targets: Features `(T, D)` of each map.
        candidates: Features `(M, D)` of each map.
    """
    for features in zip(*targets, strict=True):
        distances = [squared_norm(others - own) for own, others in zip(features, candidates, strict=True)]
        yield torch.stack([(each / each.mean()).cpu() for each in distances]).sum(0)
