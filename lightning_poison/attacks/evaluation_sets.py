"""Data sets on which an attack is evaluated, with items `(input, true label, wanted label)`."""

from collections.abc import Sized
from typing import Any, cast

from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.attacks.triggers import Trigger
from lightning_poison.data.labels import spec_of
from lightning_poison.data.raw_images import read_edited
from lightning_poison.data.sample_spec import SampleSpec


class EvaluationSubset(Dataset[tuple[Any, int, int]]):
    """Selected samples of a test set, optionally triggered.

    Args:
        test: Map-style test set.
        indices: Positions of the selected samples, int64 `(M,)`.
        true: True labels, int64 `(M,)`.
        wanted: Labels that the attacker wants, int64 `(M,)`.
        trigger: Applied to each image before the transform of the test set. Default: none.

    Example:
        >>> import torch
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> from lightning_poison.attacks.triggers import PatchTrigger
        >>> trigger, zero = PatchTrigger(torch.full((1, 8, 8), 255, dtype=torch.uint8)), torch.tensor([0])
        >>> image, true, wanted = EvaluationSubset(TinyImages(3), zero, zero, torch.tensor([1]), trigger)[0]
        >>> image.unique(), true, wanted
        (tensor([1.]), 0, 1)
    """

    def __init__(
        self, test: "Dataset[Any]", indices: Tensor, true: Tensor, wanted: Tensor, trigger: Trigger | None = None
    ) -> None:
        self.test = test
        self.indices = indices
        self.true = true
        self.wanted = wanted
        self.trigger = trigger
        self.spec = spec_of(test)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Any, int, int]:
        index = int(self.indices[position])
        sample = self.test[index] if self.trigger is None else read_edited(self.test, index, self.trigger)
        return self.spec.inputs_in(sample), int(self.true[position]), int(self.wanted[position])


class StoredTargets(Dataset[tuple[Any, int, int]]):
    """Target samples stored with the poison.

    Args:
        inputs: Target samples `(T, ...)`.
        labels: True labels, int64 `(T,)`.
        wanted: Labels that the attacker wants, int64 `(T,)`.
        carrier: Data set whose transform is applied to raw targets. If `None`, the inputs are returned unchanged.

    Example:
        >>> import torch
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> raw, labels, wanted = torch.full((1, 1, 8, 8), 51).byte(), torch.tensor([2]), torch.tensor([-1])
        >>> image, true, target = StoredTargets(raw, labels, wanted, carrier=TinyImages(3))[0]
        >>> image.unique(), true, target
        (tensor([0.2000]), 2, -1)
    """

    def __init__(self, inputs: Tensor, labels: Tensor, wanted: Tensor, carrier: "Dataset[Any] | None") -> None:
        self.inputs = inputs
        self.labels = labels
        self.wanted = wanted
        self.carrier = carrier

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Any, int, int]:
        image = self.inputs[position]
        if self.carrier is not None:
            if not len(cast("Sized", self.carrier)):
                raise ValueError("Expected a test set with at least one sample, to apply its transform to raw targets.")
            sample = read_edited(self.carrier, 0, lambda _: image.clone())
            image = SampleSpec.detect(sample).inputs_in(sample)
        return image, int(self.labels[position]), int(self.wanted[position])
