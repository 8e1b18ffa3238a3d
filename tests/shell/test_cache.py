"""Tests of the `cache` command: its tables, and what it removes and leaves alone."""

import os
import re
import subprocess
import sys
import time

import pytest
import torch

from lightning_poison import cli
from lightning_poison.data.sample_digests import SampleDigests
from lightning_poison.sanitization import cache_folder
from lightning_poison.sanitization.cache_folder import LIMIT
from lightning_poison.sanitization.units import FileUnits

HOUR = 3600.0


def entry(root, number, names, *, ago, size=1024, meta=None):
    units = FileUnits(root / f"{number:032x}", SampleDigests(1))
    for name in names:
        units.save(name, {"values": torch.zeros(size)}, meta or {})
    moment = time.time() - ago
    for path in units.folder.iterdir():
        os.utime(path, (moment, moment))
    return units


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The folder of a run whose cache has a decision, features of two data sets, and work in progress."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "sanitizer_cache"
    meta = {"scorer": "likeli\x1b[2Jhood", "fingerprint": "5f0c" * 16}
    entry(root, 0xA << 124, ["verdict"], ago=3 * 24 * HOUR, meta=meta)
    entry(root, 0xB << 124, ["features-0", "features-1"], ago=2 * HOUR, size=2**19)
    return tmp_path


def shown(capsys, *arguments, status=0):
    assert cli.main(["cache", *arguments]) == status
    said = capsys.readouterr()
    return said.err if status else said.out


def left(run):
    return [path.name[0] for path in sorted((run / "sanitizer_cache").iterdir())]


TABLE = """\
sanitizer_cache: 3 entries, 4.0 MiB of 10.0 GiB
what                 scorer            fingerprint       units      size  last use   begun    folder
unfinished decision  -                 -                     1  SIZE KiB  in use     now      c00000000000
features             -                 -                     2   4.0 MiB  2 h ago    2 h ago  b00000000000
decision             likeli\\x1b[2Jhood  5f0c5f0c5f0c5f0c      1   SIZE KiB  3 d ago  3 d ago  a00000000000
not written by the cache, and left alone: notes.txt
"""


@pytest.mark.parametrize("arguments", [(), ("list",), ("list", "."), ("sanitizer_cache",), ("--folder", ".")])
def test_table(run, capsys, arguments):
    units = FileUnits(run / "sanitizer_cache" / f"{0xC << 124:032x}", SampleDigests(1))
    units.save("member-0.fold-0", {"scores": torch.zeros(256)}, {})
    (run / "sanitizer_cache" / "notes.txt").write_text("mine")
    found = re.sub(r"\d\.\d KiB", "SIZE KiB", shown(capsys, *arguments))
    assert re.sub(" +", " ", found) == re.sub(" +", " ", TABLE)
    assert left(run) == ["a", "b", "c", "n"]


def test_columns_are_aligned(run, capsys):
    lines = shown(capsys).splitlines()[1:]
    assert len({line.index(word) for line, word in zip(lines, ["folder", "b0000", "a0000"], strict=True)}) == 1
    assert len({re.search(r"size|\d+\.\d .iB", line).end() for line in lines}) == 1


def test_limit_is_shown(run, capsys, monkeypatch):
    monkeypatch.setenv(LIMIT, "0.5")
    assert "of 512.0 MiB\n" in shown(capsys)
    monkeypatch.setenv(LIMIT, "inf")
    assert "of no limit\n" in shown(capsys)
    monkeypatch.setenv(LIMIT, "x")
    assert "Expected `LIGHTNING_POISON_CACHE_GIB`" in shown(capsys, status=2)


def test_clears_everything_but_files_of_the_user(run, capsys):
    mine = run / "sanitizer_cache" / f"{0xA << 124:032x}" / "mine.txt"
    mine.write_text("mine")
    said = shown(capsys, "clear")
    assert re.sub(r"\d\.\d MiB", "SIZE", said) == (
        "sanitizer_cache: 2 of 2 entries removed, SIZE freed\nnot written by the cache, and left alone: mine.txt\n"
    )
    assert list((run / "sanitizer_cache").rglob("*.*")) == [mine]
    assert shown(capsys, "list") == f"no cache in {'.'}\n"


@pytest.mark.parametrize(
    ("options", "count", "kept"),
    [
        (["--older-than", "1"], 1, ["b"]),
        (["--older-than=0.01"], 2, []),
        (["--older-than", "4"], 0, ["a", "b"]),
        (["--keep-latest", "1"], 1, ["b"]),
        (["--keep-latest", "2"], 0, ["a", "b"]),
        (["--keep-latest", "1", "--older-than", "4"], 0, ["a", "b"]),
    ],
)
def test_clears_by_age_and_number(run, capsys, options, count, kept):
    assert f"{count} of 2 entries removed" in shown(capsys, "clear", ".", *options)
    assert left(run) == kept


def test_what_is_in_use_is_not_cleared(run, capsys):
    units = FileUnits(run / "sanitizer_cache" / f"{0xA << 124:032x}", SampleDigests(1))
    units.load("verdict")
    assert "1 of 2 entries removed, 4.0 MiB freed; 1 in use\n" in shown(capsys, "clear")
    assert left(run) == ["a"]
    assert units.load("verdict") is not None


def test_caches_are_found_several_folders_deep(run, capsys, monkeypatch):
    entry(run / "2026" / "march" / "photos" / "cache", 1, ["verdict"], ago=0)
    assert "2026/march/photos/cache: 1 entry" in shown(capsys)
    monkeypatch.setattr(cache_folder, "_MAX_SEARCHED", 2)
    assert "Not all folders were searched: name one" in shown(capsys)


def test_several_runs(run, capsys):
    entry(run / "lightning_poison_scan" / "cache", 1, ["verdict"], ago=0)
    headers = [line.split(":")[0] for line in shown(capsys).splitlines() if "entr" in line]
    assert headers == ["sanitizer_cache", "lightning_poison_scan/cache"]
    assert shown(capsys, "clear", "lightning_poison_scan").startswith(
        "lightning_poison_scan/cache: 1 of 1 entry removed"
    )
    assert left(run) == ["a", "b"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "nothing"], "Expected `nothing` to be a folder, but got no such folder."),
        (["list", "file"], "Expected `file` to be a folder, but got a file."),
        (["clear", "--older-than", "-1"], "Expected `older_than` to be at least 0, but got -1"),
        (["clear", "--keep-latest", "-1"], "Expected `keep_latest` to be at least 0, but got -1"),
        (["claer"], "Expected `action` to be `list` or `clear`, but got 'claer'.\n"),
        (
            ["clear", "--older-than", "x"],
            "lightning-poison: Expected `--older-than` to be a number of days, as in `--older-than 7`, but got 'x'.\n",
        ),
        (["clear", "--keep-latest", "1.5"], "to be an integer, as in `--keep-latest 2`, but got '1.5'.\n"),
        (["clear", "--older-than", "\x1b[2J"], r"but got '\x1b[2J'."),
        (["clear", "--oldr-than", "1"], "Did you mean older-than?"),
        (["clear", ".", "sanitizer_cache"], "sanitizer_cache"),
    ],
)
def test_mistakes_are_named_and_nothing_is_removed(run, capsys, arguments, message):
    (run / "file").write_text("")
    assert message in shown(capsys, *arguments, status=2)
    assert left(run) == ["a", "b"]


def test_help(capsys):
    with pytest.raises(SystemExit):
        cli.main(["cache", "--help"])
    assert "LIGHTNING_POISON_CACHE_GIB" in capsys.readouterr().out


def test_does_not_import_torch(run):
    program = "import sys; from lightning_poison.cli import main; main(['cache']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, capture_output=True).returncode == 0
