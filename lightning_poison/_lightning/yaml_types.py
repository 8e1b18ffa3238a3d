"""What LightningCLI reads from the annotations of our arguments, and one thing that it gets wrong.

jsonargparse takes the annotations of the running program for a check of the YAML file. It wants the methods of a class
to be annotated word for word as those of a protocol are, and takes whatever it cannot check for a plain value, a
misspelled argument among it. So what it sees says less about methods, and more about classes, than what a type checker
sees.
"""

import os
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from lightning_poison.attacks.poison import Attack, Poison
from lightning_poison.scorers.protocol import FeatureScorer, Scorer

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
    AnyScorer: TypeAlias = Scorer | FeatureScorer
    AnyPoison: TypeAlias = Poison | Attack | str | os.PathLike[str]
    AnyAdversary: TypeAlias = Adversary
    AnyRecipe: TypeAlias = Recipe
    AnyLogits: TypeAlias = str | Callable[[nn.Module, Tensor], Any]
    """A submodule or a method by its name, or a function of a module and inputs."""
    AnySampleLoss: TypeAlias = SampleLoss
    AnyStrategy: TypeAlias = Any
    """What a function that returns a strategy is said to return: one of either namespace."""
else:
    from collections.abc import Callable
    from functools import reduce
    from operator import or_
    from typing import Protocol

    from torch.utils.data import DataLoader, Dataset

    from lightning_poison._lightning.namespaces import lightning_types, strategy_types

    class ConfiguredScorer(Protocol):
        """Any class with the methods of a scorer."""

        def fit(self, trusted: Any, *, runtime: Any = None, generator: Any = None) -> Any:
            """See `Scorer.fit`."""

        def score_batch(self, inputs: Any, labels: Any) -> Any:
            """See `Scorer.score_batch`."""

    class ConfiguredFeatureScorer(Protocol):
        """Any class with the method of a scorer that must see the whole set."""

        def score_features(self, features: Any, labels: Any) -> Any:
            """See `FeatureScorer.score_features`."""

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
    AnyScorer = ConfiguredScorer | ConfiguredFeatureScorer
    AnyPoison = ConfiguredAttack | str
    AnyAdversary = ConfiguredAdversary
    AnyRecipe = ConfiguredRecipe
    AnyLogits = str | Callable
    AnySampleLoss = Callable
    AnyStrategy = type("AnyStrategy", strategy_types(), {"__module__": __name__})


def built(data: Any) -> Any:
    """Build a nested DataModule that jsonargparse hands over as a function, and return anything else as it is.

    LightningCLI tells every DataModule that it builds the arguments of the outermost one, and a nested one would save
    those as its own hyper-parameters. So the class is taken out of the function, and built where no one tells it
    anything: then it saves its own.
    """
    if not isinstance(data, partial):
        return data
    classes = [part for part in data.args if isinstance(part, type)]
    return Context().run(classes[-1] if classes else data.func, **data.keywords)
