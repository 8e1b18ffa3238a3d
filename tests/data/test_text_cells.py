"""Escaping of untrusted text in cells is undone exactly."""

from hypothesis import given
from hypothesis import strategies as st

from lightning_poison.data.text_cells import escape_cell, unescape_cell


@given(st.text(alphabet=st.characters(codec=None)))
def test_cell_escaping_round_trip(text):
    cell = escape_cell(text)
    assert unescape_cell(cell) == text
    assert cell.isprintable()
    assert not cell.lstrip().startswith(("=", "+", "-", "@"))
    cell.encode("utf-8")
