"""Finished and half-finished work in files, so that the next run with the same data and settings continues it."""

import glob
import hashlib
import inspect
import json
import shutil
import warnings
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_poison.checks import printable
from lightning_poison.data.fingerprints import digest_of
from lightning_poison.data.sample_digests import SampleDigests
from lightning_poison.runtime import Runtime, Units
from lightning_poison.serialization import read_tensors, write_tensors

_KIND = "unit"
_KEY_DIGITS = 32
_KEPT = 20
"""Number of decisions whose units are kept in a cache folder, latest first."""

_SAMPLES = "samples"
_PART = "-part-"
"""Stands between the name of a unit and the rank that has stored a part of it."""


class FileUnits:
    """Units as files of one folder, each written atomically and with checksums.

    A file that cannot be written is reported once and costs nothing but the possibility to continue.

    Args:
        folder: Folder of the decision.
        digests: Digests of the samples from which the units are computed. They are stored before the units are.
        rank: Rank of this process.
        prefix: Start of the names of the files.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     units = FileUnits(Path(folder), SampleDigests(3)).within("fold-0")
        ...     units.save("scores", {"scores": torch.arange(2)}, {"step": 3})
        ...     units.load("scores"), units.load("other")
        (({'scores': tensor([0, 1])}, {'step': 3}), None)
    """

    def __init__(self, folder: Path, digests: SampleDigests, rank: int = 0, *, prefix: str = "") -> None:
        self.folder = folder
        self._digests = digests
        self._rank = rank
        self._prefix = prefix
        self._recorded = [-1]

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
        if missing != self._recorded[0]:
            self._recorded[0] = missing
            seen = torch.ones(len(self._digests), dtype=torch.bool)
            seen[self._digests.missing] = False
            path = self.folder / f"{_SAMPLES}-{self._rank}.safetensors"
            self._save(path, {"seen": seen, "values": self._digests.values}, {})
        self._save(self._path(name), tensors, meta)

    def load_parts(self, name: str) -> list[tuple[dict[str, Tensor], dict[str, Any]]]:
        """Return the parts of a unit that ranks have stored, also of a run with another number of ranks."""
        pattern = glob.escape(self._path(name).stem) + f"{_PART}*.safetensors"
        found = [self._load(path) for path in sorted(self.folder.glob(pattern))]
        return [each for each in found if each is not None]

    def save_part(self, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Store this rank's part of a unit, in place of any other that this rank has stored."""
        self.save(f"{name}{_PART}{self._rank}", tensors, meta)

    def within(self, name: str) -> Units:
        """Return the storage of the units of a part of the work."""
        inner = FileUnits(self.folder, self._digests, self._rank, prefix=f"{self._prefix}{name}.")
        inner._recorded = self._recorded
        return inner

    def beside(self, key: str, digests: SampleDigests) -> "FileUnits":
        """Return the storage, in the same cache folder, of work that decisions share.

        Args:
            key: Identifies what the work depends on, besides the samples.
            digests: Digests of the samples.
        """
        return FileUnits(self.folder.parent / key[:_KEY_DIGITS], digests, self._rank)

    def samples_match(self) -> bool:
        """Whether the stored units were computed from the samples that were read by now."""
        for path in self.folder.glob(f"{_SAMPLES}-*.safetensors"):
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
            if path != self._path(name) and not path.name.startswith(_SAMPLES):
                path.unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{self._prefix}{name.replace(' ', '-')}.safetensors"

    def _load(self, path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        try:
            tensors, meta = read_tensors(path, _KIND)
        except (OSError, ValueError):
            return None
        content = meta.get("content")
        return (tensors, content) if isinstance(content, dict) else None

    def _save(self, path: Path, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        try:
            write_tensors(path, tensors, {"kind": _KIND, "content": dict(meta)}, durable=False)
        except OSError as error:
            _warn_once(str(self.folder), f"{type(error).__name__}: {printable(error)}")


@cache
def _warn_once(folder: str, error: str) -> None:
    warnings.warn(
        f"Unfinished work is not saved: writing to {folder} failed ({error}). Scoring continues; if this run is "
        "interrupted, the next one starts from the beginning.",
        stacklevel=2,
    )


def open_units(cache: str | Path, key: str, digests: SampleDigests, rank: int) -> FileUnits:
    """Return the units of a decision in a cache folder, and remove those of decisions long past.

    Args:
        cache: The cache folder, shared by many decisions and runs.
        key: Identifies data, settings and versions; see `decision_key`.
        digests: Digests of the samples from which the units are computed.
        rank: Rank of this process.
    """
    root, own = Path(cache), key[:_KEY_DIGITS]
    if rank == 0:
        others = [each for each in root.glob("?" * _KEY_DIGITS) if each.is_dir() and each.name != own]
        for old in sorted(others, key=_modified, reverse=True)[_KEPT - 1 :]:
            shutil.rmtree(old, ignore_errors=True)
    return FileUnits(root / own, digests, rank)


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
    with runtime.autocast():
        precision = str(torch.get_autocast_dtype(runtime.device.type)) if _autocasts(runtime.device) else "float32"
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
            "precision": precision,
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


def _autocasts(device: torch.device) -> bool:
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


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


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
