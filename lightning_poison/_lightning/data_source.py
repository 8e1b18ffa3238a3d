"""Where a Trainer's training loaders come from, with our hands in between.

The one private name of Lightning that is touched here is `trainer.fit_loop._data_source` (and its neighbor
`_combined_loader`, to have a loader asked for again); unchanged from 2.0 to 2.6. No public hook is right: at a
callback's `setup` the module's own has not run, and by `on_fit_start` a learning-rate schedule may have asked for the
loader already. A test tells when Lightning changes either name.
"""

from collections.abc import Callable
from typing import Any

from lightning_poison.errors import UnsupportedDataError

Transform = Callable[[Any], Any]
"""Maps what the source returns, a loader or any collection of loaders, to what the Trainer gets."""


class DataSource:
    """Stands in for a Trainer's data source and transforms what it returns, each time it is asked.

    One stand-in serves all callbacks of a Trainer; each adds its transform under a key of its own and takes it away in
    any order.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._transforms: dict[str, Transform] = {}

    @classmethod
    def add(cls, trainer: Any, key: str, transform: Transform) -> None:
        """Put a transform behind a Trainer's data source.

        Raises:
            UnsupportedDataError: where this version of Lightning has no such source.
        """
        loop = trainer.fit_loop
        if not hasattr(loop, "_data_source"):
            raise UnsupportedDataError(
                f"Expected a Trainer whose data source can be reached, but {type(trainer).__module__} has none.\n"
                "Wrap the data instead: `SanitizedDataModule(datamodule, scorer)`."
            )
        if not isinstance(loop._data_source, cls):
            loop._data_source = cls(loop._data_source)
        loop._data_source._transforms[key] = transform

    @classmethod
    def remove(cls, trainer: Any, key: str) -> None:
        """Take a transform away; the Trainer's own source comes back with the last of them."""
        source = getattr(trainer.fit_loop, "_data_source", None)
        if isinstance(source, cls):
            source._transforms.pop(key, None)
            if not source._transforms:
                trainer.fit_loop._data_source = source._inner

    @staticmethod
    def ask_again(trainer: Any) -> None:
        """Have the Trainer ask for its training loaders anew before it trains."""
        trainer.fit_loop._combined_loader = None

    @property
    def name(self) -> str:
        """The name of the hook that the loaders come from."""
        return str(self._inner.name)

    @property
    def instance(self) -> Any:
        """The module, DataModule or loaders behind the source."""
        return self._inner.instance

    @instance.setter
    def instance(self, value: Any) -> None:
        self._inner.instance = value

    def dataloader(self) -> Any:
        """Return the loaders, transformed."""
        loaders = self._inner.dataloader()
        for transform in list(self._transforms.values()):
            loaders = transform(loaders)
        return loaders

    def is_defined(self) -> bool:
        """Tell whether there are loaders at all."""
        return bool(self._inner.is_defined())

    def is_module(self) -> bool:
        """Tell whether they come from a module's hook."""
        return bool(self._inner.is_module())
