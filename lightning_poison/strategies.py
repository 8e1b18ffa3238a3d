"""Adversarial training as a strategy: `Trainer(strategy=adversarial(DDPStrategy, PGD(...)))`, or by a name.

Importing this module registers `"pgd_ddp"` and `"pgd_ddp_spawn"` in each of Lightning's namespaces that is installed,
so that `Trainer(strategy="pgd_ddp")`, `trainer.strategy: pgd_ddp` in a YAML file and `--trainer.strategy=pgd_ddp` work.
They change inputs by `PGD(8 / 255, 2 / 255, steps=7)`, in raw images. In YAML `adversarial` can be named itself, as a
`class_path`, which needs no import. The mechanism is that of `AdversarialTraining`: the strategy gives such a callback
to the Trainer that runs it.
"""

import functools
from importlib import import_module
from inspect import signature
from typing import TYPE_CHECKING, Any, TypeVar

from lightning_poison._lightning.adversarial_step import refuse_strategy
from lightning_poison._lightning.namespaces import installed_namespaces, strategy_types
from lightning_poison._lightning.yaml_types import AnyAdversary, AnyStrategy
from lightning_poison.adversarial.adversaries import PGD
from lightning_poison.callbacks.adversarial_training import AdversarialTraining
from lightning_poison.checks import describe, expected

if TYPE_CHECKING:
    from lightning.pytorch.strategies import Strategy

    StrategyT = TypeVar("StrategyT", bound=Strategy)
else:
    StrategyT = TypeVar("StrategyT")  # of either namespace, where a YAML file is checked

NAMED_PGD = PGD(8 / 255, 2 / 255, steps=7)
"""What the registered names do: ε and step of Madry et al. 2018 (arXiv 1706.06083) for CIFAR-10, with seven steps."""

_SETTINGS = set(signature(AdversarialTraining).parameters)


class _Adversarial:
    """Gives the Trainer the callback before anything else happens, and takes it away in the end.

    It comes last, so that it changes what `BatchAugmentation` returns.
    """

    adversarial_training: AdversarialTraining

    def setup_environment(self) -> None:
        callbacks = self._callbacks()
        others = [each for each in callbacks if isinstance(each, AdversarialTraining)]
        if any(each is not self.adversarial_training for each in others):
            raise ValueError(
                "Expected adversarial training from the strategy or from a callback, but got both, "
                f"{type(self).__name__} and {others[0].state_key}: batches would be changed twice.\nLeave out one."
            )
        if not others:
            callbacks.append(self.adversarial_training)
        super().setup_environment()  # type: ignore[misc]

    def teardown(self) -> None:
        self.adversarial_training.detach()  # Lightning calls the callbacks' own teardown after the strategy's
        callbacks = self._callbacks()
        if self.adversarial_training in callbacks:
            callbacks.remove(self.adversarial_training)
        super().teardown()  # type: ignore[misc]

    def _callbacks(self) -> list[Any]:
        module = self.lightning_module  # type: ignore[attr-defined]
        found: list[Any] = module.trainer.callbacks if module is not None else []
        return found

    def __reduce_ex__(self, protocol: Any) -> Any:
        plain = type(self).__mro__[2]
        return _blank, (plain,), self.__getstate__()


def adversarial(
    strategy: type[StrategyT],
    adversary: AnyAdversary | None = None,
    *,
    training: AdversarialTraining | None = None,
    **options: Any,
) -> StrategyT:
    """Return a strategy that trains adversarially, and is in all else the one that is named.

    Args:
        strategy: the class, such as `DDPStrategy`, of either namespace.
        adversary: how inputs are changed, in raw images and by `Madry()`.
        training: in the place of an adversary, an `AdversarialTraining` with settings of its own.
        options: what the class is built with.

    Raises:
        TypeError: where `strategy` is no class of a strategy, there are both an adversary and a `training`, or neither,
            or an option is one of `AdversarialTraining`.
        ValueError: where the strategy shards the module; when training starts, where the Trainer has the callback too.

    Example:
        >>> from lightning.pytorch.strategies import DDPStrategy
        >>> strategy = adversarial(DDPStrategy, PGD(8 / 255), find_unused_parameters=True)
        >>> isinstance(strategy, DDPStrategy), strategy.adversarial_training.settings.adversary.steps
        (True, 7)
    """
    if not isinstance(strategy, type) or not issubclass(strategy, strategy_types()):
        raise TypeError(f"Expected `strategy` to be a class such as `DDPStrategy`, but got {strategy!r}.")
    refuse_strategy(strategy)
    if (adversary is None) == (training is None):
        came = "neither" if adversary is None else "both"
        hint = "Write `adversarial(DDPStrategy, PGD(8 / 255))`, or give a `training` that has its adversary."
        raise TypeError(f"Expected either `adversary` or `training`, but got {came}.\n{hint}")
    astray = sorted((set(options) & _SETTINGS) - set(signature(strategy).parameters))
    if astray:
        raise TypeError(
            f"Expected what {strategy.__name__} is built with, but got `{astray[0]}`, which `AdversarialTraining` "
            f"takes.\nWrite `training=AdversarialTraining(PGD(8 / 255), {astray[0]}=...)` in the place of an adversary."
        )
    if adversary is not None:
        training = AdversarialTraining(adversary, name="adversarial-strategy")
    if not isinstance(training, AdversarialTraining):
        hint = "Write `training=AdversarialTraining(PGD(8 / 255), warm_up_epochs=2)`."
        raise TypeError(expected("training", "an `AdversarialTraining`", describe(training), hint))
    built: Any = _class_of(strategy)(**options)
    built.adversarial_training = training
    return built  # type: ignore[no-any-return]


if not TYPE_CHECKING:
    adversarial.__signature__ = signature(adversarial).replace(
        return_annotation=AnyStrategy
    )  # what a YAML file is held to


_MADE: dict[Any, Any] = {}


def _class_of(strategy: Any) -> Any:
    if strategy not in _MADE:
        _MADE[strategy] = type(f"Adversarial{strategy.__name__}", (_Adversarial, strategy), {"__module__": __name__})
    return _MADE[strategy]


def _blank(strategy: type[Any]) -> Any:
    """Return a strategy that a pickle fills."""
    made = _class_of(strategy)
    return made.__new__(made)


def _register() -> None:
    for namespace in installed_namespaces():
        strategies = import_module(f"{namespace}.strategies")
        registry, plain = strategies.StrategyRegistry, strategies.DDPStrategy
        for name, options in (("pgd_ddp", {}), ("pgd_ddp_spawn", {"start_method": "spawn"})):
            if name not in registry:
                said = f"DDP whose training batches are changed by {NAMED_PGD}"
                registry.register(name, functools.partial(adversarial, plain, NAMED_PGD), said, **options)


_register()
