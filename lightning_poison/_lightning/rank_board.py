"""`RankBoard`: what the ranks of a run write for each other into the key-value store of `torch.distributed`."""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

from lightning_poison._lightning.processes import State, own_process, process_state
from lightning_poison.checks import describe_error, type_name
from lightning_poison.errors import RankFailedError

_SIGTERM = "SIGTERMException"
"""What Lightning raises after the signal, in both of its namespaces."""


@dataclass(frozen=True)
class Status:
    """What a rank does, as other ranks read it.

    Args:
        state: `"working"`, `"waiting"` in an agreement, `"away"` in code of Lightning or of the user, or `"resting"`
            when it sends no beats.
        arrived: Number of agreements that the rank has reached.
        doing: The part of the work, and how much of it is done.
        seconds: Since when it does so.
        beat: Counts up, so that the status of a rank that runs changes.
    """

    state: str
    arrived: int
    doing: str = ""
    seconds: int = 0
    beat: int = 0


class RankBoard:
    """A store with the texts of all ranks.

    Args:
        store: A store of `torch.distributed`. A request blocks while the process that hosts it is stopped.
        rank: Number of this rank.
        world_size: Number of ranks.

    Example:
        >>> from torch.distributed import HashStore
        >>> board = RankBoard(HashStore(), 0, 1)
        >>> board.arrive(0, flag=True)
        >>> board.result(0), board.result(1)
        (True, None)
    """

    def __init__(self, store: Any, rank: int, world_size: int) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        store.set(f"process/{rank}", own_process())

    def arrive(self, agreement: int, *, flag: bool) -> None:
        """Write that this rank has reached an agreement, with its flag."""
        if flag:
            self._store.add(f"true/{agreement}", 1)
        self._store.add(f"arrived/{agreement}", 1)

    def result(self, agreement: int) -> bool | None:
        """Return whether all flags of an agreement are set, or `None` until all ranks have reached it."""
        if self._store.add(f"arrived/{agreement}", 0) < self._world_size:
            return None
        return bool(self._store.add(f"true/{agreement}", 0) == self._world_size)

    def take(self, name: str) -> int:
        """Return how many times ranks have taken from something before this time."""
        return int(self._store.add(f"taken/{name}", 1)) - 1

    def report(self, failure: RankFailedError, agreement: int | None = None) -> None:
        """Write a failure, of one agreement or of this and every later one. The first one is kept."""
        self._store.compare_set(_failure_key(agreement), "", json.dumps(failure.args))

    def failure(self, agreement: int | None = None) -> RankFailedError | None:
        """Return the failure in an agreement, or the one that ends all of them."""
        key = _failure_key(agreement)
        return RankFailedError(*json.loads(self._store.get(key))) if self._store.check([key]) else None

    def write_status(self, status: Status) -> None:
        """Write what this rank does."""
        self._store.set(f"status/{self._rank}", json.dumps(asdict(status)))

    def status(self, rank: int) -> Status | None:
        """Return what another rank does, or `None` if it is not linked yet."""
        key = f"status/{rank}"
        return Status(**json.loads(self._store.get(key))) if self._store.check([key]) else None

    def process_state(self, rank: int) -> State:
        """Return the state of the process of another rank."""
        return process_state(self._store.get(f"process/{rank}").decode())

    def unlinked(self) -> list[int]:
        """Return the ranks that have not written anything yet."""
        return [rank for rank in range(self._world_size) if not self._store.check([f"process/{rank}"])]

    def leave(self, scope: int) -> None:
        """Write that this rank does not read the board any more for now."""
        self._store.set(f"left/{scope}/{self._rank}", "")

    def wait_for_leave(self, scope: int, seconds: float, *, without: set[int]) -> None:
        """Wait some seconds for the other ranks to leave, also for those that are about to link, except for some."""
        others = set(range(self._world_size)) - {self._rank} - without
        end = time.monotonic() + seconds
        while not self._store.check([f"left/{scope}/{each}" for each in others]) and time.monotonic() < end:
            time.sleep(0.02)


def failure_of(rank: int, error: BaseException) -> RankFailedError:
    """Return what others raise; an error that another rank caused keeps that rank and its reason.

    Example:
        >>> failure_of(1, OSError("disk is full")).reason
        'OSError: disk is full'
    """
    if isinstance(error, RankFailedError):
        return error
    is_interrupt = type_name(error) == _SIGTERM
    return RankFailedError(rank, "it received SIGTERM" if is_interrupt else describe_error(error), is_interrupt)


def _failure_key(agreement: int | None) -> str:
    return "fatal" if agreement is None else f"failed/{agreement}"
