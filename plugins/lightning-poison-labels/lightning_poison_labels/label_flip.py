"""Flipped labels: images stay as they are, their labels are changed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import Poison, Surrogate, Threat, checks
from lightning_poison.attacks import AvailabilityObjective, Objective, ProtectedClassObjective
from lightning_poison.attacks.objectives import ANY_OTHER
from lightning_poison.data import labels_of


@dataclass
class LabelFlip:
    """Flips labels: of all classes or one, to any other class, one, or a fixed partner; at random places or given ones.

    As many are flipped as the threat's budget says; where `indices` are given, those and no others. With neither
    classes nor pairs it is uniform noise. Where a `source_class` is given the attack aims at the test samples of that
    class, else at the accuracy on all.

    Args:
        source_class: flip samples of this class only.
        target_class: the label they get; drawn from the other classes where it is `None`.
        pairs: flip each first class to its second and leave the others alone; `"next"` flips y to y + 1, the last to 0.
        indices: flip these samples only, those that have the wanted label left out; `None` for the whole data set.

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

    source_class: int | None = None
    target_class: int | None = None
    pairs: Sequence[tuple[int, int]] | Literal["next"] | None = field(default=None, kw_only=True)
    indices: Sequence[int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.source_class is not None and self.source_class == self.target_class:
            raise ValueError(
                f"Expected two classes, but `source_class` and `target_class` both are {self.source_class}."
            )
        if self.pairs is not None and (self.source_class, self.target_class) != (None, None):
            raise ValueError("Expected either `pairs` or `source_class` and `target_class`, but got both.")
        self.indices = None if self.indices is None else [int(index) for index in self.indices]

    def craft(
        self,
        dataset: "Dataset[Any]",
        threat: Threat,
        *,
        surrogates: Sequence[Surrogate],  # noqa: ARG002 (labels are flipped without a model)
        holdout: "Dataset[Any] | None",  # noqa: ARG002
        generator: torch.Generator,
    ) -> Poison:
        """Return the flipped labels of `threat.budget` samples, or of the given ones.

        Raises:
            ValueError: where the threat asks for clean labels, no sample can be flipped, fewer than the budget can, or
                more are given than the budget.
        """
        if threat.clean_label:
            raise ValueError("Expected a threat that lets labels change, but got `clean_label=True`.")
        labels = labels_of(dataset)
        wanted = self._partners(classes := int(labels.max()) + 1)[labels]
        able = wanted != labels
        if self.source_class is not None:
            able &= labels == self.source_class
        if self.indices is not None:
            if not all(0 <= index < len(labels) for index in self.indices):
                raise ValueError(f"Expected `indices` in the data set of {len(labels)}, but got {self.indices}.")
            able &= torch.isin(torch.arange(len(labels)), torch.tensor(self.indices, dtype=torch.int64))
        if not able.any():
            raise ValueError(f"Expected samples whose labels can be flipped, but {self!r} finds none in this data set.")
        self._check_budget(threat.budget, int(able.sum()))
        order = torch.randperm(int(able.sum()), generator=generator)[: threat.budget]
        chosen = able.nonzero().flatten()[order].sort().values
        shift = torch.randint(1, max(2, classes), (len(chosen),), generator=generator)
        flipped = torch.where(wanted[chosen] == ANY_OTHER, (labels[chosen] + shift) % classes, wanted[chosen])
        target = ANY_OTHER if self.target_class is None else self.target_class
        objective: Objective = AvailabilityObjective()
        if self.source_class is not None:
            objective = ProtectedClassObjective(self.source_class, target)
        return Poison(chosen, flipped, objective, attack=self.name, settings=dict(vars(self)))

    def _check_budget(self, budget: int, able: int) -> None:
        """Refuse a budget that cannot be spent, and given samples that it does not cover."""
        if self.indices is None and able < budget:
            raise ValueError(
                checks.expected("budget", f"at most {able}, the samples that {self!r} can flip", budget)
                + f"\nLower it to {able}, or flip samples of more classes."
            )
        if self.indices is not None and (given := len(set(self.indices))) > budget:
            raise ValueError(
                checks.expected("indices", f"at most {budget} samples, the budget of the threat", str(given))
                + f"\nGive fewer, or raise the budget to {given}."
            )

    def _partners(self, classes: int) -> Tensor:
        """Return what each class is flipped to, `(C,)`: itself where it stays, −1 where that is drawn."""
        partners = torch.arange(classes)
        if self.pairs == "next":
            return partners.roll(-1)
        if self.pairs is None and classes > 1:
            return partners.fill_(ANY_OTHER if self.target_class is None else self.target_class)
        for one, other in self.pairs or ():
            if not (0 <= one < classes and 0 <= other < classes):
                raise ValueError(f"Expected `pairs` of the data set's {classes} classes, but got {(one, other)}.")
            partners[one] = other
        return partners
