import os
from pathlib import Path

import pytest
import torch

from lightning_poison.data import large_matrices
from lightning_poison.data.large_matrices import label_score_dtype, selected_rows, stacked_rows, zeros_in_file


@pytest.mark.parametrize(
    ("rows", "columns", "dtype"),
    [(60_000, 100, torch.float64), (2**14, 2**10, torch.float64), (2**14 + 1, 2**10, torch.float32)],
)
def test_many_scores_are_float32(rows, columns, dtype):
    assert label_score_dtype(rows, columns) == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zeros_in_a_file_are_like_zeros_in_memory(dtype, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    matrix = zeros_in_file((50, 7), dtype, in_memory=0)
    assert torch.equal(matrix, torch.zeros(50, 7, dtype=dtype))
    matrix[3:5] += 2
    assert float(matrix.sum()) == 28
    assert str(tmp_path) in Path("/proc/self/maps").read_text() or not hasattr(os, "posix_fallocate")
    assert list(tmp_path.iterdir()) == []


def test_few_zeros_are_in_memory(monkeypatch):
    monkeypatch.setattr(large_matrices, "_reserve", lambda file, size: pytest.fail("a file was written"))
    assert zeros_in_file((50, 7), torch.float32).shape == (50, 7)
    assert zeros_in_file((0, 7), torch.float32, in_memory=0).shape == (0, 7)


def test_full_disk_is_no_error(monkeypatch):
    def full(file, size):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(large_matrices, "_reserve", full)
    assert zeros_in_file((50, 7), torch.float32, in_memory=0).sum() == 0


def test_space_is_reserved_without_fallocate(monkeypatch, tmp_path):
    monkeypatch.delattr(os, "posix_fallocate", raising=False)
    with (tmp_path / "file").open("wb") as file:
        large_matrices._reserve(file.fileno(), 3 * 2**19)
    assert (tmp_path / "file").stat().st_size == 3 * 2**19


def test_rows_are_selected_in_order():
    matrix = torch.arange(6.0).view(3, 2)
    places = torch.tensor([2, 0, 0])
    assert torch.equal(selected_rows(matrix, places), matrix[places])
    assert selected_rows(matrix, torch.arange(2)).shape == (2, 2)
    assert selected_rows(matrix, torch.arange(3)) is matrix


def test_stacked_rows_are_in_a_file_if_they_are_many(monkeypatch):
    made = []
    monkeypatch.setattr(large_matrices, "zeros_in_file", lambda *args: made.append(args) or torch.zeros(*args[:1]))
    parts = [torch.arange(6.0).view(2, 3), torch.arange(3.0).view(1, 3)]
    assert torch.equal(stacked_rows(parts), torch.cat(parts))
    assert made == [((3, 3), torch.float32)]
