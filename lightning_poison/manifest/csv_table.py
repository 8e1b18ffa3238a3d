"""Rows of a manifest as CSV."""

import csv
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from lightning_poison.data.text_cells import escape_cell
from lightning_poison.errors import ManifestError
from lightning_poison.manifest.cells import (
    COLUMNS,
    REPAIR_HINT,
    VOTE_PREFIX,
    check_header,
    format_cell,
    parse_cell,
    vote_names,
)
from lightning_poison.manifest.rows import ManifestRow
from lightning_poison.serialization import atomic_path


def write_csv(path: str | os.PathLike[str], rows: Iterable[ManifestRow], votes: Iterable[str]) -> None:
    """Write rows as CSV in UTF-8 with a header line, atomically.

    Args:
        path: The file.
        rows: The rows.
        votes: Names of all votes.
    """
    votes = list(votes)
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, *(VOTE_PREFIX + escape_cell(name) for name in votes)])
        for row in rows:
            cells = [*(getattr(row, name) for name in COLUMNS), *(row.votes.get(name) for name in votes)]
            writer.writerow([format_cell(value) for value in cells])


def read_csv(path: str | os.PathLike[str], shown: str) -> Iterator[ManifestRow]:
    """Yield the rows of a file written by `write_csv` and possibly edited since.

    Args:
        path: The file.
        shown: The path, for errors.

    Raises:
        ManifestError: If the file cannot be parsed. The message names file, line, column and value.
    """
    line = 0
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            line = reader.line_num
            check_header(header, f"in line 1 of the manifest {shown}")
            votes = vote_names(header, f"in line 1 of the manifest {shown}")
            for cells in reader:
                line = reader.line_num
                if cells:
                    yield _parse_line(cells, header, votes, f"line {line} of the manifest {shown}")
    except csv.Error as error:
        raise ManifestError(
            f"Expected a manifest, comma-separated text in UTF-8, but {shown} cannot be read after line {line}: "
            f"{error}.\n{REPAIR_HINT}"
        ) from error
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"Expected a manifest, comma-separated text in UTF-8, but {shown} has another encoding: {error}.\n"
            "Save it as comma-separated text in UTF-8, or delete it so that the next run writes a new one."
        ) from error


def _parse_line(cells: list[str], header: list[str], votes: Mapping[str, str], where: str) -> ManifestRow:
    if len(cells) != len(header):
        raise ManifestError(f"Expected {len(header)} cells in {where}, but got {len(cells)}.\n{REPAIR_HINT}")
    parsed = {name: parse_cell(cell, name, where) for name, cell in zip(header, cells, strict=True)}
    row_votes = {name: parsed.pop(column) for column, name in votes.items()}
    return ManifestRow(**parsed, votes={name: vote for name, vote in row_votes.items() if vote is not None})
