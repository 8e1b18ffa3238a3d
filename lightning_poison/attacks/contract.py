"""The rules that poison is held to, whoever crafted it."""

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.attacks.objectives import objectives
from lightning_poison.attacks.poison import COVER, POISON, Attack, Poison
from lightning_poison.attacks.threat import Threat
from lightning_poison.checks import describe, printable
from lightning_poison.data.labels import labels_of, read_sample
from lightning_poison.data.raw_images import has_raw, read_raw
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.errors import PluginError
from lightning_poison.randomness import seeded_rng

TOLERANCE = 1e-4
"""How far a pixel may lie outside a limit for rounding's sake, in units of the raw [0, 1] image."""


def check_poison(attack: Attack, poison: Any, dataset: "Dataset[Any]", threat: Threat) -> None:
    """Check what an attack returned against the data set and the threat.

    Args:
        attack: for its name, and whether it promises clean labels.
        poison: what its `craft` returned.
        dataset: the clean training set, map-style.
        threat: the limits.

    Raises:
        PluginError: where the poison breaks a rule; it names the attack, the rule and the value.
    """
    if not isinstance(poison, Poison):
        raise broken_contract(attack, "return a Poison", describe(poison))
    try:
        dataclasses.replace(poison)
    except (ValueError, TypeError) as error:
        raise broken_contract(attack, "return a valid Poison", f"one that is not: {error}") from error
    case = _Case(attack, poison, dataset, threat)
    with seeded_rng(0):
        case.check_size_and_devices()
        case.check_positions()
        case.check_labels()
        case.check_settings()
        case.check_objective()
        if poison.inputs is not None:
            case.check_shapes(poison.inputs)
            case.check_pixels(poison.inputs)
            case.check_epsilon(poison.inputs)


def broken_contract(attack: Attack, rule: str, value: object, hint: str = "") -> PluginError:
    """Return the error of an attack that broke a rule."""
    message = f"Expected the attack `{printable(attack.name)}` to {rule}, but got {printable(value)}."
    return PluginError(message + (f"\n{hint}" if hint else ""))


@dataclass(frozen=True)
class _Case:
    """One poison, and what it is held against."""

    attack: Attack
    poison: Poison
    dataset: Any
    threat: Threat

    def refuse(self, rule: str, value: object, hint: str = "") -> PluginError:
        return broken_contract(self.attack, rule, value, hint)

    @cached_property
    def spec(self) -> SampleSpec:
        return SampleSpec.detect(read_sample(self.dataset, 0))

    @cached_property
    def carriers(self) -> Tensor:
        """The sample whose container each poison takes over: the one it replaces, else its base, else the first."""
        bases = torch.zeros_like(self.poison.indices) if self.poison.base_indices is None else self.poison.base_indices
        return torch.where(self.poison.appended(len(self.dataset)), bases, self.poison.indices)

    def bases(self, why: str) -> Tensor:
        """Return the sample that each poison was made from, or refuse where one is not named."""
        if self.poison.base_indices is None and self.poison.appended(len(self.dataset)).any():
            raise self.refuse(f"name the `base_indices` of appended samples, since {why}", "none")
        return self.carriers if self.poison.base_indices is None else self.poison.base_indices

    def check_size_and_devices(self) -> None:
        if not 1 <= len(self.poison) <= self.threat.budget:
            raise self.refuse(f"return 1 to {self.threat.budget} samples, its budget", len(self.poison))
        for field in dataclasses.fields(self.poison):
            value = getattr(self.poison, field.name)
            if isinstance(value, Tensor) and (value.device.type != "cpu" or value.requires_grad):
                came = f"{value.device} and requires_grad={value.requires_grad}"
                raise self.refuse(f"return `{field.name}` on the CPU, detached", came, "Call `.detach().cpu()`.")

    def check_positions(self) -> None:
        length = len(self.dataset)
        appended = self.poison.indices[self.poison.appended(length)].sort().values
        if len(appended) and not self.threat.may_append:
            raise self.refuse("append nothing, as the threat says", f"index {int(appended[-1])} of {length} samples")
        wanted = torch.arange(length, length + len(appended))
        if not torch.equal(appended, wanted):
            came = int(appended[appended != wanted][0])
            raise self.refuse(f"append from index {length} on without a gap", f"index {came}")
        if (bases := self.poison.base_indices) is not None and not ((bases >= 0) & (bases < length)).all():
            raise self.refuse(f"name bases in the data set of {length}", int(bases[(bases < 0) | (bases >= length)][0]))
        roles = self.poison.role
        if not ((roles == POISON) | (roles == COVER)).all():
            raise self.refuse(f"give roles {POISON} (poison) and {COVER} (cover) only", sorted(set(roles.tolist())))
        if self.poison.inputs is None:
            self.bases("no new inputs are given")

    def check_labels(self) -> None:
        true = labels_of(self.dataset)
        labels, classes = self.poison.labels, int(true.max()) + 1
        if not ((labels >= 0) & (labels < classes)).all():
            came = int(labels[(labels < 0) | (labels >= classes)][0])
            raise self.refuse(f"give labels of the data set's {classes} classes", came)
        if not (self.attack.clean_label or self.threat.clean_label):
            return
        original = true[self.bases("labels must stay clean")]
        if (changed := (labels != original).nonzero().flatten()).numel():
            first = int(changed[0])
            shown = f"label {int(labels[first])} for a base of class {int(original[first])}"
            raise self.refuse("leave the labels alone (clean label)", shown)

    def check_settings(self) -> None:
        try:
            json.dumps(dict(self.poison.settings), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise self.refuse("return `settings` that JSON can hold", error) from error

    def check_objective(self) -> None:
        try:
            packed, tensors = objectives.pack(self.poison.objective)
            objectives.unpack(json.loads(json.dumps(packed, allow_nan=False)), tensors)
        except Exception as error:
            came = f"{type(self.poison.objective).__name__}: {error}"
            hint = "Use one of `lightning_poison.attacks.objectives`, or register yours with `@objectives.register`."
            raise self.refuse("return an objective that can be saved and loaded", came, hint) from error

    def originals(self, indices: Tensor) -> list[Any]:
        if self.poison.domain == "raw":
            return [read_raw(self.dataset, index) for index in indices.tolist()]
        return [self.spec.inputs_in(read_sample(self.dataset, index)) for index in indices.tolist()]

    def check_shapes(self, inputs: Tensor) -> None:
        if self.poison.domain == "raw" and not has_raw(self.dataset):
            hint = 'Return the poison as the data set returns samples, with domain="sample".'
            raise self.refuse("stay in the sample domain, as this data set's raw images cannot be reached", "raw", hint)
        for index, original in zip(self.carriers.tolist(), self.originals(self.carriers), strict=True):
            alike = getattr(original, "shape", None) == inputs.shape[1:]
            if not isinstance(original, Tensor) or not alike or original.dtype != inputs.dtype:
                rule = f"return inputs like sample {index} of the data set, {describe(original)}"
                raise self.refuse(rule, f"samples like {describe(inputs[0])}")
        if not torch.isfinite(inputs).all():
            bad = int(self.poison.indices[(~torch.isfinite(inputs.flatten(1))).any(1)][0])
            raise self.refuse("return finite inputs", f"NaN or infinite values at index {bad}")

    def check_pixels(self, inputs: Tensor) -> None:
        """Check range and grid of images in the sample domain; raw ones keep both by their type."""
        pixels = self.threat.pixels
        if self.poison.domain == "raw" or inputs.ndim != 4:
            return
        raw, clean = pixels.to_raw(inputs), torch.stack(self.originals(self.carriers))
        if not pixels.contains(inputs, tolerance=TOLERANCE):
            wrong = not pixels.contains(clean, tolerance=TOLERANCE)
            hint = "The data set's own samples lie outside: is `Threat(pixels=...)` its normalization?" if wrong else ""
            came = f"{float(raw.min()):.4g} to {float(raw.max()):.4g} in units of the raw image"
            raise self.refuse("keep to the pixel range", came, hint or "Call `threat.pixels.clamp`.")
        off = (pixels.to_raw(pixels.round(inputs)) - raw).abs()
        off[inputs == clean] = 0
        if float(off.max()) > _rounding(inputs):
            came = f"a changed pixel {float(off.max()):.4g} off it in units of the raw image"
            raise self.refuse(f"keep to the grid of {pixels.levels} levels", came, "Call `threat.pixels.round`.")

    def check_epsilon(self, inputs: Tensor) -> None:
        if self.threat.epsilon is None:
            return
        bases = self.bases("epsilon limits the change of each")
        clean, again = (torch.stack(self.originals(bases)) for _ in range(2))
        if not torch.equal(clean, again):
            raise self.refuse(
                "craft on samples that stay the same, since epsilon limits their change",
                "a data set that augments them",
                "Hand over a view without random transforms.",
            )
        images = (clean.float() / 255, inputs.float() / 255)
        if self.poison.domain == "sample":
            images = (self.threat.pixels.to_raw(clean), self.threat.pixels.to_raw(inputs))
        change = float((images[1] - images[0]).abs().max())
        if change > self.threat.epsilon + _rounding(inputs):
            rule = f"change no pixel by more than epsilon = {self.threat.epsilon:.4g}"
            raise self.refuse(rule, f"{change:.4g} in units of the raw image")


def _rounding(inputs: Tensor) -> float:
    return max(TOLERANCE, 4 * torch.finfo(inputs.dtype).eps) if inputs.is_floating_point() else TOLERANCE
