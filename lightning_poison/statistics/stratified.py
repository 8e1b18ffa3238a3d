"""Splits that are stratified by class."""

import torch
from torch import Tensor

from lightning_poison.statistics.arguments import check_integer, invalid


def stratified_folds(labels: Tensor, folds: int, generator: torch.Generator, *, groups: Tensor | None = None) -> Tensor:
    """Assign samples to folds, with each class spread evenly over them.

    Args:
        labels: Labels, int64 `(N,)`.
        folds: Number of folds, at least 2.
        generator: Source of randomness.
        groups: Group of each sample, int64 `(N,)`. All samples of a group are assigned to the same fold. Default: each
            sample is a group.

    Returns:
        Fold of each sample, int64 `(N,)`.

    Raises:
        ValueError: If a class has samples in fewer groups than there are folds.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0])
        >>> stratified_folds(labels, 2, torch.Generator().manual_seed(0)).bincount()
        tensor([2, 2])
        >>> halves = stratified_folds(labels, 2, torch.Generator().manual_seed(0), groups=torch.tensor([0, 1, 1, 0]))
        >>> bool(halves[0] == halves[3] != halves[1] == halves[2])
        True
    """
    check_integer("folds", folds, minimum=2)
    units, unit = torch.unique(torch.arange(len(labels)) if groups is None else groups, return_inverse=True)
    classes, own = torch.unique(labels, return_inverse=True)
    drawn: list[tuple[Tensor, int]] = []
    main = _main_class(own, unit, len(units), len(classes))
    units_of_classes = torch.bincount(torch.unique(unit * len(classes) + own) % len(classes))
    for number in classes[units_of_classes < folds].tolist():
        _check_class(labels, unit, number, folds)
    by_class = torch.split(main.argsort(stable=True), torch.bincount(main, minlength=len(classes)).tolist())
    for members in by_class:
        start = int(torch.randint(folds, (1,), generator=generator))
        drawn.append((members[torch.randperm(len(members), generator=generator)], start))
    if len(units) < len(labels):
        return _balanced(own, unit, drawn, folds)[unit]
    assigned = torch.empty(len(units), dtype=torch.int64)
    for members, start in drawn:
        assigned[members] = (torch.arange(len(members)) + start) % folds
    return assigned[unit]


def _check_class(labels: Tensor, unit: Tensor, number: int, folds: int) -> None:
    members = (labels == number).nonzero().flatten()
    count = len(torch.unique(unit[members]))
    if count < folds:
        what = f"the {count} samples" if count == len(members) else f"the {count} groups"
        hint = (
            "Use fewer folds, remove the class, or pass `trusted=` data. If there is no such class, fix the label "
            f"of sample {int(members[0])}."
        )
        raise invalid("folds", f"at most {what} of class {number}", folds, hint)


def _main_class(own: Tensor, unit: Tensor, units: int, classes: int) -> Tensor:
    """Return the most frequent class of each unit, the smallest of equally frequent ones, int64 `(U,)`."""
    pairs, counts = torch.unique(unit * classes + own, return_counts=True)
    most = torch.zeros(units, dtype=torch.int64).scatter_reduce(0, pairs // classes, counts, "amax")
    is_most = counts == most[pairs // classes]
    return torch.full((units,), classes).scatter_reduce(
        0, (pairs // classes)[is_most], (pairs % classes)[is_most], "amin"
    )


def _balanced(own: Tensor, unit: Tensor, drawn: list[tuple[Tensor, int]], folds: int) -> Tensor:
    """Assign units to folds, the largest first, each where it keeps the classes most balanced, int64 `(U,)`."""
    classes, sizes = len(drawn), torch.bincount(unit)
    pairs, counts = torch.unique(unit * classes + own, return_counts=True)
    parts: list[list[tuple[int, int]]] = [[] for _ in range(len(sizes))]
    for code, count in zip(pairs.tolist(), counts.tolist(), strict=True):
        parts[code // classes].append((code % classes, count))
    share = (1 / torch.bincount(own, minlength=classes).double()).tolist()
    filled = [[0] * folds for _ in range(classes)]
    order = torch.cat([members for members, _ in drawn])
    starts = torch.cat([torch.full((len(members),), start) for members, start in drawn])
    by_size = sizes[order].argsort(descending=True, stable=True)
    assigned = torch.empty_like(sizes)
    for number, start in zip(order[by_size].tolist(), starts[by_size].tolist(), strict=True):
        turns = [*range(start, folds), *range(start)]
        costs = [sum(filled[label][each] * share[label] for label, _ in parts[number]) for each in range(folds)]
        fold = min(turns, key=costs.__getitem__)
        for label, count in parts[number]:
            filled[label][fold] += count
        assigned[number] = fold
    return assigned


def stratified_part(labels: Tensor, share: float, generator: torch.Generator, *, among: Tensor) -> Tensor:
    """Select a share of the samples of each class, at least one and never all.

    Args:
        labels: Labels of trusted samples, int64 `(N,)`.
        share: Share to select, in (0, 1).
        generator: Source of randomness.
        among: Classes to select from, int64. No sample of another class is selected.

    Returns:
        Mask of the selected samples, bool `(N,)`.

    Raises:
        ValueError: If a class has fewer than two samples.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
        >>> selected = stratified_part(labels, 0.3, torch.Generator().manual_seed(0), among=torch.tensor([0, 1]))
        >>> labels[selected]
        tensor([0, 1])
    """
    selected = torch.zeros(len(labels), dtype=torch.bool)
    for number in torch.unique(among).tolist():
        members = (labels == number).nonzero().flatten()
        if len(members) < 2:
            hint = "Fitting and calibration need one sample each."
            raise invalid("trusted", f"at least two samples of class {number}", len(members), hint)
        count = min(max(1, round(share * len(members))), len(members) - 1)
        selected[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return selected
