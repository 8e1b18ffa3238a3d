import errno
import json
import os

import pytest

from lightning_poison.evaluation.cells import Cell
from lightning_poison.evaluation.cells_file import CellsFile, read_cells


def cell(seed=0, **changes):
    given = {"attack": "a", "defense": "d", "is_control": False, "seed": seed, "clean_accuracy": 0.9}
    given |= {"attack_success_rate": 0.1, "poison_caught": 1.0, "clean_lost": 0.0, "removed": 3}
    return Cell(**(given | changes))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "new" / "cells.jsonl"
    with CellsFile(path) as file:
        for seed in range(3):
            file.add({"seed": seed}, cell(seed, removed_by_class={"1": 3}))
    return path


def test_torn_end_is_ignored_and_repaired(path):
    whole = path.read_bytes()
    start = whole.rindex(b"\n", 0, -1) + 1
    for length in (start, start + 1, start + 40, len(whole) - 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        count = 3 if length == len(whole) - 1 else 2
        assert len(read_cells(path)) == count
        with CellsFile(path) as file:
            assert (file.get({"seed": 2}) is None) == (count == 2)
            file.add({"seed": 2}, cell(2, removed_by_class={"1": 3}))
        records = [json.loads(line) for line in path.read_text().splitlines()]
        assert [record["key"]["seed"] for record in records] == ([0, 1, 2] if count == 2 else [0, 1, 2, 2])


def test_last_record_of_a_key_counts(path):
    with CellsFile(path) as file:
        file.add({"seed": 0}, cell(0, removed=8))
    with CellsFile(path) as file:
        assert file.get({"seed": 0}).removed == 8
    assert [found.removed for _, found in read_cells(path)] == [8, 3, 3]


def test_failed_cell_and_unknown_figures_are_null(path):
    with CellsFile(path) as file:
        file.add({"seed": 9}, Cell.failed("a", "d", 9, "reason"))
    record = json.loads(path.read_text().splitlines()[-1])
    assert record["cell"]["clean_accuracy"] is None
    assert record["cell"]["error"] == "reason"
    assert read_cells(path)[-1][1].error == "reason"


def test_plan_is_kept_and_skipped_by_readers(path):
    with CellsFile(path) as file:
        file.add_plan("request", [["attack", "defense"]])
    with CellsFile(path) as file:
        assert file.plan("request") == [["attack", "defense"]]
        assert file.plan("other") is None
    assert len(read_cells(path)) == 3


@pytest.mark.parametrize("line", ["5", "no JSON", '{"key": {}}', '{"key": 3, "cell": {}}', '{"key": {}, "cell": {}}'])
def test_line_that_is_no_record_is_named(path, line):
    path.write_text(f"{line}\n" + path.read_text())
    with pytest.raises(ValueError, match=r"line 1 of .*\n.*Delete the line"), CellsFile(path):
        pass


def test_one_writer_at_a_time(path):
    with CellsFile(path), pytest.raises(OSError, match="another evaluation"), CellsFile(path):
        pass


def test_folder_that_cannot_be_written(path):
    with pytest.raises(OSError, match="jsonl"), CellsFile(path / "below.jsonl"):
        pass


def test_full_disk_is_an_error_and_the_file_stays_readable(path, monkeypatch):
    def full(handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    with CellsFile(path) as file:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            file.add({"seed": 3}, cell(3))
    assert len(read_cells(path)) >= 3


def test_without_path_nothing_is_stored():
    with CellsFile(None) as file:
        file.add({"seed": 0}, cell())
        assert file.get({"seed": 0}) == cell()
