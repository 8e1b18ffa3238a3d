"""The cache folder as a whole: which decisions and features are in it, how large they are, and removing them.

A cache folder has a folder for each decision, and for what decisions share: near copies of a data set, and features
under a network. Its name is a digest of all that the content depends on. Only files that the cache wrote are removed,
which are recognized by name and header, and only if no running process uses them.
"""

import contextlib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lightning_poison.checks import expected, printable
from lightning_poison.sanitization.folder_use import LOCK, is_used, unused
from lightning_poison.serialization import read_header

LIMIT = "LIGHTNING_POISON_CACHE_GIB"
"""Environment variable with the limit of a cache folder in GiB."""

_DEFAULT_LIMIT = 10.0

_FREED = 0.1
"""Share of the limit that is freed beyond it, so that not every unit removes another one."""

KEY_DIGITS = 32
UNIT_KIND = "unit"
SAMPLES = "samples-"
"""Start of the names of files with digests of samples. Units count only together with those."""

VERDICT, NEAR_COPIES, FEATURES = "verdict", "near-copies", "features-"

_ENTRY = re.compile(rf"[0-9a-f]{{{KEY_DIGITS}}}")
_PARTIAL = re.compile(r"\..{1,50}\.[0-9a-f]{8}\.partial")
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class UnitFile:
    """A file of the cache.

    Args:
        path: The file.
        size: Its size in bytes.
        used: When it was written, or read last, in seconds since the epoch.
    """

    path: Path
    size: int
    used: float

    @property
    def is_unit(self) -> bool:
        """Whether it is a unit, and not what belongs to all units of a folder."""
        return self.path.suffix == _SUFFIX and not self.path.name.startswith(SAMPLES)


@dataclass(frozen=True)
class CacheEntry:
    """A folder of the cache: a decision, or what decisions share.

    Args:
        folder: The folder.
        files: Files in it that the cache wrote.
        details: What the verdict of a finished decision says about itself: its `scorer` and `fingerprint`.
        in_use: Whether a running process uses it.
    """

    folder: Path
    files: tuple[UnitFile, ...]
    details: dict[str, Any] = field(default_factory=dict)
    in_use: bool = False

    @property
    def kind(self) -> str:
        """What is stored: a decision, an unfinished decision, features, or near copies."""
        names = {file.path.name.removesuffix(_SUFFIX) for file in self.files if file.is_unit}
        if VERDICT in names:
            return "decision"
        if NEAR_COPIES in names:
            return "near copies"
        return "features" if any(name.startswith(FEATURES) for name in names) else "unfinished decision"

    @property
    def units(self) -> int:
        """Number of units."""
        return sum(file.is_unit for file in self.files)

    @property
    def size(self) -> int:
        """Size in bytes."""
        return sum(file.size for file in self.files)

    @property
    def used(self) -> float:
        """When it was used last, in seconds since the epoch."""
        return max((file.used for file in self.files), default=0.0)

    @property
    def created(self) -> float:
        """When it was begun, in seconds since the epoch."""
        return min((file.used for file in self.files), default=0.0)


def size_limit() -> float:
    """Return the limit of a cache folder in bytes: `LIGHTNING_POISON_CACHE_GIB`, or 10 GiB.

    Raises:
        ValueError: If the variable is no number of at least 0.

    Example:
        >>> from unittest.mock import patch
        >>> with patch.dict(os.environ, {LIMIT: "0.5"}):
        ...     size_limit() / 2**20
        512.0
    """
    text = os.environ.get(LIMIT, "").strip()
    try:
        gibibytes = float(text) if text else _DEFAULT_LIMIT
    except ValueError:
        gibibytes = math.nan
    if not gibibytes >= 0:
        hint = f"Write a number of GiB, as in `{LIMIT}=50`, or `inf` for no limit."
        raise ValueError(expected(LIMIT, "a number of at least 0", f"'{printable(text)}'", hint))
    return gibibytes * 2**30


def read_cache(root: Path) -> tuple[list[CacheEntry], list[Path]]:
    """Return the entries of a cache folder, the latest used first, and what the cache did not write.

    Raises:
        OSError: If the folder cannot be read.
    """
    entries, foreign = [], []
    for path in sorted(root.iterdir()):
        if not _is_entry(path):
            foreign.append(path)
            continue
        own, others = _files_in(path, checked=True)
        foreign += others
        if any(file.path.suffix == _SUFFIX for file in own):
            entries.append(CacheEntry(path, tuple(own), _details(path), is_used(path)))
    return sorted(entries, key=lambda entry: entry.used, reverse=True), foreign


def has_entries(root: Path) -> bool:
    """Whether a folder is a cache with something in it."""
    try:
        folders = [path for path in root.iterdir() if _is_entry(path)]
    except OSError:
        return False
    return any(file.path.suffix == _SUFFIX for folder in folders for file in _files_in(folder, checked=True)[0])


def remove_entries(entries: Iterable[CacheEntry]) -> tuple[list[CacheEntry], list[CacheEntry]]:
    """Remove entries of a cache folder, and return those that were removed, and those that a process uses.

    Raises:
        OSError: If a file cannot be removed.
    """
    removed: list[CacheEntry] = []
    used: list[CacheEntry] = []
    for entry in entries:
        with unused(entry.folder) as is_free:
            is_free |= not entry.folder.is_dir()  # another process may have removed it
            if is_free:
                _remove(entry.folder, _files_in(entry.folder, checked=True)[0])
            (removed if is_free else used).append(entry)
    return removed, used


def shrink(root: Path, limit: float, *, keep: str = "") -> int:
    """Remove the units of a cache folder that were used least recently, until it is below its limit.

    What a running process uses stays, so that the folder may be larger. Errors of the disk are ignored.

    Args:
        root: The cache folder.
        limit: Limit in bytes.
        keep: Name of an entry to keep.

    Returns:
        Number of bytes removed.
    """
    files = _files_by_folder(root)
    total = sum(file.size for own in files.values() for file in own)
    if total > limit:
        total -= sum(file.size for own in files.values() for file in own if not _is_ours(file.path))
    if total <= limit:
        return 0
    freed = 0
    for file, folder in _removable(files, keep):
        if total - freed <= limit * (1 - _FREED):
            break
        freed += _remove_unit(file, folder)
    return freed


def _files_by_folder(root: Path) -> dict[Path, list[UnitFile]]:
    """Return the files in each entry with names of the cache; nothing if the cache folder cannot be read."""
    try:
        folders = [path for path in root.iterdir() if _is_entry(path)]
    except OSError:
        return {}
    return {folder: _files_in(folder, checked=False)[0] for folder in folders}


def _removable(files: Mapping[Path, Sequence[UnitFile]], keep: str) -> list[tuple[UnitFile, Path]]:
    """Return the units outside of an entry, each with its folder, the least recently used first."""
    units = [(file, folder) for folder, own in files.items() if folder.name != keep for file in own if file.is_unit]
    return sorted(units, key=lambda pair: pair[0].used)


def _remove_unit(file: UnitFile, folder: Path) -> int:
    """Remove a unit, and the folder with its last one, if no process uses it; return the number of bytes freed."""
    if not _is_ours(file.path):
        return 0
    gone: list[UnitFile] = []
    with contextlib.suppress(OSError), unused(folder) as is_free:
        if is_free:
            gone.append(file)
            file.path.unlink(missing_ok=True)
            rest = _files_in(folder, checked=True)[0]
            if not any(each.is_unit for each in rest):
                gone += rest
                _remove(folder, rest)
    return sum(each.size for each in gone if not os.path.lexists(each.path))


def _is_entry(path: Path) -> bool:
    return bool(_ENTRY.fullmatch(path.name)) and path.is_dir() and not path.is_symlink()


def _files_in(folder: Path, *, checked: bool) -> tuple[list[UnitFile], list[Path]]:
    """Return the files in an entry that the cache wrote, and the others; by their names only unless `checked`."""
    own, others = [], []
    with contextlib.suppress(OSError), os.scandir(folder) as found:
        for each in found:
            path = Path(each.path)
            is_file = each.is_file(follow_symlinks=False)
            if is_file and _has_own_name(each.name) and (not checked or _is_ours(path)):
                with contextlib.suppress(OSError):  # another process may have removed it
                    own.append(UnitFile(path, each.stat().st_size, each.stat().st_mtime))
            else:
                others.append(path)
    return own, others


def _has_own_name(name: str) -> bool:
    return name == LOCK or name.endswith(_SUFFIX) or bool(_PARTIAL.fullmatch(name))


def _is_ours(path: Path) -> bool:
    """Whether a file with the name of one of the cache was written by it. Empty files lose nothing."""
    if path.suffix != _SUFFIX:
        return True
    try:
        return path.stat().st_size == 0 or read_header(path).get("kind") == UNIT_KIND
    except (OSError, ValueError):
        return False


def _remove(folder: Path, files: Sequence[UnitFile]) -> None:
    """Remove files of an entry that no process uses: digests of samples after the units, and the lock last.

    The lock is removed once. After that, another process may have begun to use the folder, with a new one.
    """
    for file in sorted(files, key=lambda each: each.path.name.startswith(SAMPLES)):
        if file.path.name != LOCK:
            file.path.unlink(missing_ok=True)
    (folder / LOCK).unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # there are other files in it
        folder.rmdir()


def _details(folder: Path) -> dict[str, Any]:
    try:
        content = read_header(folder / f"{VERDICT}{_SUFFIX}").get("content")
    except (OSError, ValueError):
        return {}
    found = content if isinstance(content, dict) else {}
    return {name: found[name] for name in ("scorer", "fingerprint") if isinstance(found.get(name), str)}


class CacheFolders(NamedTuple):
    """Cache folders that were found, and whether everything was searched."""

    found: list[Path]
    is_complete: bool


def cache_folders(place: Path) -> CacheFolders:
    """Find the cache folders at or below a folder, up to 8 levels deep: itself, and those with a usual name.

    Hidden folders, links to folders, and what is inside of a cache are not searched, and at most 10,000 folders are.

    Example:
        >>> cache_folders(Path("no/such/folder"))
        CacheFolders(found=[], is_complete=True)
    """
    found: list[Path] = []
    level, searched = [place], 0
    for _ in range(_MAX_DEPTH + 1):
        below: list[Path] = []
        for folder in level:
            if searched == _MAX_SEARCHED:
                return CacheFolders(found, False)
            searched += 1
            if (folder == place or folder.name in _NAMES) and has_entries(folder):
                found.append(folder)
            else:
                below += _folders_in(folder)
        level = below
    return CacheFolders(found, not level)


_NAMES = ("cache", "sanitizer_cache")
"""Names of cache folders of runs."""

_MAX_DEPTH, _MAX_SEARCHED = 8, 10_000


def _folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, those with the name of a cache first; none if it cannot be read."""
    try:
        with os.scandir(folder) as entries:
            names = [each.name for each in entries if each.name[0] != "." and each.is_dir(follow_symlinks=False)]
    except OSError:
        return []
    return [folder / name for name in sorted(names, key=lambda name: (name not in _NAMES, name))]
