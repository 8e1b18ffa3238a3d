"""Rows of a manifest as Parquet, by pyarrow: the columns of the CSV file, with numbers as numbers.

Texts are escaped as in CSV: a file name that is no valid UTF-8 can be stored, and a table that another program makes of
the file is as safe to open in a spreadsheet.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from lightning_poison.checks import describe_error
from lightning_poison.data.text_cells import escape_cell
from lightning_poison.errors import ManifestError
from lightning_poison.manifest.cells import (
    COLUMNS,
    INTEGER_COLUMNS,
    VOTE_PREFIX,
    check_header,
    from_stored,
    is_text_column,
    vote_names,
)
from lightning_poison.manifest.rows import ManifestRow
from lightning_poison.serialization import atomic_path

_ROWS_AT_ONCE = 10_000
"""Rows that are converted at once, so that columns and rows are not in memory together."""

_REWRITE = "Write it again with `write_manifest`, or delete it so that the next run writes a new one."


def parquet_module(action: str) -> ModuleType:
    """Return `pyarrow.parquet`.

    Args:
        action: What needs it, for the error.

    Raises:
        ValueError: If `pyarrow` is not installed.
    """
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise ValueError(f"{action} Parquet needs pyarrow: pip install 'lightning-poison[parquet]'") from error
    return parquet  # type: ignore[no-any-return]  # pyarrow has no types


def write_parquet(path: str | os.PathLike[str], rows: Iterable[ManifestRow], votes: Iterable[str]) -> None:
    """Write rows as Parquet, atomically.

    Args:
        path: The file.
        rows: The rows.
        votes: Names of all votes.

    Raises:
        ValueError: If `pyarrow` is not installed.
    """
    parquet = parquet_module("Writing")
    import pyarrow

    votes = list(votes)
    types = {name: _type_of(name, pyarrow) for name in COLUMNS}
    types |= {VOTE_PREFIX + escape_cell(name): pyarrow.float64() for name in votes}
    schema = pyarrow.schema(list(types.items()))
    with atomic_path(path) as partial, parquet.ParquetWriter(partial, schema, write_page_checksum=True) as writer:
        block: list[list[Any]] = []
        for row in rows:
            block.append([*(_stored(getattr(row, name)) for name in COLUMNS), *(row.votes.get(name) for name in votes)])
            if len(block) == _ROWS_AT_ONCE:
                writer.write_table(_table(block, schema, pyarrow))
                block = []
        if block:
            writer.write_table(_table(block, schema, pyarrow))


def read_parquet(path: str | os.PathLike[str], shown: str) -> Iterator[ManifestRow]:
    """Yield the rows of a file written by `write_parquet`, possibly changed since.

    Args:
        path: The file.
        shown: The path, for errors.

    Raises:
        ManifestError: If the file cannot be read. The message names file, row, column and value.
        ValueError: If `pyarrow` is not installed.
    """
    parquet = parquet_module("Reading")
    import pyarrow

    try:
        with parquet.ParquetFile(os.fspath(path), page_checksum_verification=True) as file:
            header = list(file.schema_arrow.names)
            check_header(header, f"of the manifest {shown}")
            votes = vote_names(header, f"of the manifest {shown}")
            number = 0
            for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE):
                columns = [column.to_pylist() for column in batch.columns]
                for values in zip(*columns, strict=True):
                    number += 1
                    yield _row(dict(zip(header, values, strict=True)), votes, f"row {number} of the manifest {shown}")
    except (pyarrow.ArrowException, UnicodeDecodeError, OverflowError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise
        what = describe_error(error, limit=300)
        raise ManifestError(
            f"Expected a manifest in Parquet, but {shown} cannot be read: {what}.\n{_REWRITE}"
        ) from error


def _type_of(name: str, pyarrow: ModuleType) -> Any:
    if is_text_column(name):
        return pyarrow.string()
    return pyarrow.int64() if name in INTEGER_COLUMNS else pyarrow.float64()


def _stored(value: Any) -> Any:
    return escape_cell(value) if isinstance(value, str) else value


def _table(block: list[list[Any]], schema: Any, pyarrow: ModuleType) -> Any:
    columns = [
        pyarrow.array(values, type=kind) for values, kind in zip(zip(*block, strict=True), schema.types, strict=True)
    ]
    return pyarrow.Table.from_arrays(columns, schema=schema)


def _row(values: dict[str, Any], votes: Mapping[str, str], where: str) -> ManifestRow:
    parsed = {name: from_stored(value, name, where) for name, value in values.items()}
    row_votes = {name: parsed.pop(column) for column, name in votes.items()}
    return ManifestRow(**parsed, votes={name: vote for name, vote in row_votes.items() if vote is not None})
