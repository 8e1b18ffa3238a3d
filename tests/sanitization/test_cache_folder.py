"""Tests of the cache folder: what is recognized, listed and removed."""

import os

import pytest
import torch

from lightning_poison.data.sample_digests import SampleDigests
from lightning_poison.sanitization import cache_folder
from lightning_poison.sanitization.cache_folder import (
    LIMIT,
    cache_folders,
    read_cache,
    remove_entries,
    shrink,
    size_limit,
)
from lightning_poison.sanitization.units import FileUnits
from lightning_poison.serialization import write_tensors

HOUR = 3600.0


def entry(root, number, *names, used=1000.0, size=100, meta=None):
    """Write the units of an entry, as runs do, and return its folder."""
    units = FileUnits(root / f"{number:032x}", SampleDigests(1))
    for name in names:
        units.save(name, {"values": torch.zeros(size)}, meta or {})
    for path in units.folder.iterdir():
        os.utime(path, (used, used))
    return units.folder


def names(folder):
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_entries_are_listed_latest_first_with_what_they_are(tmp_path):
    entry(tmp_path, 1, "verdict", used=1000, meta={"scorer": "likelihood", "fingerprint": "5f0c" * 16, "notes": []})
    entry(tmp_path, 2, "features-0a", "features-0b", used=3000)
    entry(tmp_path, 3, "near-copies", used=2000)
    folder = entry(tmp_path, 4, "member-0.fold-0", "member-0.fold-1.fit-ab", used=4000)
    os.utime(folder / "samples-0.safetensors", (500, 500))
    entries, foreign = read_cache(tmp_path)
    assert [(each.kind, each.units, each.used, each.created) for each in entries] == [
        ("unfinished decision", 2, 4000, 500),
        ("features", 2, 3000, 3000),
        ("near copies", 1, 2000, 2000),
        ("decision", 1, 1000, 1000),
    ]
    assert entries[3].details == {"scorer": "likelihood", "fingerprint": "5f0c" * 16}
    assert entries[0].size == sum(path.stat().st_size for path in folder.iterdir())
    assert (foreign, [each.in_use for each in entries]) == ([], [False] * 4)


def test_only_files_of_the_cache_are_removed(tmp_path):
    folder = entry(tmp_path, 1, "verdict")
    for name in (".verdict.safetensors.0a1b2c3d.partial", "empty.safetensors"):
        (folder / name).write_bytes(b"")
    (folder / "notes.txt").write_text("mine")
    write_tensors(folder / "model.safetensors", {"w": torch.ones(1)}, {"kind": "verdict"})
    (folder / "damaged.safetensors").write_bytes(b"\xff" * 100)
    (folder / "sub").mkdir()
    (tmp_path / "mine.safetensors").write_bytes(b"")
    (tmp_path / "real").mkdir()
    (tmp_path / f"{7:032x}").symlink_to(entry(tmp_path / "real", 7, "verdict"))
    mine = {"notes.txt", "model.safetensors", "damaged.safetensors", "sub"}
    entries, foreign = read_cache(tmp_path)
    assert {path.name for path in foreign} == {*mine, "mine.safetensors", "real", f"{7:032x}"}
    assert remove_entries(entries) == (entries, [])
    assert names(folder) == mine
    assert names(tmp_path) == {folder.name, "mine.safetensors", "real", f"{7:032x}"}
    assert len(names(tmp_path / "real" / f"{7:032x}")) == 3
    assert read_cache(tmp_path)[0] == []


def test_a_folder_without_files_of_the_user_is_removed_as_a_whole(tmp_path):
    folder = entry(tmp_path, 1, "verdict")
    remove_entries(read_cache(tmp_path)[0])
    assert not folder.exists()
    gone = read_cache(tmp_path)[0]
    assert gone == []


def test_what_a_process_uses_stays(tmp_path):
    units = FileUnits(tmp_path / f"{1:032x}", SampleDigests(1))
    units.save("scores", {}, {})
    entry(tmp_path, 2, "verdict")
    entries, _ = read_cache(tmp_path)
    assert {each.folder.name[-1]: each.in_use for each in entries} == {"1": True, "2": False}
    removed, used = remove_entries(entries)
    assert [each.folder.name[-1] for each in removed], [each.folder.name[-1] for each in used] == (["2"], ["1"])
    assert units.load("scores") is not None


def test_an_entry_that_another_process_has_removed_counts_as_removed(tmp_path):
    entry(tmp_path, 1, "verdict")
    entries, _ = read_cache(tmp_path)
    remove_entries(entries)
    assert remove_entries(entries) == (entries, [])


def test_shrinking_removes_single_units_and_digests_of_samples_last(tmp_path):
    folder = entry(tmp_path, 1, "old", "new", size=2**16)
    entry(tmp_path, 2, "kept", size=2**16, used=1)
    os.utime(folder / "old.safetensors", (10, 10))
    os.utime(folder / "new.safetensors", (20, 20))
    size = (folder / "old.safetensors").stat().st_size
    freed = shrink(tmp_path, 2.7 * size, keep=f"{2:032x}")
    assert freed == size
    assert names(folder) == {".lock", "samples-0.safetensors", "new.safetensors"}
    assert shrink(tmp_path, 2.7 * size) == 0
    shrink(tmp_path, 1.2 * size, keep=f"{2:032x}")
    assert not folder.exists()
    shrink(tmp_path, 0)
    assert names(tmp_path) == set()


def test_shrinking_counts_what_was_removed_before_an_error(tmp_path, monkeypatch):
    folder = entry(tmp_path, 1, "first", used=10)
    stuck = entry(tmp_path, 2, "second", used=20)
    total = sum(path.stat().st_size for path in (*folder.iterdir(), *stuck.iterdir()))
    left = (stuck / "second.safetensors").stat().st_size + (stuck / "samples-0.safetensors").stat().st_size
    unlink = type(tmp_path).unlink

    def refuse(path, *args, **options):
        if path in {folder / ".lock", stuck / "second.safetensors"}:
            raise PermissionError(path)
        unlink(path, *args, **options)

    monkeypatch.setattr(type(tmp_path), "unlink", refuse)
    assert shrink(tmp_path, 0) == total - left
    assert (names(folder), len(names(stuck))) == ({".lock"}, 3)


def test_shrinking_leaves_files_of_the_user(tmp_path):
    folder = entry(tmp_path, 1, "old", used=10)
    write_tensors(folder / "model.safetensors", {"w": torch.ones(1)}, {"kind": "verdict"})
    (folder / "notes.txt").write_text("mine")
    shrink(tmp_path, 0)
    assert names(folder) == {"model.safetensors", "notes.txt"}
    assert shrink(tmp_path / "nothing", 0) == 0


def test_files_of_the_user_do_not_push_out_stored_work(tmp_path):
    folder = entry(tmp_path, 1, "old", used=10)
    (folder / "model.safetensors").write_bytes(bytes(2**20))
    assert shrink(tmp_path, 2**19) == 0
    assert "old.safetensors" in names(folder)


@pytest.mark.parametrize(("text", "gibibytes"), [("", 10), ("2.5", 2.5), ("0", 0), ("inf", float("inf"))])
def test_size_limit(monkeypatch, text, gibibytes):
    monkeypatch.setenv(LIMIT, text)
    assert size_limit() == gibibytes * 2**30


@pytest.mark.parametrize("text", ["-1", "nan", "10GB", "\x1b[2J"])
def test_invalid_size_limit(monkeypatch, text):
    monkeypatch.setenv(LIMIT, text)
    with pytest.raises(ValueError, match=r"Expected `LIGHTNING_POISON_CACHE_GIB` .*a number of at least 0") as caught:
        size_limit()
    assert "\x1b" not in str(caught.value)


def test_cache_folders_of_runs_are_found(tmp_path):
    for name in ("sanitizer_cache", "lightning_poison_scan/cache", "first/cache", "empty/cache"):
        (tmp_path / name).mkdir(parents=True)
        if name != "empty/cache":
            entry(tmp_path / name, 1, "verdict")
    found = ["sanitizer_cache", "first/cache", "lightning_poison_scan/cache"]
    assert [path.relative_to(tmp_path).as_posix() for path in cache_folders(tmp_path).found] == found
    assert cache_folders(tmp_path / "sanitizer_cache").found == [tmp_path / "sanitizer_cache"]
    assert cache_folders(tmp_path / "first").found == [tmp_path / "first" / "cache"]


def test_cache_folders_are_found_deep_but_not_through_links_or_in_hidden_folders(tmp_path, monkeypatch):
    for name in ("a/b/c/cache", "a/.hidden/cache", ".venv/cache", "cache/photos/run/cache", "x/other"):
        (tmp_path / name).mkdir(parents=True)
        entry(tmp_path / name, 1, "verdict")
    (tmp_path / "x" / "link").symlink_to(tmp_path / "a", target_is_directory=True)
    (tmp_path / "a" / "b" / "circle").symlink_to(tmp_path, target_is_directory=True)
    found, is_complete = cache_folders(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["cache/photos/run/cache", "a/b/c/cache"]
    assert is_complete
    # What is inside of a cache is not searched.
    entry(tmp_path / "a" / "b" / "c" / "cache" / "deeper" / "cache", 1, "verdict")
    assert len(cache_folders(tmp_path).found) == 2
    monkeypatch.setattr(cache_folder, "_MAX_DEPTH", 3)
    assert [path.name for path in cache_folders(tmp_path).found] == []
    monkeypatch.setattr(cache_folder, "_MAX_DEPTH", 8)
    monkeypatch.setattr(cache_folder, "_MAX_SEARCHED", 3)
    assert cache_folders(tmp_path) == ([], False)
