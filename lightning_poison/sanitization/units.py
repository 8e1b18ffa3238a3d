"""Finished and half-finished work in files, so that the next run with the same data and settings continues it."""

import contextlib
import copy
import glob
import hashlib
import inspect
import json
import math
import os
import secrets
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_poison.checks import describe_error, printable
from lightning_poison.data.fingerprints import digest_of
from lightning_poison.data.large_matrices import copied
from lightning_poison.data.sample_digests import SampleDigests
from lightning_poison.runtime import Runtime, Units
from lightning_poison.sanitization.cache_folder import KEY_DIGITS, SAMPLES, UNIT_KIND, shrink, size_limit
from lightning_poison.sanitization.folder_use import FolderUse
from lightning_poison.serialization import check_writable, read_tensors, write_tensors

_CHECKED_EVERY = 0.1
"""Share of the limit after which the size of the folder is checked again."""

_PART = "-part-"
"""Stands between the name of a unit and the rank that has stored a part of it."""

_DAMAGED = "Work that was stored is done again and replaced, since a file of it cannot be used."

_WARNED: set[tuple[str, str]] = set()
"""Folders about which there was a warning, and of what."""


class FileUnits:
    """Units as files of one folder, each written atomically and with checksums.

    A file that cannot be written is reported once and costs nothing but the possibility to continue.

    Args:
        folder: Folder of the decision.
        digests: Digests of the samples from which the units are computed. They are stored before the units are.
        rank: Rank of this process.
        limit: Limit of the cache folder in bytes. Default: none.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     units = FileUnits(Path(folder), SampleDigests(3)).within("fold-0")
        ...     units.save("scores", {"scores": torch.arange(2)}, {"step": 3})
        ...     units.load("scores"), units.load("other")
        (({'scores': tensor([0, 1])}, {'step': 3}), None)
    """

    def __init__(self, folder: Path, digests: SampleDigests, rank: int = 0, *, limit: float = math.inf) -> None:
        self.folder = folder
        self._digests = digests
        self._rank = rank
        self._prefix = ""  # of the names of the files
        self._limit = limit
        self._shared = _Shared(FolderUse(folder))

    @property
    def is_empty(self) -> bool:
        """Whether nothing is stored."""
        return next(self.folder.glob("*.safetensors"), None) is None

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors and the JSON object of a unit; `None` if there is none that can be read."""
        return self._load(self._path(name))

    def save(self, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Store a unit in place of any other of this name."""
        missing = len(self._digests.missing)
        if missing != self._shared.recorded:
            self._shared.recorded = missing
            seen = torch.ones(len(self._digests), dtype=torch.bool)
            seen[self._digests.missing] = False
            path = self.folder / f"{SAMPLES}{self._rank}.safetensors"
            self._save(path, {"seen": seen, "values": self._digests.values}, {})
        self._save(self._path(name), tensors, meta)

    def load_parts(self, name: str) -> list[tuple[dict[str, Tensor], dict[str, Any]]]:
        """Return the parts of a unit that ranks have stored, also of a run with another number of ranks."""
        pattern = glob.escape(self._path(name).stem) + f"{_PART}*.safetensors"
        found = [self._load(path) for path in sorted(self.folder.glob(pattern))]
        return [each for each in found if each is not None]

    def save_part(self, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Store this rank's part of a unit, in place of any other that this rank has stored in this run."""
        self.save(f"{name}{_PART}{self._rank}-{self._shared.run}", tensors, meta)

    def within(self, name: str) -> Units:
        """Return the storage of the units of a part of the work."""
        inner = copy.copy(self)
        inner._prefix = f"{self._prefix}{name}."
        return inner

    def beside(self, key: str, digests: SampleDigests) -> "FileUnits":
        """Return the storage, in the same cache folder, of work that decisions share.

        Args:
            key: Identifies what the work depends on, besides the samples.
            digests: Digests of the samples.
        """
        return FileUnits(self.folder.parent / key[:KEY_DIGITS], digests, self._rank, limit=self._limit)

    def announce_reuse(self, runtime: Runtime) -> None:
        """Say that the stored verdict is used, so that nothing is scored."""
        where = printable(self.folder.parent, limit=1000)
        runtime.announce(f"Nothing was scored: data and settings are those of the verdict in {where}.")

    def samples_match(self) -> bool:
        """Whether the stored units were computed from the samples that were read by now."""
        for path in self.folder.glob(f"{SAMPLES}*.safetensors"):
            stored = self._load(path)
            if stored is None or len(stored[0]["values"]) != len(self._digests):
                return False
            seen, values = stored[0]["seen"], stored[0]["values"]
            if not torch.equal(values[seen], self._digests.values[seen]):
                return False
        return True

    def clear(self) -> None:
        """Remove everything that is stored."""
        for path in self.folder.glob("*.safetensors"):
            path.unlink(missing_ok=True)

    def keep_only(self, name: str) -> None:
        """Remove all units but one."""
        for path in self.folder.glob("*.safetensors"):
            if path != self._path(name) and not path.name.startswith(SAMPLES):
                path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{self._prefix}{name.replace(' ', '-')}.safetensors"

    def _load(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        if not path.exists():
            return None
        try:
            self._shared.use.begin()
            tensors, meta = read_tensors(path, UNIT_KIND, copy=copied)
        except (OSError, ValueError) as error:
            if path.exists():  # no other process has removed it meanwhile
                _warn_once(str(self.folder), "damaged", f"{_DAMAGED} {printable(_reason(error), limit=1000)}")
            return None
        if not path.name.startswith(SAMPLES):
            with contextlib.suppress(OSError):
                os.utime(path)  # the units that were used last are kept longest
        content = meta.get("content")
        return (tensors, content) if isinstance(content, dict) else None

    def _save(self, path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        try:
            self._shared.use.begin(create=True)
            write_tensors(path, tensors, {"kind": UNIT_KIND, "content": dict(meta)}, durable=False)
            self._shared.written += path.stat().st_size
        except OSError as error:
            _warn_once(str(self.folder.parent), "unwritable", _unwritable(self.folder.parent, error))
        if self._shared.written > self._limit * _CHECKED_EVERY:
            self._shared.written = 0
            shrink(self.folder.parent, self._limit, keep=self.folder.name)


@dataclass
class _Shared:
    """What the units of all parts of the work have in common."""

    use: FolderUse
    run: str = field(default_factory=partial(secrets.token_hex, 4))
    """Tells the parts of units of this run from those of earlier ones."""

    recorded: int = -1
    """Number of samples without a digest when digests were stored last."""

    written: int = 0
    """Bytes written since the size of the cache folder was checked last."""


def _warn_once(folder: str, what: str, message: str) -> None:
    if (folder, what) not in _WARNED:
        _WARNED.add((folder, what))
        warnings.warn(message, stacklevel=2)


def open_units(cache: str | Path, key: str, digests: SampleDigests, rank: int) -> FileUnits:
    """Return the units of a decision in a cache folder, and remove others if the folder has reached its limit.

    If nothing can be written to the folder, there is a warning, and units are only read.

    Args:
        cache: The cache folder, shared by many decisions and runs.
        key: Identifies data, settings and versions; see `decision_key`.
        digests: Digests of the samples from which the units are computed.
        rank: Rank of this process.

    Raises:
        ValueError: If the limit is no number; see `size_limit`.
    """
    root, own, limit = Path(cache), key[:KEY_DIGITS], size_limit()
    try:
        check_writable(root, (f"{own}.probe",))
    except OSError as error:
        _warn_once(str(root), "unwritable", _unwritable(root, error))
    shrink(root, limit, keep=own)
    return FileUnits(root / own, digests, rank, limit=limit)


def _unwritable(root: Path, error: OSError) -> str:
    return (
        f"Unfinished work is not saved: writing to {printable(root)} failed ({_reason(error)}). Scoring continues; if "
        "this run is interrupted, the next one starts from the beginning.\n"
        f"Free space with `lightning-poison cache clear {printable(root)}`, or choose another folder."
    )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or describe_error(error, limit=300)


def decision_key(scorer: Any, settings: Mapping[str, Any], data: str, runtime: Runtime) -> str:
    """Return a digest of everything that a stored unit depends on.

    Besides the data and the settings, these are the weights from which fits start, the code of scorers and networks,
    the versions of this package and of torch, and the device, its precision and the number of threads.

    Args:
        scorer: The scorer.
        settings: Settings of the decision, as JSON values.
        data: Digest of labels and samples.
        runtime: Where it is computed.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> from lightning_poison.runtime import LocalRuntime
        >>> from lightning_poison.scorers.likelihood import LikelihoodScorer
        >>> keys = {decision_key(LikelihoodScorer(), {"folds": 3}, data, LocalRuntime()) for data in "aab"}
        >>> len(keys)
        2
    """
    modules = [each for each in _parts(scorer) if isinstance(each, nn.Module)]
    weights = [digest_of(dict(each.state_dict())) for each in modules if not _has_lazy(each)]
    text = json.dumps(
        {
            "settings": dict(settings),
            "data": data,
            "weights": weights,
            "code": code_of_parts(scorer),
            "package": package_code(),
            "torch": torch.__version__,
            "device": runtime.device.type,
            "precision": precision_of(runtime),
            "threads": runtime.threads,
        },
        sort_keys=True,
    )
    return hashlib.sha256(text.encode()).hexdigest()


def code_of_parts(value: Any) -> list[str]:
    """Return digests of the code of an object and of its parts, as far as it is not torch's or this package's.

    Example:
        >>> code_of_parts(nn.Linear(2, 2))
        []
    """
    return sorted({_code_of(cls) for each in _parts(value) for cls in _classes(each)})


def precision_of(runtime: Runtime) -> str:
    """Return the data type in which networks run.

    Example:
        >>> from lightning_poison.runtime import LocalRuntime
        >>> precision_of(LocalRuntime(precision="32"))
        'float32'
    """
    kind = runtime.device.type
    with runtime.autocast():
        is_on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
        return str(torch.get_autocast_dtype(kind)) if is_on else "float32"


def _has_lazy(module: nn.Module) -> bool:
    return any(nn.parameter.is_lazy(value) for value in module.state_dict(keep_vars=True).values())


def _parts(value: Any, seen: set[int] | None = None) -> Iterator[Any]:
    """Yield an object and the objects and modules among its attributes, in a fixed order."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, nn.Module):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _parts(each, seen)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _parts(each, seen)
    elif hasattr(value, "__dict__") and not isinstance(value, type) and not callable(value):
        yield value
        for each in vars(value).values():
            yield from _parts(each, seen)


def _classes(value: Any) -> Iterator[type]:
    """Yield the classes of an object, or of the modules of a network, that neither torch nor this package defines."""
    for each in value.modules() if isinstance(value, nn.Module) else (value,):
        for cls in type(each).__mro__:
            if cls.__module__.split(".")[0] not in ("torch", "torchvision", "builtins", "lightning_poison", "typing"):
                yield cls


@cache
def _code_of(cls: type) -> str:
    """Return a digest of the source of a class. Without a source, it differs in each process."""
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):
        return f"{cls.__qualname__} {id(cls)}"
    return f"{cls.__qualname__} {hashlib.sha256(source.encode()).hexdigest()}"


@cache
def package_code() -> str:
    """Return a digest of the version and the code of this package."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256(version("lightning-poison").encode())
    for path in sorted(root.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()
