"""Matrices with a row for each sample and a column for each class, which may be larger than the memory."""

import math
import os
import tempfile
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

_EXACT = 2**24
"""Largest number of elements of a matrix of float64: 128 MiB."""

_IN_MEMORY = 2**29
"""Bytes from which a matrix is in a file: 512 MiB."""


def label_score_dtype(rows: int, columns: int) -> torch.dtype:
    """Return the data type in which scores of all samples under all labels are held.

    Networks compute scores in float32, so that little or nothing is lost by it.

    Args:
        rows: Number of samples.
        columns: Number of classes.

    Example:
        >>> label_score_dtype(60_000, 10), label_score_dtype(50_000, 1_000)
        (torch.float64, torch.float32)
    """
    return torch.float64 if rows * columns <= _EXACT else torch.float32


def zeros_in_file(shape: tuple[int, ...], dtype: torch.dtype, *, in_memory: int = _IN_MEMORY) -> Tensor:
    """Return zeros, in memory or, if they are many, in a temporary file that is mapped into memory.

    Pages of the file that do not fit into memory are written to the disk by the operating system. The file is in the
    folder for temporary files (`TMPDIR`), has no name, and vanishes with the tensor. If the disk has not enough space
    for it, the zeros are in memory.

    Args:
        shape: Shape of the tensor.
        dtype: Data type.
        in_memory: Largest number of bytes in memory. Default: 512 MiB.

    Example:
        >>> zeros_in_file((2, 3), torch.float32, in_memory=0)
        tensor([[0., 0., 0.],
                [0., 0., 0.]])
    """
    size = math.prod(shape) * dtype.itemsize
    if size <= in_memory or not size:
        return torch.zeros(shape, dtype=dtype)
    try:
        with tempfile.TemporaryFile(prefix="lightning-poison-") as file:
            _reserve(file.fileno(), size)
            return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="r+", shape=(size,))).view(dtype).view(shape)
    except OSError:
        return torch.zeros(shape, dtype=dtype)


def _reserve(file: int, size: int) -> None:
    """Reserve space on the disk, without which a write to a mapped page ends the process.

    Raises:
        OSError: If there is not enough.
    """
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, size)
    else:
        zeros = bytes(2**20)
        for start in range(0, size, len(zeros)):
            os.write(file, zeros[: size - start])


def selected_rows(matrix: Tensor, places: Tensor) -> Tensor:
    """Return rows of a matrix: the matrix itself if all of them are asked for in their order, and copies otherwise.

    Args:
        matrix: `(N, C)`.
        places: Positions of the rows, int64 `(M,)`.

    Example:
        >>> matrix = torch.zeros(3, 2)
        >>> selected_rows(matrix, torch.arange(3)) is matrix, selected_rows(matrix, torch.tensor([2, 2])).shape
        (True, torch.Size([2, 2]))
    """
    if len(places) == len(matrix) and torch.equal(places, torch.arange(len(matrix))):
        return matrix
    selected = zeros_in_file((len(places), *matrix.shape[1:]), matrix.dtype)
    return torch.index_select(matrix, 0, places, out=selected)


def copied(matrix: Tensor) -> Tensor:
    """Return a copy of a matrix on the CPU, in memory or in a file that is mapped into it.

    Example:
        >>> copied(torch.eye(2))
        tensor([[1., 0.],
                [0., 1.]])
    """
    return zeros_in_file(tuple(matrix.shape), matrix.dtype).copy_(matrix)


def stacked_rows(parts: Sequence[Tensor]) -> Tensor:
    """Return the rows of several matrices as one, in memory or in a file that is mapped into it.

    Args:
        parts: Matrices with the same columns, on one device.

    Example:
        >>> stacked_rows([torch.zeros(2, 3), torch.ones(1, 3)]).sum(1)
        tensor([0., 0., 3.])
    """
    first = parts[0]
    if first.device.type != "cpu":
        return torch.cat(list(parts))
    stacked = zeros_in_file((sum(len(part) for part in parts), *first.shape[1:]), first.dtype)
    return torch.cat(list(parts), out=stacked)
