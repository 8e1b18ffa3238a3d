"""Tables of removed samples: written row by row, whole after a kill, merged over ranks and workers."""

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
            writer = PartWriter(tmp_path / "parts", rank, worker)
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
    PartWriter(tmp_path, 0, 0).append([])
    assert not list(tmp_path.iterdir())
    assert merge_removed(tmp_path) == ()


@pytest.mark.parametrize("key", ["=1+1", 'a,b\n"c"', "\ud800", "ä;b\\"])
def test_untrusted_keys(tmp_path, key):
    PartWriter(tmp_path, 0, 0).append([replace(SAMPLE, key=key)])
    assert merge_removed(tmp_path)[0].key == key
    assert "\n=" not in (tmp_path / "removed-rank0-worker0.csv").read_text()


def test_a_row_without_its_end_is_skipped_and_cut_off(tmp_path):
    PartWriter(tmp_path, 0, 0).append([SAMPLE])
    part = tmp_path / "removed-rank0-worker0.csv"
    with part.open("a") as file:
        file.write("run,1,0,0,8,3,9.")
    assert merge_removed(tmp_path) == (SAMPLE,)
    other = replace(SAMPLE, position=8)
    PartWriter(tmp_path, 0, 0).append([other])
    assert merge_removed(tmp_path) == (SAMPLE, other)
    part.write_text("run,ep")  # killed in the header
    PartWriter(tmp_path, 0, 0).append([other])
    assert merge_removed(tmp_path) == (other,)


def test_a_sample_that_is_judged_again_after_a_resume_is_listed_once(tmp_path):
    for score in (9.25, 9.5):
        PartWriter(tmp_path, 0, 0).append([replace(SAMPLE, score=score)])
    assert [each.score for each in merge_removed(tmp_path)] == [9.5]


WRITING = """
import sys
from lightning_poison.sanitization.stream_parts import PartWriter, RemovedSample
writer, position = PartWriter(sys.argv[1], 0, 0), 0
while True:
    writer.append([RemovedSample("run", 1, 0, 0, position, 3, 9.25, 8.125, "removed", "0" * 16, "k" * 900)])
    position += 1
"""


@pytest.mark.slow
def test_a_killed_process_leaves_whole_rows(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", WRITING, str(tmp_path)])
    part, deadline = tmp_path / "removed-rank0-worker0.csv", time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 100_000):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    rows = merge_removed(tmp_path)
    assert [each.position for each in rows] == list(range(len(rows)))
    assert len(rows) > 90


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "`header` to be run, epoch"),
        (
            ",".join(COLUMNS) + "\nrun,1,0,0,x,3,9.25,8.1,removed,00,\n",
            "in line 2 of .*rank0-worker0.csv, but got run,1",
        ),
        (",".join(COLUMNS) + "\nrun,1\n", "in line 2 of"),
    ],
)
def test_invalid_files_are_named(tmp_path, text, message):
    (tmp_path / "removed-rank0-worker0.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        merge_removed(tmp_path)


def test_a_folder_that_is_missing_is_named(tmp_path):
    with pytest.raises(NotADirectoryError, match=r"none at .*gone"):
        merge_removed(tmp_path / "gone")


def test_an_error_of_the_disk_is_one_warning(tmp_path):
    (tmp_path / "file").write_text("")
    writer = PartWriter(tmp_path / "file", 0, 0)
    with pytest.warns(UserWarning, match="no longer written to .*Samples are still removed"):
        writer.append([SAMPLE])
    writer.append([SAMPLE])
    (tmp_path / "removed-rank0-worker1.csv").write_text("another,table\n1,2\n")
    with pytest.warns(UserWarning, match="is another file"):
        PartWriter(tmp_path, 0, 1).append([SAMPLE])
    assert (tmp_path / "removed-rank0-worker1.csv").read_text() == "another,table\n1,2\n"
