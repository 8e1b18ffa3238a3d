"""`CellsFile`: finished cells in a JSON-lines file that later runs extend. Needs no torch."""

import errno
import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, BinaryIO, Self

from lightning_poison.checks import describe_error, expected, printable
from lightning_poison.evaluation.cells import Cell

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None


class CellsFile:
    """Finished cells in a file of one JSON object a line, `{"key": {...}, "cell": {...}}`.

    The last record of a key counts. A whole line is on the disk before `add` returns. A last line that a killed run
    left behind half-written is removed when the file is opened for writing. One process at a time may write.

    Args:
        path: The file, which is created if it is missing. If `None`, nothing is stored.

    Raises:
        OSError: If the file cannot be written, or another process writes to it.
        ValueError: If a line is no record of a cell.

    Example:
        >>> from tempfile import mkdtemp
        >>> path = Path(mkdtemp()) / "cells.jsonl"
        >>> rest = {"clean_accuracy": 0.9, "attack_success_rate": 0.1, "poison_caught": 1.0, "clean_lost": 0.0}
        >>> with CellsFile(path) as file:
        ...     file.add({"seed": 0}, Cell("frog", "mine", False, 0, removed=3, **rest))
        >>> with CellsFile(path) as file:
        ...     file.get({"seed": 0}).removed, file.get({"seed": 1})
        (3, None)
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._cells: dict[str, Cell] = {}
        self._plans: dict[str, Any] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> Self:
        if self.path is None:
            return self
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("a+b")
        try:
            self._lock(self._file)
            self._file.seek(0)
            lines = self._file.read()
            whole = _whole_lines(lines)
            if len(whole) != len(lines):
                self._file.truncate(len(whole))
            if whole and not whole.endswith(b"\n"):
                self._file.write(b"\n")
                self._file.flush()
            for record in _records(whole, self.path):
                self._keep(record)
        except BaseException:
            self._file.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def get(self, key: Mapping[str, Any]) -> Cell | None:
        """Return the cell of a key, or `None`."""
        return self._cells.get(_canonical(key))

    def add(self, key: Mapping[str, Any], cell: Cell) -> None:
        """Store a cell.

        Raises:
            OSError: If the disk is full.
        """
        self._cells[_canonical(key)] = cell
        self._append({"key": dict(key), "cell": cell.to_json()})

    def plan(self, request: str) -> Any:
        """Return what was stored for a request by `add_plan`, or `None`."""
        return self._plans.get(request)

    def add_plan(self, request: str, plan: Any) -> None:
        """Store what a request consists of, in a line `{"request": ..., "plan": ...}`, which readers of cells skip."""
        self._plans[request] = plan
        self._append({"request": request, "plan": plan})

    def _append(self, record: dict[str, Any]) -> None:
        if self._file is None:
            return
        line = json.dumps(record, sort_keys=True, ensure_ascii=True, allow_nan=False).encode() + b"\n"
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())

    def _keep(self, record: dict[str, Any]) -> None:
        if "cell" in record:
            self._cells[_canonical(record["key"])] = record["cell"]
        else:
            self._plans[record["request"]] = record["plan"]

    def _lock(self, file: BinaryIO) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OSError(
                f"Expected {printable(self.path)} to be free, but another evaluation is writing to it.\n"
                "Wait for its end, or name another file for the results."
            ) from error
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL):  # no locks there
                raise


def read_cells(path: Path) -> list[tuple[dict[str, Any], Cell]]:
    """Return keys and cells of a file, the last record of each key, in the order of the file.

    A half-written last line is ignored.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If a line is no record of a cell.
    """
    found: dict[str, tuple[dict[str, Any], Cell]] = {}
    for record in _records(_whole_lines(path.read_bytes()), path):
        if "cell" in record:
            found[_canonical(record["key"])] = record["key"], record["cell"]
    return list(found.values())


def _whole_lines(content: bytes) -> bytes:
    """Return the content without a half-written last line; a whole one may lack its line break."""
    head, newline, last = content.rpartition(b"\n")
    if not last or _is_json(last):
        return content
    return head + newline


def _is_json(line: bytes) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _records(content: bytes, path: Path) -> list[dict[str, Any]]:
    records = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if "request" in record and "plan" in record:
                records.append(record)
                continue
            key, cell = record["key"], Cell.from_json(record["cell"])
            if not isinstance(key, dict):
                raise TypeError("`key` is no JSON object")
            records.append({"key": key, "cell": cell})
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            what = f"line {number} of {printable(path)}"
            hint = "Delete the line, or name another file for the results."
            raise ValueError(expected(what, "a record of a cell", describe_error(error), hint)) from error
    return records


def _canonical(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
