"""The door of attack plug-ins: runs an attack and checks what came back before anyone uses it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from lightning_poison.attacks.contract import broken_contract, check_poison
from lightning_poison.attacks.poison import Attack, Poison
from lightning_poison.attacks.snapshot import first_change, snapshot_dataset, snapshot_module
from lightning_poison.attacks.threat import Surrogate, Threat
from lightning_poison.checks import describe, expected, printable
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
    """Run an attack and check that its poison keeps the contract.

    The attack runs under random states that are seeded from the generator and put back afterwards, so one that draws
    from the global ones by mistake still repeats and disturbs nobody.

    Args:
        attack: what a plug-in's factory returned.
        dataset: the training set, map-style.
        threat: the limits.
        surrogates: models that the attack may craft on.
        holdout: samples that are not trained on.
        generator: the only source of randomness.

    Returns:
        The poison, of at most `threat.budget` samples.

    Raises:
        PluginError: where the poison breaks a rule: budget, positions, shape and dtype, finiteness, pixel range and
            grid, epsilon, labels, settings, objective; or where the attack changed the data or a surrogate. It names
            the attack, the rule and the value.
        TypeError: where `generator` is none.

    What the attack itself raises comes through, with a note that names the attack.

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
    check_identity(attack)
    before = _snapshots(dataset, holdout, surrogates)
    with seeded_rng(generator.initial_seed()):
        try:
            poison = attack.craft(dataset, threat, surrogates=tuple(surrogates), holdout=holdout, generator=generator)
        except Exception as error:
            error.add_note(f"Raised by the attack `{printable(attack.name)}`.")
            raise
    for (what, old), (_, new) in zip(before, _snapshots(dataset, holdout, surrogates), strict=True):
        if (changed := first_change(old, new)) is not None:
            raise broken_contract(
                attack, f"leave {what} as it found it", f"another {changed}", "Work on a copy (`clone`)."
            )
    check_poison(attack, poison, dataset, threat)
    return poison


def check_identity(attack: Any) -> None:
    """Check that an object looks like an attack.

    Raises:
        PluginError: where `name`, `clean_label` or `craft` is missing or of another type.

    Example:
        >>> class Nameless:
        ...     clean_label = True
        ...     def craft(self, dataset, threat, *, surrogates, holdout, generator): ...
        >>> check_identity(Nameless())
        Traceback (most recent call last):
        lightning_poison.errors.PluginError: Expected `Nameless.name` to be a string, but got None.
    """
    wanted = (("name", str, "a string"), ("clean_label", bool, "True or False"))
    for attribute, kind, words in wanted:
        if not isinstance(value := getattr(attack, attribute, None), kind):
            raise PluginError(expected(f"{type(attack).__name__}.{attribute}", words, describe(value)))
    if not callable(getattr(attack, "craft", None)):
        raise PluginError(f"Expected the attack `{printable(attack.name)}` to have a method `craft`, but it has none.")


def _snapshots(dataset: Any, holdout: Any, surrogates: Sequence[Surrogate]) -> list[tuple[str, dict[str, str]]]:
    taken = [("the data set", snapshot_dataset(dataset))]
    if holdout is not None:
        taken.append(("the held-out set", snapshot_dataset(holdout)))
    models = [snapshot_module(surrogate.model) for surrogate in surrogates]
    return taken + [(f"surrogate {position}", parts) for position, parts in enumerate(models)]
