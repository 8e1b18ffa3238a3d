import copy
import io
import logging
import sys

import pytest
import torch

from lightning_poison.errors import RankFailedError
from lightning_poison.runtime import (
    DEFAULT_THREADS,
    LocalRuntime,
    Runtime,
    SingleRank,
    all_ranks,
    has_fast_bf16,
)


def test_collectives_of_single_process_are_identity():
    runtime: Runtime = LocalRuntime()
    tensor = torch.ones(2)
    assert (runtime.rank, runtime.world_size, runtime.device) == (0, 1, torch.device("cpu"))
    assert runtime.reduce_sum(tensor) is tensor
    assert runtime.broadcast(tensor) is tensor
    assert runtime.all_true(True)
    assert not runtime.all_true(False)
    with runtime.progress(3, "x") as bar:
        bar.advance(2)


def test_default_threads():
    assert 1 <= DEFAULT_THREADS <= 4
    assert LocalRuntime().threads == DEFAULT_THREADS


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("32", torch.float32)])
def test_precision(precision, dtype):
    with LocalRuntime(precision=precision).autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype


def test_automatic_precision_depends_on_machine(monkeypatch):
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


class Recording(LocalRuntime):
    """Records what a rank passes to `agree`."""

    def __init__(self):
        super().__init__()
        self.errors = []

    def agree(self, error=None):
        self.errors.append(error)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("odd")])
def test_all_ranks_reports_failure_and_raises_original_error(error):
    runtime = Recording()
    with pytest.raises(type(error)), all_ranks(runtime):
        raise error
    assert runtime.errors == [error]


def test_all_ranks_reports_success():
    runtime = Recording()
    with all_ranks(runtime):
        pass
    assert runtime.errors == [None]


def test_all_ranks_raises_if_another_rank_fails(several_ranks):
    def work(runtime):
        with all_ranks(runtime):
            if runtime.rank == 1:
                raise FileNotFoundError("/data/train\x1b[2J is not on this node")

    first, second, third = several_ranks(3, work)
    assert isinstance(second, FileNotFoundError)
    for error in (first, third):
        assert isinstance(error, RankFailedError)
        assert "rank 1 failed: FileNotFoundError: /data/train\\x1b[2J is not on this node.\n" in str(error)


@pytest.mark.parametrize("error", [RankFailedError(2, "OSError: full", True), RankFailedError(None)])
def test_failure_of_another_rank_can_be_copied_and_pickled(error):
    copied = copy.copy(error)  # by the same protocol
    assert vars(copied) == vars(error)
    assert str(copied) == str(error)


def test_single_rank_has_no_collectives(several_ranks):
    def work(runtime):
        alone = SingleRank(runtime)
        return alone.rank, alone.world_size, alone.all_true(runtime.rank == 0), alone.broadcast(runtime.rank)

    assert several_ranks(2, work) == [(0, 1, True, 0), (0, 1, False, 1)]


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("gpu", "but got 'gpu'.\nFor an NVIDIA GPU write"),
        (None, "but got None"),
        (True, "but got True"),
        (["cuda"], "but got "),
        ("meta", "but got 'meta'.\nIt cannot compute"),
        (torch.device("meta"), "but got 'meta'"),
        ("cuda:99", r"but got 'cuda:99'.\nPyTorch sees (no|\d+) CUDA device"),
    ],
)
def test_refuses_devices_that_do_not_compute(device, message):
    with pytest.raises(ValueError, match=f"`device` to be an available device, .*{message}"):
        LocalRuntime(device)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_shows_progress_on_a_terminal(monkeypatch):
    shown = {}
    for quiet in (False, True):
        stream = Terminal()
        monkeypatch.setattr(sys, "stderr", stream)
        with LocalRuntime(quiet=quiet).progress(4, "Fitting") as bar:
            bar.advance(3)
        shown[quiet] = stream.getvalue()
    assert "Fitting" in shown[False]
    assert not shown[True]


def test_shows_messages_in_one_line_without_a_terminal(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with LocalRuntime().progress(4, "Fitting") as bar:
        bar.advance()
    LocalRuntime(quiet=True).announce("hidden")
    SingleRank(LocalRuntime(), quiet=True).announce("hidden")
    LocalRuntime().announce("3 folds, about 4 s.")
    assert stream.getvalue() == "3 folds, about 4 s.\n"


def test_does_not_repeat_messages_that_are_logged(monkeypatch, caplog):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with caplog.at_level(logging.INFO, logger="lightning_poison"):
        LocalRuntime().announce("hello")
    assert caplog.messages == ["hello"]
    assert not stream.getvalue()


def test_works_without_standard_error(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    LocalRuntime().announce("hello")
    with LocalRuntime().progress(4, "Fitting") as bar:
        bar.advance()
