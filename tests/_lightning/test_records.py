"""Records of a sanitizer: folders, checkpoint states, tuners, and folders that cannot be written."""

import errno
import warnings
from types import SimpleNamespace

import pytest

from lightning_poison._lightning.records import (
    Edits,
    check_directory,
    decisions_from_state,
    folder_name,
    is_tuning,
    report_directory,
    write_files,
)
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.sanitization.verdict import Verdict


def test_folder_names_are_plain_and_distinct():
    paths = ["['a/b']", "['a b']", "['ä'][0]", "['../..']"]
    assert folder_name("", [""]) == "."
    assert [folder_name(path, paths) for path in paths] == ["0-a-b", "1-a-b", "2-ä-0", "3"]


def test_no_directory_and_no_tuner_without_a_trainer():
    assert report_directory(None, None, "sanitizer") is None
    assert not is_tuning(None)


@pytest.mark.parametrize(("log_dir", "parent"), [("logs", "logs"), (None, "root")])
def test_default_directory_is_in_the_log_or_root_directory(tmp_path, log_dir, parent):
    trainer = SimpleNamespace(
        fast_dev_run=False, log_dir=log_dir and tmp_path / log_dir, default_root_dir=tmp_path / "root"
    )
    assert report_directory(trainer, None, "mine") == tmp_path / parent / "sanitizer_reports" / "mine"
    assert report_directory(trainer, "here", "mine").name == "here"


def test_no_default_directory_in_a_remote_file_system():
    trainer = SimpleNamespace(fast_dev_run=False, log_dir=None, default_root_dir="s3://bucket/run")
    assert report_directory(trainer, None, "mine") is None
    assert report_directory(trainer, "here", "mine").name == "here"


@pytest.mark.parametrize("damage", [{"decisions": {"": {"settings": {}}}}, {"decisions": None}, {}])
def test_refuses_a_damaged_state(damage):
    with pytest.raises(ValueError, match=r"complete decision in the checkpoint.*\nResume from another checkpoint"):
        decisions_from_state({"version": 2, **damage})


UNUSABLE = {
    "a file in its place": ("file", "File exists"),
    "a file above it": ("file/deep/er", "Not a directory"),
    "a folder in a file's place": ("blocked", "Is a directory"),
    "a name that is too long": ("n" * 300, "File name too long"),
    "a path that is too long": ("/".join(["n" * 200] * 30), "File name too long"),
    "a file system of the kernel": ("/proc/lightning", "No such file or directory"),
}
"""Directories in which no file can be written, and the reasons."""


@pytest.mark.parametrize("case", UNUSABLE)
def test_unusable_directories_are_named_with_the_reason(tmp_path, case):
    (tmp_path / "file").write_text("")
    (tmp_path / "blocked" / "manifest.csv").mkdir(parents=True)
    name, reason = UNUSABLE[case]
    directory = tmp_path / name
    with pytest.raises(OSError, match=rf"`dirpath` to be a folder .*: {reason}\.\nNothing has been scored") as caught:
        check_directory(directory, directory, "mine")
    assert "dirpath=" in str(caught.value)
    with pytest.warns(UserWarning, match=rf"Verdict and manifest of `mine` will not be written to .*{reason}"):
        assert not check_directory(directory, None, "mine")


def test_full_disks_are_named(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match=r"cannot be written: No space left on device\."):
        check_directory(tmp_path / "new", "new", "mine")
    assert not list((tmp_path / "new").iterdir())


def test_a_usable_directory_is_created_and_left_empty(tmp_path):
    with warnings.catch_warnings(action="error"):
        assert check_directory(tmp_path / "a" / "b", None, "mine")
    assert not list((tmp_path / "a" / "b").iterdir())


def test_a_manifest_that_cannot_be_built_does_not_end_the_training(blobs, centroid_scorer, tmp_path):
    verdict = sanitize(blobs(flipped=60), centroid_scorer())
    gone = [None] * 600
    with pytest.warns(UserWarning, match=r"`mine` were not completely written to .*: UnreadableSampleError: Expected"):
        is_written = write_files(
            tmp_path, verdict, gone, sample=None, edits=Edits(), flag_only=False, announce=print, name="mine"
        )
    assert not is_written
    assert Verdict.load(tmp_path / "verdict.safetensors").fingerprint == verdict.fingerprint
