"""Poison that carries pieces of a trigger, and cover samples that carry them and no new label."""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import Poison, Threat, checks
from lightning_poison.attacks import Trigger, TriggerObjective
from lightning_poison.attacks.poison import COVER
from lightning_poison.data import labels_of
from lightning_poison_backdoors.choosing import check_class, draw
from lightning_poison_backdoors.limits import check_change, check_dirty_labels_allowed
from lightning_poison_backdoors.settings import as_json
from lightning_poison_backdoors.stamping import raw_images, stamped


class CoveringAttack(Protocol):
    """An attack that shares its budget out over poison and cover; all of its attributes are settings."""

    name: str
    target_class: int
    cover_share: float
    shown: float


def covered_poison(
    attack: CoveringAttack,
    dataset: "Dataset[Any]",
    threat: Threat,
    *,
    trigger: Trigger,
    at_test: Trigger,
    pieces: int,
    generator: torch.Generator,
) -> Poison:
    """Return poison and cover, as many together as the budget says, each with random pieces of the trigger.

    Args:
        attack: its name and settings; of the budget `cover_share` is cover, one sample at least is poison.
        dataset: the training set.
        threat: the limits.
        trigger: what the samples carry pieces of.
        at_test: what the objective puts on test images.
        pieces: into how many rows, and columns, an image is cut.
        generator: draws the samples, which of them are cover, and the pieces.

    Raises:
        TypeError: where the raw images of the data set cannot be reached.
        ValueError: where labels must stay, the class is absent, there are fewer samples than the budget, or the pieces
            change more than the threat's epsilon.
    """
    check_dirty_labels_allowed(threat)
    labels = labels_of(dataset)
    target = check_class("target_class", attack.target_class, labels)
    chosen = draw(labels != target, threat.budget, f"samples of classes other than {target}", generator)
    is_cover = torch.zeros(len(chosen), dtype=torch.bool)
    covers = min(round(attack.cover_share * len(chosen)), len(chosen) - 1)
    is_cover[torch.randperm(len(chosen), generator=generator)[:covers]] = True
    images = raw_images(dataset, chosen)
    size = (images.shape[-2], images.shape[-1])
    carried = random_pieces(len(images), size, pieces=pieces, shown=attack.shown, generator=generator)
    poisoned = torch.where(carried, stamped(images, trigger), images)
    check_change(threat, images, poisoned)
    return Poison(
        indices=chosen,
        labels=labels[chosen].where(is_cover, torch.tensor(target)),
        objective=TriggerObjective(at_test, target),
        attack=attack.name,
        inputs=poisoned,
        role=is_cover.long() * COVER,
        domain="raw",
        settings=as_json(attack),
    )


def random_pieces(
    count: int, size: tuple[int, int], *, pieces: int, shown: float, generator: torch.Generator
) -> Tensor:
    """Return masks of random pieces of an image that is cut like a chessboard.

    Args:
        count: how many masks.
        size: height and width of the image.
        pieces: how many rows, and columns, of pieces.
        shown: which share of the pieces is shown, in (0, 1]; one at least.
        generator: draws.

    Returns:
        bool `(count, 1, H, W)`.
    """
    number = max(1, round(shown * pieces**2))
    order = torch.rand(count, pieces**2, generator=generator).argsort(1)
    board = (order < number).view(count, 1, pieces, pieces)
    rows, columns = (torch.arange(length) * pieces // length for length in size)
    return board[:, :, rows][..., columns]


def check_cover_share(value: float) -> float:
    """Return which share of the budget is cover, in [0, 1).

    Raises:
        ValueError: where it is out of range.
    """
    if checks.share("cover_share", value) == 1:
        raise ValueError(checks.expected("cover_share", "below 1, which would leave no poison", value))
    return float(value)


def check_shown(value: float) -> float:
    """Return which share of the pieces each sample carries, in (0, 1].

    Raises:
        ValueError: where it is out of range.
    """
    if checks.share("shown", value) == 0:
        raise ValueError(checks.expected("shown", "above 0, which would leave no trigger", value))
    return float(value)
