import logging

import pytest
import torch

from lightning_poison.runtime import DEFAULT_THREADS, LocalRuntime, Runtime, has_fast_bf16


def test_alone_everything_is_as_it_was():
    runtime: Runtime = LocalRuntime()
    tensor = torch.ones(2)
    assert (runtime.rank, runtime.world_size, runtime.device) == (0, 1, torch.device("cpu"))
    assert runtime.reduce_sum(tensor) is tensor
    assert runtime.broadcast(tensor) is tensor
    assert runtime.all_true(True)
    assert not runtime.all_true(False)
    with runtime.progress(3, "x") as bar:
        bar.advance(2)


def test_it_uses_half_the_cores_at_most():
    assert 1 <= DEFAULT_THREADS <= 4
    assert LocalRuntime().threads == DEFAULT_THREADS


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("32", torch.float32)])
def test_precision(precision, dtype):
    with LocalRuntime(precision=precision).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_automatic_precision_asks_the_machine(monkeypatch):
    for capable in (True, False):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": capable}, raising=False)  # noqa: B023
        assert has_fast_bf16(torch.device("cpu")) is capable
        assert LocalRuntime().bf16 is capable
    assert not has_fast_bf16(torch.device("meta"))


def test_announcements_are_logged(caplog):
    with caplog.at_level(logging.INFO, logger="lightning_poison"):
        LocalRuntime().announce("hello")
    assert caplog.messages == ["hello"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"precision": "16"}, "`precision` to be one of 'auto', '32', 'bf16'"),
        ({"threads": 0}, "`threads` to be an integer of at least 1"),
        ({"num_workers": -1}, "`num_workers` to be an integer of at least 0"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        LocalRuntime(**arguments)
