"""What the cells of a manifest hold, and how text from a stranger's data set stands in a spreadsheet.

Paths and names of classes come from the data set, so a stranger may have chosen them. A cell that a spreadsheet would
take for a formula gets an apostrophe in front; characters that do not print, the backslash, and the semicolon, which
splits cells where the comma is the decimal sign, are written as escapes. Both are undone when the file is read.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning_poison.checks import printable
from lightning_poison.errors import ManifestError

DecisionWord = Literal["removed", "flagged", "kept-by-hand"]

VOTE_PREFIX = "vote:"
"""Begins the columns that hold the p-values of the members of a combination."""

WAY_OUT = "Correct it there, or delete the file and let the next run write a new one."
"""What to do about a manifest that cannot be read."""


def escape_cell(text: str) -> str:
    r"""Write text so that a spreadsheet shows it and does not compute it; `unescape_cell` undoes it.

    Example:
        >>> print(escape_cell("=1+1\n"))
        '=1+1\x0a
    """
    shown = "".join(char if char.isprintable() and char not in "\\;" else _escape(char) for char in text)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA_STARTS) else shown


def unescape_cell(cell: str) -> str:
    r"""Return the text that `escape_cell` was given.

    Raises:
        ValueError: where a backslash begins no escape.

    Example:
        >>> unescape_cell(r"'=1+1\x0a")
        '=1+1\n'
    """
    return _ESCAPE.sub(_unescape, cell.removeprefix("'"))


_FORMULA_STARTS = ("=", "+", "-", "@", "'", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""What a spreadsheet takes for the start of a formula, the full-width forms too; and the mark of an escaped cell."""

_ESCAPE = re.compile(r"\\(?:(\\)|x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8}))?")


def _escape(char: str) -> str:
    code = ord(char)
    if char == "\\":
        return r"\\"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _unescape(match: re.Match[str]) -> str:
    backslash, *codes = match.groups()
    if backslash:
        return "\\"
    digits = next((code for code in codes if code), "")
    return chr(int(digits, 16))


@dataclass(frozen=True)
class _Column:
    """What the cells of a column may hold, in words and as a parser that raises `ValueError`."""

    holds: str
    parse: Callable[[str], Any]


def _whole(cell: str) -> int:
    if not re.fullmatch(r"[0-9]{1,15}", cell):
        raise ValueError
    return int(cell)


def _number(cell: str) -> float:
    value = float(cell)
    if not math.isfinite(value):
        raise ValueError
    return value


def _probability(cell: str) -> float:
    if not 0 <= float(cell) <= 1:
        raise ValueError
    return float(cell)


def _optional(parse: Callable[[str], Any]) -> Callable[[str], Any]:
    return lambda cell: parse(cell) if cell else None


def _matching(pattern: str) -> Callable[[str], str]:
    def parse(cell: str) -> str:
        if not re.fullmatch(pattern, cell):
            raise ValueError
        return cell

    return parse


_TEXT = _Column(r"text in which a backslash is written `\\`", unescape_cell)

COLUMNS: dict[str, _Column] = {
    "sample_id": _Column("an integer of at least 0", _whole),
    "decision": _Column("one of " + ", ".join(get_args(DecisionWord)), _matching("|".join(get_args(DecisionWord)))),
    "label": _Column("an integer of at least 0", _whole),
    "suggested_label": _Column("an integer of at least 0, or empty", _optional(_whole)),
    "label_name": _TEXT,
    "suggested_name": _TEXT,
    "score": _Column("a finite number", _number),
    "p_value": _Column("a number in [0, 1]", _probability),
    "posterior": _Column("a number in [0, 1], or empty", _optional(_probability)),
    "score_threshold": _Column("a finite number, or empty", _optional(_number)),
    "posterior_threshold": _Column("a number in [0, 1], or empty", _optional(_probability)),
    "path": _TEXT,
    "content_hash": _Column("`raw:` or `input:` and 32 hexadecimal digits", _matching("(raw|input):[0-9a-f]{32}")),
    "fingerprint": _TEXT,
}
"""The columns of every manifest, in their order; those of votes follow."""

_VOTE = _Column("a number in [0, 1], or empty", _optional(_probability))


def format_cell(value: Any) -> str:
    """Write a value as `parse_cell` reads it; numbers lose nothing."""
    if isinstance(value, str):
        return escape_cell(value)
    return "" if value is None else repr(value)


def parse_cell(cell: str, name: str, line: int) -> Any:
    """Read the cell of a column.

    Raises:
        ManifestError: where it holds something else than the column should; the message names line, column and value.
    """
    column = COLUMNS.get(name, _VOTE)
    try:
        return column.parse(cell)
    except (ValueError, OverflowError):
        raise ManifestError(
            f"Expected `{printable(name, limit=60)}` in line {line} of the manifest to be {column.holds}, but got "
            f"'{printable(cell, limit=80)}'.\n{WAY_OUT}"
        ) from None
