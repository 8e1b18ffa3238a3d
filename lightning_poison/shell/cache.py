"""The `cache` command: list what cache folders hold, and clear them."""

import time
from collections.abc import Sequence
from pathlib import Path

from lightning_poison.checks import expected, printable
from lightning_poison.sanitization.cache_folder import (
    CacheEntry,
    cache_folders,
    read_cache,
    remove_entries,
    size_limit,
)
from lightning_poison.shell.output import Write

_COLUMNS = ("what", "scorer", "fingerprint", "units", "size", "last use", "begun", "folder")
_RIGHT = ("units", "size")
_DAY = 24 * 3600.0
_MAX_NAMED = 5
"""Files that the cache did not write are named up to this number."""


def list_caches(place: Path, *, write: Write) -> None:
    """Write a table of what each cache folder holds, at or below a folder.

    Args:
        place: A cache folder, the folder of a run, or one with folders of runs.
        write: Called with each line.

    Raises:
        ValueError: If there is no such folder, or the limit is invalid.
        OSError: If a cache folder cannot be read.
    """
    limit = size_limit()
    for root in _caches_in(place, write):
        entries, foreign = read_cache(root)
        total = f"{_entries(len(entries))}, {_size(sum(entry.size for entry in entries))} of {_size(limit)}"
        write(f"{printable(root, limit=500)}: {total}")
        for line in _table([_COLUMNS, *(_row(entry) for entry in entries)]):
            write(line)
        _write_foreign(foreign, write)


def clear_caches(place: Path, *, older_than: float | None = None, keep_latest: int | None = None, write: Write) -> None:
    """Remove what each cache folder holds, at or below a folder.

    What a running process uses, and files that the cache did not write, stay.

    Args:
        place: See `list_caches`.
        older_than: Remove only what was not used for this number of days. Default: everything.
        keep_latest: Number of entries of each folder to keep, the latest used first. Default: none.
        write: Called with each line.

    Raises:
        ValueError: If there is no such folder, or a number is negative.
        OSError: If a file cannot be removed.
    """
    for name, value in (("older_than", older_than), ("keep_latest", keep_latest)):
        if value is not None and not value >= 0:
            raise ValueError(expected(name, "at least 0", value))
    for root in _caches_in(place, write):
        entries, foreign = read_cache(root)
        before = time.time() - _DAY * (older_than or 0)
        chosen = [entry for entry in entries[keep_latest or 0 :] if older_than is None or entry.used < before]
        removed, used = remove_entries(chosen)
        freed = _size(sum(entry.size for entry in removed))
        stay = f"; {len(used):,} in use" if used else ""
        write(
            f"{printable(root, limit=500)}: {len(removed):,} of {_entries(len(entries))} removed, {freed} freed{stay}"
        )
        _write_foreign(foreign, write)


def _caches_in(place: Path, write: Write) -> list[Path]:
    if not place.is_dir():
        came = "a file" if place.exists() else "no such folder"
        raise ValueError(expected(printable(place, limit=500), "a folder", came))
    found, is_complete = cache_folders(place)
    if not found:
        write(f"no cache in {printable(place, limit=500)}")
    if not is_complete:
        write("Not all folders were searched: name one closer to the cache.")
    return found


def _row(entry: CacheEntry) -> tuple[str, ...]:
    return (
        entry.kind,
        printable(entry.details.get("scorer", ""), limit=30) or "-",
        printable(entry.details.get("fingerprint", "")[:16]) or "-",
        f"{entry.units:,}",
        _size(entry.size),
        "in use" if entry.in_use else _ago(entry.used),
        _ago(entry.created),
        entry.folder.name[:12],
    )


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = []
    for row in rows:
        cells = zip(row, widths, _COLUMNS, strict=True)
        aligned = [cell.rjust(width) if name in _RIGHT else cell.ljust(width) for cell, width, name in cells]
        lines.append("  ".join(aligned).rstrip())
    return lines


def _write_foreign(paths: Sequence[Path], write: Write) -> None:
    if paths:
        named = ", ".join(printable(path.name, limit=80) for path in paths[:_MAX_NAMED])
        more = f" and {len(paths) - _MAX_NAMED:,} more" if len(paths) > _MAX_NAMED else ""
        write(f"not written by the cache, and left alone: {named}{more}")


def _entries(count: int) -> str:
    return "1 entry" if count == 1 else f"{count:,} entries"


def _size(count: float) -> str:
    """Describe a number of bytes."""
    if count == float("inf"):
        return "no limit"
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count:.0f} bytes"


def _ago(moment: float) -> str:
    """Describe how long ago a moment was."""
    seconds = max(0.0, time.time() - moment)
    for unit, length in (("d", _DAY), ("h", 3600.0), ("min", 60.0)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit} ago"
    return "now"
