"""Raw images of a training set, and poison that carries other labels."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import Poison, Threat
from lightning_poison.attacks import Trigger, TriggerObjective
from lightning_poison.data import labels_of, read_raw
from lightning_poison_backdoors.choosing import TargetClass, check_class, draw, wanted_of_classes
from lightning_poison_backdoors.limits import check_change, check_dirty_labels_allowed


def raw_images(dataset: "Dataset[Any]", indices: Tensor) -> Tensor:
    """Return images as they are before the data set's transform, uint8 `(P, C, H, W)`.

    Raises:
        TypeError: where the data set's raw images cannot be reached.
        ValueError: where they differ in shape.
    """
    images = [read_raw(dataset, index) for index in indices.tolist()]
    for image, index in zip(images, indices.tolist(), strict=True):
        if image.shape != images[0].shape:
            raise ValueError(
                f"Expected raw images of one shape, but sample {index} has {tuple(image.shape)} and sample "
                f"{int(indices[0])} has {tuple(images[0].shape)}.\n"
                "Resize the images on disk, and not in the data set's transform."
            )
    return torch.stack(images)


def stamped(images: Tensor, trigger: Trigger) -> Tensor:
    """Return images, uint8 `(P, C, H, W)`, with the trigger on each."""
    return torch.stack([trigger(image) for image in images])


def relabeled_poison(
    name: str,
    dataset: "Dataset[Any]",
    threat: Threat,
    *,
    trigger: Trigger,
    test_trigger: Trigger,
    target_class: TargetClass,
    source_class: int | None,
    settings: Mapping[str, Any],
    generator: torch.Generator,
) -> Poison:
    """Return samples in whose place the same ones stand, with a trigger and with the label that it shall call.

    Args:
        name: of the attack.
        dataset: the training set.
        threat: the limits.
        trigger: what the poison carries.
        test_trigger: what the objective puts on test images.
        target_class: what triggered images shall be read as.
        source_class: poison images of this class only, and aim at those; `None` for all.
        settings: of the attack, what JSON can hold.
        generator: draws the samples.

    Raises:
        TypeError: where the raw images of the data set cannot be reached.
        ValueError: where the threat forbids it, a class is absent, or there are fewer samples than the budget.
    """
    check_dirty_labels_allowed(threat)
    labels = labels_of(dataset)
    wanted = wanted_of_classes(target_class, labels)
    able, what = wanted[labels] != labels, "samples that the trigger gives another label"
    if source_class is not None:
        able &= labels == check_class("source_class", source_class, labels)
        what = f"samples of class {source_class} that the trigger gives another label"
    chosen = draw(able, threat.budget, what, generator)
    images = raw_images(dataset, chosen)
    poisoned = stamped(images, trigger)
    check_change(threat, images, poisoned)
    goal = target_class if isinstance(target_class, int) else wanted
    return Poison(
        indices=chosen,
        labels=wanted[labels[chosen]],
        objective=TriggerObjective(test_trigger, goal, source_class),
        attack=name,
        inputs=poisoned,
        domain="raw",
        settings=dict(settings),
    )
