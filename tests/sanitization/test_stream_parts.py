"""Tables of removed samples: written row by row, whole after a kill, merged over ranks and workers."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from lightning_poison.sanitization.stream_parts import COLUMNS, PartWriter, RemovedSample, merge_removed

SAMPLE = RemovedSample("run", 1, 0, 0, 7, 3, 9.25, 8.125, "removed", "00ff00ff00ff00ff")


def test_rows_of_all_ranks_and_workers_are_merged_in_order(tmp_path):
    for rank in (1, 0):
        for worker in (0, 1):
            writer = PartWriter(tmp_path / "parts", "run", rank, worker)
            for position in (3, 9):
                writer.append([replace(SAMPLE, rank=rank, worker=worker, position=position)])
    merged = merge_removed(tmp_path / "parts", tmp_path / "all.csv")
    places = [(each.rank, each.worker, each.position) for each in merged]
    assert places == [(rank, worker, position) for rank in (0, 1) for worker in (0, 1) for position in (3, 9)]
    assert (tmp_path / "all.csv").read_text().splitlines()[:2] == [
        ",".join(COLUMNS),
        "run,1,0,0,3,3,9.25,8.125,removed,00ff00ff00ff00ff,",
    ]


def test_nothing_removed_writes_no_file(tmp_path):
    PartWriter(tmp_path, "run", 0, 0).append([])
    assert not list(tmp_path.iterdir())
    assert merge_removed(tmp_path) == ()


@pytest.mark.parametrize("key", ["=1+1", 'a,b\n"c"', "\ud800", "ä;b\\"])
def test_untrusted_keys(tmp_path, key):
    PartWriter(tmp_path, "run", 0, 0).append([replace(SAMPLE, key=key)])
    assert merge_removed(tmp_path)[0].key == key
    assert "\n=" not in (tmp_path / "removed-run-rank0-worker0.csv").read_text()


def test_a_row_without_its_end_is_skipped_and_cut_off(tmp_path):
    PartWriter(tmp_path, "run", 0, 0).append([SAMPLE])
    part = tmp_path / "removed-run-rank0-worker0.csv"
    with part.open("a") as file:
        file.write("run,1,0,0,8,3,9.")
    assert merge_removed(tmp_path) == (SAMPLE,)
    other = replace(SAMPLE, position=8)
    PartWriter(tmp_path, "run", 0, 0).append([other])
    assert merge_removed(tmp_path) == (SAMPLE, other)
    part.write_text("run,ep")  # killed in the header
    PartWriter(tmp_path, "run", 0, 0).append([other])
    assert merge_removed(tmp_path) == (other,)


def test_a_sample_that_is_judged_again_after_a_resume_is_listed_once(tmp_path):
    for score in (9.25, 9.5):
        PartWriter(tmp_path, "run", 0, 0).append([replace(SAMPLE, score=score)])
    assert [each.score for each in merge_removed(tmp_path)] == [9.5]


WRITING = """
import sys
from lightning_poison.sanitization.stream_parts import PartWriter, RemovedSample
writer, position = PartWriter(sys.argv[1], "run", 0, 0), 0
while True:
    writer.append([RemovedSample("run", 1, 0, 0, position, 3, 9.25, 8.125, "removed", "0" * 16, "k" * 900)])
    position += 1
"""


@pytest.mark.slow
def test_a_killed_process_leaves_whole_rows(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", WRITING, str(tmp_path)])
    part, deadline = tmp_path / "removed-run-rank0-worker0.csv", time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 100_000):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rows = merge_removed(tmp_path)
    assert [each.position for each in rows] == list(range(len(rows)))
    assert len(rows) > 90


def test_a_file_with_another_header_is_named(tmp_path):
    (tmp_path / "removed-run-rank0-worker0.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"`header` to be run, epoch.*rank0-worker0.csv"):
        merge_removed(tmp_path)


@pytest.mark.parametrize("row", ["run,1,0,0,x,3,9.25,8.1,removed,00,", "run,1", 'run,"', "", "run,1\udce4"])
def test_a_row_that_is_invalid_is_left_out_with_a_warning(tmp_path, row):
    PartWriter(tmp_path, "run", 0, 0).append([SAMPLE])
    part = tmp_path / "removed-run-rank0-worker0.csv"
    with part.open("ab") as file:
        file.write(row.encode(errors="surrogateescape") + b"\n")
    other = replace(SAMPLE, position=8)
    PartWriter(tmp_path, "run", 0, 0).append([other])
    with pytest.warns(UserWarning, match=r"left out\.\n[\s\S]*line 3 of .*removed-run-rank0-worker0\.csv") as found:
        assert merge_removed(tmp_path) == (SAMPLE, other)
    assert len(found) == 1
    with part.open("a") as file:
        file.write("a\nb\n")
    with pytest.warns(UserWarning, match=r"So are 2 more rows"):
        assert merge_removed(tmp_path) == (SAMPLE, other)


def test_a_disk_that_becomes_full_is_a_warning_and_the_rows_before_stay(tmp_path, monkeypatch):
    writer, whole = PartWriter(tmp_path, "run", 0, 0), os.write
    writer.append([SAMPLE])
    monkeypatch.setattr(os, "write", lambda handle, line: whole(handle, line[:10]))
    with pytest.warns(UserWarning, match="no longer written to .*No space left"):
        writer.append([replace(SAMPLE, position=8)])
    monkeypatch.undo()
    writer.append([replace(SAMPLE, position=9)])
    assert merge_removed(tmp_path) == (SAMPLE,)
    other = replace(SAMPLE, position=10)
    PartWriter(tmp_path, "run", 0, 0).append([other])
    assert merge_removed(tmp_path) == (SAMPLE, other)


def test_runs_have_files_of_their_own(tmp_path):
    for run in ("a", "b/../ü"):
        PartWriter(tmp_path, run, 0, 0).append([replace(SAMPLE, run=run)])
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["removed-a-rank0-worker0.csv", "removed-b_..__-rank0-worker0.csv"]
    assert [each.run for each in merge_removed(tmp_path)] == ["a", "b/../ü"]


def test_a_writer_reads_only_the_end_of_a_long_file(tmp_path, monkeypatch):
    PartWriter(tmp_path, "run", 0, 0).append([SAMPLE])
    part = tmp_path / "removed-run-rank0-worker0.csv"
    row = part.read_bytes().splitlines(keepends=True)[1]
    with part.open("ab") as file:
        file.write(row * 20_000 + row[:-3])
    PartWriter(tmp_path, "run", 0, 0).append([replace(SAMPLE, position=8)])
    assert part.read_bytes().count(b"\n") == 20_003
    assert [each.position for each in merge_removed(tmp_path)] == [7, 8]
    monkeypatch.setattr("lightning_poison.sanitization.stream_parts._TAIL", 10)
    with part.open("ab") as file:
        file.write(b"x" * 20)
    with pytest.warns(UserWarning, match="is another file"):
        PartWriter(tmp_path, "run", 0, 0).append([SAMPLE])


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(NotADirectoryError, match=r"none at .*gone"):
        merge_removed(tmp_path / "gone")


def test_an_error_of_the_disk_is_one_warning(tmp_path):
    (tmp_path / "file").write_text("")
    writer = PartWriter(tmp_path / "file", "run", 0, 0)
    with pytest.warns(UserWarning, match="no longer written to .*Samples are still removed"):
        writer.append([SAMPLE])
    writer.append([SAMPLE])
    (tmp_path / "removed-run-rank0-worker1.csv").write_text("another,table\n1,2\n")
    with pytest.warns(UserWarning, match="is another file"):
        PartWriter(tmp_path, "run", 0, 1).append([SAMPLE])
    assert (tmp_path / "removed-run-rank0-worker1.csv").read_text() == "another,table\n1,2\n"
