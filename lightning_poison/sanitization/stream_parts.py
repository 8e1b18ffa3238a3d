"""Tables of the samples removed from a stream: one file for each run, rank and worker, written as it is read.

A row is appended by a single write, so a process that is killed leaves whole rows, and perhaps one without its end,
which readers skip and the next writer cuts off. That writer continues the same run: no other run has the file.
"""

import contextlib
import csv
import errno
import io
import os
import re
import warnings
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from lightning_poison.checks import describe_error, expected, printable
from lightning_poison.data.text_cells import escape_cell, unescape_cell
from lightning_poison.serialization import atomic_path

_NAME = "removed-{run}-rank{rank}-worker{worker}.csv"
"""Name of the file of a worker."""

_PATTERN = "removed-*rank*-worker*.csv"

_TAIL = 65_536
"""Number of bytes at the end of a file in which its last whole row ends; a row is far shorter."""

_MAX_KEY = 1_000
"""Largest number of characters of a key."""


@dataclass(frozen=True)
class RemovedSample:
    """A sample of a stream that is suspicious.

    Args:
        run: Name of the run.
        epoch: Number of the pass over the stream, from 1.
        rank: Rank that read it.
        worker: Worker process of the rank that read it, from 0; 0 without workers.
        position: Its position among the samples that this process read in this pass, from 0.
        label: Label that it carries.
        score: Suspicion score; larger is more suspicious.
        threshold: Threshold of its class.
        decision: `"removed"` or `"flagged"` (suspicious, but kept in the stream).
        digest: 16 hexadecimal digits, the XXH3 hash of its input as the scorer saw it.
        key: Value of `__key__`, the name of a sample in WebDataset; else empty. Untrusted text.
    """

    run: str
    epoch: int
    rank: int
    worker: int
    position: int
    label: int
    score: float
    threshold: float
    decision: str
    digest: str
    key: str = ""

    def cells(self) -> list[str]:
        """Return the cells of a row, without loss of precision."""
        return [escape_cell(value) if isinstance(value, str) else repr(value) for value in astuple(self)]

    @classmethod
    def parse(cls, cells: Sequence[str], where: str) -> "RemovedSample":
        """Return the sample of a row.

        Raises:
            ValueError: If a cell is invalid. The message names file and line.
        """
        try:
            if len(cells) != len(COLUMNS):
                raise ValueError
            values = [
                unescape_cell(cell) if each.type is str else float(cell) if each.type is float else int(cell)
                for each, cell in zip(fields(cls), cells, strict=True)
            ]
            return cls(*values)  # type: ignore[arg-type]  # of the types of the fields
        except (ValueError, OverflowError):
            got = printable(",".join(cells), limit=120)
            raise ValueError(f"Expected the columns {', '.join(COLUMNS)} in {where}, but got {got}.") from None


COLUMNS = tuple(each.name for each in fields(RemovedSample))
"""Columns of a part and of the merged table."""


class PartWriter:
    """Appends rows to the file of one worker of one rank, which is created with the first row.

    An error of the disk, or a full one, is a warning: the stream goes on, and nothing more is written.

    Args:
        directory: Folder of the files. It is created.
        run: Name of the run. In the name of the file, characters other than letters, digits, `.`, `_` and `-` are `_`.
        rank: Number of the rank.
        worker: Number of the worker.

    Example:
        >>> import tempfile
        >>> sample = RemovedSample("a", 1, 0, 2, 17, 3, 9.5, 8.0, "removed", "00ff00ff00ff00ff", "cats/0017")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     PartWriter(folder, "a", 0, 2).append([sample])
        ...     merge_removed(folder) == (sample,), os.listdir(folder)
        (True, ['removed-a-rank0-worker2.csv'])
    """

    def __init__(self, directory: str | os.PathLike[str], run: str, rank: int, worker: int) -> None:
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", run)[:64]
        self.path = Path(directory) / _NAME.format(run=plain, rank=rank, worker=worker)
        self._is_open = False
        self._has_failed = False

    def append(self, samples: Sequence[RemovedSample]) -> None:
        """Append a row for each sample. All of them have reached the operating system when this returns."""
        if self._has_failed or not samples:
            return
        try:
            if not self._is_open:
                self._prepare()
                self._is_open = True
            for sample in samples:
                self._write(_line(sample.cells()))
        except OSError as error:
            self._has_failed = True
            warnings.warn(
                f"What is removed from the stream is no longer written to {printable(self.path, limit=500)}: "
                f"{describe_error(error)}. Samples are still removed and counted.",
                stacklevel=2,
            )

    def _prepare(self) -> None:
        """Create the file with its header, or cut off a row without an end that a killed process left in it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError), self.path.open("xb") as created:
            created.write(_line(COLUMNS))
        header = _line(COLUMNS)
        with self.path.open("r+b") as file:
            first, size = file.readline(2 * len(header)), file.seek(0, os.SEEK_END)
            if not header.startswith(first):
                raise FileExistsError(f"{self.path.name} is another file")
            start = file.seek(max(0, size - _TAIL))
            tail = file.read()
            if tail and not tail.endswith(b"\n"):
                if start and b"\n" not in tail:
                    raise FileExistsError(f"{self.path.name} is another file")
                size = start + tail.rfind(b"\n") + 1
                file.truncate(size)
        if not size:
            self._write(header)

    def _write(self, line: bytes) -> None:
        handle = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            if os.write(handle, line) < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(handle)


def merge_removed(
    directory: str | os.PathLike[str], path: str | os.PathLike[str] | None = None
) -> tuple[RemovedSample, ...]:
    """Read the files of all ranks and workers in a folder, while they are written or afterwards.

    A run that is resumed from a checkpoint judges the samples after it once more; they are listed once. A row that is
    invalid is left out, with a warning that names file and line.

    Args:
        directory: Folder of the files.
        path: File for the merged table, as CSV, written atomically. Default: none is written.

    Returns:
        The samples, ordered by run, epoch, rank, worker and position. Empty if there are no files.

    Raises:
        NotADirectoryError: If there is no such folder.
        ValueError: If a file has another header. The message names it.
        OSError: If a file cannot be read or written.
    """
    folder = Path(directory)
    if not folder.is_dir():
        shown = printable(folder, limit=500)
        raise NotADirectoryError(f"Expected a folder with files {_PATTERN}, but there is none at {shown}.")
    found: dict[tuple[str, int, int, int, int], RemovedSample] = {}
    for part in sorted(folder.glob(_PATTERN)):
        for each in _read_part(part):
            found[(each.run, each.epoch, each.rank, each.worker, each.position)] = each
    merged = tuple(found[key] for key in sorted(found))
    if path is not None:
        with atomic_path(path) as partial:
            partial.write_bytes(b"".join([_line(COLUMNS), *(_line(each.cells()) for each in merged)]))
    return merged


def _read_part(part: Path) -> list[RemovedSample]:
    """Return the samples of the whole rows of a file. No cell contains a line break."""
    header, *lines = part.read_bytes().split(b"\n")[:-1] or [_line(COLUMNS)[:-1]]
    shown = printable(part, limit=500)
    if header + b"\n" != _line(COLUMNS):
        came = printable(header.decode("utf-8", errors="replace"))
        raise ValueError(expected("header", ", ".join(COLUMNS), f"{came} in {shown}"))
    rows, invalid = [], []
    for number, line in enumerate(lines, start=2):
        try:
            cells = next(csv.reader([line.decode("utf-8")], strict=True), [])
            rows.append(RemovedSample.parse(cells, f"line {number} of {shown}"))
        except (csv.Error, UnicodeDecodeError) as error:
            invalid.append(f"Expected a row in line {number} of {shown}, but got: {describe_error(error)}.")
        except ValueError as error:
            invalid.append(str(error))
    if invalid:
        others = f" So are {len(invalid) - 1:,} more rows of this file." if len(invalid) > 1 else ""
        warnings.warn(f"A row of a table of removed samples is left out.{others}\n{invalid[0]}", stacklevel=3)
    return rows


def key_of(sample: object) -> str:
    """Return the name of a sample of a WebDataset, its `__key__`, or an empty text.

    Example:
        >>> key_of({"__key__": "cats/0017", "jpg": None}), key_of((None, 3))
        ('cats/0017', '')
    """
    key = sample.get("__key__") if isinstance(sample, dict) else None
    return key[:_MAX_KEY] if isinstance(key, str) else ""


def _line(cells: Sequence[str]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue().encode("utf-8", errors="replace")
