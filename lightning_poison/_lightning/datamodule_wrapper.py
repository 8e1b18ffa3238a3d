"""`DataModuleWrapper`: delegates everything but the training loaders to another DataModule.

Lightning checks whether a hook is overridden before it calls it: it requires validation loaders from a DataModule with
that hook, and skips the module's own transfer hooks if the DataModule has some. So a wrapper only has the hooks that
the inner DataModule overrides, bound as attributes of the instance.
"""

from typing import Any, Self

from torch.utils.data import DataLoader

from lightning_poison._lightning.loaders import map_loaders
from lightning_poison._lightning.namespaces import DataModuleBase, lightning_types
from lightning_poison._lightning.ranks import rest_link
from lightning_poison._lightning.runtime import open_runtime
from lightning_poison._lightning.yaml_types import AnyData, instantiate
from lightning_poison.checks import expected
from lightning_poison.runtime import all_ranks

_DELEGATED = (
    "name",
    "prepare_data",
    "setup",
    "teardown",
    "val_dataloader",
    "test_dataloader",
    "predict_dataloader",
    "transfer_batch_to_device",
    "on_before_batch_transfer",
    "on_after_batch_transfer",
    "on_exception",
)
"""Names that the base class defines, so that `__getattr__` is never called for them."""

_SET_BY_BASE = ("prepare_data_per_node", "allow_zero_length_dataloader_with_multiple_devices", "_log_hyperparams")
"""Attributes that the base class sets on every instance, hiding those of the inner DataModule."""


class DataModuleWrapper(DataModuleBase):
    """Delegates everything but the training loaders to another DataModule, or wraps training loaders alone.

    Attributes and hyperparameters are read from and set on the inner DataModule; attributes that a subclass sets before
    it calls this constructor stay its own.

    Args:
        data: A DataModule of either of Lightning's namespaces, a DataLoader, or a collection of DataLoaders.

    Raises:
        TypeError: If `data` is none of these.
    """

    def __init__(self, data: AnyData) -> None:
        super().__init__()
        data = instantiate(data)
        self._is_module = isinstance(data, lightning_types("LightningDataModule"))
        if self._is_module:
            for name in _SET_BY_BASE:
                self.__dict__.pop(name, None)
            for name in _DELEGATED:
                if _overrides(data, name) and not _overrides(self, name):
                    self.__dict__[name] = getattr(data, name)
        else:
            _check_loaders(data)
        self.inner = data

    @classmethod
    def from_datasets(
        cls,
        train_dataset: Any = None,
        val_dataset: Any = None,
        test_dataset: Any = None,
        predict_dataset: Any = None,
        batch_size: int = 1,
        num_workers: int = 0,
        **datamodule_kwargs: Any,
    ) -> Self:
        """Wrap the DataModule that Lightning builds from data sets.

        Args:
            train_dataset: Training data set, as in `LightningDataModule.from_datasets`.
            val_dataset: Validation data sets.
            test_dataset: Test data sets.
            predict_dataset: Prediction data sets.
            batch_size: Samples per batch.
            num_workers: Worker processes per loader.
            **datamodule_kwargs: Arguments of the wrapper.
        """
        plain = lightning_types("LightningDataModule")[0]
        datasets = (train_dataset, val_dataset, test_dataset, predict_dataset)
        return cls(plain.from_datasets(*datasets, batch_size, num_workers), **datamodule_kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not self._has_inner_module():
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not self._has_inner_module():
            super().__setattr__(name, value)
            return
        is_own = name in self.__dict__ or hasattr(type(self), name)
        if not is_own and hasattr(self.inner, name):
            setattr(self.inner, name, value)
            return
        super().__setattr__(name, value)
        if name == "trainer":
            self.inner.trainer = value

    def _has_inner_module(self) -> bool:
        return "inner" in self.__dict__ and self.__dict__["_is_module"]

    def __repr__(self) -> str:
        inner = repr(self.inner) if isinstance(self.inner, DataModuleWrapper) else type(self.inner).__name__
        return f"{type(self).__name__}({inner})"

    def __str__(self) -> str:
        """Return the repr; Lightning's own `__str__` would request all loaders, and so score the data."""
        return repr(self)

    def train_dataloader(self) -> Any:
        """Return the transformed training loaders. If the inner DataModule raises on one rank, all ranks raise."""
        with open_runtime(self.trainer) as runtime:
            with all_ranks(runtime):
                loaders = self.inner.train_dataloader() if self._is_module else self.inner
            loaders = self.transform_loaders(loaders)
        rest_link(self.trainer)
        return loaders

    def transform_loaders(self, loaders: Any) -> Any:
        """Return the loaders that replace the inner ones."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the inner DataModule."""
        return {"inner": self.inner.state_dict()} if self._is_module else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state of the inner DataModule."""
        if self._is_module and "inner" in state_dict:
            self.inner.load_state_dict(state_dict["inner"])


def _overrides(module: Any, name: str) -> bool:
    """Return whether the class or the instance of a DataModule overrides a name of the base class."""
    if name in module.__dict__:
        return True
    bases = (*lightning_types("LightningDataModule"), DataModuleBase, DataModuleWrapper)
    of_class = getattr(type(module), name, None)
    return of_class is not None and all(of_class is not getattr(base, name, None) for base in bases)


def _check_loaders(data: Any) -> None:
    leaves: list[Any] = []
    map_loaders(data, lambda _, loader: leaves.append(loader))
    if leaves and all(isinstance(leaf, DataLoader) for leaf in leaves):
        return
    invalid = next((leaf for leaf in leaves if not isinstance(leaf, DataLoader)), data)
    found = f"the class {invalid.__name__}" if isinstance(invalid, type) else type(invalid).__name__
    inside = "" if invalid is data else f" in a {type(data).__name__}"
    hint = "A data set needs a loader: `DataLoader(dataset, batch_size=128, shuffle=True)`."
    hint = f"Build it first: `{invalid.__name__}(...)`." if isinstance(invalid, type) else hint
    what = "a DataModule, a DataLoader, or a collection of DataLoaders"
    raise TypeError(expected("data", what, found + inside, hint))
