"""Escaping of untrusted text in cells of a table, for spreadsheets.

A cell that a spreadsheet would interpret as a formula is prefixed with an apostrophe. Non-printable characters, the
backslash, and the semicolon (the separator in locales with a decimal comma) are escaped. `unescape_cell` reverses both.
"""

import re


def escape_cell(text: str) -> str:
    r"""Escape text so that a spreadsheet displays it and does not evaluate it; `unescape_cell` is the inverse.

    Example:
        >>> print(escape_cell("=1+1\n"))
        '=1+1\x0a
    """
    is_plain = text.isprintable() and "\\" not in text and ";" not in text
    shown = text if is_plain else "".join(map(_escaped, text))
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


def _escaped(char: str) -> str:
    if char.isprintable() and char not in "\\;":
        return char
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
