"""Columns of a manifest.

Paths and class names come from the data set, so an attacker may have chosen them; see `data/text_cells.py`.
"""

import math
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning_poison.checks import describe, expected, printable
from lightning_poison.data.text_cells import escape_cell, unescape_cell
from lightning_poison.errors import ManifestError

DecisionWord = Literal["removed", "flagged", "kept-by-hand", "removed-by-hand"]

VOTE_PREFIX = "vote:"
"""Prefix of the columns with the p-values of each member of a combination."""

REPAIR_HINT = "Correct the file, or delete it so that the next run writes a new one."
"""How to fix a manifest that cannot be read."""


MAX_TEXT = 4_096
"""Maximum number of characters of a text. Escaped, it stays below 131,072, the limit of Python's csv module."""


@dataclass(frozen=True)
class _Column:
    """Valid contents of a column: a description, a parser that raises `ValueError`, and a check of the parsed value."""

    contents: str
    parse: Callable[[str], Any]
    accepts: Callable[[Any], bool]


def _integer(cell: str) -> int:
    if not re.fullmatch(r"-?[0-9]{1,15}", cell):
        raise ValueError
    return int(cell)


def _number(cell: str) -> float:
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", cell.strip(" ")):
        raise ValueError
    return float(cell)


def _text(cell: str) -> str:
    if not cell.isprintable() and any(unicodedata.category(char) == "Cc" for char in cell):
        raise ValueError
    return unescape_cell(cell)


def _is_integer(value: Any, low: int = 0) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value < 10**15


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_probability(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= MAX_TEXT


def _optional(column: _Column) -> _Column:
    return _Column(
        f"{column.contents}, or empty",
        lambda cell: column.parse(cell) if cell else None,
        lambda value: value is None or column.accepts(value),
    )


def _matching(contents: str, pattern: str) -> _Column:
    return _Column(contents, str, lambda value: isinstance(value, str) and bool(re.fullmatch(pattern, value)))


_COUNT = _Column("an integer of at least 0", _integer, _is_integer)
_FINITE = _Column("a finite number", _number, _is_number)
_PROBABILITY = _Column("a number in [0, 1]", _number, _is_probability)
_TEXT = _Column(
    rf"text of at most {MAX_TEXT:,} characters, in which a backslash is written `\\`, without control characters",
    _text,
    _is_text,
)

COLUMNS: dict[str, _Column] = {
    "sample_id": _COUNT,
    "decision": _matching("one of " + ", ".join(get_args(DecisionWord)), "|".join(get_args(DecisionWord))),
    "label": _Column("an integer of at least -1", _integer, lambda value: _is_integer(value, -1)),
    "suggested_label": _optional(_COUNT),
    "label_name": _TEXT,
    "suggested_name": _TEXT,
    "reason": _TEXT,
    "found_by": _TEXT,
    "score": _FINITE,
    "p_value": _PROBABILITY,
    "posterior": _optional(_PROBABILITY),
    "score_threshold": _optional(_FINITE),
    "posterior_threshold": _optional(_PROBABILITY),
    "path": _TEXT,
    "content_hash": _matching("`raw:` or `input:` and 32 hexadecimal digits", "(raw|input):[0-9a-f]{32}"),
    "fingerprint": _TEXT,
}
"""Columns of every manifest, in order. The columns of the votes follow."""

INTEGER_COLUMNS = ("sample_id", "label", "suggested_label")

_VOTE = _optional(_PROBABILITY)


def format_cell(value: Any) -> str:
    """Format a value for `parse_cell`, without loss of precision."""
    if isinstance(value, str):
        return escape_cell(value)
    return "" if value is None else repr(float(value) if isinstance(value, float) else int(value))


def parse_cell(cell: str, name: str, where: str) -> Any:
    """Parse the cell of a column.

    Args:
        cell: Text of the cell.
        name: Name of the column.
        where: Line and file, for errors.

    Raises:
        ManifestError: If the value is invalid for the column. The message names line, column and value.
    """
    column = COLUMNS.get(name, _VOTE)
    try:
        value = column.parse(cell)
        if column.accepts(value):
            return value
    except (ValueError, OverflowError):
        pass
    raise _invalid(cell, name, where)


def from_stored(value: Any, name: str, where: str) -> Any:
    """Return the value of a column that has numbers as numbers, and texts as they are in a cell.

    A program that knows no missing integers may have stored them as numbers: 3.0, and NaN for none.

    Args:
        value: What is stored.
        name: Name of the column.
        where: Row and file, for errors.

    Raises:
        ManifestError: If the value is invalid for the column. The message names row, column and value.
    """
    if isinstance(value, str) and is_text_column(name):
        return parse_cell(value, name, where)
    found = value
    if isinstance(value, float):
        is_whole = name in INTEGER_COLUMNS and value.is_integer()
        found = None if math.isnan(value) else int(value) if is_whole else value
    if COLUMNS.get(name, _VOTE).accepts(found):
        return found
    raise _invalid(value, name, where)


def is_text_column(name: str) -> bool:
    """Whether the values of a column are texts."""
    return name in COLUMNS and COLUMNS[name].parse in (_text, str)


def _invalid(value: Any, name: str, where: str) -> ManifestError:
    return ManifestError(
        f"Expected `{printable(name, limit=60)}` in {where} to be {COLUMNS.get(name, _VOTE).contents}, but got "
        f"'{printable(value, limit=80)}'.\n{REPAIR_HINT}"
    )


def check_value(name: str, value: Any) -> None:
    """Raise if a value could not be read again from a column; the same check as for a cell.

    Raises:
        ValueError: If it could not.
    """
    column = COLUMNS.get(name, _VOTE)
    if not column.accepts(value):
        raise ValueError(expected(printable(name, limit=60), column.contents, describe(value)))


def shortened_text(text: str) -> str:
    """Return untrusted text that fits into a cell."""
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - 1] + "…"


def check_header(header: list[str], where: str) -> None:
    """Raise if the names of the columns are not those of a manifest.

    Args:
        header: Names of the columns.
        where: Where they are, for the error.

    Raises:
        ManifestError: If one is missing, unknown, or there twice.
    """
    missing = [name for name in COLUMNS if name not in header]
    unknown = [name for name in header if name not in COLUMNS and not name.startswith(VOTE_PREFIX)]
    if missing or unknown or len(set(header)) != len(header):
        fault = f"no {missing[0]!r}" if missing else f"also {unknown[0]!r}" if unknown else "one of them twice"
        raise ManifestError(
            f"Expected the columns {', '.join(COLUMNS)} {where}, but got "
            f"{printable(fault)}.\n"
            "Keep the names of the columns as they were written, and add none."
        )


def vote_names(header: list[str], where: str) -> dict[str, str]:
    """Return the name of each member of a combination, by column; see `check_header`."""
    columns = [name for name in header if name.startswith(VOTE_PREFIX)]
    try:
        names = {column: unescape_cell(column.removeprefix(VOTE_PREFIX)) for column in columns}
    except (ValueError, OverflowError):
        names = {}
    if len(set(names.values())) != len(columns) or any(len(name) > MAX_TEXT for name in names.values()):
        raise ManifestError(
            f"Expected different column names of at most {MAX_TEXT:,} characters, in which a backslash is written "
            f"`\\\\`, {where}, but got {printable(columns)}.\n{REPAIR_HINT}"
        )
    return names
