import errno
import os
import pickle
import stat
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save, save_file

from lightning_poison.manifest.manifest import read_manifest
from lightning_poison.serialization import (
    _bytes_of,
    _header,
    atomic_path,
    check_writable,
    read_object,
    read_tensors,
    write_tensors,
)

TENSORS = {"a": torch.arange(6).view(2, 3), "b": torch.tensor([True, False]), "c": torch.tensor([1 / 3]).double()}


def test_round_trip_is_exact(tmp_path):
    meta = {"kind": "test", "rate": 0.1 + 0.2, "text": "é", "list": [1, None]}
    write_tensors(tmp_path / "new" / "file.safetensors", TENSORS, meta)
    tensors, found = read_tensors(tmp_path / "new" / "file.safetensors", "test")
    assert found == meta
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_writes_views_and_shared_memory(tmp_path):
    base = torch.arange(12.0)
    write_tensors(tmp_path / "f", {"a": base, "b": base, "c": base.view(3, 4).T, "d": base[::2]}, {"kind": "test"})
    tensors, _ = read_tensors(tmp_path / "f", "test")
    assert torch.equal(tensors["b"], base)
    assert torch.equal(tensors["c"], base.view(3, 4).T)
    assert torch.equal(tensors["d"], base[::2])


def test_failed_write_keeps_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(TypeError, match="JSON"):
        write_tensors(path, TENSORS, {"kind": object()})
    with pytest.raises(ZeroDivisionError), atomic_path(path) as partial:
        partial.write_bytes(b"half" * (1 // 0))
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]  # noqa: PTH208


def test_file_permissions_follow_umask(tmp_path):
    mask = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "file") as partial:
            partial.write_text("x")
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o640


def test_refuses_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="Expected a test file, but there is none at"):
        read_tensors(tmp_path / "none", "test")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("unpickled",))


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\0\0\0\0\0\0\0notjson!", pickle.dumps(Bomb())])
def test_refuses_other_file_formats(tmp_path, content):
    (tmp_path / "f").write_bytes(content)
    with pytest.raises(ValueError, match="Expected a test file in safetensors form"):
        read_tensors(tmp_path / "f", "test")


def test_refuses_truncated_file(tmp_path):
    write_tensors(tmp_path / "f", TENSORS, {"kind": "test"})
    (tmp_path / "f").write_bytes((tmp_path / "f").read_bytes()[:-4])
    with pytest.raises(ValueError, match="cannot be read"):
        read_tensors(tmp_path / "f", "test")


def test_refuses_file_of_other_kind(tmp_path):
    write_tensors(tmp_path / "f", TENSORS, {"kind": "verdict"})
    with pytest.raises(ValueError, match=r"kind 'test', but .* is of kind 'verdict'"):
        read_tensors(tmp_path / "f", "test")


def test_damaged_contents_are_named(tmp_path):
    write_tensors(tmp_path / "f", TENSORS, {"kind": "test", "text": "before"})
    content = (tmp_path / "f").read_bytes()
    (tmp_path / "f").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"the tensor `\w` in .*f to have the checksum \w{32} .*\nThe file is damaged"):
        read_tensors(tmp_path / "f", "test")
    (tmp_path / "f").write_bytes(content.replace(b"before", b"behind"))
    with pytest.raises(ValueError, match=r"Expected the JSON object in .*f to have the checksum"):
        read_tensors(tmp_path / "f", "test")


def test_files_without_checksums_are_refused(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "f", metadata={"lightning_poison": '{"kind": "test"}'})
    with pytest.raises(ValueError, match=r"Expected `checksums` in the metadata of .*f, but got None"):
        read_tensors(tmp_path / "f", "test")


def test_refuses_other_versions(tmp_path):
    write_tensors(tmp_path / "f", TENSORS, {"kind": "test", "version": 2})
    assert read_tensors(tmp_path / "f", "test", version=2)
    assert read_tensors(tmp_path / "f", "test")
    with pytest.raises(ValueError, match=r"`version` 1 of the test format, but .*f has 2\.\nRead it with the release"):
        read_tensors(tmp_path / "f", "test", version=1)


def test_errors_of_parts_come_before_those_of_checksums(tmp_path):
    def build(meta, tensors):
        assert meta == {"text": "behind"}
        raise KeyError("odd\x1b")

    write_tensors(tmp_path / "f", TENSORS, {"kind": "test", "version": 1, "text": "before"})
    (tmp_path / "f").write_bytes((tmp_path / "f").read_bytes().replace(b"before", b"behind"))
    with pytest.raises(ValueError, match=r"f has an invalid part\. Building the test failed: KeyError: 'odd\\+x1b'"):
        read_object(tmp_path / "f", "test", build, version=1)
    with pytest.raises(ValueError, match=r"Expected the JSON object in .*f to have the checksum"):
        read_object(tmp_path / "f", "test", lambda meta, tensors: None, version=1)


def test_loaded_tensors_do_not_change_with_the_file(tmp_path):
    write_tensors(tmp_path / "f", TENSORS, {"kind": "test"})
    tensors, _ = read_tensors(tmp_path / "f", "test")
    with (tmp_path / "f").open("r+b") as file:
        file.truncate(0)
    assert torch.equal(tensors["a"], TENSORS["a"])


def partials(folder):
    return sorted(path.name for path in folder.iterdir() if path.name.endswith(".partial"))


def test_temporary_files_of_killed_runs_are_removed(tmp_path):
    names = [
        ".f.0123abcd.partial",
        ".f.89abcdef.partial",
        ".g.0123abcd.partial",
        ".f.short.partial",
        "f.0123abcd.partial",
    ]
    old = time.time() - 4_000
    for name in names:
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (old, old))
    os.utime(tmp_path / names[1])  # written at this moment by another run
    (tmp_path / ".f.00000000.partial").mkdir()
    write_tensors(tmp_path / "f", TENSORS, {"kind": "test"})
    assert partials(tmp_path) == sorted([*names[1:], ".f.00000000.partial"])


def test_content_is_on_the_disk_before_the_file_is_renamed(tmp_path, monkeypatch):
    calls = []
    sync, replace = os.fsync, os.replace

    def record_sync(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        sync(descriptor)

    def record_rename(*arguments):
        calls.append("rename")
        replace(*arguments)

    monkeypatch.setattr("os.fsync", record_sync)
    monkeypatch.setattr("os.replace", record_rename)
    write_tensors(tmp_path / "f", TENSORS, {"kind": "test"})
    assert calls == ["file", "rename", "folder"]


def fail_sync(monkeypatch, code):
    def fail(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("os.fsync", fail)


def test_full_disk_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    (tmp_path / "f").write_text("old")
    fail_sync(monkeypatch, errno.ENOSPC)
    with pytest.raises(OSError, match="No space left on device"):
        write_tensors(tmp_path / "f", TENSORS, {"kind": "test"})
    assert (tmp_path / "f").read_text() == "old"
    assert not partials(tmp_path)
    with pytest.raises(OSError, match="No space left on device"):
        check_writable(tmp_path, ("f",))
    assert not partials(tmp_path)


def test_file_systems_that_cannot_wait_for_the_disk_are_written(tmp_path, monkeypatch):
    fail_sync(monkeypatch, errno.EINVAL)
    write_tensors(tmp_path / "f", TENSORS, {"kind": "test"})
    assert read_tensors(tmp_path / "f", "test")


def test_names_as_long_as_the_file_system_allows(tmp_path):
    for name in ("n" * 255, "ä" * 127):
        write_tensors(tmp_path / name, TENSORS, {"kind": "test"})
        assert read_tensors(tmp_path / name, "test")
    assert not partials(tmp_path)


def test_check_writable_finds_folders_in_the_place_of_files(tmp_path):
    (tmp_path / "f").mkdir()
    with pytest.raises(IsADirectoryError, match=r"Is a directory: .*f"):
        check_writable(tmp_path, ("e", "f"))
    check_writable(tmp_path / "new" / "folder", ("f",))
    assert not list((tmp_path / "new" / "folder").iterdir())


@pytest.mark.parametrize("path", [5, None, ["file"], b"file"])
@pytest.mark.parametrize(
    "use", [lambda path: read_tensors(path, "test"), lambda path: write_tensors(path, TENSORS, {}), read_manifest]
)
def test_other_values_than_paths_are_named(path, use):
    with pytest.raises(TypeError, match="Expected `path` to be a path, as `str` or `Path`, but got"):
        use(path)


def test_tensors_are_copied_as_the_caller_says(tmp_path):
    write_tensors(tmp_path / "some", {"a": torch.arange(3), "b": torch.tensor(2.0)}, {"kind": "test"})
    seen = []
    tensors, _ = read_tensors(tmp_path / "some", "test", copy=lambda each: seen.append(each) or each.clone())
    assert (tensors["a"].tolist(), float(tensors["b"])) == ([0, 1, 2], 2.0)
    assert sorted(each.ndim for each in seen) == [0, 1]


MEMORY_OF_A_FILE = """
import resource, sys
import torch
from lightning_poison.serialization import write_tensors
peak = lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_tensors(sys.argv[1], {"small": torch.ones(9)}, {"kind": "test"})
tensors = {"large": torch.ones(2**26), "scores": torch.zeros(2**24, 2)}
before = peak()
write_tensors(sys.argv[1], tensors, {"kind": "test"}, durable=False)
print((peak() - before) / sum(each.nbytes for each in tensors.values()))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak memory in Linux's units")
def test_file_is_written_without_a_copy_in_memory(tmp_path):
    command = [sys.executable, "-c", MEMORY_OF_A_FILE, str(tmp_path / "file")]
    grown = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    # the pages of the zeros are not in memory before they are read, a third of the whole
    assert grown < 0.5
    assert (tmp_path / "file").stat().st_size > 2**28 + 2**27


DTYPES = [
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
]


@pytest.mark.parametrize("metadata", [{}, {"text": 'é "quoted" \\ \u2028'}])
def test_file_is_the_one_that_safetensors_writes(metadata):
    tensors = {f"{dtype}": torch.arange(24).view(2, 3, 4).to(dtype) for dtype in DTYPES}
    tensors |= {'é"': torch.tensor(3.0), "none": torch.zeros(0, 2), "": torch.ones(1, 1, dtype=torch.bool)}
    names, header = _header(tensors, metadata)
    assert sorted(names) == sorted(tensors)
    assert header + b"".join(_bytes_of(tensors[name]) for name in names) == save(tensors, metadata)


def test_nothing_is_a_file_too():
    assert _header({}, {"x": "1"}) == ([], save({}, {"x": "1"}))


def test_views_that_overlap_are_written_without_a_copy(tmp_path, monkeypatch):
    whole = torch.arange(12.0)
    parts = {"a": whole[:4], "b": whole[4:8], "c": whole[6:], "d": whole[:4], "e": whole[:0]}
    monkeypatch.setattr(torch.Tensor, "clone", None)
    write_tensors(tmp_path / "some", parts, {"kind": "views"})
    monkeypatch.undo()
    found, _ = read_tensors(tmp_path / "some", "views")
    assert all(torch.equal(found[name], part) for name, part in parts.items())
