"""Rules that the poison of every attack must comply with."""

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.attacks.objectives import objective_kinds
from lightning_poison.attacks.poison import Attack, Poison
from lightning_poison.attacks.threat import Threat
from lightning_poison.checks import describe, printable
from lightning_poison.data.labels import labels_of, read_sample
from lightning_poison.data.raw_images import has_raw, read_raw
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.errors import PluginError
from lightning_poison.randomness import seeded_rng

TOLERANCE = 1e-4
"""Rounding tolerance for pixel limits, in units of the raw [0, 1] image."""


def check_poison(attack: Attack, poison: Any, dataset: "Dataset[Any]", threat: Threat) -> None:
    """Check the result of an attack against the data set and the threat.

    Args:
        attack: Attack, for its name and its `clean_label` flag.
        poison: Return value of its `craft`.
        dataset: Clean training set, map-style.
        threat: Limits of the attack.

    Raises:
        PluginError: If the poison violates a rule. The message names the attack, the rule and the value.
    """
    if not isinstance(poison, Poison):
        raise broken_contract(attack, "return a Poison", describe(poison))
    try:
        dataclasses.replace(poison)
    except (ValueError, TypeError) as error:
        raise broken_contract(attack, "return a valid Poison", f"an invalid one: {error}") from error
    check = _PoisonCheck(attack, poison, dataset, threat)
    with seeded_rng(0):
        check.size_and_devices()
        check.positions()
        check.labels()
        check.settings()
        check.objective()
        if poison.inputs is not None:
            check.shapes(poison.inputs)
            check.pixels(poison.inputs)
            check.epsilon(poison.inputs)


def broken_contract(attack: Attack, rule: str, value: object, hint: str = "") -> PluginError:
    """Return the error for an attack that violates a rule."""
    message = f"Expected the attack `{printable(attack.name)}` to {rule}, but got {printable(value)}."
    return PluginError(message + (f"\n{hint}" if hint else ""))


@dataclass(frozen=True)
class _PoisonCheck:
    """Checks of one poison, a method per rule."""

    attack: Attack
    poison: Poison
    dataset: Any
    threat: Threat

    def violation(self, rule: str, value: object, hint: str = "") -> PluginError:
        return broken_contract(self.attack, rule, value, hint)

    @cached_property
    def spec(self) -> SampleSpec:
        return SampleSpec.detect(read_sample(self.dataset, 0))

    @cached_property
    def templates(self) -> Tensor:
        """Sample whose format each poison must match: the sample that it replaces, else its base, else the first."""
        bases = torch.zeros_like(self.poison.indices) if self.poison.base_indices is None else self.poison.base_indices
        return torch.where(self.poison.appended(len(self.dataset)), bases, self.poison.indices)

    def bases(self, reason: str) -> Tensor:
        """Return the sample from which each poison was made, or raise if an appended one names none."""
        if self.poison.base_indices is None and self.poison.appended(len(self.dataset)).any():
            raise self.violation(f"give the `base_indices` of appended samples, since {reason}", "none")
        return self.templates if self.poison.base_indices is None else self.poison.base_indices

    def size_and_devices(self) -> None:
        if not 1 <= len(self.poison) <= self.threat.budget:
            raise self.violation(f"return 1 to {self.threat.budget} samples, its budget", len(self.poison))
        for field in dataclasses.fields(self.poison):
            value = getattr(self.poison, field.name)
            if isinstance(value, Tensor) and (value.device.type != "cpu" or value.requires_grad):
                received = f"{value.device} and requires_grad={value.requires_grad}"
                raise self.violation(f"return `{field.name}` on the CPU, detached", received, "Call `.detach().cpu()`.")

    def positions(self) -> None:
        length = len(self.dataset)
        if not self.threat.may_append and self.poison.appended(length).any():
            received = f"index {int(self.poison.indices.max())} of {length} samples"
            raise self.violation("append no samples (`may_append=False`)", received)
        try:
            self.poison.check_fits(length)
        except ValueError as error:
            reason = str(error).splitlines()[0].rstrip(".")
            raise self.violation("return poison that fits the data set", f"an error: {reason}") from error

    def labels(self) -> None:
        true = labels_of(self.dataset)
        labels, classes = self.poison.labels, int(true.max()) + 1
        if (invalid := labels[labels >= classes]).numel():
            raise self.violation(f"return labels of the data set's {classes} classes", int(invalid[0]))
        if not (self.attack.clean_label or self.threat.clean_label):
            return
        original = true[self.bases("labels must stay clean")]
        if (changed := (labels != original).nonzero().flatten()).numel():
            first = int(changed[0])
            received = f"label {int(labels[first])} for a base of class {int(original[first])}"
            raise self.violation("keep the labels (clean label)", received)

    def settings(self) -> None:
        try:
            json.dumps(dict(self.poison.settings), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise self.violation("return JSON-serializable `settings`", error) from error

    def objective(self) -> None:
        try:
            packed, tensors = objective_kinds.pack(self.poison.objective)
            objective_kinds.unpack(json.loads(json.dumps(packed, allow_nan=False)), tensors)
        except Exception as error:
            received = f"{type(self.poison.objective).__name__}: {error}"
            hint = "Use an objective of `lightning_poison.attacks`, or register yours with `@objective_kinds.register`."
            raise self.violation("return an objective that can be saved and loaded", received, hint) from error

    def originals(self, indices: Tensor) -> list[Any]:
        if self.poison.domain == "raw":
            return [read_raw(self.dataset, index) for index in indices.tolist()]
        return [self.spec.inputs_in(read_sample(self.dataset, index)) for index in indices.tolist()]

    def shapes(self, inputs: Tensor) -> None:
        if self.poison.domain == "raw" and not has_raw(self.dataset):
            rule = "return samples, since the raw images of this data set are not accessible"
            raise self.violation(rule, "raw images", 'Use `domain="sample"`, with inputs as the data set returns them.')
        for index, original in zip(self.templates.tolist(), self.originals(self.templates), strict=True):
            same_shape = getattr(original, "shape", None) == inputs.shape[1:]
            if not isinstance(original, Tensor) or not same_shape or original.dtype != inputs.dtype:
                rule = f"return inputs like sample {index} of the data set, {describe(original)}"
                raise self.violation(rule, f"samples like {describe(inputs[0])}")

    def pixels(self, inputs: Tensor) -> None:
        """Check range and grid of images in the sample domain; uint8 guarantees both in the raw domain."""
        pixels = self.threat.pixels
        if self.poison.domain == "raw" or inputs.ndim != 4:
            return
        raw, clean = pixels.to_raw(inputs), torch.stack(self.originals(self.templates))
        if not pixels.contains(inputs, tolerance=TOLERANCE):
            hint = "Call `threat.pixels.clamp`."
            if not pixels.contains(clean, tolerance=TOLERANCE):
                hint = "The data set itself is outside the range: check that `Threat(pixels=...)` is its normalization."
            received = f"{float(raw.min()):.4g} to {float(raw.max()):.4g} in units of the raw image"
            raise self.violation("stay in the pixel range", received, hint)
        distance = (pixels.to_raw(pixels.round(inputs)) - raw).abs()
        distance[inputs == clean] = 0
        if float(distance.max()) > _tolerance(inputs):
            received = f"a changed pixel {float(distance.max()):.4g} off it in units of the raw image"
            raise self.violation(f"stay on the grid of {pixels.levels} levels", received, "Call `threat.pixels.round`.")

    def epsilon(self, inputs: Tensor) -> None:
        if self.threat.epsilon is None:
            return
        bases = self.bases("epsilon limits the change of each")
        clean, again = (torch.stack(self.originals(bases)) for _ in range(2))
        if not torch.equal(clean, again):
            rule = "craft on a deterministic data set, since epsilon limits the change"
            raise self.violation(rule, "a data set that augments", "Pass a view without random transforms.")
        before, after = clean.float() / 255, inputs.float() / 255
        if self.poison.domain == "sample":
            before, after = self.threat.pixels.to_raw(clean), self.threat.pixels.to_raw(inputs)
        change = float((after - before).abs().max())
        if change > self.threat.epsilon + _tolerance(inputs):
            rule = f"change no pixel by more than epsilon = {self.threat.epsilon:.4g}"
            raise self.violation(rule, f"{change:.4g} in units of the raw image")


def _tolerance(inputs: Tensor) -> float:
    return max(TOLERANCE, 4 * torch.finfo(inputs.dtype).eps) if inputs.is_floating_point() else TOLERANCE
