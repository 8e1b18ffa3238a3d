"""Ranks as threads that share units through one store."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

import pytest
from torch import distributed

from lightning_poison._lightning import rank_link
from lightning_poison._lightning.rank_link import RankLink
from lightning_poison._lightning.shared_units import shared_units
from lightning_poison.errors import RankFailedError


@pytest.fixture
def links(monkeypatch):
    monkeypatch.setattr(rank_link, "SECONDS_BETWEEN_BEATS", 0.02)
    monkeypatch.setattr(rank_link, "FAREWELL_SECONDS", 1)
    store = distributed.HashStore()
    made = [RankLink(lambda: store, rank, 3, announce=lambda _: None) for rank in range(3)]
    for link in made:
        link.start()
    yield made
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(RankLink.stop, made))


def on_each(links, work):
    with ThreadPoolExecutor(len(links)) as pool:
        return list(pool.map(work, links))


def test_each_unit_is_taken_once_and_a_slow_rank_takes_fewer(links):
    rest_is_done = threading.Event()

    def work(link):
        taken = []
        for unit in shared_units(link, 20):
            taken.append(unit)
            if link.rank == 1:
                rest_is_done.wait(20)  # the others do all the rest meanwhile
            elif unit == 19:
                rest_is_done.set()
        link.agree()
        return taken

    taken = on_each(links, work)
    assert sorted(chain(*taken)) == list(range(20))
    assert len(taken[1]) <= 1
    assert all(each == sorted(each) for each in taken)


def test_several_shares_and_agreements_have_units_of_their_own(links):
    def work(link):
        found = []
        for _ in range(2):
            found += [list(shared_units(link, 4)), list(shared_units(link, 2)), list(shared_units(link, 0))]
            link.agree()
        return found

    for parts, count in zip(zip(*on_each(links, work), strict=True), [4, 2, 0] * 2, strict=True):
        assert sorted(chain(*parts)) == list(range(count))


def test_rank_that_waits_for_a_unit_learns_of_a_failure(links):
    links[2].abort(OSError("disk is full"))
    end = time.monotonic() + 20
    while links[0]._fatal is None:
        assert time.monotonic() < end
        time.sleep(0.005)
    links[0]._board.take = lambda name: time.sleep(0.2)  # a slow store
    with pytest.raises(RankFailedError, match="rank 2 failed: OSError: disk is full"):
        next(shared_units(links[0], 1))


def test_request_can_be_interrupted(links, monkeypatch):
    release = threading.Event()

    def check():
        release.set()
        raise SystemExit

    with pytest.raises(SystemExit):
        links[1].request(lambda board: release.wait(20), check=check)
