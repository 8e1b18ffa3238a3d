"""`Backdoor`: the base of backdoor attacks, which draws samples, applies a trigger and assigns labels."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import Poison, Surrogate, Threat, checks
from lightning_poison.attacks import COVER, Trigger, TriggerObjective, known_class
from lightning_poison.data import labels_of, read_raw

TargetClass = int | Literal["next"] | Sequence[int]
"""One class for all samples; `"next"`, y + 1 modulo the number of classes; or one class for each class, in order."""

Images = Dataset[Any]
"""A data set whose raw images can be read."""

_GRAY_LEVEL = 1 / 255


class Backdoor(ABC):
    """A backdoor attack: some training images carry a trigger, and a trained model responds to it.

    Poison replaces the samples from which it is made. Subclasses are dataclasses whose fields are the settings. They
    define `_triggers`, and `_prepare`, `_apply` or `_roles` if needed.
    """

    name = "backdoor"
    clean_label = False
    needs_surrogates = False

    target_class: TargetClass
    source_class: int | None = None

    def __repr__(self) -> str:
        settings = {
            name: tuple(value.shape) if isinstance(value, Tensor) else value for name, value in vars(self).items()
        }
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in settings.items())})"

    def settings(self) -> dict[str, Any]:
        """Return the settings as JSON values, patterns as nested lists. The constructor accepts them."""
        return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in vars(self).items()}

    def craft(
        self,
        dataset: "Dataset[Any]",
        threat: Threat,
        *,
        surrogates: Sequence[Surrogate],
        holdout: "Dataset[Any] | None",
        generator: torch.Generator,
    ) -> Poison:
        """Return `threat.budget` samples with the trigger.

        Args:
            dataset: Training set whose raw images can be read.
            threat: Budget, pixel range and whether labels may change. Its `epsilon` bounds the total change of an
                image.
            surrogates: Models to craft on, for attacks that need them.
            holdout: Other images, for attacks that need them. Default: those of `dataset`.
            generator: The only source of randomness.

        Raises:
            TypeError: If the raw images of the data set cannot be read.
            ValueError: If the threat requires clean labels and the attack changes labels, a class is absent, there are
                fewer samples than the budget, the trigger does not fit the images, or the change exceeds the threat's
                epsilon.
        """
        if threat.clean_label and not self.clean_label:
            raise ValueError(
                "Expected a threat that allows label changes, but got `clean_label=True`.\n"
                "Use a clean-label attack: `sig` or `clean-label-backdoor`."
            )
        source = dataset if holdout is None else holdout
        trigger, test_trigger = self._triggers(read_raw(dataset, 0), source, generator)
        labels = labels_of(dataset)
        new_labels = class_map(self.target_class, labels)
        chosen = self._draw(labels, new_labels, threat.budget, generator)
        role = self._roles(labels[chosen], generator)
        originals = raw_images(dataset, chosen)
        images = self._prepare(originals, dataset, chosen, threat, surrogates, generator)
        poisoned = self._apply(trigger, images, role, generator)
        check_change(threat, originals, poisoned)
        goal = self.target_class if isinstance(self.target_class, int) else new_labels
        return Poison(
            indices=chosen,
            labels=torch.where(role == 0, new_labels[labels[chosen]], labels[chosen]),
            objective=TriggerObjective(test_trigger, goal, self.source_class),
            attack=self.name,
            inputs=poisoned,
            role=role,
            domain="raw",
            settings=self.settings(),
        )

    @abstractmethod
    def _triggers(self, image: Tensor, source: Images, generator: torch.Generator) -> Sequence[Trigger]:
        """Return the triggers of the poison and of test images, for images of the shape of `image`.

        `source` has other images from which a trigger can be made.
        """

    def _draw(self, labels: Tensor, new_labels: Tensor, budget: int, generator: torch.Generator) -> Tensor:
        """Draw samples of the target class for clean-label attacks, else samples whose label changes."""
        if self.clean_label:
            return draw(labels == new_labels[labels], budget, f"samples of class {self.target_class}", generator)
        eligible, what = new_labels[labels] != labels, "samples whose label the attack changes"
        if self.source_class is not None:
            eligible &= labels == known_class("source_class", self.source_class, labels)
            what = f"samples of class {self.source_class} whose label the attack changes"
        return draw(eligible, budget, what, generator)

    def _roles(self, labels: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Return the role of each sample from its true label, int64 `(P,)`. Default: poison."""
        return torch.zeros_like(labels)

    def _prepare(
        self,
        images: Tensor,
        dataset: "Dataset[Any]",  # noqa: ARG002
        indices: Tensor,  # noqa: ARG002
        threat: Threat,  # noqa: ARG002
        surrogates: Sequence[Surrogate],  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> Tensor:
        """Change images before the trigger is applied. Default: no change."""
        return images

    def _apply(self, trigger: Trigger, images: Tensor, role: Tensor, generator: torch.Generator) -> Tensor:  # noqa: ARG002
        """Apply the trigger to images, uint8 `(P, C, H, W)`, with their roles `(P,)`."""
        return torch.stack([trigger(image) for image in images])


def draw(candidates: Tensor, budget: int, what: str, generator: torch.Generator) -> Tensor:
    """Draw `budget` of the candidates.

    Args:
        candidates: Eligible samples, bool `(N,)`.
        budget: Number of samples.
        what: Description of the candidates for error messages.
        generator: The only source of randomness.

    Returns:
        Positions in ascending order, int64 `(budget,)`.

    Raises:
        ValueError: If there are no candidates, or fewer than the budget.
    """
    positions = candidates.nonzero().flatten()
    if not len(positions):
        raise ValueError(f"Expected a training set with {what}, but it has none.")
    if budget > len(positions):
        hint = "Lower the budget of the threat."
        raise ValueError(checks.expected("budget", f"at most {len(positions)}, the number of {what}", budget, hint))
    return positions[torch.randperm(len(positions), generator=generator)[:budget]].sort().values


def cover_count(count: int, cover_share: float) -> int:
    """Return how many of `count` samples are cover, so that at least one is poison."""
    return min(round(cover_share * count), count - 1)


def draw_covers(count: int, cover_share: float, generator: torch.Generator) -> Tensor:
    """Draw the cover samples among `count` samples; at least one sample is poison.

    Args:
        count: Number of samples.
        cover_share: Share of cover samples, in [0, 1).
        generator: The only source of randomness.

    Returns:
        Role of each sample, int64 `(count,)`.
    """
    role = torch.zeros(count, dtype=torch.int64)
    role[torch.randperm(count, generator=generator)[: cover_count(count, cover_share)]] = COVER
    return role


def check_cover_share(value: float) -> float:
    """Return a `cover_share` in [0, 1).

    Raises:
        ValueError: If it is out of range.
    """
    if checks.share("cover_share", value) == 1:
        raise ValueError(checks.expected("cover_share", "below 1, so that some samples are poison", 1))
    return float(value)


def check_target_class(value: Any) -> TargetClass:
    """Return a valid `target_class`; a sequence of classes becomes a list.

    Raises:
        ValueError: If it is not a class, `"next"` or a sequence of classes.
    """
    if value == "next":
        return "next"
    if isinstance(value, str) or not isinstance(value, int | Sequence | Tensor):
        hint = 'Write `target_class="next"` for y + 1.'
        raise ValueError(checks.expected("target_class", 'a class, "next", or a class for each class', value, hint))
    classes = [value] if isinstance(value, int) else [int(each) for each in value]
    for each in classes:
        checks.positive_int("target_class", each, minimum=0)
    return value if isinstance(value, int) else classes


def check_source_class(source_class: int | None, target_class: TargetClass) -> int | None:
    """Return a `source_class` that differs from `target_class`.

    Raises:
        ValueError: If it is the target class or not a class.
    """
    if source_class is not None and checks.positive_int("source_class", source_class, minimum=0) == target_class:
        raise ValueError(f"Expected `source_class` and `target_class` to differ, but both are {source_class}.")
    return source_class


def class_map(target_class: TargetClass, labels: Tensor) -> Tensor:
    """Return the class that the attacker wants for images of each class, int64 `(C,)`.

    Raises:
        ValueError: If a class is not in the training set, or a list has another length or changes nothing.

    Example:
        >>> class_map("next", torch.tensor([0, 1, 2, 2]))
        tensor([1, 2, 0])
    """
    classes = int(labels.max()) + 1
    identity = torch.arange(classes)
    if target_class == "next":
        return (identity + 1) % classes
    if isinstance(target_class, int):
        return torch.full_like(identity, known_class("target_class", target_class, labels))
    mapping = torch.tensor(target_class)
    if len(mapping) != classes:
        raise ValueError(checks.expected("target_class", f"a list of {classes} classes, one for each", len(mapping)))
    if int(mapping.max()) >= classes:
        raise ValueError(checks.expected("target_class", f"a list of classes below {classes}", int(mapping.max())))
    if torch.equal(mapping, identity):
        raise ValueError(checks.expected("target_class", "a list that changes at least one class", "the identity"))
    return mapping


def raw_images(dataset: "Dataset[Any]", indices: Tensor) -> Tensor:
    """Return images before the data set's transform, uint8 `(P, C, H, W)`.

    Raises:
        TypeError: If the data set's raw images cannot be read.
        ValueError: If they differ in shape.
    """
    images = [read_raw(dataset, index) for index in indices.tolist()]
    for image, index in zip(images, indices.tolist(), strict=True):
        if image.shape != images[0].shape:
            raise ValueError(
                f"Expected raw images of one shape, but sample {index} has {tuple(image.shape)} and sample "
                f"{int(indices[0])} has {tuple(images[0].shape)}.\n"
                "Resize the images on disk, not in the data set's transform."
            )
    return torch.stack(images)


def check_change(threat: Threat, before: Tensor, after: Tensor) -> None:
    """Refuse poison that changes a pixel by more than the threat's epsilon, if it has one.

    Args:
        threat: Its `epsilon` bounds the total change, including the trigger.
        before: Original images, uint8 `(P, C, H, W)`.
        after: Poison made from them.

    Raises:
        ValueError: If the change is larger.
    """
    if threat.epsilon is None:
        return
    largest = int((after.int() - before.int()).abs().max())
    if largest * _GRAY_LEVEL > threat.epsilon + _GRAY_LEVEL / 100:
        raise ValueError(
            f"Expected poison that changes no pixel by more than the threat's epsilon of {threat.epsilon:.4g}, but the "
            f"trigger changes one by {largest} / 255.\n"
            "Lower the `amplitude` of the trigger, or set no `epsilon` in the threat: triggers may be visible."
        )
