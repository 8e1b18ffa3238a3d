"""Attack objectives: the evaluation set of an attack and its success criterion.

An objective builds, from a clean test set, an evaluation set of items `(input, true label, wanted label)`, where the
wanted label −1 means any label but the true one, and decides for which predictions the attack succeeds.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import checks
from lightning_poison.attacks.evaluation_sets import EvaluationSubset, StoredTargets
from lightning_poison.attacks.kinds import KindRegistry, Saved
from lightning_poison.attacks.triggers import Trigger, trigger_kinds
from lightning_poison.checks import from_json
from lightning_poison.data.labels import labels_of
from lightning_poison.data.raw_images import transform_owner

ANY_OTHER = -1
"""Wanted label of an attacker who wants any label but the true one."""

_CLASS = "a class, at least 0"


@runtime_checkable
class Objective(Saved, Protocol):
    """Goal of an attacker, and the criterion for reaching it. It can be saved with the poison."""

    def evaluation_set(self, test: "Dataset[Any]") -> "Dataset[tuple[Any, int, int]]":
        """Return items `(input, true label, wanted label)`; the wanted label −1 means any label but the true one."""

    def success(self, predictions: Tensor, true: Tensor, wanted: Tensor, *, reference: Tensor | None = None) -> Tensor:
        """Return bool `(N,)`: whether the attacker succeeds on each item; see `attacker_succeeds`."""


objective_kinds = KindRegistry[Objective]("objective")
"""Registered kinds. Decorate a class with `@objective_kinds.register` so that saved poison can load it."""


def attacker_succeeds(predictions: Tensor, true: Tensor, wanted: Tensor, *, reference: Tensor | None = None) -> Tensor:
    """Compare predictions with the labels that the attacker wants.

    Args:
        predictions: Labels that the model predicts, int64 `(N,)`.
        true: True labels, int64 `(N,)`.
        wanted: Labels that the attacker wants, int64 `(N,)`; −1 for any label but the true one.
        reference: Predictions of a model trained without poison, int64 `(N,)`. If given, an item on which this model
            fails in the same way is no success, because the attack did not cause it.

    Returns:
        bool `(N,)`.

    Example:
        >>> attacker_succeeds(torch.tensor([1, 2, 3]), torch.tensor([0, 2, 0]), torch.tensor([1, 1, -1]))
        tensor([ True, False,  True])
    """
    reached = torch.where(wanted == ANY_OTHER, predictions != true, predictions == wanted)
    if reference is None:
        return reached
    return reached & ~torch.where(wanted == ANY_OTHER, reference != true, reference == wanted)


class _ObjectiveDefaults:
    """Defaults of the objectives below: success by label, no tensors."""

    def success(self, predictions: Tensor, true: Tensor, wanted: Tensor, *, reference: Tensor | None = None) -> Tensor:
        """Return bool `(N,)`: whether the attacker succeeds on each item; see `attacker_succeeds`."""
        return attacker_succeeds(predictions, true, wanted, reference=reference)

    def settings(self) -> Mapping[str, Any]:
        """Return the JSON-serializable settings."""
        return {}

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors by name."""
        return {}

    @classmethod
    def from_saved(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild the objective from its settings and tensors."""
        return from_json(cls, {**settings, **tensors}, "objective")


@objective_kinds.register
class TriggerObjective(_ObjectiveDefaults):
    """Backdoor: triggered test images of other classes are classified as the target class.

    Args:
        trigger: Applied to each image before the transform of the data set.
        target_class: Class as which triggered images are to be classified; for an all-to-all attack, int64 `(C,)` with
            a target for each true class.
        source_class: Attack only images of this class. Default: all classes.

    Raises:
        TypeError: If `trigger` is no trigger.
        ValueError: If a class is not an integer of at least 0.

    Example:
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> from lightning_poison.attacks.triggers import PatchTrigger
        >>> objective = TriggerObjective(PatchTrigger(torch.full((1, 2, 2), 255).byte()), target_class=0)
        >>> [item[1:] for item in objective.evaluation_set(TinyImages(6))]
        [(1, 0), (2, 0), (1, 0), (2, 0)]
    """

    kind: ClassVar[str] = "trigger"

    def __init__(self, trigger: Trigger, target_class: int | Tensor, source_class: int | None = None) -> None:
        self.trigger: Trigger = checks.instance("trigger", trigger, Trigger)
        if isinstance(target_class, Tensor):
            checks.every("target_class", checks.index_vector("target_class", target_class), target_class >= 0, _CLASS)
        else:
            target_class = checks.positive_int("target_class", target_class, minimum=0)
        self.target_class = target_class
        self.source_class = (
            None if source_class is None else checks.positive_int("source_class", source_class, minimum=0)
        )

    def __repr__(self) -> str:
        target = self.target_class.tolist() if isinstance(self.target_class, Tensor) else self.target_class
        return f"TriggerObjective({self.trigger!r}, target_class={target}, source_class={self.source_class})"

    def evaluation_set(self, test: "Dataset[Any]") -> "Dataset[tuple[Any, int, int]]":
        """Return the triggered images of all attacked classes.

        Raises:
            TypeError: If the raw images of the test set are not accessible.
            ValueError: If a label has no target.
        """
        true = labels_of(test)
        transform_owner(test, 0)
        wanted = self._wanted(true)
        chosen = wanted != true
        if self.source_class is not None:
            chosen &= true == self.source_class
        return EvaluationSubset(test, chosen.nonzero().flatten(), true[chosen], wanted[chosen], self.trigger)

    def _wanted(self, true: Tensor) -> Tensor:
        if isinstance(self.target_class, Tensor):
            count, largest = len(self.target_class), int(true.max()) if len(true) else 0
            if largest >= count:
                what = f"labels below {count}, the classes that have a target"
                raise ValueError(checks.expected("test", what, largest))
            return self.target_class[true]
        return torch.full_like(true, self.target_class)

    def settings(self) -> Mapping[str, Any]:
        """Return the classes and the settings of the trigger."""
        packed, _ = trigger_kinds.pack(self.trigger)
        target = None if isinstance(self.target_class, Tensor) else self.target_class
        return {"trigger": packed, "target_class": target, "source_class": self.source_class}

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors of the trigger and the target of each class."""
        _, tensors = trigger_kinds.pack(self.trigger)
        if isinstance(self.target_class, Tensor):
            tensors["target_class"] = self.target_class
        return tensors

    @classmethod
    def from_saved(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild the objective."""
        rest, parts = dict(tensors), dict(settings)
        if "target_class" in rest:
            parts["target_class"] = rest.pop("target_class")
        if "trigger" in parts:
            parts["trigger"] = trigger_kinds.unpack(parts["trigger"], rest)
        return from_json(cls, parts, "objective")


@objective_kinds.register
class InstancesObjective(_ObjectiveDefaults):
    """Targeted attack: selected test samples are misclassified, each as a label of the attacker's choice.

    Args:
        inputs: Target samples `(T, ...)`: uint8 `(T, C, H, W)` in the raw domain, else finite, as the data set returns
            them.
        labels: True labels, int64 `(T,)`.
        wanted: Label as which each target is to be classified, int64 `(T,)`; −1 for any label but the true one.
        domain: `"raw"` if the transform of the test set still has to be applied, else `"sample"`.

    Raises:
        ValueError: If `labels` or `wanted` is not an int64 vector with one entry per sample, a label is out of its
            range, or the inputs are not of the domain or not finite.

    Example:
        >>> labels, wanted = torch.tensor([0, 1]), torch.tensor([1, -1])
        >>> objective = InstancesObjective(torch.rand(2, 4), labels, wanted)
        >>> objective.success(torch.tensor([1, 1]), labels, wanted)
        tensor([ True, False])
    """

    kind: ClassVar[str] = "instances"

    def __init__(
        self, inputs: Tensor, labels: Tensor, wanted: Tensor, *, domain: Literal["raw", "sample"] = "sample"
    ) -> None:
        if not isinstance(inputs, Tensor) or not inputs.ndim:
            raise ValueError(checks.expected("inputs", "a tensor (T, ...)", checks.describe(inputs)))
        for name, value in (("labels", labels), ("wanted", wanted)):
            if len(checks.index_vector(name, value)) != len(inputs):
                raise ValueError(checks.expected(name, f"as long as `inputs` ({len(inputs)})", len(value)))
        checks.every("labels", labels, labels >= 0, _CLASS)
        checks.every("wanted", wanted, wanted >= ANY_OTHER, "a class, or -1 for any other")
        checks.one_of("domain", domain, ("raw", "sample"))
        if domain == "raw" and (inputs.dtype != torch.uint8 or inputs.ndim != 4):
            raise ValueError(checks.expected("inputs", "uint8 (T, C, H, W) in the raw domain", checks.describe(inputs)))
        checks.every("inputs", inputs, inputs.isfinite(), "finite")
        self.inputs = inputs
        self.labels = labels
        self.wanted = wanted
        self.domain = domain

    def __repr__(self) -> str:
        return f"InstancesObjective({len(self.labels)} targets, domain={self.domain!r})"

    def evaluation_set(self, test: "Dataset[Any]") -> "Dataset[tuple[Any, int, int]]":
        """Return the targets. The test set provides only the transform, and only in the raw domain."""
        return StoredTargets(self.inputs, self.labels, self.wanted, test if self.domain == "raw" else None)

    def settings(self) -> Mapping[str, Any]:
        """Return the domain."""
        return {"domain": self.domain}

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the targets."""
        return {"inputs": self.inputs, "labels": self.labels, "wanted": self.wanted}

    @classmethod
    def from_saved(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild the objective."""
        return from_json(cls, {**settings, **tensors}, "objective")


@objective_kinds.register
class ProtectedClassObjective(_ObjectiveDefaults):
    """The test samples of one class are misclassified.

    Args:
        protected_class: Class to be misclassified.
        target_class: Class as which it is to be classified. Default: −1, any other class.

    Raises:
        ValueError: If a class is not an integer in this range.

    Example:
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> [item[1:] for item in ProtectedClassObjective(1).evaluation_set(TinyImages(6))]
        [(1, -1), (1, -1)]
    """

    kind: ClassVar[str] = "protected-class"

    def __init__(self, protected_class: int, target_class: int = ANY_OTHER) -> None:
        self.protected_class = checks.positive_int("protected_class", protected_class, minimum=0)
        self.target_class = checks.positive_int("target_class", target_class, minimum=ANY_OTHER)

    def __repr__(self) -> str:
        return f"ProtectedClassObjective({self.protected_class}, target_class={self.target_class})"

    def evaluation_set(self, test: "Dataset[Any]") -> "Dataset[tuple[Any, int, int]]":
        """Return the test samples of the protected class."""
        true = labels_of(test)
        chosen = (true == self.protected_class).nonzero().flatten()
        return EvaluationSubset(test, chosen, true[chosen], torch.full((len(chosen),), self.target_class))

    def settings(self) -> Mapping[str, Any]:
        """Return the classes."""
        return {"protected_class": self.protected_class, "target_class": self.target_class}


@objective_kinds.register
class AvailabilityObjective(_ObjectiveDefaults):
    """Availability attack: the accuracy on all test samples decreases.

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
        return EvaluationSubset(test, torch.arange(len(true)), true, torch.full_like(true, ANY_OTHER))
