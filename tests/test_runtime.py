import copy
import logging

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
