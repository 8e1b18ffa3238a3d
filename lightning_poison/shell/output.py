"""Where the commands write their lines. Importing it imports nothing heavy."""

from collections.abc import Callable

Write = Callable[[str], None]
"""Writes one line of output."""
