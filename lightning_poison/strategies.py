"""Adversarial training as a strategy: `Trainer(strategy=adversarial(DDPStrategy, PGD(...)))`, or a registered name.

Importing this module registers `"pgd_ddp"` and `"pgd_ddp_spawn"` in each installed Lightning namespace, for
`Trainer(strategy="pgd_ddp")`, `trainer.strategy: pgd_ddp` in a YAML file and `--trainer.strategy=pgd_ddp`. They
perturb raw images with `PGD(8 / 255, 2 / 255, steps=7)`. A YAML file can also use `adversarial` as a `class_path`,
which needs no import. The strategy adds an `AdversarialTraining` callback to its Trainer.
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
    StrategyT = TypeVar("StrategyT")  # of either namespace, for YAML files

REGISTERED_PGD = PGD(8 / 255, 2 / 255, steps=7)
"""Adversary of the registered names: ε and step of Madry et al. 2018 (arXiv 1706.06083) for CIFAR-10, 7 steps."""

_CALLBACK_ARGUMENTS = set(signature(AdversarialTraining).parameters)


class _Adversarial:
    """Adds the callback to the Trainer before any other hook, and removes it at the end.

    The callback is the last in the list, so that it perturbs the batches of `BatchAugmentation`.
    """

    adversarial_training: AdversarialTraining

    def setup_environment(self) -> None:
        callbacks = self._callbacks()
        existing = [each for each in callbacks if isinstance(each, AdversarialTraining)]
        if any(each is not self.adversarial_training for each in existing):
            raise ValueError(
                "Expected adversarial training from the strategy or from a callback, but got both, "
                f"{type(self).__name__} and {existing[0].state_key}: batches would be perturbed twice.\nRemove one."
            )
        if not existing:
            callbacks.append(self.adversarial_training)
        super().setup_environment()  # type: ignore[misc]

    def teardown(self) -> None:
        self.adversarial_training.restore_step()  # Lightning tears callbacks down after the strategy
        callbacks = self._callbacks()
        if self.adversarial_training in callbacks:
            callbacks.remove(self.adversarial_training)
        super().teardown()  # type: ignore[misc]

    def _callbacks(self) -> list[Any]:
        module = self.lightning_module  # type: ignore[attr-defined]
        callbacks: list[Any] = module.trainer.callbacks if module is not None else []
        return callbacks

    def __reduce_ex__(self, protocol: Any) -> Any:
        plain = type(self).__mro__[2]
        return _empty_strategy, (plain,), self.__getstate__()


def adversarial(
    strategy: type[StrategyT],
    adversary: AnyAdversary | None = None,
    *,
    training: AdversarialTraining | None = None,
    **options: Any,
) -> StrategyT:
    """Return a strategy of the given class that also trains adversarially.

    Args:
        strategy: A strategy class of either namespace, such as `DDPStrategy`.
        adversary: How raw images are perturbed, with the recipe `Madry()`.
        training: An `AdversarialTraining` with all its settings, in place of an adversary.
        options: Arguments of the strategy class.

    Raises:
        TypeError: If `strategy` is not a strategy class, both or neither of `adversary` and `training` are given, or an
            option is an argument of `AdversarialTraining`.
        ValueError: If the strategy shards the module; when training starts, if the Trainer has such a callback too.

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
        found = "neither" if adversary is None else "both"
        hint = "Write `adversarial(DDPStrategy, PGD(8 / 255))`, or pass a `training` that has an adversary."
        raise TypeError(f"Expected either `adversary` or `training`, but got {found}.\n{hint}")
    misplaced = sorted((set(options) & _CALLBACK_ARGUMENTS) - set(signature(strategy).parameters))
    if misplaced:
        raise TypeError(
            f"Expected arguments of {strategy.__name__}, but got `{misplaced[0]}`, an argument of "
            f"`AdversarialTraining`.\nIn place of an adversary, write "
            f"`training=AdversarialTraining(PGD(8 / 255), {misplaced[0]}=...)`."
        )
    if adversary is not None:
        training = AdversarialTraining(adversary, name="adversarial-strategy")
    if not isinstance(training, AdversarialTraining):
        hint = "Write `training=AdversarialTraining(PGD(8 / 255), warm_up_epochs=2)`."
        raise TypeError(expected("training", "an `AdversarialTraining`", describe(training), hint))
    built: Any = _adversarial_class(strategy)(**options)
    built.adversarial_training = training
    return built  # type: ignore[no-any-return]


if not TYPE_CHECKING:
    adversarial.__signature__ = signature(adversarial).replace(return_annotation=AnyStrategy)  # for YAML files


@functools.cache
def _adversarial_class(strategy: Any) -> Any:
    return type(f"Adversarial{strategy.__name__}", (_Adversarial, strategy), {"__module__": __name__})


def _empty_strategy(strategy: Any) -> Any:
    """Return an uninitialized strategy, to be filled by unpickling."""
    cls = _adversarial_class(strategy)
    return cls.__new__(cls)


def _register() -> None:
    for namespace in installed_namespaces():
        strategies = import_module(f"{namespace}.strategies")
        registry, plain = strategies.StrategyRegistry, strategies.DDPStrategy
        for name, options in (("pgd_ddp", {}), ("pgd_ddp_spawn", {"start_method": "spawn"})):
            if name not in registry:
                description = f"DDP with training batches perturbed by {REGISTERED_PGD}"
                registry.register(name, functools.partial(adversarial, plain, REGISTERED_PGD), description, **options)


_register()
