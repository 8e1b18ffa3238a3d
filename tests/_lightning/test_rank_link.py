"""Ranks as threads that share a store: agreements, failures, silence and waiting."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from torch import distributed

from lightning_poison._lightning import rank_board, rank_link, rank_watch
from lightning_poison._lightning.rank_link import RankLink
from lightning_poison.errors import RankFailedError


@pytest.fixture
def quick(monkeypatch):
    """Shorten all times to hundredths of seconds."""
    for name, value in {
        "SECONDS_BETWEEN_BEATS": 0.02,
        "SILENT_AFTER": 25,
        "_LONGEST_PAUSE": 0.005,
        "FAREWELL_SECONDS": 1,
        "_DELIVERY_SECONDS": 2,
    }.items():
        monkeypatch.setattr(rank_link, name, value)
    monkeypatch.setattr(rank_watch, "NOTICE_EVERY", 10)


@pytest.fixture
def make_links(quick):
    """Return a factory of started links over one store."""
    made = []

    def make(size, *, patience=60.0, announce=lambda _: None, connect=None):
        store = distributed.HashStore()
        links = [
            RankLink(connect or (lambda: store), rank, size, patience=patience, announce=announce)
            for rank in range(size)
        ]
        made.extend(links)
        for link in links:
            link.start()
        wait_until(lambda: all(beats_of(link) or link._fatal for link in links) or connect is not None)
        return links

    yield make
    for link in made:
        link._left_after_start = 0
    with ThreadPoolExecutor(max(1, len(made))) as pool:
        list(pool.map(RankLink.stop, made))


def beats_of(link):
    return 0 if link._watch is None else link._watch.beats


def wait_until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def on_each(links, work):
    """Do the work on every rank, each in a thread, and return what each returned or raised."""

    def guarded(link):
        try:
            return work(link)
        except RankFailedError as error:
            return error

    with ThreadPoolExecutor(len(links)) as pool:
        return list(pool.map(guarded, links))


def die(link):
    """End the thread of a rank as if its process was killed."""
    with link._changed:
        thread, link._thread = link._thread, None
        link._changed.notify_all()
    thread.join()


def assert_failed(error, rank, *parts):
    assert isinstance(error, RankFailedError)
    assert error.rank == rank
    assert all(part in error.reason for part in parts)


def test_agreements_return_whether_all_flags_are_set(make_links):
    flags = [[True, True, True], [True, False, True], [True, True, True], [False, False, False]]
    results = on_each(make_links(3), lambda link: [link.agree(each[link.rank]) for each in flags])
    assert results == [[True, False, True, False]] * 3


def test_failing_rank_does_not_wait_and_others_name_it(make_links):
    links = make_links(3)
    links[1].fail(OSError("disk is\nfull"))
    for link in (links[0], links[2]):
        with pytest.raises(RankFailedError) as caught:
            link.agree()
        assert_failed(caught.value, 1, "OSError: disk is full")
    assert on_each(links, RankLink.agree) == [True] * 3, "ranks that handle the error continue"


def test_rank_at_work_learns_of_a_failure(make_links):
    working, failing = make_links(2)
    working.check()
    failing.fail(ValueError("odd"))
    wait_until(lambda: working._failed)
    with pytest.raises(RankFailedError, match="rank 1 failed: ValueError: odd"):
        working.check()


def test_rank_that_ends_ends_every_later_agreement(make_links):
    links = make_links(3)
    links[2].abort(KeyboardInterrupt())
    for _ in range(2):
        for error in on_each(links[:2], RankLink.agree):
            assert_failed(error, 2, "KeyboardInterrupt")


def test_first_cause_is_kept(make_links):
    links = make_links(3)
    links[1].abort(RankFailedError(2, "ValueError: odd"))
    links[0].abort(RuntimeError("a collective failed"))
    assert_failed(on_each(links[:1], RankLink.agree)[0], 2, "ValueError: odd")


def test_agreement_that_all_have_reached_succeeds_although_one_fails_afterwards(make_links):
    links = make_links(2)

    def work(link):
        result = link.agree()
        if link.rank == 0:
            link.abort(ValueError("later"))
        return result

    assert on_each(links, work) == [True, True]


@pytest.mark.parametrize("state", ["ended", "stopped", "unknown"])
def test_rank_that_sends_no_beats(make_links, monkeypatch, state):
    monkeypatch.setattr(rank_board, "process_state", lambda _: state)
    links = make_links(3)
    die(links[1])
    words = {"ended": "was killed", "stopped": "is stopped", "unknown": "its machine cannot be reached"}
    for error in on_each([links[0], links[2]], RankLink.agree):
        assert_failed(error, 1, words[state])


def test_rank_that_has_stopped_its_link_is_not_reported(make_links, monkeypatch):
    monkeypatch.setattr(rank_board, "process_state", lambda _: "unknown")
    links = make_links(2)
    links[1].stop()
    beats = beats_of(links[0])
    wait_until(lambda: beats_of(links[0]) > beats + 40)
    links[0].check()


def test_step_that_takes_too_long(make_links):
    links = make_links(2, patience=5)

    def work(link):
        with link.active():
            if link.rank == 1:
                link.report("Fitting fold 2 of 3")
                wait_until(lambda: link._fatal)
                link.check()
            return link.agree()

    for error in on_each(links, work):
        assert_failed(error, 1, "has not made progress for 5 s: Fitting fold 2 of 3")


def test_rank_that_does_not_arrive(make_links):
    links = make_links(2, patience=10)
    assert_failed(on_each(links[:1], RankLink.agree)[0], 1, "has not requested the training data for 10 s")


def test_waiting_is_announced_with_the_work_of_the_other_rank(make_links):
    messages = []
    links = make_links(3, announce=messages.append)

    def work(link):
        with link.active():
            if link.rank == 2:
                link.report("Fitting\x1b[2J", ", 3 of 9")
                wait_until(lambda: messages)
            return link.agree()

    assert on_each(links, work) == [True] * 3
    assert messages[0] == "Waiting for rank 2 (Fitting\\x1b[2J, 3 of 9, for 0 s)."


def test_waiting_can_be_interrupted(make_links):
    link = make_links(2)[0]
    seen = []

    def check():
        seen.append(True)
        if len(seen) > 2:
            raise SystemExit

    with pytest.raises(SystemExit):
        link.agree(check=check)


class Broken:
    """A store whose requests fail, or block as those to a stopped process do."""

    def __init__(self, blocked=None):
        self.blocked = blocked

    def set(self, key, value):
        if self.blocked is None:
            raise distributed.DistNetworkError("Broken pipe")
        self.blocked.wait()
        raise distributed.DistNetworkError("Broken pipe")


def test_lost_connection_names_the_rank_that_hosts_the_store(make_links):
    link = make_links(2, connect=Broken)[1]
    assert_failed(on_each([link], RankLink.agree)[0], 0, "was killed", "Broken pipe")


def test_store_that_does_not_respond(make_links, monkeypatch):
    monkeypatch.setattr(rank_link, "SILENT_AFTER", 0.1)
    monkeypatch.setattr(rank_link, "_DELIVERY_SECONDS", 0.1)
    release = threading.Event()
    waiting, working = make_links(2, connect=lambda: Broken(release))
    assert_failed(on_each([waiting], RankLink.agree)[0], 0, "has not responded")
    wait_until(lambda: time.monotonic() - working._last_exchange > 0.1)
    with pytest.raises(RankFailedError, match="rank 0 failed: it has not responded"):
        working.check()
    release.set()


def test_host_of_the_store_stays_until_the_others_know(make_links):
    links = make_links(3)
    links[0].abort(ValueError("odd"))
    links[0].stop()
    assert all(link._fatal for link in links)


def test_host_of_the_store_stays_for_a_rank_that_links_after_the_failure(quick):
    store = distributed.HashStore()
    first, late = (RankLink(lambda: store, rank, 2, announce=lambda _: None) for rank in range(2))
    first.start()
    first.abort(ValueError("odd"))
    with ThreadPoolExecutor() as pool:
        stopped = pool.submit(first.stop)
        time.sleep(0.2)
        assert not stopped.done()
        late.start()
        stopped.result(20)
    wait_until(lambda: late._fatal)
    with pytest.raises(RankFailedError, match="odd"):
        late.check()
    late.stop()


def test_host_of_the_store_does_not_wait_for_ranks_that_never_linked(quick):
    store = distributed.HashStore()
    link = RankLink(lambda: store, 0, 3, announce=lambda _: None)
    link.start()
    link.abort(RankFailedError(None, "rank 1, rank 2 ended before `setup`"))
    start = time.monotonic()
    link.stop()
    assert time.monotonic() - start < rank_link.FAREWELL_SECONDS


def test_host_of_the_store_does_not_stay_forever(make_links, monkeypatch):
    monkeypatch.setattr(rank_link, "FAREWELL_SECONDS", 0.2)
    links = make_links(2)
    start = time.monotonic()
    links[0].stop()
    assert 0.2 <= time.monotonic() - start < 2
    assert not links[0].is_running


def test_stopped_link_that_is_stopped_again_says_no_goodbye_after_its_next_start(make_links):
    (link,) = make_links(1)
    link.stop()
    link.stop()
    with link.active():
        wait_until(lambda: beats_of(link))
        time.sleep(0.1)
        assert link._board.status(0) != "resting"


def test_link_can_be_started_again(make_links):
    links = make_links(2)
    for _ in range(3):
        on_each(links, RankLink.stop)
        assert on_each(links, work_in_scope) == [True, True]
        assert not any(link.is_running for link in links)
        for link in links:
            link.start()


def work_in_scope(link):
    with link.active():
        return link.agree()


def test_cause_of_a_failed_collective(make_links):
    links = make_links(2)
    assert links[0].failure_of_other(ValueError("own")) is None
    links[1].abort(ValueError("odd"))
    wait_until(lambda: links[0]._fatal)
    with pytest.raises(RankFailedError, match="rank 1 failed: ValueError: odd") as caught, links[0].naming_failures():
        raise RuntimeError("Connection closed by peer")
    assert isinstance(caught.value.__cause__, RuntimeError)
    assert links[1].failure_of_other(ValueError("odd")) is None


def test_failed_collective_without_a_known_cause(make_links, monkeypatch):
    monkeypatch.setattr(rank_link, "_SECONDS_TO_LEARN", 0.01)
    with pytest.raises(RuntimeError, match="own fault"), make_links(2)[0].naming_failures():
        raise RuntimeError("own fault")
