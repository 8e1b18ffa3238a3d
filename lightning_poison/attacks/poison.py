"""`Poison`: which training samples the attacker controls, their new inputs and their labels."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import checks
from lightning_poison.attacks.objectives import Objective, objectives
from lightning_poison.attacks.threat import Surrogate, Threat
from lightning_poison.serialization import read_tensors, write_tensors

POISON, COVER = 0, 1
"""The roles: poison; and cover samples, which count neither as caught poison nor as lost clean data."""


@dataclass(frozen=True, eq=False)
class Poison:
    """Poison, drawn once, by index.

    Args:
        indices: int64 `(P,)`, positions in the training set, each once; an index of `len(dataset)` or more is appended.
        labels: int64 `(P,)`, the label that each poison sample carries.
        objective: what the attack wants, and when it has got it.
        attack: the name of the attack.
        inputs: `(P, ...)`, the new inputs: images as uint8 `(P, C, H, W)` in the raw domain, else float as the data set
            returns them; `None` where only labels change.
        base_indices: int64 `(P,)`, the sample that each poison was made from; `None` where each was made from the
            sample that it replaces.
        role: int64 `(P,)`, 0 for poison and 1 for cover samples; poison throughout where it is not given.
        domain: `"raw"` where the inputs go in before the data set's transform, `"sample"` where they are what the data
            set returns.
        settings: the attack's settings, what JSON can hold.

    Raises:
        ValueError: where lengths or types disagree, or an index is negative or given twice.

    Example:
        >>> from lightning_poison.attacks.objectives import AvailabilityObjective
        >>> flips = Poison(torch.tensor([3, 8]), torch.tensor([1, 0]), AvailabilityObjective(), attack="label-flip")
        >>> flips
        Poison(label-flip: 2 samples, labels only)
    """

    indices: Tensor
    labels: Tensor
    objective: Objective
    attack: str
    inputs: Tensor | None = None
    base_indices: Tensor | None = None
    role: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    domain: Literal["raw", "sample"] = "sample"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(checks.index_vector("indices", self.indices))
        if not len(self.role):
            object.__setattr__(self, "role", torch.zeros_like(self.indices))
        for name in ("labels", "role", "base_indices"):
            value = getattr(self, name)
            if value is not None and len(checks.index_vector(name, value)) != count:
                raise ValueError(checks.expected(name, f"as long as `indices` ({count})", len(value)))
        values, counts = torch.unique(self.indices, return_counts=True)
        if len(values) != count:
            raise ValueError(checks.expected("indices", "each given once", f"{int(values[counts > 1][0])} twice"))
        if count and int(self.indices.min()) < 0:
            raise ValueError(checks.expected("indices", "at least 0", int(self.indices.min())))
        checks.one_of("domain", self.domain, ("raw", "sample"))
        self._check_inputs(count)

    def _check_inputs(self, count: int) -> None:
        if self.inputs is None:
            return
        if len(self.inputs) != count:
            raise ValueError(checks.expected("inputs", f"as long as `indices` ({count})", len(self.inputs)))
        if self.domain == "raw" and (self.inputs.dtype != torch.uint8 or self.inputs.ndim != 4):
            raise ValueError(
                checks.expected("inputs", "uint8 (P, C, H, W) in the raw domain", checks.describe(self.inputs))
            )
        if self.domain == "sample" and not self.inputs.is_floating_point():
            raise ValueError(
                checks.expected("inputs", "floating point in the sample domain", checks.describe(self.inputs))
            )

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        what = "labels only" if self.inputs is None else f"{self.domain} inputs {tuple(self.inputs.shape[1:])}"
        covers = int((self.role == COVER).sum())
        covered = f", {covers} of them cover" if covers else ""
        return f"Poison({checks.printable(self.attack)}: {len(self)} samples{covered}, {what})"

    def appended(self, length: int) -> Tensor:
        """Return a mask `(P,)` of the samples that are appended to a data set of that length."""
        return self.indices >= length

    def is_poison(self, length: int) -> Tensor:
        """Return the ground truth, bool `(length + appended,)`: which samples of the poisoned set are poison."""
        return self._mask(length, POISON)

    def is_cover(self, length: int) -> Tensor:
        """Return bool `(length + appended,)`: which samples of the poisoned set are cover."""
        return self._mask(length, COVER)

    def _mask(self, length: int, role: int) -> Tensor:
        mask = torch.zeros(length + int(self.appended(length).sum()), dtype=torch.bool)
        mask[self.indices[self.role == role]] = True
        return mask

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file with the JSON in its header, atomically; no pickle."""
        packed, extra = objectives.pack(self.objective)
        tensors = {"indices": self.indices, "labels": self.labels, "role": self.role}
        optional = {"inputs": self.inputs, "base_indices": self.base_indices}
        tensors |= {name: value for name, value in optional.items() if value is not None}
        tensors |= {f"objective.{name}": value for name, value in extra.items()}
        meta = {"attack": self.attack, "settings": dict(self.settings), "domain": self.domain, "objective": packed}
        write_tensors(path, tensors, {"kind": "poison", "version": 1, **meta})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: where there is no such file.
            ValueError: where it holds something else, or an objective of a kind that is not registered.
        """
        tensors, meta = read_tensors(path, "poison")
        prefix = "objective."
        extra = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        parts: dict[str, Any] = {name: value for name, value in tensors.items() if not name.startswith(prefix)}
        try:
            objective = objectives.unpack(meta["objective"], extra)
            rest = {name: meta[name] for name in ("attack", "settings", "domain")}
            return cls(objective=objective, **rest, **parts)
        except (KeyError, TypeError) as error:
            raise ValueError(f"Expected a complete poison file, but parts of {path} do not fit: {error}.") from error


class Attack(Protocol):
    """What the factory of an attack plug-in returns. It never imports lightning.

    `craft` gets what an attacker needs and no more, and must leave the data set as it found it. The same state of the
    generator gives the same poison.
    """

    name: str
    clean_label: bool

    def craft(
        self,
        dataset: "Dataset[Any]",
        threat: Threat,
        *,
        surrogates: "tuple[Surrogate, ...] | list[Surrogate]",
        holdout: "Dataset[Any] | None",
        generator: torch.Generator,
    ) -> Poison:
        """Return the poison for a training set.

        Args:
            dataset: the training set, as the victim will read it.
            threat: the limits.
            surrogates: models with a named feature layer, for attacks that need them.
            holdout: images that are not trained on: targets, or the owner's own pool.
            generator: the only source of randomness.
        """
