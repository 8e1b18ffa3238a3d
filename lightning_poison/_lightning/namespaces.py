"""Base classes and class look-ups for both of Lightning's namespaces.

The packages `lightning` and `pytorch-lightning` are usually installed side by side, hold the same code as separate
classes, and refuse each other's. A class that derives from both is taken by either Trainer.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__all__ = ["CallbackBase", "DataModuleBase", "installed_namespaces", "lightning_types", "strategy_types"]

_NAMESPACES = ("lightning.pytorch", "pytorch_lightning")


def installed_namespaces() -> list[str]:
    """Return the names of Lightning's packages that are installed, `lightning.pytorch` first.

    Raises:
        ModuleNotFoundError: where neither is.
    """
    installed = [namespace for namespace in _NAMESPACES if find_spec(namespace.partition(".")[0])]
    if not installed:
        raise ModuleNotFoundError(
            "Expected `lightning` or `pytorch-lightning` to be installed, but found neither.\n"
            "Install one of them: `pip install lightning`."
        )
    return installed


def lightning_types(name: str) -> tuple[type[Any], ...]:
    """Return the classes that a name has in the installed namespaces, for `isinstance` checks and as base classes.

    Args:
        name: a class that Lightning exports at its top level.

    Returns:
        One class for each namespace that is installed, `lightning.pytorch` first.

    Raises:
        ModuleNotFoundError: where neither is installed.

    Example:
        >>> [found.__module__.partition(".")[0] for found in lightning_types("Callback")]
        ['lightning', 'pytorch_lightning']
    """
    return tuple(getattr(import_module(namespace), name) for namespace in installed_namespaces())


def strategy_types() -> tuple[type[Any], ...]:
    """Return the base classes of strategies, one for each namespace that is installed."""
    return tuple(import_module(f"{namespace}.strategies").Strategy for namespace in installed_namespaces())


class _HookOfHost:
    """A hook that belongs to the namespace of the Trainer which the object is attached to.

    Lightning tells whether a hook is overridden by comparing its code with that of its own class. The code of some
    hooks differs between the namespaces (their docstrings do), so that a Trainer of the second would take what is
    inherited from the first for the user's own, and call it.
    """

    def __init__(self, name: str, bases: tuple[type[Any], ...]) -> None:
        self._hooks = [getattr(base, name) for base in bases]

    def __get__(self, instance: object, owner: type[Any]) -> Any:
        trainer = getattr(instance, "trainer", None)
        of_host = [hook for hook, host in zip(self._hooks, _TRAINERS, strict=True) if isinstance(trainer, host)]
        return (of_host or self._hooks)[0].__get__(instance, owner)


def _shared_base(name: str, bases: tuple[type[Any], ...], doc: str, hooks: tuple[str, ...] = ()) -> type[Any]:
    """Return a class that derives from all of `bases`, in a form that subclasses can be pickled from."""
    members = {hook: _HookOfHost(hook, bases) for hook in hooks}
    return type(name, bases, {"__module__": __name__, "__doc__": doc, **members})


if TYPE_CHECKING:
    _TRAINERS: tuple[type[Any], ...]
    from lightning.pytorch import Callback as CallbackBase
    from lightning.pytorch import LightningDataModule as DataModuleBase
else:
    _TRAINERS = lightning_types("Trainer")
    _LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader")
    CallbackBase = _shared_base(
        "CallbackBase", lightning_types("Callback"), "A callback that a Trainer of either namespace takes."
    )
    DataModuleBase = _shared_base(
        "DataModuleBase",
        lightning_types("LightningDataModule"),
        "A data module that a Trainer of either namespace takes.",
        _LOADERS,
    )
