"""Tests of the use of a folder by several processes."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lightning_poison.sanitization import folder_use
from lightning_poison.sanitization.folder_use import LOCK, FolderUse, is_used, unused

HOLDER = """
import sys, time
from pathlib import Path
from lightning_poison.sanitization.folder_use import FolderUse
use = FolderUse(Path(sys.argv[1]))
use.begin(create=True)
print("begun", flush=True)
time.sleep(60)
"""


def is_free(folder):
    with unused(folder) as found:
        return found


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "f")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    yield process
    process.kill()
    process.communicate()


def test_use_by_another_process_ends_with_it_however_it_ends(holder, tmp_path):
    assert is_used(tmp_path / "f")
    assert not is_free(tmp_path / "f")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    assert not is_used(tmp_path / "f")
    assert is_free(tmp_path / "f")


def test_several_uses_of_one_folder(tmp_path):
    one, two = FolderUse(tmp_path), FolderUse(tmp_path)
    one.begin()
    two.begin()
    two.begin()
    del one
    assert is_used(tmp_path)
    del two
    assert not is_used(tmp_path)


def test_folder_that_does_not_exist(tmp_path):
    use = FolderUse(tmp_path / "a" / "b")
    use.begin()
    assert not use.folder.parent.exists()
    assert not is_used(use.folder)
    use.begin(create=True)
    assert is_used(use.folder)


def test_folder_that_is_removed_while_it_is_created(tmp_path, monkeypatch):
    folder, create, calls = tmp_path / "folder", Path.mkdir, []

    def exists_for_a_moment(self, *args, **options):
        calls.append(self)
        if len(calls) == 1:
            raise FileExistsError
        create(self, *args, **options)

    monkeypatch.setattr(Path, "mkdir", exists_for_a_moment)
    use = FolderUse(folder)
    use.begin(create=True)
    assert is_used(folder)
    assert len(calls) == 2


def test_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "folder").touch()
    with pytest.raises(FileExistsError):
        FolderUse(tmp_path / "folder").begin(create=True)


def test_use_begins_anew_if_the_folder_was_removed_while_it_was_waited_for(tmp_path):
    folder, use = tmp_path / "f", FolderUse(tmp_path / "f")
    folder.mkdir()
    with unused(folder) as found:
        assert found
        waiting = threading.Thread(target=lambda: use.begin(create=True))
        waiting.start()
        time.sleep(0.1)
        assert waiting.is_alive()
        (folder / LOCK).unlink()
        folder.rmdir()
    waiting.join(10)
    assert is_used(folder)


@pytest.mark.parametrize("kind", ["no module", "not supported"])
def test_without_locks_what_was_used_within_a_day_is_in_use(tmp_path, monkeypatch, kind):
    if kind == "no module":
        monkeypatch.setattr(folder_use, "fcntl", None)
    else:

        def refuse(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(folder_use.fcntl, "flock", refuse)
    FolderUse(tmp_path).begin()
    (tmp_path / "unit").write_text("")
    assert is_used(tmp_path)
    assert not is_free(tmp_path)
    for path in tmp_path.iterdir():
        os.utime(path, (1, time.time() - 25 * 3600))
    assert not is_used(tmp_path)
    assert is_free(tmp_path)
