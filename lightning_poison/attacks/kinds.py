"""Kinds of objects that are saved with poison: objectives and triggers, those of plug-ins included."""

from collections.abc import Mapping
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from torch import Tensor

from lightning_poison.checks import describe, describe_error, expected, printable
from lightning_poison.entry_points import DISABLED, distribution_of, import_plugins
from lightning_poison.errors import PluginError


class Saved(Protocol):
    """Interface of a registered kind: JSON-serializable settings, tensors, and a constructor from both."""

    kind: ClassVar[str]

    def settings(self) -> Mapping[str, Any]:
        """Return the JSON-serializable settings."""

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the tensors by name."""

    @classmethod
    def from_saved(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild the object."""


KindT = TypeVar("KindT", bound=Saved)
ClassT = TypeVar("ClassT", bound=type[Any])


class KindRegistry(Generic[KindT]):
    """Maps the `kind` of a saved object to its class.

    Args:
        noun: Name of such an object in error messages.

    Example:
        >>> from lightning_poison.attacks.triggers import PatchTrigger, Trigger
        >>> known = KindRegistry[Trigger]("trigger")
        >>> known.register(PatchTrigger).kind
        'patch'
        >>> import torch
        >>> packed, tensors = known.pack(PatchTrigger(torch.zeros(1, 2, 2, dtype=torch.uint8), row=3))
        >>> packed["kind"], known.unpack(packed, tensors)
        ('patch', PatchTrigger((1, 2, 2), row=3, column=-1, amplitude=1))
    """

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._classes: dict[str, type[KindT]] = {}

    def register(self, cls: ClassT) -> ClassT:
        """Register a class under its `kind`; use as a decorator.

        Raises:
            ValueError: If the kind is registered for another class.
        """
        known = self._classes.setdefault(cls.kind, cls)
        if known is not cls and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"Expected a new kind of {self.noun}, but `{cls.kind}` of {cls.__module__}.{cls.__qualname__} is "
                f"registered for {known.__module__}.{known.__qualname__}.\nGive the class another `kind`."
            )
        return cls

    def pack(self, instance: KindT) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the JSON-serializable part and the tensors of an object.

        The JSON part also contains `"kind"`, and `"distribution"` for a class from a plug-in. Settings must not use
        these names.
        """
        source = distribution_of(type(instance).__module__)
        identity = {"kind": instance.kind} | ({} if source is None else {"distribution": source})
        return {**instance.settings(), **identity}, dict(instance.tensors())

    def unpack(self, packed: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> KindT:
        """Rebuild an object from the result of `pack`, importing the plug-in that defines its kind if necessary.

        Raises:
            ValueError: If the parts are invalid, or the kind is not registered and no installed plug-in of the named
                distribution registers it. The message names the distribution.
        """
        if not isinstance(packed, Mapping):
            raise ValueError(expected(self.noun, "a JSON object", describe(packed)))
        settings = dict(packed)
        kind, source = settings.pop("kind", None), settings.pop("distribution", None)
        if self._class_of(kind) is None and source is not None:
            self._import_kind(kind, str(source))
        cls = self._class_of(kind)
        if cls is None:
            listed = ", ".join(sorted(self._classes)) or "none"
            origin = "" if source is None else f" of the distribution `{printable(source)}`"
            hint = "Import the plug-in that defines it first."
            if source is not None:
                hint = f"Install or update that distribution, and check that {DISABLED} does not disable it."
            raise ValueError(
                f"Expected `kind` to be a registered kind of {self.noun} ({listed}), but got "
                f"{str(kind)[:80]!r}{origin}.\n{hint}"
            )
        try:
            return cls.from_saved(settings, tensors)
        except ValueError:
            raise
        except Exception as error:
            raise ValueError(
                f"Expected the parts of the {self.noun} {cls.kind!r}, but building it failed: {describe_error(error)}."
            ) from error

    def _class_of(self, kind: object) -> type[KindT] | None:
        return self._classes.get(kind) if isinstance(kind, str) else None

    def _import_kind(self, kind: object, source: str) -> None:
        try:
            import_plugins(source)
        except PluginError as error:
            raise ValueError(
                f"Expected the distribution `{printable(source)}` to load, since it defines the {self.noun} "
                f"{str(kind)[:80]!r}, but got {describe_error(error.__cause__ or error)}.\nRepair or reinstall it."
            ) from error
