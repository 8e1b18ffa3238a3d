import os
import pickle
import stat
from typing import ClassVar

import pytest
import torch

from lightning_poison.serialization import KindRegistry, atomic_path, read_tensors, write_tensors

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


def named(kind, name="Thing", module="one"):
    return type(name, (), {"kind": kind, "__module__": module, "__qualname__": name})


def test_refuses_second_class_for_kind():
    registry = KindRegistry("thing")
    registry.register(named("a"))
    registry.register(named("a"))  # the same module, imported again
    for other in (named("a", name="Other"), named("a", module="two")):
        with pytest.raises(ValueError, match=r"Expected a new kind of thing, but `a` of[\s\S]*Give the class another"):
            registry.register(other)


def test_error_lists_known_kinds():
    class Thing:
        kind: ClassVar[str] = "known"

    registry = KindRegistry("thing")
    registry.register(Thing)
    with pytest.raises(ValueError, match=r"kind of thing \(known\), but got 'frog'[\s\S]*Import the plug-in"):
        registry.unpack({"kind": "frog"}, {})
    with pytest.raises(ValueError, match="but got 'None'"):
        registry.unpack({}, {})
