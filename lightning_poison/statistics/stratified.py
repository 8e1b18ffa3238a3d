"""Splits that are stratified by class."""

import torch
from torch import Tensor

from lightning_poison.statistics.arguments import check_integer, invalid


def stratified_folds(labels: Tensor, folds: int, generator: torch.Generator) -> Tensor:
    """Assign samples to folds, with each class spread evenly over them.

    Args:
        labels: Labels, int64 `(N,)`.
        folds: Number of folds, at least 2.
        generator: Source of randomness.

    Returns:
        Fold of each sample, int64 `(N,)`.

    Raises:
        ValueError: If a class has fewer samples than there are folds.

    Example:
        >>> stratified_folds(torch.tensor([0, 0, 0, 0]), 2, torch.Generator().manual_seed(0)).bincount()
        tensor([2, 2])
    """
    check_integer("folds", folds, minimum=2)
    assigned = torch.empty_like(labels)
    for number in torch.unique(labels).tolist():
        members = (labels == number).nonzero().flatten()
        if len(members) < folds:
            hint = (
                "Use fewer folds, remove the class, or pass `trusted=` data. If there is no such class, fix the label "
                f"of sample {int(members[0])}."
            )
            raise invalid("folds", f"at most the {len(members)} samples of class {number}", folds, hint)
        start = int(torch.randint(folds, (1,), generator=generator))
        order = torch.randperm(len(members), generator=generator)
        assigned[members[order]] = (torch.arange(len(members)) + start) % folds
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
