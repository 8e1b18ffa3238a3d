"""Beats without threads: ranks are watched by calls of `beat` in turn."""

import pytest
from torch.distributed import HashStore

from lightning_poison._lightning import rank_board, rank_watch
from lightning_poison._lightning.rank_board import RankBoard
from lightning_poison._lightning.rank_watch import RankWatch, Work


@pytest.fixture
def make_watches():
    """Return a factory of watches over one store, and of what their ranks do."""

    def make(size, *, patience=60, silent_after=20):
        store, works = HashStore(), [Work() for _ in range(size)]
        boards = [RankBoard(store, rank, size) for rank in range(size)]
        settings = {"patience": patience, "silent_after": silent_after}
        watches = [
            RankWatch(board, rank, size, work, **settings)
            for rank, (board, work) in enumerate(zip(boards, works, strict=True))
        ]
        return boards[0], watches, works

    return make


def beat(watches, times, *, agreement=0, waits=False):
    return [watch.beat(agreement, waits=waits) for _ in range(times) for watch in watches]


def test_ranks_that_all_send_beats_have_not_failed(make_watches):
    board, watches, _ = make_watches(3)
    assert beat(watches, 100) == [""] * 300
    assert board.failure() is None


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ("ended", "its process was killed or has ended without an error"),
        ("stopped", "it has not responded for 20 s; its process is stopped"),
        ("unknown", "it has not responded for 20 s; it is stopped, or its machine cannot be reached"),
    ],
)
def test_rank_without_beats_is_reported_by_the_one_before(make_watches, monkeypatch, state, reason):
    monkeypatch.setattr(rank_board, "process_state", lambda _: state)
    board, watches, _ = make_watches(3)
    beat(watches, 1)
    beat([watches[0], watches[2]], 30)
    assert (board.failure().rank, board.failure().reason) == (1, reason)


def test_process_that_runs_without_beats_has_not_failed(make_watches):
    """A long call into compiled code may block all threads of a process."""
    board, watches, _ = make_watches(2)
    beat(watches, 1)
    beat(watches[:1], 100)
    assert board.failure() is None


def test_step_that_takes_too_long_is_reported(make_watches):
    board, watches, works = make_watches(2, patience=5)
    works[1].depth = 1
    works[1].report("Fitting fold 2 of 3", "")
    beat(watches, 6)
    assert board.failure() is None
    beat(watches, 1)
    assert board.failure().rank == 1
    assert board.failure().reason == "it has not made progress for 5 s: Fitting fold 2 of 3"


def test_steps_may_add_up_to_any_time(make_watches):
    board, watches, works = make_watches(2, patience=5)
    works[1].depth = 1
    for _ in range(30):
        works[1].report("Fitting", "")
        beat(watches, 3)
    assert board.failure() is None


def test_code_of_the_user_may_take_any_time(make_watches):
    board, watches, _ = make_watches(2, patience=5)
    beat(watches, 100)
    assert board.failure() is None


def test_waiting_is_announced_every_minute_with_the_work_of_the_others(make_watches, monkeypatch):
    monkeypatch.setattr(rank_watch, "NOTICE_EVERY", 10)
    _, (waiting, working, _), works = make_watches(3)
    works[1].depth = 1
    works[1].report("Fitting\x1b[2J", ", 3 of 9")
    notices = []
    for _ in range(25):
        working.beat(0, waits=False)
        notices.append(waiting.beat(0, waits=True))
    notice = "Waiting for rank 1 (Fitting\\x1b[2J, 3 of 9, for 0 s), rank 2."
    assert [place for place, each in enumerate(notices, start=1) if each] == [10, 20]
    assert notices[9] == notices[19] == notice


def test_waiting_is_counted_anew_for_each_agreement(make_watches, monkeypatch):
    monkeypatch.setattr(rank_watch, "NOTICE_EVERY", 10)
    _, watches, _ = make_watches(2)
    assert beat(watches[:1], 9, waits=True) == [""] * 9
    assert beat(watches[:1], 9, agreement=1, waits=True) == [""] * 9
    assert beat(watches[:1], 1, agreement=1, waits=True) == ["Waiting for rank 1."]


def test_rank_that_does_not_request_the_data_is_reported(make_watches, monkeypatch):
    monkeypatch.setattr(rank_watch, "NOTICE_EVERY", 10)
    board, watches, _ = make_watches(2, patience=20)
    beat(watches[:1], 19, waits=True)
    assert board.failure() is None
    beat(watches[:1], 1, waits=True)
    assert board.failure().reason == "it has not requested the training data for 20 s"
