"""Blocks of rows of a matrix with a column for each class, so that work on it needs memory for one block alone."""

from collections.abc import Iterator

import torch
from torch import Tensor

AT_ONCE = 2**22
"""Largest number of elements of a block: 32 MiB as float64. Smaller matrices are one block."""

_SMALLER = 16
"""How many times smaller small blocks are: 2 MiB as float64."""


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Divide the rows of a matrix into blocks.

    Args:
        rows: Number of rows.
        columns: Number of columns.

    Example:
        >>> list(row_blocks(5_000, 100)), len(list(row_blocks(50_000, 1_000)))
        ([slice(0, 5000, None)], 12)
    """
    step = max(1, AT_ONCE // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def small_row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Divide the rows of a matrix into blocks that stay in the cache of a processor, for work on each row alone.

    What is computed from a block reuses the memory of the one before.

    Args:
        rows: Number of rows.
        columns: Number of columns.

    Example:
        >>> len(list(small_row_blocks(50_000, 1_000)))
        191
    """
    return row_blocks(rows, _SMALLER * columns)


def all_finite(matrix: Tensor) -> bool:
    """Return whether all elements of a vector or a matrix are finite.

    Example:
        >>> all_finite(torch.tensor([[1.0, float("inf")]]))
        False
    """
    return all(_is_finite(matrix[rows]) for rows in row_blocks(len(matrix), matrix[:1].numel()))


def _is_finite(block: Tensor) -> bool:
    """Whether the extremes are finite: those of elements with a NaN are NaN. It takes one pass."""
    return not block.numel() or bool(torch.isfinite(torch.stack(block.aminmax())).all())
