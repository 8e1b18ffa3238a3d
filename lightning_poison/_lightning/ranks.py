"""The link between the ranks of a Trainer, shared by all callbacks and DataModules of a run.

It is opened in `setup`, by every rank, and closed in `teardown` or `on_exception`. The only private name of
`torch.distributed` used here is `_get_default_store`: no public function returns the store of a process group that
somebody else has initialized.
"""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import distributed
from torch.distributed import distributed_c10d

from lightning_poison._lightning.interrupts import heeding_sigterm
from lightning_poison._lightning.rank_link import SHORTEST_PATIENCE, RankLink
from lightning_poison.checks import type_name
from lightning_poison.errors import RankFailedError
from lightning_poison.runtime import LocalRuntime

_numbers = itertools.count()
_links: WeakKeyDictionary[Any, RankLink] = WeakKeyDictionary()
_users: WeakKeyDictionary[RankLink, set[str]] = WeakKeyDictionary()
_reported: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


def open_link(trainer: Any, user: str) -> None:
    """Link the ranks of a Trainer, unless they are. Call it on every rank, and `close_link` with the same name.

    Raises:
        RankFailedError: If another rank has failed before it got here.
    """
    link = _links.get(trainer) if has_ranks(trainer) else None
    if link is None:
        link = _started_link(trainer)
        if link is None:
            return
        _links[trainer], _users[link] = link, {user}
        _meet(trainer, link)
    _users[link].add(user)


def close_link(trainer: Any, user: str, error: BaseException | None = None) -> None:
    """Close the link if no one else uses it.

    Args:
        trainer: Any Trainer.
        user: The name given to `open_link`.
        error: The error that ends the run on this rank, which the other ranks then raise, unless they train already.
            If another rank has caused it, a note in the error says so.
    """
    if not has_ranks(trainer):
        return
    link = _links.get(trainer)
    if error is not None and link is None:
        link = _link_of_early_failure(trainer, error)
    if link is None:
        return
    if error is not None and link.is_running:
        _reported[trainer] = id(error)
        cause = link.failure_of_other(error)
        link.abort(cause or error)
        if cause is not None and cause is not error and not cause.reason.startswith(f"{type_name(error)}:"):
            error.add_note(f"{cause}")
    _users[link].discard(user)
    if not _users[link]:
        link.stop()
        _links.pop(trainer, None)


@contextmanager
def active_link(trainer: Any) -> Iterator[RankLink | None]:
    """Yield the link of a Trainer for a part of the scoring; open one for this part if there is none.

    Yields:
        `None` if there is a single rank, or the strategy does not use `torch.distributed`.
    """
    if not has_ranks(trainer):
        yield None
        return
    is_own = trainer not in _links
    user = "part of the scoring"
    try:
        if is_own:
            open_link(trainer, user)
        link = _links.get(trainer)
        if link is None:
            yield None
        else:
            with heeding_sigterm(trainer), link.active():
                yield link
    except BaseException as error:
        if is_own:
            close_link(trainer, user, error)
        raise
    if is_own:
        close_link(trainer, user)


def rest_link(trainer: Any) -> None:
    """Stop to watch the other ranks once the training loaders are there; training has its own time-outs."""
    link = _links.get(trainer) if has_ranks(trainer) else None
    if link is not None and not link.is_active:
        link.stop()


def has_ranks(trainer: Any) -> bool:
    """Return whether a Trainer has several ranks that `torch.distributed` connects."""
    if trainer is None or trainer.world_size == 1:
        return False
    return bool(distributed.is_available() and distributed.is_initialized())


def _started_link(trainer: Any) -> RankLink | None:
    if not has_ranks(trainer):
        return None
    store: Any = distributed_c10d._get_default_store()
    if store is None:  # MPI has none
        return None
    prefix = f"lightning_poison/{next(_numbers)}"
    timeout: timedelta = getattr(trainer.strategy, "_timeout", None) or timedelta(0)
    link = RankLink(
        lambda: distributed_c10d.PrefixStore(prefix, store.clone() if hasattr(store, "clone") else store),
        trainer.global_rank,
        trainer.world_size,
        patience=max(SHORTEST_PATIENCE, timeout.total_seconds()),
        announce=rank_zero_info,
    )
    link.start()
    return link


def _meet(trainer: Any, link: RankLink) -> None:
    """Wait for all ranks under the time-out of the strategy, and raise if one fails before, or has no such device.

    A collective also fails when a rank is killed that has not opened its link.
    """
    LocalRuntime(trainer.strategy.root_device)
    work = distributed.all_reduce(torch.zeros(1, device=trainer.strategy.root_device), async_op=True)
    pause = 0.001
    while not work.is_completed():
        link.check()
        time.sleep(pause)
        pause = min(0.25, 1.3 * pause)
    try:
        with link.naming_failures():
            work.wait()
    except RankFailedError:
        raise
    except RuntimeError as error:
        missing = link.unlinked_ranks()
        if not missing:
            raise
        names = ", ".join(f"rank {each}" for each in missing)
        reason = f"{names} ended before `setup`; its process was killed, or its own log has the error"
        raise RankFailedError(missing[0] if len(missing) == 1 else None, reason) from error


def _link_of_early_failure(trainer: Any, error: BaseException) -> RankLink | None:
    """Return a link to report a failure that came before `setup`, such as one in `DataModule.setup`; once per error."""
    if _reported.get(trainer) == id(error) or trainer.state.fn != "fit":
        return None
    link = _started_link(trainer)
    if link is not None:
        _users[link] = set()
    return link
