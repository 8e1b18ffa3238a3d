"""Run an attack and check the poison that it returns."""

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.attacks.contract import broken_contract, check_poison
from lightning_poison.attacks.poison import Attack, Poison
from lightning_poison.attacks.snapshot import first_change, snapshot_dataset, snapshot_module
from lightning_poison.attacks.threat import Surrogate, Threat
from lightning_poison.checks import describe, expected, printable, type_name
from lightning_poison.entry_points import call_plugin
from lightning_poison.errors import PluginError
from lightning_poison.randomness import seeded_rng


def craft(
    attack: Attack,
    dataset: "Dataset[Any]",
    threat: Threat,
    *,
    surrogates: Sequence[Surrogate] = (),
    holdout: "Dataset[Any] | None" = None,
    generator: torch.Generator,
) -> Poison:
    """Run an attack and check that its poison complies with the contract.

    The global random states are seeded from the generator and restored afterwards, so that an attack that uses them by
    mistake is still reproducible and has no side effects. Other changes of the process, such as grad mode, default
    dtype or environment variables, are undone too; see `contexts.process_state_restored`. The attack gets a copy of
    the threat, and the tensors of the returned poison are copies that it cannot change later.

    Args:
        attack: Attack, as returned by the factory of a plug-in.
        dataset: Training set, map-style.
        threat: Limits of the attack.
        surrogates: Models on which the attack may craft. Default: none.
        holdout: Samples that are not part of the training set. Optional.
        generator: The only source of randomness.

    Returns:
        Poison of at most `threat.budget` samples.

    Raises:
        PluginError: If the poison violates a rule (budget, positions, shape and dtype, finiteness, pixel range and
            grid, epsilon, labels, settings, objective), or if the attack changes the data or a surrogate. The message
            names the attack, the rule and the value. Also if the attack fails with anything but a `ValueError` or a
            `TypeError`, chained to its error.
        ValueError: If the attack cannot work within the threat or without a surrogate. The message names the attack.
        TypeError: If `generator` is not a `torch.Generator`, or the attack cannot work on this kind of data set.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_poison.attacks.objectives import AvailabilityObjective
        >>> class Flip:
        ...     name, clean_label = "flip", False
        ...     def craft(self, dataset, threat, *, surrogates, holdout, generator):
        ...         chosen = torch.randperm(len(dataset), generator=generator)[: threat.budget]
        ...         return Poison(chosen, 1 - dataset.tensors[1][chosen], AvailabilityObjective(), attack=self.name)
        >>> dataset = TensorDataset(torch.zeros(10, 2), torch.arange(10) % 2)
        >>> craft(Flip(), dataset, Threat(budget=3), generator=torch.Generator().manual_seed(0))
        Poison(flip: 3 samples, labels only)
    """
    if not isinstance(generator, torch.Generator):
        raise TypeError(
            expected("generator", "a torch.Generator", generator, "Write `torch.Generator().manual_seed(0)`.")
        )
    check_interface(attack)
    before = _snapshots(dataset, holdout, surrogates)

    def run() -> Poison:
        limits, models = copy.deepcopy(threat), tuple(surrogates)
        with seeded_rng(generator.initial_seed()):
            return attack.craft(dataset, limits, surrogates=models, holdout=holdout, generator=generator)

    name = call_plugin(lambda: f"the attack `{printable(attack.name)}`", "the name of an attack")
    poison = call_plugin(run, f"`craft` of {name}", passed=(ValueError, TypeError))
    for (what, old), (_, new) in zip(before, _snapshots(dataset, holdout, surrogates), strict=True):
        if (changed := first_change(old, new)) is not None:
            hint = "Work on a copy (`clone`)."
            raise broken_contract(attack, f"leave {what} unchanged", f"a change in {changed}", hint)
    # The poison's settings, objective and tensors are objects of the attack too.
    return call_plugin(lambda: _checked_copy(attack, poison, dataset, threat), f"the poison of {name}", passed=())


def check_interface(attack: Any) -> None:
    """Check that an object has the interface of an attack.

    Raises:
        PluginError: If `name`, `clean_label` or `craft` is missing or has the wrong type.

    Example:
        >>> class Nameless:
        ...     clean_label = True
        ...     def craft(self, dataset, threat, *, surrogates, holdout, generator): ...
        >>> check_interface(Nameless())
        Traceback (most recent call last):
        lightning_poison.errors.PluginError: Expected `Nameless.name` to be a string, but got None.
    """
    call_plugin(lambda: _check_interface(attack), f"reading `{printable(type_name(attack))}`", passed=())


def _check_interface(attack: Any) -> None:
    for attribute, kind, what in (("name", str, "a string"), ("clean_label", bool, "True or False")):
        if not isinstance(value := getattr(attack, attribute, None), kind):
            raise PluginError(expected(f"{printable(type_name(attack))}.{attribute}", what, printable(describe(value))))
    if not callable(getattr(attack, "craft", None)):
        raise PluginError(f"Expected the attack `{printable(attack.name)}` to have a method `craft`, but it has none.")


def _checked_copy(attack: Attack, poison: Any, dataset: Any, threat: Threat) -> Poison:
    check_poison(attack, poison, dataset, threat)
    parts = {field.name: getattr(poison, field.name) for field in dataclasses.fields(Poison)}
    parts = {name: part.clone() if isinstance(part, Tensor) else part for name, part in parts.items()}
    return Poison(**(parts | {"settings": copy.deepcopy(dict(poison.settings))}))


def _snapshots(dataset: Any, holdout: Any, surrogates: Sequence[Surrogate]) -> list[tuple[str, dict[str, str]]]:
    snapshots = [("the data set", snapshot_dataset(dataset))]
    if holdout is not None:
        snapshots.append(("the held-out set", snapshot_dataset(holdout)))
    models = [snapshot_module(surrogate.model) for surrogate in surrogates]
    return snapshots + [(f"surrogate {position}", parts) for position, parts in enumerate(models)]
