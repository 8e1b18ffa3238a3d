"""The conformance suite of attack plug-ins: one line in a plug-in's own test; `check_scorer` stands beside it."""

import ast
import importlib.util
import inspect
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_poison.attacks.contract import broken_contract
from lightning_poison.attacks.crafting import check_identity, craft
from lightning_poison.attacks.objectives import ANY_OTHER
from lightning_poison.attacks.poison import Attack, Poison
from lightning_poison.attacks.threat import Surrogate, Threat
from lightning_poison.checks import describe
from lightning_poison.data.labels import labels_of
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.randomness import seeded_rng
from lightning_poison.testing.scorers import check_scorer
from lightning_poison.testing.tiny_images import TinyImages

__all__ = ["TinyImages", "check_attack", "check_scorer"]

BUDGET = 6
"""How many poison samples the built-in cases allow."""

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
    """Check that an attack keeps the contract.

    It is run through `lightning_poison.craft`, and then: the same generator gives the same poison, whatever the
    global random states; another seed gives another; the poison comes back from a file as it was; its objective
    offers an evaluation set on which an attacker who has what they want succeeds; and its code imports no lightning.

    Args:
        attack: an attack, or what builds one with its default settings.
        dataset: the training set; where it is `None`, two small ones that are made here are used in turn: gray images
            in [0, 1], and normalized color images.
        threat: the limits; where it is `None`, six samples, with labels kept if the attack promises so.
        surrogates: models to craft on; an untrained small one where it is `None`.
        holdout: samples that are not trained on, and on which the objective is tried; other small images, or the data
            set itself where one is given.
        seed: seeds the generator.
        draws: whether the attack makes choices at random; `False` for one that gives the same poison at every seed.

    Raises:
        PluginError: where a rule is broken; it names the attack, the rule and the value.

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
    built: Any = attack() if isinstance(attack, type) or not hasattr(attack, "craft") else attack
    check_identity(built)
    _check_imports(built)
    for case in _cases(built, dataset, threat, holdout):
        models = [_surrogate(case.dataset)] if surrogates is None else list(surrogates)
        poison = _check_repeats(built, case, models, seed, draws=draws)
        _check_saves(built, poison)
        _check_objective(built, poison, case.holdout)


@dataclass(frozen=True)
class _Setting:
    dataset: Any
    threat: Threat
    holdout: Any


def _cases(attack: Attack, dataset: Any, threat: Threat | None, holdout: Any) -> Iterator[_Setting]:
    if dataset is not None:
        limits = threat or Threat(BUDGET, clean_label=attack.clean_label)
        yield _Setting(dataset, limits, dataset if holdout is None else holdout)
        return
    for channels, pixels in ((1, PixelRange()), (3, _NORMALIZED)):
        limits = threat or Threat(BUDGET, clean_label=attack.clean_label, pixels=pixels)
        images = TinyImages(channels=channels, pixels=pixels)
        yield _Setting(images, limits, holdout or TinyImages(24, channels=channels, pixels=pixels, seed=1))


def _surrogate(dataset: Any) -> Surrogate:
    """Build a small untrained network without drawing from the global random state."""
    inputs = SampleSpec.detect(dataset[0]).inputs_in(dataset[0])
    classes = int(labels_of(dataset).max()) + 1
    first = nn.Linear(inputs.numel(), 16, device="meta").to_empty(device="cpu")
    last = nn.Linear(16, classes, device="meta").to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for parameter in (*first.parameters(), *last.parameters()):
        nn.init.normal_(parameter, std=0.1, generator=generator)
    return Surrogate(nn.Sequential(nn.Flatten(), first, nn.ReLU(), last).eval(), "2")


def _check_repeats(attack: Attack, case: _Setting, surrogates: list[Surrogate], seed: int, *, draws: bool) -> Poison:
    def run(chosen: int) -> Poison:
        generator = torch.Generator().manual_seed(chosen)
        return craft(
            attack, case.dataset, case.threat, surrogates=surrogates, holdout=case.holdout, generator=generator
        )

    poison = run(seed)
    if (changed := _difference(poison, run(seed))) is not None:
        raise broken_contract(attack, "give the same poison for the same generator", f"other {changed}")
    with seeded_rng(seed, 1):
        bare = attack.craft(
            case.dataset,
            case.threat,
            surrogates=tuple(surrogates),
            holdout=case.holdout,
            generator=torch.Generator().manual_seed(seed),
        )
    if (changed := _difference(poison, bare)) is not None:
        hint = "Pass `generator=` wherever random numbers are drawn."
        raise broken_contract(attack, "draw from the generator alone", f"{changed} of the global random state", hint)
    if draws and _difference(poison, run(seed + 1)) is None:
        hint = "Draw from `generator`, or say `check_attack(..., draws=False)`."
        raise broken_contract(attack, "give other poison for another seed", "the same", hint)
    return poison


def _difference(one: Poison, other: Poison) -> str | None:
    """Name the first part in which two poisons differ."""
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
        raise broken_contract(attack, "give poison that comes back from a file as it was", f"other {changed}")


def _check_objective(attack: Attack, poison: Poison, test: Any) -> None:
    """Let an attacker who has what they want succeed on every item."""
    evaluation: Any = poison.objective.evaluation_set(test)
    if not len(evaluation):
        raise broken_contract(attack, "have an objective with something to evaluate", "no item on the held-out set")
    items = [evaluation[position] for position in range(len(evaluation))]
    plain = all(len(item) == 3 and all(isinstance(label, int) for label in item[1:]) for item in items)
    if not plain:
        raise broken_contract(attack, "evaluate items (input, true label, wanted label)", describe(items[0]))
    true, wanted = (torch.tensor([item[place] for item in items]) for place in (1, 2))
    got = torch.where(wanted == ANY_OTHER, true + 1, wanted)
    success = poison.objective.success(got, true, wanted)
    if not (isinstance(success, Tensor) and success.dtype == torch.bool and bool(success.all())):
        rule = "count as success the predictions that its objective wants"
        raise broken_contract(attack, rule, f"{success} for wanted labels {wanted.tolist()}")


def _check_imports(attack: Attack) -> None:
    """Follow the imports of the attack's module within its own package (not ours), and refuse one of lightning."""
    pending, seen = [type(attack).__module__], set()
    while pending:
        name = pending.pop()
        module = sys.modules.get(name)
        if name in seen or module is None or not getattr(module, "__file__", None):
            continue
        seen.add(name)
        for imported in imported_names(inspect.getsource(module), module.__package__ or ""):
            top = imported.partition(".")[0]
            if top in ("lightning", "pytorch_lightning"):
                raise broken_contract(attack, "import no lightning", f"`{imported}` in {name}")
            if top == name.partition(".")[0] != "lightning_poison":
                pending.append(imported)


def imported_names(source: str, package: str) -> list[str]:
    r"""Return the dotted names that a module imports, `from a import b` as both `a` and `a.b`.

    Args:
        source: the module's source.
        package: the package that it lies in, against which relative imports are resolved.

    Example:
        >>> imported_names("import os.path\nfrom . import errors", "lightning_poison")
        ['os.path', 'lightning_poison', 'lightning_poison.errors']
    """
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package) if node.level else relative
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
    return names
