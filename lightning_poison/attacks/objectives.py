"""What counts as success of an attack, by kind, so that it can be saved and measured by anyone.

Each objective turns a clean test set into an evaluation set of items `(input, true label, label the attacker wants)`,
where −1 stands for "any other label", and judges a model's predictions on it.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import checks
from lightning_poison.attacks.evaluation_sets import InstanceSet, RelabeledSet, TriggeredSet
from lightning_poison.attacks.triggers import Trigger, triggers
from lightning_poison.data.labels import labels_of
from lightning_poison.data.raw_images import resolve
from lightning_poison.serialization import KindRegistry

ANY_OTHER = -1
"""The wanted label of an attacker who is content with any label but the true one."""


def attacker_succeeds(predictions: Tensor, true: Tensor, wanted: Tensor, *, reference: Tensor | None = None) -> Tensor:
    """Judge each item: is the prediction what the attacker wants?

    Args:
        predictions: int64 `(N,)`, the labels that a model predicts.
        true: int64 `(N,)`, the true labels.
        wanted: int64 `(N,)`, the labels that the attacker wants; −1 for any other than the true one.
        reference: int64 `(N,)`, what a model that was trained without poison predicts. Where it is given, an item on
            which that model fails the same way is no success: the attack did not cause it.

    Returns:
        bool `(N,)`.

    Example:
        >>> attacker_succeeds(torch.tensor([1, 2, 3]), torch.tensor([0, 2, 0]), torch.tensor([1, 1, -1]))
        tensor([ True, False,  True])
    """
    met = torch.where(wanted == ANY_OTHER, predictions != true, predictions == wanted)
    if reference is None:
        return met
    return met & ~torch.where(wanted == ANY_OTHER, reference != true, reference == wanted)


@runtime_checkable
class Objective(Protocol):
    """What an attacker wants, and when it has got it."""

    kind: ClassVar[str]

    def evaluation_set(self, test: "Dataset[Any]") -> "Dataset[tuple[Any, int, int]]":
        """Return items `(input, true label, wanted label)`; the wanted label is −1 for any other than the true one."""

    def success(self, predictions: Tensor, true: Tensor, wanted: Tensor, *, reference: Tensor | None = None) -> Tensor:
        """Judge predictions `(N,)` on the evaluation set; see `attacker_succeeds`."""

    def settings(self) -> Mapping[str, Any]:
        """Return what JSON can hold."""

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the rest."""

    @classmethod
    def from_saved(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Build the objective again."""


objectives = KindRegistry[Objective]("objective")
"""Registered kinds: `@objectives.register` makes a class of a plug-in known, so that its poison can be loaded again."""


class _Judged:
    """The shared ending of the objectives of this module."""

    def success(self, predictions: Tensor, true: Tensor, wanted: Tensor, *, reference: Tensor | None = None) -> Tensor:
        """Judge predictions on the evaluation set; see `attacker_succeeds`."""
        return attacker_succeeds(predictions, true, wanted, reference=reference)

    def settings(self) -> Mapping[str, Any]:
        """Return what JSON can hold; nothing unless a kind has settings."""
        return {}

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the rest; nothing unless a kind has tensors."""
        return {}

    @classmethod
    def from_saved(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:  # noqa: ARG003
        """Build the objective again; a kind with tensors has its own way."""
        return cls(**settings)


@objectives.register
class TriggerObjective(_Judged):
    """A backdoor: triggered test images are read as the target class; those that belong to it do not count.

    Args:
        trigger: what is done to an image before the data set's transform.
        target_class: the class that triggered images shall be read as; for all-to-all, int64 `(C,)` with one for each
            true class.
        source_class: attack only images of this class; all where it is `None`.

    Example:
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> from lightning_poison.attacks.triggers import PatchTrigger
        >>> objective = TriggerObjective(PatchTrigger(torch.full((1, 2, 2), 255).byte()), target_class=0)
        >>> [item[1:] for item in objective.evaluation_set(TinyImages(6))]
        [(1, 0), (2, 0), (1, 0), (2, 0)]
    """

    kind: ClassVar[str] = "trigger"

    def __init__(self, trigger: Trigger, target_class: int | Tensor, source_class: int | None = None) -> None:
        self.trigger = trigger
        self.target_class = target_class
        self.source_class = source_class

    def __repr__(self) -> str:
        target = self.target_class.tolist() if isinstance(self.target_class, Tensor) else self.target_class
        return f"TriggerObjective({self.trigger!r}, target_class={target}, source_class={self.source_class})"

    def evaluation_set(self, test: "Dataset[Any]") -> "Dataset[tuple[Any, int, int]]":
        """Return the triggered images of all attacked classes.

        Raises:
            TypeError: where the raw images of the test set cannot be reached.
            ValueError: where a label has no target.
        """
        true = labels_of(test)
        resolve(test, 0)
        wanted = self._wanted(true)
        chosen = wanted != true
        if self.source_class is not None:
            chosen &= true == self.source_class
        return TriggeredSet(test, chosen.nonzero().flatten(), true[chosen], wanted[chosen], self.trigger)

    def _wanted(self, true: Tensor) -> Tensor:
        if isinstance(self.target_class, Tensor):
            known, largest = len(self.target_class), int(true.max()) if len(true) else 0
            if largest >= known:
                what = f"labels below {known}, the classes that have a target"
                raise ValueError(checks.expected("test", what, largest))
            return self.target_class[true]
        return torch.full_like(true, self.target_class)

    def settings(self) -> Mapping[str, Any]:
        """Return the classes and the trigger's settings."""
        packed, _ = triggers.pack(self.trigger)
        target = None if isinstance(self.target_class, Tensor) else self.target_class
        return {"trigger": packed, "target_class": target, "source_class": self.source_class}

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the trigger's tensors, and the target of each class."""
        _, tensors = triggers.pack(self.trigger)
        if isinstance(self.target_class, Tensor):
            tensors["target_class"] = self.target_class
        return tensors

    @classmethod
    def from_saved(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Build the objective again."""
        rest = dict(tensors)
        target = rest.pop("target_class", settings["target_class"])
        return cls(triggers.unpack(settings["trigger"], rest), target, settings["source_class"])


@objectives.register
class InstancesObjective(_Judged):
    """Chosen test samples are misread, each as a label of the attacker's.

    Args:
        inputs: `(T, ...)`, the samples: uint8 `(T, C, H, W)` in the raw domain, else as the data set returns them.
        labels: int64 `(T,)`, their true labels.
        wanted: int64 `(T,)`, what each shall be read as; −1 for any other.
        domain: `"raw"` where the test set's transform still has to be applied.

    Raises:
        ValueError: where `labels` or `wanted` is no int64 vector as long as `inputs`.

    Example:
        >>> aim = InstancesObjective(torch.rand(2, 4), labels=torch.tensor([0, 1]), wanted=torch.tensor([1, -1]))
        >>> aim.success(torch.tensor([1, 1]), aim.labels, aim.wanted)
        tensor([ True, False])
    """

    kind: ClassVar[str] = "instances"

    def __init__(
        self, inputs: Tensor, labels: Tensor, wanted: Tensor, *, domain: Literal["raw", "sample"] = "sample"
    ) -> None:
        for name, value in (("labels", labels), ("wanted", wanted)):
            if len(checks.index_vector(name, value)) != len(inputs):
                raise ValueError(checks.expected(name, f"as long as `inputs` ({len(inputs)})", len(value)))
        self.inputs = inputs
        self.labels = labels
        self.wanted = wanted
        self.domain = domain

    def __repr__(self) -> str:
        return f"InstancesObjective({len(self.labels)} targets, domain={self.domain!r})"

    def evaluation_set(self, test: "Dataset[Any]") -> "Dataset[tuple[Any, int, int]]":
        """Return the targets; the test set is asked for its transform only, and only in the raw domain."""
        return InstanceSet(self.inputs, self.labels, self.wanted, test if self.domain == "raw" else None)

    def settings(self) -> Mapping[str, Any]:
        """Return the domain."""
        return {"domain": self.domain}

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the targets."""
        return {"inputs": self.inputs, "labels": self.labels, "wanted": self.wanted}

    @classmethod
    def from_saved(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Build the objective again."""
        return cls(tensors["inputs"], tensors["labels"], tensors["wanted"], domain=settings["domain"])


@objectives.register
class ProtectedClassObjective(_Judged):
    """The test samples of one class are misread.

    Args:
        protected_class: the class to be misread.
        target_class: what it shall be read as; −1 for any other.

    Example:
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> [item[1:] for item in ProtectedClassObjective(1).evaluation_set(TinyImages(6))]
        [(1, -1), (1, -1)]
    """

    kind: ClassVar[str] = "protected-class"

    def __init__(self, protected_class: int, target_class: int = ANY_OTHER) -> None:
        self.protected_class = protected_class
        self.target_class = target_class

    def __repr__(self) -> str:
        return f"ProtectedClassObjective({self.protected_class}, target_class={self.target_class})"

    def evaluation_set(self, test: "Dataset[Any]") -> "Dataset[tuple[Any, int, int]]":
        """Return the test samples of the protected class."""
        true = labels_of(test)
        chosen = (true == self.protected_class).nonzero().flatten()
        return RelabeledSet(test, chosen, true[chosen], torch.full((len(chosen),), self.target_class))

    def settings(self) -> Mapping[str, Any]:
        """Return the classes."""
        return {"protected_class": self.protected_class, "target_class": self.target_class}


@objectives.register
class AvailabilityObjective(_Judged):
    """The model gets worse on all test samples.

    Example:
        >>> AvailabilityObjective()
        AvailabilityObjective()
    """

    kind: ClassVar[str] = "availability"

    def __repr__(self) -> str:
        return "AvailabilityObjective()"

    def evaluation_set(self, test: "Dataset[Any]") -> "Dataset[tuple[Any, int, int]]":
        """Return the whole test set."""
        true = labels_of(test)
        return RelabeledSet(test, torch.arange(len(true)), true, torch.full_like(true, ANY_OTHER))
