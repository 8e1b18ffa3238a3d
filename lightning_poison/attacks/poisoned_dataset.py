"""Views of a data set: with poison in it, and without what was kept out."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_poison.attacks.poison import Poison
from lightning_poison.checks import describe, expected
from lightning_poison.data.labels import labels_of, spec_of
from lightning_poison.data.raw_images import read_edited
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.views import SampleView
from lightning_poison.randomness import seeded_rng


class PoisonedDataset(SampleView):
    """A data set with poison overlaid and appended, at memory proportional to the poison.

    The container of each sample stays as it is: only its input and its label are replaced. Poison of the raw domain
    goes in before the data set's transform, poison of the sample domain after it. An appended sample takes its
    container from its base. The view pickles for worker processes.

    Args:
        dataset: the clean training set.
        poison: which samples, their inputs and labels.
        sample: where input and label stand in a sample; found by itself where it is `None`.

    Raises:
        ValueError: where appended indices do not follow on the data set without a gap, or a base lies outside it.
        TypeError: where raw poison meets a data set whose raw images cannot be reached.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_poison.attacks.objectives import AvailabilityObjective
        >>> clean = TensorDataset(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
        >>> flip = Poison(torch.tensor([1]), torch.tensor([0]), AvailabilityObjective(), attack="label-flip")
        >>> PoisonedDataset(clean, flip).targets.tolist()
        [0, 0, 0, 1]
    """

    def __init__(self, dataset: Any, poison: Poison, *, sample: SampleSpec | None = None) -> None:
        super().__init__(dataset)
        self.poison = poison
        self._check_positions()
        self.sample = sample or spec_of(dataset)
        self._position = {int(index): position for position, index in enumerate(poison.indices)}
        self._targets: Tensor | None = None
        if poison.domain == "raw" and poison.inputs is not None and len(poison):
            with seeded_rng(0):
                self[int(poison.indices[0])]

    def _check_positions(self) -> None:
        length = len(self.dataset)
        appended = self.poison.indices[self.poison.appended(length)].sort().values
        wanted = torch.arange(length, length + len(appended))
        if not torch.equal(appended, wanted):
            raise ValueError(
                expected("indices", f"appended from {length} on without a gap", appended[appended != wanted].tolist())
            )
        bases = self.poison.base_indices
        if bases is not None and len(bases) and not (int(bases.min()) >= 0 and int(bases.max()) < length):
            raise ValueError(
                expected("base_indices", f"positions in the data set of {length}", int(bases.max()))
                + "\nIs this the data set that the poison was crafted for?"
            )
        if len(appended) and (self.poison.inputs is None and bases is None):
            raise ValueError("Expected `inputs` or `base_indices` for appended samples, but got neither.")

    def __len__(self) -> int:
        return len(self.dataset) + int(self.poison.appended(len(self.dataset)).sum())

    def __getitem__(self, index: int) -> Any:
        index = self._absolute(index)
        position = self._position.get(index)
        return self.dataset[index] if position is None else self._poisoned(index, position)

    def __getitems__(self, indices: list[int]) -> list[Any]:
        wanted = [self._absolute(index) for index in indices]
        read = iter(self._read_many([index for index in wanted if index not in self._position]))
        return [
            next(read) if (position := self._position.get(index)) is None else self._poisoned(index, position)
            for index in wanted
        ]

    def _absolute(self, index: int) -> int:
        absolute = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= absolute < len(self):
            raise IndexError(f"Expected an index below {len(self)}, but got {int(index)}.")
        return absolute

    def _poisoned(self, index: int, position: int) -> Any:
        poison, carrier = self.poison, index
        if index >= len(self.dataset):
            carrier = int(poison.base_indices[position]) if poison.base_indices is not None else 0
        if poison.inputs is None:
            sample = self.dataset[carrier]
        elif poison.domain == "raw":
            image = poison.inputs[position]
            sample = read_edited(self.dataset, carrier, lambda _: image.clone())
        else:
            sample = self._overlaid(self.dataset[carrier], poison.inputs[position])
        label = self.sample.labels_in(sample)
        return self.sample.replace(sample, labels=_label_like(int(poison.labels[position]), label))

    def _overlaid(self, sample: Any, new: Tensor) -> Any:
        old = self.sample.inputs_in(sample)
        if not isinstance(old, Tensor) or old.shape != new.shape or not old.is_floating_point():
            came = describe(old)
            raise ValueError(
                f"Expected samples like the poison, {describe(new)}, but the data set returns {came}.\n"
                "Is this the data set that the poison was crafted for?"
            )
        return self.sample.replace(sample, inputs=new.to(old.dtype).clone())

    @property
    def targets(self) -> Tensor:
        """The labels that the samples carry, int64 `(N,)`, the poison's among them."""
        if self._targets is None:
            clean = labels_of(self.dataset, self.sample)
            targets = torch.cat([clean, clean.new_zeros(len(self) - len(clean))])
            targets[self.poison.indices] = self.poison.labels
            self._targets = targets
        return self._targets

    @property
    def is_poison(self) -> Tensor:
        """The ground truth, bool `(N,)`; for evaluations only, never for a defense."""
        return self.poison.is_poison(len(self.dataset))


def _label_like(label: int, model: Any) -> Any:
    """Return a label in the type that the data set uses."""
    if isinstance(model, Tensor):
        return torch.full_like(model, label)
    return np.full_like(model, label) if isinstance(model, np.ndarray) else type(model)(label)
