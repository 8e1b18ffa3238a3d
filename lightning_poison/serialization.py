"""Things saved as JSON and tensors, found again by their registered kind, in files that are never half written.

Nothing here, and nothing that is loaded through here, is ever unpickled.
"""

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
    """What a registered kind offers: settings that JSON can hold, tensors, and a way back from both."""

    kind: ClassVar[str]

    def settings(self) -> Mapping[str, Any]:
        """Return what JSON can hold."""

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the rest."""

    @classmethod
    def from_saved(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Build the thing again."""


KindT = TypeVar("KindT", bound=Saved)
ClassT = TypeVar("ClassT", bound=type[Any])


class KindRegistry(Generic[KindT]):
    """Maps the `kind` of a saved thing to its class.

    Args:
        noun: what the things are, for messages.

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
        """Make a class known under its `kind`; use it as a decorator.

        Raises:
            ValueError: where another class has that kind.
        """
        known = self._classes.setdefault(cls.kind, cls)
        if known is not cls and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"Expected a new kind of {self.noun}, but `{cls.kind}` of {cls.__module__}.{cls.__qualname__} is "
                f"that of {known.__module__}.{known.__qualname__}.\nGive the class another `kind`."
            )
        return cls

    def pack(self, thing: KindT) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the JSON part and the tensors; the former names the kind, and its distribution if that is a plug-in's.

        So `"kind"` and `"distribution"` are no names for settings.
        """
        source = distribution_of(type(thing).__module__)
        named = {"kind": thing.kind} | ({} if source is None else {"distribution": source})
        return {**thing.settings(), **named}, dict(thing.tensors())

    def unpack(self, packed: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> KindT:
        """Build a thing from what `pack` returned; the plug-in that defines its kind is imported if it must be.

        Raises:
            ValueError: where the kind is not registered, and no installed plug-in of the distribution named registers
                it; the message names the distribution.
        """
        settings = dict(packed)
        kind, source = settings.pop("kind", None), settings.pop("distribution", None)
        if kind not in self._classes and source is not None:
            self._find(kind, str(source))
        if kind not in self._classes:
            known = ", ".join(sorted(self._classes)) or "none"
            whose = "" if source is None else f" of the distribution `{printable(source)}`"
            ways = "Import the plug-in that defines it first."
            if source is not None:
                ways = f"Install that distribution; if it is installed, look in {DISABLED}, or bring it up to date."
            raise ValueError(
                f"Expected a registered kind of {self.noun} ({known}), but got {str(kind)[:80]!r}{whose}.\n{ways}"
            )
        return self._classes[kind].from_saved(settings, tensors)

    def _find(self, kind: object, source: str) -> None:
        try:
            import_plugins(source)
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"Expected the distribution `{printable(source)}` to load, since it defines the {self.noun} "
                f"{str(kind)[:80]!r}, but got {type(error).__name__}: {printable(error)}.\nRepair or reinstall it."
            ) from error


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path` and rename it onto `path` when the block ends well; delete it otherwise.

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
    """Write tensors and a JSON object into one safetensors file, atomically.

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
    """Read what `write_tensors` wrote.

    Args:
        path: the file.
        kind: what the JSON object must hold under `"kind"`.

    Raises:
        FileNotFoundError: where there is no such file.
        ValueError: where it is no file of this kind.

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
        raise ValueError(f"Expected a {kind} file in safetensors form, but {path} cannot be read: {error}.") from error
    found = meta.get("kind") if isinstance(meta, dict) else None
    if found != kind:
        raise ValueError(f"Expected a file of kind {kind!r}, but {path} is of kind {str(found)[:80]!r}.")
    return tensors, meta


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
