"""The link of a Trainer: opened once, shared by all users, closed by the last one."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
import torch
from torch import distributed
from torch.distributed import distributed_c10d

from lightning_poison._lightning import rank_link, ranks
from lightning_poison._lightning.ranks import active_link, close_link, has_ranks, open_link, rest_link
from lightning_poison.errors import RankFailedError


class Trainer:
    """The parts of a Trainer that links use."""

    world_size = 2
    global_rank = 1
    received_sigterm = False

    def __init__(self, timeout=timedelta(minutes=30)):
        self.strategy = SimpleNamespace(root_device=torch.device("cpu"), _timeout=timeout, launcher=None)
        self.state = SimpleNamespace(fn="fit")


@pytest.fixture
def store(monkeypatch):
    """Let this process be the second of two ranks; the first has always arrived."""
    store = distributed.HashStore()
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(ranks, "_meet", lambda trainer, link: None)
    monkeypatch.setattr(rank_link, "SECONDS_BETWEEN_BEATS", 0.02)
    return store


def values(store, name):
    return [store.get(key).decode() for key in store.list_keys() if key.endswith(name)]


def test_torch_has_the_private_name():
    assert callable(distributed_c10d._get_default_store)


def test_single_rank_has_no_link():
    trainer = SimpleNamespace(world_size=1)
    assert not has_ranks(None)
    assert not has_ranks(trainer)
    open_link(trainer, "one")
    with active_link(trainer) as link:
        assert link is None
    rest_link(trainer)
    close_link(trainer, "one", ValueError("odd"))


def test_users_share_a_link_and_the_last_one_closes_it(store):
    trainer = Trainer()
    open_link(trainer, "one")
    open_link(trainer, "two")
    with active_link(trainer) as link, active_link(trainer) as same:
        assert link is same
        rest_link(trainer)
        assert link.is_running, "scoring has not ended"
    close_link(trainer, "one")
    with active_link(trainer) as same:
        assert same is link
    assert link.is_running, "the loaders were not requested yet"
    rest_link(trainer)
    assert not link.is_running
    close_link(trainer, "two")
    with active_link(trainer) as other:
        assert other is not link
    assert not other.is_running


@pytest.mark.parametrize(("timeout", "patience"), [(10, 600), (3600, 3600)])
def test_patience_is_the_timeout_of_the_strategy_but_ten_minutes_at_least(store, timeout, patience):
    with active_link(Trainer(timedelta(seconds=timeout))) as link:
        assert link.patience == patience


def test_error_is_reported_once_by_several_users(store):
    trainer = Trainer()
    open_link(trainer, "one")
    open_link(trainer, "two")
    for user in ("one", "two"):
        close_link(trainer, user, ValueError("odd"))
    assert values(store, "fatal") == ['[1, "ValueError: odd", false]']


def test_error_before_setup_is_reported_once(store):
    trainer, error = Trainer(), ValueError("odd")
    for user in ("one", "two"):
        close_link(trainer, user, error)
    assert values(store, "fatal") == ['[1, "ValueError: odd", false]']


def test_error_of_another_stage_is_not_reported(store):
    trainer = Trainer()
    trainer.state.fn = "validate"
    close_link(trainer, "one", ValueError("odd"))
    assert not values(store, "fatal")


def test_error_in_training_is_left_to_lightning(store):
    trainer = Trainer()
    open_link(trainer, "one")
    rest_link(trainer)
    close_link(trainer, "one", ValueError("odd"))
    assert not values(store, "fatal")


def test_error_that_another_rank_has_caused_gets_a_note(store):
    trainer, error = Trainer(), OSError("connection closed")
    open_link(trainer, "one")
    with active_link(trainer) as link:
        link._fatal = RankFailedError(0, "ValueError: odd")
    close_link(trainer, "one", error)
    assert "rank 0 failed: ValueError: odd" in error.__notes__[0]


def test_error_in_a_part_without_a_link_of_the_run_is_reported(store):
    with pytest.raises(ValueError, match="odd"), active_link(Trainer()):
        raise ValueError("odd")
    assert values(store, "fatal") == ['[1, "ValueError: odd", false]']
