"""`WrappedDataModule`: answers for another DataModule in everything but the training loaders.

Lightning asks whether a hook is overridden before it calls it: it demands validation loaders of a DataModule with that
hook, and skips the module's own transfer hooks where the DataModule has some. So a wrapper has only those hooks that
the inner DataModule overrides: they are bound as attributes of the instance.
"""

from typing import Any, Self

from torch.utils.data import DataLoader

from lightning_poison._lightning.loaders import map_loaders
from lightning_poison._lightning.namespaces import DataModuleBase, lightning_types
from lightning_poison._lightning.yaml_types import AnyData, built
from lightning_poison.checks import expected

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
"""What the base class defines, so that `__getattr__` is never asked for it."""

_SET_BY_BASE = ("prepare_data_per_node", "allow_zero_length_dataloader_with_multiple_devices", "_log_hyperparams")
"""What the base class sets on every instance, and so would hide."""


class WrappedDataModule(DataModuleBase):
    """Answers for another DataModule, or for training loaders, in everything but the training loaders.

    Attributes and hyper-parameters are the inner DataModule's, to be read and to be set; what a subclass sets before it
    calls this constructor is its own.

    Args:
        data: a DataModule of either of Lightning's namespaces, a DataLoader, or a collection of loaders.

    Raises:
        TypeError: where `data` is none of these.
    """

    def __init__(self, data: AnyData) -> None:
        super().__init__()
        data = built(data)
        self._is_module = isinstance(data, lightning_types("LightningDataModule"))
        if self._is_module:
            for name in _SET_BY_BASE:
                self.__dict__.pop(name, None)
            for name in _DELEGATED:
                if _overridden(data, name) and not _overridden(self, name):
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
        """Wrap the DataModule that Lightning makes from data sets.

        Args:
            train_dataset: as in `LightningDataModule.from_datasets`, and so are all others.
            val_dataset: data sets to validate on.
            test_dataset: data sets to test on.
            predict_dataset: data sets to predict on.
            batch_size: samples a batch.
            num_workers: how many processes read samples.
            **datamodule_kwargs: the arguments of the wrapper.
        """
        plain = lightning_types("LightningDataModule")[0]
        datasets = (train_dataset, val_dataset, test_dataset, predict_dataset)
        return cls(plain.from_datasets(*datasets, batch_size, num_workers), **datamodule_kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not self._answers_for_module():
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        return getattr(self.inner, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not self._answers_for_module():
            super().__setattr__(name, value)
            return
        own = name in self.__dict__ or hasattr(type(self), name)
        if not own and hasattr(self.inner, name):
            setattr(self.inner, name, value)
            return
        super().__setattr__(name, value)
        if name == "trainer":
            self.inner.trainer = value

    def _answers_for_module(self) -> bool:
        return "inner" in self.__dict__ and self.__dict__["_is_module"]

    def __repr__(self) -> str:
        inner = repr(self.inner) if isinstance(self.inner, WrappedDataModule) else type(self.inner).__name__
        return f"{type(self).__name__}({inner})"

    def __str__(self) -> str:
        """Name what is wrapped; Lightning's own would ask for all loaders, and so have the data judged."""
        return repr(self)

    def train_dataloader(self) -> Any:
        """Return the training loaders, changed."""
        return self.change(self.inner.train_dataloader() if self._is_module else self.inner)

    def change(self, loaders: Any) -> Any:
        """Return other loaders in the place of the inner ones."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the inner DataModule's state."""
        return {"inner": self.inner.state_dict()} if self._is_module else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Hand the inner DataModule its state back."""
        if self._is_module and "inner" in state_dict:
            self.inner.load_state_dict(state_dict["inner"])


def _overridden(module: Any, name: str) -> bool:
    """Tell whether a DataModule has something of its own under a name, be it of its class or of the instance."""
    if name in module.__dict__:
        return True
    bases = (*lightning_types("LightningDataModule"), DataModuleBase, WrappedDataModule)
    of_class = getattr(type(module), name, None)
    return of_class is not None and all(of_class is not getattr(base, name, None) for base in bases)


def _check_loaders(data: Any) -> None:
    leaves: list[Any] = []
    map_loaders(data, lambda _, loader: leaves.append(loader))
    if leaves and all(isinstance(leaf, DataLoader) for leaf in leaves):
        return
    odd = next((leaf for leaf in leaves if not isinstance(leaf, DataLoader)), data)
    came = f"the class {odd.__name__}" if isinstance(odd, type) else type(odd).__name__
    inside = "" if odd is data else f" in a {type(data).__name__}"
    way = "\nA data set needs a loader: `DataLoader(dataset, batch_size=128, shuffle=True)`."
    way = f"\nBuild it first: `{odd.__name__}(...)`." if isinstance(odd, type) else way
    raise TypeError(expected("data", "a DataModule, a DataLoader, or a collection of DataLoaders", came + inside) + way)
