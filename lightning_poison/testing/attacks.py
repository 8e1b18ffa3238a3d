"""Conformance suite for attacks, to be called in the tests of a plug-in."""

import ast
import importlib.util
import inspect
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_poison.attacks.contract import broken_contract
from lightning_poison.attacks.crafting import check_interface, craft
from lightning_poison.attacks.objectives import ANY_OTHER
from lightning_poison.attacks.poison import Attack, Poison
from lightning_poison.attacks.threat import Surrogate, Threat
from lightning_poison.checks import describe, describe_error, printable, type_name
from lightning_poison.data.labels import labels_of
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.entry_points import call_plugin
from lightning_poison.errors import PluginError
from lightning_poison.randomness import seeded_rng
from lightning_poison.testing.tiny_images import TinyImages

BUDGET = 6
"""Number of poison samples in the built-in cases."""

ResultT = TypeVar("ResultT")

_NORMALIZED = PixelRange(mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3))


def check_attack(
    attack: Attack | Callable[[], Attack],
    dataset: "Dataset[Any] | None" = None,
    threat: Threat | None = None,
    *,
    surrogates: Sequence[Surrogate] | None = None,
    holdout: "Dataset[Any] | None" = None,
    seed: int = 0,
    draws: bool = True,
) -> None:
    """Check that an attack complies with the contract.

    The attack is run through `lightning_poison.craft`, which checks its poison. Further checks:

    - The same generator gives the same poison, regardless of the global random states; another seed gives different
      poison.
    - The poison can be saved and loaded without change.
    - Its objective provides an evaluation set, on which predictions of the wanted labels count as success.
    - `craft` takes the arguments with which it is called.
    - Its code does not import Lightning.

    Args:
        attack: Attack, or a factory that builds one with its default settings.
        dataset: Training set. Default: two small data sets in turn, gray images in [0, 1] and normalized color images.
        threat: Limits of the attack. Default: six samples, with labels kept if the attack is clean-label.
        surrogates: Models on which the attack may craft. Default: a small untrained model.
        holdout: Samples that are not part of the training set, on which the objective is checked. Default: other small
            images, or `dataset` itself if given.
        seed: Seed of the generator. Default: 0.
        draws: Whether the attack draws random numbers. Pass `False` if it gives the same poison for every seed.

    Raises:
        PluginError: If a rule is violated. The message names the attack, the rule and the value. Also if the attack
            raises an error, chained to it; the message names the method.

    Example:
        >>> from lightning_poison.attacks.objectives import AvailabilityObjective
        >>> class Flip:
        ...     name, clean_label = "flip", False
        ...     def craft(self, dataset, threat, *, surrogates, holdout, generator):
        ...         chosen = torch.randperm(len(dataset), generator=generator)[: threat.budget]
        ...         labels = (dataset.targets[chosen] + 1) % 3
        ...         return Poison(chosen, labels, AvailabilityObjective(), attack=self.name)
        >>> check_attack(Flip)
    """
    built = _built(attack)
    check_interface(built)
    _check_signature(built)
    _check_imports(built)
    for case in _cases(built, dataset, threat, holdout):
        models = [_surrogate(case.dataset)] if surrogates is None else list(surrogates)
        poison = _check_repeats(built, case, models, seed, draws=draws)
        _check_saves(built, poison)
        _check_objective(built, poison, case.holdout)


def _built(attack: Any) -> Any:
    def build() -> Any:
        if not isinstance(attack, type) and (hasattr(attack, "craft") or not callable(attack)):
            return attack
        return attack()

    return _named(f"the factory `{printable(getattr(attack, '__name__', type_name(attack)))}`", build)


def _named(what: str, call: Callable[[], ResultT]) -> ResultT:
    """Run code of an attack; every error is a `PluginError` that names what failed."""

    def run() -> ResultT:
        try:
            return call()
        except PluginError:
            raise
        except Exception as error:
            raise PluginError(f"Expected {what} to succeed, but it raised {describe_error(error)}.") from error

    return call_plugin(run, what, passed=())


def _check_signature(attack: Attack) -> None:
    signature = _named(f"`craft` of the attack `{printable(attack.name)}`", lambda: inspect.signature(attack.craft))
    keywords: dict[str, Any] = dict.fromkeys(("surrogates", "holdout", "generator"))
    try:
        signature.bind(None, None, **keywords)
    except TypeError as error:
        rule = "define `craft(self, dataset, threat, *, surrogates, holdout, generator)`"
        raise broken_contract(attack, rule, f"craft{signature}: {error}") from error


@dataclass(frozen=True)
class _Case:
    dataset: Any
    threat: Threat
    holdout: Any


def _cases(attack: Attack, dataset: Any, threat: Threat | None, holdout: Any) -> Iterator[_Case]:
    if dataset is not None:
        limits = threat or Threat(BUDGET, clean_label=attack.clean_label)
        yield _Case(dataset, limits, dataset if holdout is None else holdout)
        return
    for channels, pixels in ((1, PixelRange()), (3, _NORMALIZED)):
        limits = threat or Threat(BUDGET, clean_label=attack.clean_label, pixels=pixels)
        images = TinyImages(channels=channels, pixels=pixels)
        yield _Case(images, limits, holdout or TinyImages(24, channels=channels, pixels=pixels, seed=1))


def _surrogate(dataset: Any) -> Surrogate:
    """Build a small untrained network without using the global random state."""
    inputs = SampleSpec.detect(dataset[0]).inputs_in(dataset[0])
    classes = int(labels_of(dataset).max()) + 1
    first = nn.Linear(inputs.numel(), 16, device="meta").to_empty(device="cpu")
    last = nn.Linear(16, classes, device="meta").to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in (*first.parameters(), *last.parameters()):
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return Surrogate(nn.Sequential(nn.Flatten(), first, nn.ReLU(), last).eval(), "2")


def _check_repeats(attack: Attack, case: _Case, surrogates: list[Surrogate], seed: int, *, draws: bool) -> Poison:
    what = f"`craft` of the attack `{printable(attack.name)}`"
    given: dict[str, Any] = {"surrogates": tuple(surrogates), "holdout": case.holdout}

    def run(run_seed: int) -> Poison:
        generator = torch.Generator().manual_seed(run_seed)
        try:
            return craft(attack, case.dataset, case.threat, generator=generator, **given)
        except PluginError:
            raise
        except Exception as error:
            fault = describe_error(error).replace(f"In {what}: ", "")
            raise PluginError(f"Expected {what} to succeed, but it raised {fault}.") from error

    poison = run(seed)
    if (changed := _difference(poison, run(seed))) is not None:
        raise broken_contract(attack, "return the same poison for the same generator", f"different {changed}")
    with seeded_rng(seed, 1):
        generator = torch.Generator().manual_seed(seed)
        unwrapped = _named(what, lambda: attack.craft(case.dataset, case.threat, generator=generator, **given))
    if (changed := _named(what, lambda: _difference(poison, unwrapped))) is not None:
        hint = "Pass `generator=` wherever random numbers are drawn."
        received = f"{changed} that depend on the global random state"
        raise broken_contract(attack, "draw from the generator only", received, hint)
    if draws and _difference(poison, run(seed + 1)) is None:
        hint = "Draw from `generator`, or pass `check_attack(..., draws=False)`."
        raise broken_contract(attack, "return different poison for another seed", "the same", hint)
    return poison


def _difference(one: Poison, other: Poison) -> str | None:
    """Return the name of the first part in which two poisons differ, or `None`."""
    for part in ("indices", "labels", "role", "inputs", "base_indices"):
        first, second = getattr(one, part), getattr(other, part)
        if not (first is second if first is None or second is None else torch.equal(first, second)):
            return part
    packed = [json.dumps(dict(each.settings), sort_keys=True) for each in (one, other)]
    return None if packed[0] == packed[1] else "settings"


def _check_saves(attack: Attack, poison: Poison) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "poison.safetensors"
        poison.save(path)
        loaded = Poison.load(path)
    if (changed := _difference(poison, loaded)) is not None:
        rule = "return poison that can be saved and loaded without change"
        raise broken_contract(attack, rule, f"different {changed}")


def _check_objective(attack: Attack, poison: Poison, test: Any) -> None:
    """Check that predictions of the wanted labels count as success on every item."""
    what = f"the objective of the attack `{printable(attack.name)}`"

    def read() -> list[Any]:
        evaluation: Any = poison.objective.evaluation_set(test)
        return [evaluation[position] for position in range(len(evaluation))]

    items = _named(what, read)
    if not items:
        raise broken_contract(attack, "have an objective with items to evaluate", "none on the held-out set")
    if not all(isinstance(item, tuple) for item in items) or not all(
        len(item) == 3 and all(isinstance(label, int) for label in item[1:]) for item in items
    ):
        raise broken_contract(attack, "evaluate items (input, true label, wanted label)", describe(items[0]))
    true, wanted = (torch.tensor([item[position] for item in items]) for position in (1, 2))
    predictions = torch.where(wanted == ANY_OTHER, true + 1, wanted)
    success: Any = _named(what, lambda: poison.objective.success(predictions, true, wanted))
    if not (isinstance(success, Tensor) and success.dtype == torch.bool and bool(success.all())):
        rule = "count predictions of the wanted labels as success"
        raise broken_contract(attack, rule, f"{success} for wanted labels {wanted.tolist()}")


def _check_imports(attack: Attack) -> None:
    """Refuse imports of Lightning in the attack's module and in the modules of its package that it imports."""
    pending, seen = [type(attack).__module__], set()
    while pending:
        name = pending.pop()
        module = sys.modules.get(name)
        if name in seen or module is None or not getattr(module, "__file__", None):
            continue
        seen.add(name)
        try:
            imports = _imported_names(inspect.getsource(module), module.__package__ or "")
        except (OSError, TypeError):  # a compiled module, which has no source
            continue
        for imported in imports:
            top = imported.partition(".")[0]
            if top in ("lightning", "pytorch_lightning"):
                raise broken_contract(attack, "not import Lightning", f"`{imported}` in {name}")
            if top == name.partition(".")[0] != "lightning_poison":
                pending.append(imported)


def _imported_names(source: str, package: str) -> list[str]:
    """Return the dotted names that a source imports; `from a import b` counts as `a` and `a.b`."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package) if node.level else relative
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names
