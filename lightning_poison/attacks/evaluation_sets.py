"""Data sets on which an attack is judged: items `(input, true label, wanted label)`."""

from collections.abc import Sized
from typing import Any, cast

from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.attacks.triggers import Trigger
from lightning_poison.data.labels import spec_of
from lightning_poison.data.raw_images import read_edited
from lightning_poison.data.sample_spec import SampleSpec


class RelabeledSet(Dataset[tuple[Any, int, int]]):
    """Chosen samples of a test set, as `(input, true, wanted)`.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> test = TensorDataset(torch.tensor([[0.0], [1.0], [2.0]]), torch.tensor([0, 1, 0]))
        >>> RelabeledSet(test, torch.tensor([2]), true=torch.tensor([0]), wanted=torch.tensor([1]))[0]
        (tensor([2.]), 0, 1)
    """

    def __init__(self, test: "Dataset[Any]", indices: Tensor, true: Tensor, wanted: Tensor) -> None:
        self.test = test
        self.indices = indices
        self.true = true
        self.wanted = wanted
        self.spec = spec_of(test)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Any, int, int]:
        sample = self.read(int(self.indices[position]))
        return self.spec.inputs_in(sample), int(self.true[position]), int(self.wanted[position])

    def read(self, index: int) -> Any:
        """Read one sample of the test set."""
        return self.test[index]


class TriggeredSet(RelabeledSet):
    """Chosen samples of a test set with the trigger on them.

    Example:
        >>> import torch
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> from lightning_poison.attacks.triggers import PatchTrigger
        >>> trigger, zero = PatchTrigger(torch.full((1, 8, 8), 255, dtype=torch.uint8)), torch.tensor([0])
        >>> image, true, wanted = TriggeredSet(TinyImages(3), zero, zero, torch.tensor([1]), trigger)[0]
        >>> image.unique(), true, wanted
        (tensor([1.]), 0, 1)
    """

    def __init__(self, test: "Dataset[Any]", indices: Tensor, true: Tensor, wanted: Tensor, trigger: Trigger) -> None:
        super().__init__(test, indices, true, wanted)
        self.trigger = trigger

    def read(self, index: int) -> Any:
        """Read one sample of the test set with the trigger on it."""
        return read_edited(self.test, index, self.trigger)


class InstanceSet(Dataset[tuple[Any, int, int]]):
    """Stored targets; where they are raw, a carrier set lends its transform.

    Example:
        >>> import torch
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> raw, labels, wanted = torch.full((1, 1, 8, 8), 51).byte(), torch.tensor([2]), torch.tensor([-1])
        >>> image, true, wished = InstanceSet(raw, labels, wanted, carrier=TinyImages(3))[0]
        >>> image.unique(), true, wished
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
                raise ValueError(
                    "Expected a test set with at least one sample, whose transform raw targets go through."
                )
            sample = read_edited(self.carrier, 0, lambda _: image.clone())
            image = SampleSpec.detect(sample).inputs_in(sample)
        return image, int(self.labels[position]), int(self.wanted[position])
