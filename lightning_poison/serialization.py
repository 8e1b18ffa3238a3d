"""Objects saved as JSON and tensors under a registered kind, and atomic file writes. Nothing is ever unpickled."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from lightning_poison.checks import printable
from lightning_poison.entry_points import DISABLED, distribution_of, import_plugins


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
            ValueError: If the kind is not registered, and no installed plug-in of the named distribution registers it.
                The message names the distribution.
        """
        settings = dict(packed)
        kind, source = settings.pop("kind", None), settings.pop("distribution", None)
        if kind not in self._classes and source is not None:
            self._import_kind(kind, str(source))
        if kind not in self._classes:
            known = ", ".join(sorted(self._classes)) or "none"
            origin = "" if source is None else f" of the distribution `{printable(source)}`"
            hint = "Import the plug-in that defines it first."
            if source is not None:
                hint = f"Install or update that distribution, and check that {DISABLED} does not disable it."
            raise ValueError(
                f"Expected a registered kind of {self.noun} ({known}), but got {str(kind)[:80]!r}{origin}.\n{hint}"
            )
        return self._classes[kind].from_saved(settings, tensors)

    def _import_kind(self, kind: object, source: str) -> None:
        try:
            import_plugins(source)
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"Expected the distribution `{printable(source)}` to load, since it defines the {self.noun} "
                f"{str(kind)[:80]!r}, but got {type(error).__name__}: {printable(error)}.\nRepair or reinstall it."
            ) from error


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; rename it to `path` on success, delete it on error.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     target = Path(folder) / "notes.txt"
        ...     with atomic_path(target) as partial:
        ...         _ = partial.write_text("done")
        ...         target.exists()
        ...     target.read_text(), len(list(Path(folder).iterdir()))
        False
        ('done', 1)
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        partial.chmod(0o666 & ~_umask())
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write tensors and a JSON object to one safetensors file, atomically.

    Example:
        >>> import torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_tensors(f"{folder}/some", {"means": torch.arange(2)}, {"kind": "means", "version": 1})
        ...     read_tensors(f"{folder}/some", "means")
        ({'means': tensor([0, 1])}, {'kind': 'means', 'version': 1})
    """
    ready = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with atomic_path(path) as partial:
        save_file(ready, partial, metadata={"lightning_poison": json.dumps(meta, sort_keys=True)})


def read_tensors(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file written by `write_tensors`.

    Args:
        path: File to read.
        kind: Expected value of `"kind"` in the JSON object.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not of this kind.

    Example:
        >>> import torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_tensors(f"{folder}/some", {"means": torch.arange(2)}, {"kind": "means"})
        ...     try:
        ...         read_tensors(f"{folder}/some", "verdict")
        ...     except ValueError as error:
        ...         print(error)
        Expected a file of kind 'verdict', but ...some is of kind 'means'.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"Expected a {kind} file, but there is none at {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {}).get("lightning_poison", "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"Expected a {kind} file in safetensors format, but {path} cannot be read: {error}."
        ) from error
    found = meta.get("kind") if isinstance(meta, dict) else None
    if found != kind:
        raise ValueError(f"Expected a file of kind {kind!r}, but {path} is of kind {str(found)[:80]!r}.")
    return tensors, meta


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
