"""Flipped labels: images stay as they are, their labels are changed."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.labels import labels_of
from lightning_poison.objectives import ANY_OTHER, AvailabilityObjective, Objective, ProtectedClassObjective
from lightning_poison.poison import Poison
from lightning_poison.threat import Surrogate, Threat


class LabelFlip:
    """Flips labels: of all classes or one, to any other class or one, at random places or given ones.

    As many are flipped as the threat's budget allows. Neither class given: uniform noise, an attack on availability.
    Both given: the pair is confused in one direction, and the attack aims at the test samples of the source class.

    Args:
        source_class: flip samples of this class only.
        target_class: the label they get; drawn from the other classes where it is `None`.
        indices: flip these samples only, those of class `target_class` left out; `None` for the whole data set.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> digits = TensorDataset(torch.zeros(6, 1, 8, 8), torch.tensor([4, 9, 4, 9, 4, 9]))
        >>> attack = LabelFlip(source_class=4, target_class=9)
        >>> generator = torch.Generator().manual_seed(0)
        >>> poison = attack.craft(digits, Threat(budget=2), surrogates=(), holdout=None, generator=generator)
        >>> poison.labels, poison.objective
        (tensor([9, 9]), ProtectedClassObjective(4, target_class=9))
    """

    name = "label-flip"
    clean_label = False

    def __init__(
        self, source_class: int | None = None, target_class: int | None = None, *, indices: Sequence[int] | None = None
    ) -> None:
        if source_class is not None and source_class == target_class:
            raise ValueError(f"Expected `target_class` to be another than `source_class`, but both are {source_class}.")
        self.source_class = source_class
        self.target_class = target_class
        self.indices = None if indices is None else [int(index) for index in indices]

    def craft(
        self,
        dataset: "Dataset[Any]",
        threat: Threat,
        *,
        surrogates: Sequence[Surrogate],  # noqa: ARG002 (labels are flipped without a model)
        holdout: "Dataset[Any] | None",  # noqa: ARG002
        generator: torch.Generator,
    ) -> Poison:
        """Return the flipped labels of at most `threat.budget` samples.

        Raises:
            ValueError: where the threat asks for clean labels, or no sample can be flipped.
        """
        if threat.clean_label:
            raise ValueError("Expected a threat that lets labels change, but got `clean_label=True`.")
        labels = labels_of(dataset)
        candidates = self._candidates(labels)
        order = torch.randperm(len(candidates), generator=generator)
        chosen = candidates[order[: threat.budget]].sort().values
        classes = int(labels.max()) + 1
        shift = torch.randint(1, classes, (len(chosen),), generator=generator)
        flipped = (labels[chosen] + shift) % classes
        if self.target_class is not None:
            flipped = torch.full_like(chosen, self.target_class)
        return Poison(chosen, flipped, self._objective(), attack=self.name, settings=dict(vars(self)))

    def _candidates(self, labels: Tensor) -> Tensor:
        able = torch.ones_like(labels, dtype=torch.bool)
        if self.indices is not None:
            if not all(0 <= index < len(labels) for index in self.indices):
                raise ValueError(f"Expected `indices` in the data set of {len(labels)}, but got {self.indices}.")
            able = torch.isin(torch.arange(len(labels)), torch.tensor(self.indices))
        if self.source_class is not None:
            able &= labels == self.source_class
        able &= labels != self.target_class if self.target_class is not None else int(labels.max()) > 0
        if not able.any():
            raise ValueError(f"Expected samples whose labels can be flipped, but {self!r} finds none in this data set.")
        return able.nonzero().flatten()

    def _objective(self) -> Objective:
        if self.source_class is None:
            return AvailabilityObjective()
        return ProtectedClassObjective(self.source_class, ANY_OTHER if self.target_class is None else self.target_class)

    def __repr__(self) -> str:
        return f"LabelFlip(source_class={self.source_class}, target_class={self.target_class}, indices={self.indices})"
