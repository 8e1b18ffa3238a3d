"""View of a data set with poison in it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_poison.attacks.poison import Poison
from lightning_poison.checks import describe
from lightning_poison.data.labels import labels_of, spec_of
from lightning_poison.data.raw_images import read_edited
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.view_labels import LabelTensor
from lightning_poison.data.views import SampleView
from lightning_poison.randomness import seeded_rng


class PoisonedDataset(SampleView):
    """Data set with poison inserted and appended, using memory proportional to the poison.

    Only the input and the label of a sample are replaced; other entries, such as an id, are kept. Poison in the raw
    domain is inserted before the transform of the data set, poison in the sample domain after it. An appended sample
    copies the other entries of its base. The view can be pickled for worker processes.

    Args:
        dataset: Clean training set, map-style.
        poison: Poison samples for this data set.
        sample: Location of input and label in a sample. Default: detected.

    Raises:
        ValueError: If the poison does not fit the data set; see `Poison.check_fits`.
        TypeError: If the poison is in the raw domain and the raw images of the data set are not accessible.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_poison.attacks.objectives import AvailabilityObjective
        >>> clean = TensorDataset(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
        >>> flip = Poison(torch.tensor([1]), torch.tensor([0]), AvailabilityObjective(), attack="label-flip")
        >>> PoisonedDataset(clean, flip).targets.tolist()
        [0, 0, 0, 1]
    """

    poison: Poison
    sample: SampleSpec
    _position: dict[int, int]
    _targets: Tensor | None

    def __init__(self, dataset: Any, poison: Poison, *, sample: SampleSpec | None = None) -> None:
        super().__init__(dataset)
        poison.check_fits(len(dataset))
        position = {int(index): position for position, index in enumerate(poison.indices)}
        self.__dict__.update(poison=poison, sample=sample or spec_of(dataset), _position=position, _targets=None)
        if poison.domain == "raw" and poison.inputs is not None and len(poison):
            with seeded_rng(0):
                self[int(poison.indices[0])]

    def __len__(self) -> int:
        return len(self.dataset) + int(self.poison.appended(len(self.dataset)).sum())

    def __getitem__(self, index: int) -> Any:
        self._follow_writes()
        index = self._nonnegative(index)
        position = self._position.get(index)
        return self.dataset[index] if position is None else self._poisoned(index, position)

    def __getitems__(self, indices: list[int]) -> list[Any]:
        wanted = [self._nonnegative(index) for index in indices]
        clean = iter(self._read_many([index for index in wanted if index not in self._position]))
        return [
            next(clean) if (position := self._position.get(index)) is None else self._poisoned(index, position)
            for index in wanted
        ]

    def _nonnegative(self, index: int) -> int:
        position = int(index) + (len(self) if index < 0 else 0)
        if not 0 <= position < len(self):
            raise IndexError(f"Expected an index below {len(self)}, but got {int(index)}.")
        return position

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
            sample = self._with_inputs(self.dataset[carrier], poison.inputs[position])
        label = self.sample.labels_in(sample)
        return self.sample.replace(sample, labels=_label_like(int(poison.labels[position]), label))

    def _with_inputs(self, sample: Any, new: Tensor) -> Any:
        old = self.sample.inputs_in(sample)
        if not isinstance(old, Tensor) or old.shape != new.shape or not old.is_floating_point():
            raise ValueError(
                f"Expected samples like the poison, {describe(new)}, but the data set returns {describe(old)}.\n"
                "Use the data set for which the poison was crafted."
            )
        return self.sample.replace(sample, inputs=new.to(old.dtype).clone())

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("targets", "labels"):
            _refuse_new_labels()
        super().__setattr__(name, value)

    @property
    def targets(self) -> Tensor:
        """Labels of the samples, poison included, int64 `(N,)`; read-only."""
        targets = self._targets
        if targets is None:
            clean = labels_of(self.dataset, self.sample)
            targets = torch.cat([clean, clean.new_zeros(len(self) - len(clean))])
            targets[self.poison.indices] = self.poison.labels
            self.__dict__["_targets"] = targets
        return LabelTensor.of(targets.clone(), _refuse_new_labels)

    @property
    def is_poison(self) -> Tensor:
        """Ground truth, bool `(N,)`. For evaluation only, never for a defense."""
        return self.poison.is_poison(len(self.dataset))


def _refuse_new_labels() -> None:
    raise ValueError(
        "Expected the labels of a PoisonedDataset to be those of its data set and its poison, but got other ones.\n"
        "Set labels on the clean data set, `.dataset`, before poison is inserted, or build another `Poison`."
    )


def _label_like(label: int, example: Any) -> Any:
    """Return a label of the same type as an example."""
    if isinstance(example, Tensor):
        return torch.full_like(example, label)
    return np.full_like(example, label) if isinstance(example, np.ndarray) else type(example)(label)
