"""Base classes and class look-ups for both of Lightning's namespaces.

The packages `lightning` and `pytorch-lightning` are usually installed side by side. They contain the same code as
separate classes and reject each other's. A Trainer of either accepts a class that derives from both.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

__all__ = ["CallbackBase", "DataModuleBase", "installed_namespaces", "lightning_types", "strategy_types"]

_NAMESPACES = ("lightning.pytorch", "pytorch_lightning")


def installed_namespaces() -> list[str]:
    """Return the names of the installed Lightning packages, `lightning.pytorch` first.

    Raises:
        ModuleNotFoundError: If neither is installed.
    """
    installed = [namespace for namespace in _NAMESPACES if find_spec(namespace.partition(".")[0])]
    if not installed:
        raise ModuleNotFoundError(
            "Expected `lightning` or `pytorch-lightning` to be installed, but found neither.\n"
            "Install one of them: `pip install lightning`."
        )
    return installed


def lightning_types(name: str) -> tuple[type[Any], ...]:
    """Return a class of Lightning from each installed namespace, for `isinstance` checks and as base classes.

    Args:
        name: A class that Lightning exports at its top level.

    Returns:
        One class per installed namespace, `lightning.pytorch` first.

    Raises:
        ModuleNotFoundError: If neither is installed.

    Example:
        >>> [found.__module__.partition(".")[0] for found in lightning_types("Callback")]
        ['lightning', 'pytorch_lightning']
    """
    return tuple(getattr(import_module(namespace), name) for namespace in installed_namespaces())


def strategy_types() -> tuple[type[Any], ...]:
    """Return the base class of strategies from each installed namespace."""
    return tuple(import_module(f"{namespace}.strategies").Strategy for namespace in installed_namespaces())


class _NamespaceHook:
    """A hook that resolves to the namespace of the Trainer that the object is attached to.

    Lightning detects an overridden hook by comparing its code with that of its own class. Some hooks differ between the
    namespaces in their docstrings, so a Trainer of the second namespace would call a hook inherited from the first.
    """

    def __init__(self, name: str, bases: tuple[type[Any], ...]) -> None:
        self._hooks = [getattr(base, name) for base in bases]

    def __get__(self, instance: object, owner: type[Any]) -> Any:
        trainer = getattr(instance, "trainer", None)
        matching = [hook for hook, host in zip(self._hooks, _TRAINERS, strict=True) if isinstance(trainer, host)]
        return (matching or self._hooks)[0].__get__(instance, owner)


def _shared_base(name: str, bases: tuple[type[Any], ...], doc: str, hooks: tuple[str, ...] = ()) -> type[Any]:
    """Return a class that derives from all `bases` and whose subclasses can be pickled."""
    members = {hook: _NamespaceHook(hook, bases) for hook in hooks}
    return type(name, bases, {"__module__": __name__, "__doc__": doc, **members})


if TYPE_CHECKING:
    _TRAINERS: tuple[type[Any], ...]
    from lightning.pytorch import Callback as CallbackBase
    from lightning.pytorch import LightningDataModule as DataModuleBase
else:
    _TRAINERS = lightning_types("Trainer")
    _LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader", "predict_dataloader")
    CallbackBase = _shared_base(
        "CallbackBase", lightning_types("Callback"), "A callback for Trainers of either namespace."
    )
    DataModuleBase = _shared_base(
        "DataModuleBase",
        lightning_types("LightningDataModule"),
        "A DataModule for Trainers of either namespace.",
        _LOADERS,
    )
