"""Sharing samples out, each class evenly."""

import torch
from torch import Tensor

from lightning_poison.checks import expected, positive_int


def stratified_folds(labels: Tensor, folds: int, generator: torch.Generator) -> Tensor:
    """Share samples out over folds, each class evenly.

    Args:
        labels: int64 `(N,)`.
        folds: how many folds, at least 2.
        generator: the source of randomness.

    Returns:
        int64 `(N,)`, the fold of each sample.

    Raises:
        ValueError: where a class has fewer samples than there are folds.

    Example:
        >>> stratified_folds(torch.tensor([0, 0, 0, 0]), 2, torch.Generator().manual_seed(0)).bincount()
        tensor([2, 2])
    """
    positive_int("folds", folds, minimum=2)
    assigned = torch.empty_like(labels)
    for number in torch.unique(labels).tolist():
        members = (labels == number).nonzero().flatten()
        if len(members) < folds:
            raise ValueError(
                expected("folds", f"at most the {len(members)} samples of class {number}", folds)
                + "\nUse fewer folds, leave the class out, or give `trusted=` data; or mend the label of sample "
                f"{int(members[0])}, if there is no such class."
            )
        start = int(torch.randint(folds, (1,), generator=generator))
        order = torch.randperm(len(members), generator=generator)
        assigned[members[order]] = (torch.arange(len(members)) + start) % folds
    return assigned


def stratified_part(labels: Tensor, share: float, generator: torch.Generator, *, among: Tensor) -> Tensor:
    """Choose a share of the samples of each class, at least one and never all.

    Args:
        labels: int64 `(N,)`, of trusted samples.
        share: how many, in (0, 1).
        generator: the source of randomness.
        among: int64, the classes to choose from; of others nothing is chosen.

    Returns:
        bool `(N,)`, `True` where a sample is chosen.

    Raises:
        ValueError: where a class has fewer than two samples.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1, 2])
        >>> chosen = stratified_part(labels, 0.3, torch.Generator().manual_seed(0), among=torch.tensor([0, 1]))
        >>> labels[chosen]
        tensor([0, 1])
    """
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for number in torch.unique(among).tolist():
        members = (labels == number).nonzero().flatten()
        if len(members) < 2:
            raise ValueError(
                expected("trusted", f"at least two samples of class {number}", len(members))
                + "\nOne is needed to fit on, and one to calibrate on."
            )
        count = min(max(1, round(share * len(members))), len(members) - 1)
        chosen[members[torch.randperm(len(members), generator=generator)[:count]]] = True
    return chosen
