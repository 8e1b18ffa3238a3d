"""`DataSource`: transforms the training loaders of a Trainer.

The only private name of Lightning used here is `trainer.fit_loop._data_source` (and its neighbor `_combined_loader`, to
request loaders again); both are unchanged from 2.0 to 2.6, and a test fails when either changes. No public hook fits:
at a callback's `setup` the module's own `setup` has not run, and by `on_fit_start` a learning-rate schedule may already
have requested the loader.
"""

from collections.abc import Callable
from typing import Any

from lightning_poison._lightning.ranks import rest_link
from lightning_poison._lightning.runtime import open_runtime
from lightning_poison.errors import UnsupportedDataError
from lightning_poison.runtime import all_ranks

Transform = Callable[[Any], Any]
"""Maps the loader, or the collection of loaders, of the source to the one that the Trainer gets."""


class DataSource:
    """Replaces a Trainer's data source and transforms its loaders each time they are requested.

    All callbacks of a Trainer share one replacement. Each adds a transform under its own key, and transforms can be
    removed in any order.
    """

    def __init__(self, original: Any, trainer: Any) -> None:
        self._original = original
        self._trainer = trainer
        self._transforms: dict[str, Transform] = {}

    @classmethod
    def add(cls, trainer: Any, key: str, transform: Transform) -> None:
        """Add a transform to a Trainer's data source.

        Raises:
            UnsupportedDataError: If this version of Lightning has no such source.
        """
        loop = trainer.fit_loop
        if not hasattr(loop, "_data_source"):
            raise UnsupportedDataError(
                f"Expected a Trainer with an accessible data source, but {type(trainer).__module__} has none.\n"
                "Wrap the data instead: `SanitizedDataModule(datamodule, scorer)`."
            )
        if not isinstance(loop._data_source, cls):
            loop._data_source = cls(loop._data_source, trainer)
        loop._data_source._transforms[key] = transform

    @classmethod
    def remove(cls, trainer: Any, key: str) -> None:
        """Remove a transform; removing the last one restores the Trainer's own source."""
        source = getattr(trainer.fit_loop, "_data_source", None)
        if isinstance(source, cls):
            source._transforms.pop(key, None)
            if not source._transforms:
                trainer.fit_loop._data_source = source._original

    @staticmethod
    def request_reload(trainer: Any) -> None:
        """Make the Trainer request its training loaders again before it trains."""
        trainer.fit_loop._combined_loader = None

    @property
    def name(self) -> str:
        """The name of the hook that returns the loaders."""
        return str(self._original.name)

    @property
    def instance(self) -> Any:
        """The module, DataModule or loaders behind the source."""
        return self._original.instance

    @instance.setter
    def instance(self, value: Any) -> None:
        self._original.instance = value

    def dataloader(self) -> Any:
        """Return the transformed loaders. If the source raises on one rank, all ranks raise."""
        with open_runtime(self._trainer) as runtime:
            with all_ranks(runtime):
                loaders = self._original.dataloader()
            for transform in list(self._transforms.values()):
                loaders = transform(loaders)
        rest_link(self._trainer)
        return loaders

    def is_defined(self) -> bool:
        """Return whether there are any loaders."""
        return bool(self._original.is_defined())

    def is_module(self) -> bool:
        """Return whether a module's hook returns the loaders."""
        return bool(self._original.is_module())
