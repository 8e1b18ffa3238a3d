import time

import pytest
from torch.distributed import HashStore

from lightning_poison._lightning.rank_board import RankBoard, Status
from lightning_poison.errors import RankFailedError


@pytest.fixture
def boards():
    store = HashStore()
    return [RankBoard(store, rank, 2) for rank in range(2)]


@pytest.mark.parametrize("flags", [(True, True), (True, False), (False, False)])
def test_agreement_is_known_once_all_ranks_have_reached_it(boards, flags):
    boards[0].arrive(3, flag=flags[0])
    assert [board.result(3) for board in boards] == [None, None]
    boards[1].arrive(3, flag=flags[1])
    assert [board.result(3) for board in boards] == [all(flags)] * 2
    assert boards[0].result(4) is None


def test_first_failure_is_kept(boards):
    assert boards[0].failure() is None
    boards[1].report(RankFailedError(1, "OSError: broken", True))
    boards[0].report(RankFailedError(0, "later"))
    found = boards[0].failure()
    assert (found.rank, found.reason, found.is_interrupt) == (1, "OSError: broken", True)


def test_failure_of_one_agreement_leaves_the_others(boards):
    boards[1].report(RankFailedError(1, "OSError: broken"), agreement=2)
    assert boards[0].failure(2).rank == 1
    assert (boards[0].failure(1), boards[0].failure()) == (None, None)


def test_status_is_read_by_the_other_rank(boards):
    status = Status("working", 2, "fitting (5 of 9)", seconds=7, beat=3)
    boards[1].write_status(status)
    assert boards[0].status(1) == status
    assert boards[0].status(0) is None


def test_process_of_a_rank_that_runs():
    boards = [RankBoard(HashStore(), 0, 1)]
    assert boards[0].process_state(0) not in ("ended", "stopped")


def test_rank_without_a_board_is_unlinked():
    assert RankBoard(HashStore(), 1, 3).unlinked() == [0, 2]


def test_waits_for_ranks_that_have_not_failed(boards):
    def seconds(**settings):
        start = time.monotonic()
        boards[0].wait_for_leave(0, 0.2, **settings)
        return time.monotonic() - start

    assert seconds(without=set()) >= 0.2
    boards[1].leave(1)
    assert seconds(without=set()) >= 0.2, "it has left another scope"
    boards[1].leave(0)
    before = time.monotonic()
    boards[0].wait_for_leave(0, 3600, without=set())
    boards[0].wait_for_leave(5, 3600, without={1})
    assert time.monotonic() - before < 1800, "it does not wait for a rank that has left or failed"


def test_waits_for_a_rank_that_has_not_linked_yet():
    board = RankBoard(HashStore(), 0, 2)
    start = time.monotonic()
    board.wait_for_leave(0, 0.2, without=set())
    assert time.monotonic() - start >= 0.2
