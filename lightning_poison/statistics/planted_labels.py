"""Wrong labels that are planted into the data themselves, to learn what a decision would find."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_poison.statistics.arguments import check_fraction, check_integer, check_label_vector, invalid


@dataclass(frozen=True)
class PlantedResult:
    """What happens to a decision when some labels are replaced by random ones.

    Args:
        power: Share of the planted wrong labels that is removed, in [0, 1].
        response: Increase of the estimated share of wrong labels, divided by the planted share. Close to 1 for an
            estimate that tells wrong labels from hard samples; close to 0 for one that does not.
    """

    power: float
    response: float


def plant_labels(labels: Tensor, share: float, *, num_classes: int, seed: int) -> tuple[Tensor, Tensor]:
    """Replace some labels by others, drawn uniformly from the other classes that occur.

    Args:
        labels: Labels in `[0, C)`, int64 `(N,)`.
        share: Share of the labels to replace, in (0, 1). At least one is replaced.
        num_classes: C, at least 2.
        seed: Seed of the choice of samples and labels.

    Returns:
        The labels, and the positions of those that were replaced, int64 `(P,)`.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> labels = torch.arange(100) % 3
        >>> replaced, planted = plant_labels(labels, 0.05, num_classes=3, seed=0)
        >>> len(planted), bool((replaced[planted] != labels[planted]).all()), int((replaced != labels).sum())
        (5, True, 5)
    """
    check_fraction("share", share)
    check_integer("num_classes", num_classes, minimum=2)
    check_label_vector("labels", labels, num_classes=num_classes)
    if len(torch.unique(labels)) < 2:
        raise invalid("labels", "of at least two classes", f"{len(torch.unique(labels))}")
    generator = torch.Generator().manual_seed(seed)
    count = max(1, round(share * len(labels)))
    planted = torch.randperm(len(labels), generator=generator)[:count]
    replaced = labels.clone()
    present = torch.unique(labels)
    steps = torch.randint(1, len(present), (count,), generator=generator)
    replaced[planted] = present[(torch.searchsorted(present, labels[planted]) + steps) % len(present)]
    return replaced, planted


def planted_result(
    labels: Tensor,
    decide: Callable[[Tensor], tuple[float, Tensor]],
    *,
    rate: float,
    num_classes: int,
    share: float = 0.05,
    repeats: int = 2,
) -> PlantedResult:
    """Plant wrong labels, decide anew, and measure what changes.

    The scores do not change: a sample is scored under every label by a model that was not fitted on it, and a few
    planted labels change the models of the other folds little. With few samples, a larger share is planted, so that at
    least 20 labels are.

    Args:
        labels: Labels in `[0, C)`, int64 `(N,)`.
        decide: Maps labels to the estimated share of wrong ones, in [0, 1], and the mask of the samples to keep.
        rate: What `decide` estimates for `labels`.
        num_classes: C, at least 2.
        share: Share of the labels that is replaced, in (0, 1). Default: 0.05.
        repeats: Number of plantings, over which the result is averaged. Default: 2.

    Example:
        >>> truth = torch.arange(1000) % 2
        >>> planted_result(
        ...     truth, lambda labels: (float((labels != truth).double().mean()), labels == truth), rate=0, num_classes=2
        ... )
        PlantedResult(power=1.0, response=1.0)
    """
    check_integer("repeats", repeats)
    share = min(0.2, max(share, _FEWEST / len(labels)))
    powers, responses = [], []
    for seed in range(repeats):
        replaced, planted = plant_labels(labels, share, num_classes=num_classes, seed=seed)
        estimate, keep = decide(replaced)
        powers.append(float((~keep[planted]).double().mean()))
        responses.append((estimate - rate) / (len(planted) / len(labels)))
    return PlantedResult(sum(powers) / repeats, sum(responses) / repeats)


_FEWEST = 20
"""Smallest number of labels to plant."""
