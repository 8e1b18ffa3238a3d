import pytest
import torch

from lightning_poison.statistics.row_blocks import AT_ONCE, all_finite, row_blocks


@pytest.mark.parametrize(("rows", "columns"), [(0, 5), (7, 0), (7, 3), (10, AT_ONCE), (9_000, 1_000), (3, 2 * AT_ONCE)])
def test_blocks_cover_all_rows_once(rows, columns):
    blocks = list(row_blocks(rows, columns))
    assert [row for block in blocks for row in range(rows)[block]] == list(range(rows))
    assert all((block.stop - block.start) * columns <= max(AT_ONCE, columns) for block in blocks)


def test_small_matrix_is_one_block():
    assert list(row_blocks(60_000, 10)) == [slice(0, 60_000)]


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("shape", [(6,), (6, 4)])
def test_a_value_that_is_not_finite_is_found(value, shape):
    matrix = torch.arange(6.0).view(-1, *[1] * (len(shape) - 1)).expand(shape).clone()
    assert all_finite(matrix)
    matrix.view(-1)[-1] = value
    assert not all_finite(matrix)


def test_no_values_are_finite():
    assert all_finite(torch.zeros(0, 3))
    assert all_finite(torch.zeros(3, 0))
