"""Which training samples are changed: a share of one class, drawn at random."""

import torch
from torch import Tensor

from lightning_poison import checks


def draw_share(
    labels: Tensor, budget: int, *, source_class: int | None, class_fraction: float | None, generator: torch.Generator
) -> Tensor:
    """Draw samples of a class: a share of it, or as many as the budget allows.

    Args:
        labels: int64 `(N,)`, of the training set.
        budget: how many samples may be changed.
        source_class: the class; any where it is `None`.
        class_fraction: what share of the class, in (0, 1]; as many as the budget where it is `None`.
        generator: draws them.

    Returns:
        int64 `(P,)`, ascending positions in the training set.

    Raises:
        ValueError: where the class has no sample, or fewer than the budget; or its share exceeds the budget.

    Example:
        >>> labels = torch.tensor([0, 1, 1, 0, 1, 1])
        >>> draw_share(labels, 9, source_class=1, class_fraction=1.0, generator=torch.Generator())
        tensor([1, 2, 4, 5])
    """
    members = torch.arange(len(labels)) if source_class is None else (labels == source_class).nonzero().flatten()
    if not len(members):
        found = ", ".join(map(str, sorted(set(labels.tolist()))[:20]))
        raise ValueError(checks.expected("source_class", f"a class of the data set ({found})", source_class))
    whose = "the data set" if source_class is None else f"class {source_class}"
    count = budget
    if class_fraction is not None:
        count = max(1, round(class_fraction * len(members)))
        if count > budget:
            what = f"at least {count}, which is `class_fraction` {class_fraction:g} of {whose}"
            raise ValueError(checks.expected("budget", what, budget, "Raise the budget, or lower `class_fraction`."))
    elif budget > len(members):
        hint = "Lower it, or say `class_fraction=1.0` for the whole class."
        raise ValueError(checks.expected("budget", f"at most {len(members)}, the samples of {whose}", budget, hint))
    return members[torch.randperm(len(members), generator=generator)[:count]].sort().values
