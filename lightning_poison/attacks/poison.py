"""`Poison`: the training samples that the attacker controls, with their new inputs and labels."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import checks
from lightning_poison.attacks.objectives import Objective, objective_kinds
from lightning_poison.attacks.threat import Surrogate, Threat
from lightning_poison.checks import from_json
from lightning_poison.serialization import read_object, write_tensors

POISON, COVER = 0, 1
"""Sample roles. Cover samples count neither as poison nor as clean samples."""

_VERSION = 1
"""Format of a poison file."""

_OBJECTIVE = "objective."
"""Prefix of the names of the objective's tensors in a poison file."""


@dataclass(frozen=True, eq=False)
class Poison:
    """Poison samples, drawn once and identified by index.

    Args:
        indices: Unique positions in the training set, int64 `(P,)`. Samples with an index of `len(dataset)` or more are
            appended.
        labels: Label of each poison sample, int64 `(P,)`, at least 0.
        objective: Goal of the attack.
        attack: Name of the attack.
        inputs: New inputs `(P, ...)`: images as uint8 `(P, C, H, W)` in the raw domain, else finite floating point as
            the data set returns them. Default: none, only labels change.
        base_indices: Sample from which each poison sample was made, int64 `(P,)`, at least 0. Default: the sample that
            it replaces.
        role: 0 for poison and 1 for cover samples, int64 `(P,)`. Default: all poison.
        domain: `"raw"` if the inputs precede the transform of the data set, `"sample"` if they are what the data set
            returns.
        settings: JSON-serializable settings of the attack.

    Raises:
        TypeError: If a value is of another type.
        ValueError: If lengths or data types disagree, an index, a label or a role is out of its range, an index is
            repeated, or an input is not finite.

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
        checks.index_vector("role", self.role)
        if not len(self.role):
            object.__setattr__(self, "role", torch.zeros_like(self.indices))
        for name in ("labels", "role", "base_indices"):
            value = getattr(self, name)
            if value is not None and len(checks.index_vector(name, value)) != count:
                raise ValueError(checks.expected(name, f"as long as `indices` ({count})", len(value)))
        values, counts = torch.unique(self.indices, return_counts=True)
        if len(values) != count:
            raise ValueError(checks.expected("indices", "unique", f"{int(values[counts > 1][0])} twice"))
        for name in ("indices", "labels", "base_indices"):
            value = getattr(self, name)
            if value is not None:
                checks.every(name, value, value >= 0, "at least 0")
        is_known = (self.role == POISON) | (self.role == COVER)
        checks.every("role", self.role, is_known, f"{POISON} (poison) or {COVER} (cover)")
        checks.one_of("domain", self.domain, ("raw", "sample"))
        checks.instance("attack", self.attack, str)
        checks.instance("settings", self.settings, Mapping)
        checks.instance("objective", self.objective, Objective, hint="Use one of `lightning_poison.attacks`.")
        self._check_inputs(count)

    def _check_inputs(self, count: int) -> None:
        if self.inputs is None:
            return
        if not isinstance(self.inputs, Tensor) or not self.inputs.ndim:
            raise ValueError(checks.expected("inputs", "a tensor (P, ...)", checks.describe(self.inputs)))
        if len(self.inputs) != count:
            raise ValueError(checks.expected("inputs", f"as long as `indices` ({count})", len(self.inputs)))
        received = checks.describe(self.inputs)
        if self.domain == "raw" and (self.inputs.dtype != torch.uint8 or self.inputs.ndim != 4):
            raise ValueError(checks.expected("inputs", "uint8 (P, C, H, W) in the raw domain", received))
        if self.domain == "sample" and not self.inputs.is_floating_point():
            raise ValueError(checks.expected("inputs", "floating point in the sample domain", received))
        if self.domain == "sample":
            checks.every("inputs", self.inputs, self.inputs.isfinite(), "finite")

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        what = "labels only" if self.inputs is None else f"{self.domain} inputs {tuple(self.inputs.shape[1:])}"
        count = int((self.role == COVER).sum())
        cover = f", {count} of them cover" if count else ""
        return f"Poison({checks.printable(self.attack)}: {len(self)} samples{cover}, {what})"

    def appended(self, length: int) -> Tensor:
        """Return bool `(P,)`: which samples are appended to a data set of this length."""
        return self.indices >= length

    def check_fits(self, length: int) -> None:
        """Check that the poison fits a data set of this length.

        Raises:
            ValueError: If appended indices are not consecutive, a base is outside the data set, or appended samples
                have neither inputs nor bases.
        """
        appended = self.indices[self.appended(length)].sort().values
        consecutive = torch.arange(length, length + len(appended))
        hint = "Use the data set for which the poison was crafted."
        if not torch.equal(appended, consecutive):
            received = appended[appended != consecutive].tolist()
            what = f"consecutive from {length} on for appended samples"
            raise ValueError(checks.expected("indices", what, received, hint))
        bases = self.base_indices
        if bases is not None and (outside := bases[(bases < 0) | (bases >= length)]).numel():
            what = f"positions in the data set of {length} samples"
            raise ValueError(checks.expected("base_indices", what, int(outside[0]), hint))
        if len(appended) and self.inputs is None and bases is None:
            raise ValueError("Expected `inputs` or `base_indices` for appended samples, but got neither.")

    def is_poison(self, length: int) -> Tensor:
        """Return the ground truth, bool `(length + appended,)`: which samples of the poisoned data set are poison."""
        return self._mask(length, POISON)

    def is_cover(self, length: int) -> Tensor:
        """Return bool `(length + appended,)`: which samples of the poisoned data set are cover."""
        return self._mask(length, COVER)

    def _mask(self, length: int, role: int) -> Tensor:
        mask = torch.zeros(length + int(self.appended(length).sum()), dtype=torch.bool)
        mask[self.indices[self.role == role]] = True
        return mask

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file with the JSON-serializable parts in its header, atomically and without pickle."""
        packed, extra = objective_kinds.pack(self.objective)
        tensors = {"indices": self.indices, "labels": self.labels, "role": self.role}
        optional = {"inputs": self.inputs, "base_indices": self.base_indices}
        tensors |= {name: value for name, value in optional.items() if value is not None}
        tensors |= {_OBJECTIVE + name: value for name, value in extra.items()}
        meta = {"attack": self.attack, "settings": dict(self.settings), "domain": self.domain, "objective": packed}
        write_tensors(path, tensors, {"kind": "poison", "version": _VERSION, **meta})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file written by `save`.

        Raises:
            FileNotFoundError: If the file does not exist.
            ValueError: If it is no poison file of this version, a value is invalid, the kind of its objective is not
                registered, or the file was damaged or changed since it was written. The message names file, field and
                value.
        """
        return read_object(path, "poison", cls._from_saved, version=_VERSION)

    @classmethod
    def _from_saved(cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        extra = {name.removeprefix(_OBJECTIVE): each for name, each in tensors.items() if name.startswith(_OBJECTIVE)}
        parts: dict[str, Any] = {name: each for name, each in tensors.items() if not name.startswith(_OBJECTIVE)}
        parts |= {name: value for name, value in meta.items() if name != "objective"}
        if "objective" in meta:
            parts["objective"] = objective_kinds.unpack(meta["objective"], extra)
        return from_json(cls, parts, "poison")


class Attack(Protocol):
    """Interface of an attack, as returned by the factory of a plug-in. An attack never imports Lightning.

    `craft` must not change the data set, and must return the same poison for the same state of the generator.

    The factory, usually the class, may declare what an evaluation asks for:

    - `needs_surrogates = False`: the attack crafts on no model, so that none is trained for it.
    - `adaptive_to = ("likelihood",)`: names of scorers, or presets, that the attack was made to evade. It is then
      evaluated against them.
    - `knows_scorer = True`: the attack is built for the scorer that it is to evade, by `against(scorer, clean, *,
      false_positive_rate, runtime, generator, **settings)`, which fits a copy of the scorer on samples of the attacker.
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
            dataset: Training set of the victim, map-style.
            threat: Limits of the attack.
            surrogates: Models with a named feature layer, for attacks that need them.
            holdout: Samples that are not part of the training set, such as targets. Optional.
            generator: The only source of randomness.
        """
