"""Annotations for LightningCLI, and the construction of nested DataModules.

jsonargparse validates a YAML file against the annotations at run time. It matches a protocol only if the methods of a
class are annotated exactly like those of the protocol, and it passes a value that it cannot check as it is, including a
misspelled argument. So the annotations at run time are looser about methods, and stricter about classes, than those for
type checkers.
"""

import os
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from lightning_poison.attacks.poison import Attack, Poison

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from lightning_poison.adversarial.adversaries import Adversary
    from lightning_poison.adversarial.batch import SampleLoss
    from lightning_poison.adversarial.recipes import Recipe

    AnyData: TypeAlias = Any
    """A DataModule of either namespace, a DataLoader, or a collection of DataLoaders."""
    AnyDataset: TypeAlias = Any
    """A map-style data set, a loader of one, or `None`."""
    AnyPoison: TypeAlias = Poison | Attack | str | os.PathLike[str]
    AnyAdversary: TypeAlias = Adversary
    AnyRecipe: TypeAlias = Recipe
    AnyLogits: TypeAlias = str | Callable[[nn.Module, Tensor], Any]
    """The name of a submodule or method, or a function of module and inputs."""
    AnySampleLoss: TypeAlias = SampleLoss
    AnyStrategy: TypeAlias = Any
    """A strategy of either namespace."""
else:
    from collections.abc import Callable
    from functools import reduce
    from operator import or_
    from typing import Protocol

    from torch.utils.data import DataLoader, Dataset

    from lightning_poison._lightning.namespaces import lightning_types, strategy_types

    class ConfiguredAttack(Protocol):
        """Any class with the method of an attack."""

        def craft(self, dataset: Any, threat: Any, *, surrogates: Any, holdout: Any, generator: Any) -> Any:
            """See `Attack.craft`."""

    class ConfiguredAdversary(Protocol):
        """Any class with the method of an adversary."""

        def perturb(
            self,
            inputs: Any,
            loss: Any,
            *,
            pixels: Any = None,
            strength: Any = 1.0,
            parameters_frozen: Any = False,
            part: Any = (0, 1),
            generator: Any = None,
        ) -> Any:
            """See `Adversary.perturb`."""

    class ConfiguredRecipe(Protocol):
        """Any class with the method of a recipe."""

        def step(self, attacked: Any, call_next: Any) -> Any:
            """See `Recipe.step`."""

    _Module = reduce(or_, lightning_types("LightningDataModule"))
    AnyData = Callable[[], _Module] | _Module | DataLoader
    AnyDataset = Dataset | DataLoader | None
    AnyPoison = ConfiguredAttack | str
    AnyAdversary = ConfiguredAdversary
    AnyRecipe = ConfiguredRecipe
    AnyLogits = str | Callable
    AnySampleLoss = Callable
    AnyStrategy = type("AnyStrategy", strategy_types(), {"__module__": __name__})


def instantiate(data: Any) -> Any:
    """Build a nested DataModule that jsonargparse passes as a function; return anything else unchanged.

    LightningCLI announces the arguments of the outermost DataModule to every DataModule, and a nested one would save
    them as its own hyperparameters. So the class is extracted from the function and built in an empty context, in which
    it saves its own.
    """
    if not isinstance(data, partial):
        return data
    classes = [part for part in data.args if isinstance(part, type)]
    return Context().run(classes[-1] if classes else data.func, **data.keywords)
