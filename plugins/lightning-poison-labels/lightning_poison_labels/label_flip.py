"""Label flipping: images are unchanged, labels are replaced by wrong ones."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import Poison, Surrogate, Threat, checks
from lightning_poison.attacks import ANY_OTHER, AvailabilityObjective, Objective, ProtectedClassObjective
from lightning_poison.data import labels_of


@dataclass
class LabelFlip:
    """Flips labels: of all classes or one, to any other class, one class, or a fixed partner.

    The threat's budget is the number of flipped labels, unless `indices` are given. Without classes, pairs and indices
    the result is uniform label noise. With a `source_class` the attack targets the test samples of that class, else the
    accuracy on all test samples.

    Args:
        source_class: Class whose labels are flipped. Default: all classes.
        target_class: New label. Default: a random other class for each sample.
        pairs: Pairs `(class, new label)`; labels of other classes are unchanged. `"next"` maps y to y + 1, and the last
            class to 0.
        indices: Positions of the samples to flip. Samples that already have their new label are skipped. Default: drawn
            at random from the training set.

    Raises:
        ValueError: If `source_class` equals `target_class`, or `pairs` are given together with classes.

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
    needs_surrogates = False

    source_class: int | None = None
    target_class: int | None = None
    pairs: Sequence[tuple[int, int]] | Literal["next"] | None = field(default=None, kw_only=True)
    indices: Sequence[int] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if self.source_class is not None and self.source_class == self.target_class:
            raise ValueError(f"Expected `source_class` and `target_class` to differ, but both are {self.source_class}.")
        if self.pairs is not None and (self.source_class, self.target_class) != (None, None):
            raise ValueError("Expected either `pairs` or `source_class` and `target_class`, but got both.")
        self.indices = None if self.indices is None else [int(index) for index in self.indices]

    def craft(
        self,
        dataset: "Dataset[Any]",
        threat: Threat,
        *,
        surrogates: Sequence[Surrogate],  # noqa: ARG002
        holdout: "Dataset[Any] | None",  # noqa: ARG002
        generator: torch.Generator,
    ) -> Poison:
        """Return flipped labels for `threat.budget` samples, or for the samples at `indices`.

        Raises:
            ValueError: If the threat requires clean labels, no label can be flipped, fewer labels than the budget can
                be flipped, or `indices` exceed the budget.
        """
        if threat.clean_label:
            raise ValueError("Expected a threat that allows label changes, but got `clean_label=True`.")
        labels = labels_of(dataset)
        new_labels = self._class_map(classes := int(labels.max()) + 1)[labels]
        eligible = new_labels != labels
        if self.source_class is not None:
            eligible &= labels == self.source_class
        if self.indices is not None:
            if not all(0 <= index < len(labels) for index in self.indices):
                raise ValueError(f"Expected `indices` in [0, {len(labels) - 1}], but got {self.indices}.")
            eligible &= torch.isin(torch.arange(len(labels)), torch.tensor(self.indices, dtype=torch.int64))
        if not eligible.any():
            raise ValueError(f"Expected samples whose labels can be flipped, but {self!r} matches no training sample.")
        self._check_budget(threat.budget, int(eligible.sum()))
        order = torch.randperm(int(eligible.sum()), generator=generator)[: threat.budget]
        chosen = eligible.nonzero().flatten()[order].sort().values
        shift = torch.randint(1, max(2, classes), (len(chosen),), generator=generator)
        random_labels = (labels[chosen] + shift) % classes
        flipped = torch.where(new_labels[chosen] == ANY_OTHER, random_labels, new_labels[chosen])
        target = ANY_OTHER if self.target_class is None else self.target_class
        objective: Objective = AvailabilityObjective()
        if self.source_class is not None:
            objective = ProtectedClassObjective(self.source_class, target)
        return Poison(chosen, flipped, objective, attack=self.name, settings=dict(vars(self)))

    def _check_budget(self, budget: int, eligible: int) -> None:
        if self.indices is None and eligible < budget:
            raise ValueError(
                checks.expected("budget", f"at most {eligible}, the samples that {self!r} can flip", budget)
                + f"\nLower it to {eligible}, or flip samples of more classes."
            )
        if self.indices is not None and (count := len(set(self.indices))) > budget:
            raise ValueError(
                checks.expected("indices", f"at most {budget} samples, the budget of the threat", str(count))
                + f"\nPass fewer, or raise the budget to {count}."
            )

    def _class_map(self, classes: int) -> Tensor:
        """Return the new label of each class, `(C,)`: the class itself if it is unchanged, −1 for a random one."""
        mapping = torch.arange(classes)
        if self.pairs == "next":
            return mapping.roll(-1)
        if self.pairs is None and classes > 1:
            return mapping.fill_(ANY_OTHER if self.target_class is None else self.target_class)
        for source, target in self.pairs or ():
            if not (0 <= source < classes and 0 <= target < classes):
                raise ValueError(f"Expected `pairs` of classes in [0, {classes - 1}], but got {(source, target)}.")
            mapping[source] = target
        return mapping
