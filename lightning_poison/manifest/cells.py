"""Columns of a manifest, and escaping of untrusted text for spreadsheets.

Paths and class names come from the data set, so an attacker may have chosen them. A cell that a spreadsheet would
interpret as a formula is prefixed with an apostrophe. Non-printable characters, the backslash, and the semicolon (the
separator in locales with a decimal comma) are escaped. Reading the file reverses both.
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
"""Prefix of the columns with the p-values of each member of a combination."""

REPAIR_HINT = "Correct the file, or delete it so that the next run writes a new one."
"""How to fix a manifest that cannot be read."""


def escape_cell(text: str) -> str:
    r"""Escape text so that a spreadsheet displays it and does not evaluate it; `unescape_cell` is the inverse.

    Example:
        >>> print(escape_cell("=1+1\n"))
        '=1+1\x0a
    """
    shown = "".join(char if char.isprintable() and char not in "\\;" else _escape(char) for char in text)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA_STARTS) else shown


def unescape_cell(cell: str) -> str:
    r"""Return the original text of a cell written by `escape_cell`.

    Raises:
        ValueError: If a backslash does not start an escape sequence.

    Example:
        >>> unescape_cell(r"'=1+1\x0a")
        '=1+1\n'
    """
    return _ESCAPE.sub(_unescape, cell.removeprefix("'"))


_FORMULA_STARTS = ("=", "+", "-", "@", "'", "\uff1d", "\uff0b", "\uff0d", "\uff20")
"""Characters that start a formula in spreadsheets, including full-width forms, and the prefix of an escaped cell."""

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
    """Valid contents of a column, as a description and as a parser that raises `ValueError`."""

    contents: str
    parse: Callable[[str], Any]


def _integer(cell: str) -> int:
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
    "sample_id": _Column("an integer of at least 0", _integer),
    "decision": _Column("one of " + ", ".join(get_args(DecisionWord)), _matching("|".join(get_args(DecisionWord)))),
    "label": _Column("an integer of at least 0", _integer),
    "suggested_label": _Column("an integer of at least 0, or empty", _optional(_integer)),
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
"""Columns of every manifest, in order. The columns of the votes follow."""

_VOTE = _Column("a number in [0, 1], or empty", _optional(_probability))


def format_cell(value: Any) -> str:
    """Format a value for `parse_cell`, without loss of precision."""
    if isinstance(value, str):
        return escape_cell(value)
    return "" if value is None else repr(value)


def parse_cell(cell: str, name: str, line: int) -> Any:
    """Parse the cell of a column.

    Raises:
        ManifestError: If the value is invalid for the column. The message names line, column and value.
    """
    column = COLUMNS.get(name, _VOTE)
    try:
        return column.parse(cell)
    except (ValueError, OverflowError):
        raise ManifestError(
            f"Expected `{printable(name, limit=60)}` in line {line} of the manifest to be {column.contents}, but got "
            f"'{printable(cell, limit=80)}'.\n{REPAIR_HINT}"
        ) from None
