"""`RankLink`: ranks wait for each other, and learn within a minute that another one has failed, was killed or stopped.

Ranks exchange short texts through the key-value store of `torch.distributed`. A thread does so once a second, because a
request blocks for as long as the process that hosts the store is stopped. The main thread only reads what the thread
has found, so it can be interrupted at any time.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import distributed

from lightning_poison._lightning.rank_board import RankBoard, Status, failure_of
from lightning_poison._lightning.rank_watch import RankWatch, Work
from lightning_poison.checks import describe_error
from lightning_poison.errors import RankFailedError

ResultT = TypeVar("ResultT")

SECONDS_BETWEEN_BEATS = 1.0

SILENT_AFTER = 45
"""A rank that has not sent a beat for this many seconds counts as stopped. Long steps do not delay beats."""

FAREWELL_SECONDS = 25
"""How long rank 0, which hosts the store, stays at most so that the other ranks learn of a failure."""

SHORTEST_PATIENCE = 600.0
"""A single step may take this many seconds, or the strategy's time-out if that is longer."""

_DELIVERY_SECONDS = 5
_SECONDS_TO_LEARN = 4
_LONGEST_PAUSE = 0.25


class RankLink:
    """One rank's connection to the others.

    Args:
        connect: Returns a connection to the store that no other thread uses; called in the thread.
        rank: Number of this rank.
        world_size: Number of ranks.
        patience: Longest duration of a single step, in seconds.
        announce: Shows a message; called on rank 0, in the main thread.
    """

    def __init__(
        self,
        connect: Callable[[], Any],
        rank: int,
        world_size: int,
        *,
        patience: float = SHORTEST_PATIENCE,
        announce: Callable[[str], None],
    ) -> None:
        self.rank, self.world_size, self.patience = rank, world_size, patience
        self._connect, self._announce = connect, announce
        self._thread: threading.Thread | None = None
        self._work = Work()
        self._shares = 0  # named since the last agreement
        self._starts = 0

        # What both threads change is guarded by this condition.
        self._changed = threading.Condition()
        self._actions: list[Callable[[], None]] = []  # for the thread, which alone uses the board
        self._agreement = 0  # number of the current one
        self._flag: bool | None = None  # of this rank in it; `None` until the rank has reached it
        self._result: bool | None = None  # of the agreement; `None` until all ranks have reached it
        self._failed: RankFailedError | None = None  # in this agreement
        self._fatal: RankFailedError | None = None  # in this and every later one
        self._notice = ""  # to be announced
        self._exchanges, self._last_exchange = 0, time.monotonic()

        # Used by the thread only, which makes board and watch.
        self._board: Any = None
        self._watch: RankWatch | None = None
        self._next_beat = 0.0
        self._left_after_start = 0

    @property
    def is_running(self) -> bool:
        """Whether this rank sends beats and watches the next one."""
        return self._thread is not None

    @property
    def is_active(self) -> bool:
        """Whether this rank takes part in the scoring at the moment."""
        return self._work.depth > 0

    def start(self) -> None:
        """Start to send beats and to watch the next rank."""
        if self._thread is None:
            self._starts += 1
            self._last_exchange = time.monotonic()
            self._thread = threading.Thread(target=self._run, name="ranks", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Stop sending beats. Rank 0 first waits until the other ranks do so or know of a failure."""
        with self._changed:
            thread, self._thread = self._thread, None
            if thread is None:
                return
            self._actions.append(self._say_goodbye)
            self._changed.notify_all()
        thread.join(_DELIVERY_SECONDS + FAREWELL_SECONDS * (self.rank == 0))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Count the time inside as work of this rank: a step that exceeds the limit ends all ranks."""
        was_running = self.is_running
        self.start()
        self._work.depth += 1
        self.report("")
        try:
            yield
        finally:
            self._work.depth -= 1
        if not was_running:
            self.stop()

    def report(self, doing: str, progress: str = "") -> None:
        """Report that a step was finished, or that another part of the work starts.

        Args:
            doing: Name of this part of the work.
            progress: How much of it is done.
        """
        self._work.report(doing, progress)

    def check(self) -> None:
        """Raise if another rank has failed.

        Raises:
            RankFailedError: If one has.
        """
        if time.monotonic() - self._last_exchange > SILENT_AFTER:
            with self._changed:  # after this process itself was stopped, the thread needs a moment
                if not self._store_answers(_DELIVERY_SECONDS):
                    self._set_fatal(_host_is_silent())
        failure = self._fatal or self._failed
        if failure is not None:
            raise RankFailedError(*failure.args)

    def agree(self, flag: bool = True, *, check: Callable[[], None] = lambda: None) -> bool:
        """Wait for all ranks and return whether the flag is set on each.

        Args:
            flag: The flag of this rank.
            check: Called while waiting; may raise.

        Raises:
            RankFailedError: If another rank has failed, was killed, is stopped or does not arrive in time.
        """
        with self._changed:
            agreement = self._agreement
            self._flag, self._result = flag, None
            self._actions.append(lambda: self._board.arrive(agreement, flag=flag))
            self._changed.notify_all()
        try:
            return self._awaited(lambda: self._result, check)
        finally:
            self._next_agreement()

    def next_share(self) -> str:
        """Return a name for units that ranks share, the same on all ranks that call it equally often."""
        self._shares += 1
        return f"{self._agreement}/{self._shares}"

    def request(self, ask: Callable[[RankBoard], ResultT], *, check: Callable[[], None] = lambda: None) -> ResultT:
        """Return what a function of the board returns. Raises, and calls `check`, like `agree`."""
        found: list[ResultT] = []
        with self._changed:
            self._actions.append(lambda: found.append(ask(self._board)))
            self._changed.notify_all()
        return self._awaited(lambda: found[0] if found else None, check)

    def _awaited(self, result: Callable[[], ResultT | None], check: Callable[[], None]) -> ResultT:
        """Wait until the thread has a result; raise if a rank has failed, or the store is silent, before."""
        quiet = 0
        while (found := result()) is None:
            with self._changed:
                if result() is None:
                    quiet = 0 if self._store_answers(SECONDS_BETWEEN_BEATS) else quiet + 1
                notice, self._notice = self._notice, ""
                if quiet > SILENT_AFTER:
                    self._set_fatal(_host_is_silent())
            if result() is None:
                self.check()
                check()
            if notice and self.rank == 0:
                self._announce(notice)
        return found

    def fail(self, error: BaseException) -> None:
        """Let the other ranks raise in this agreement, and do not wait for them."""
        if not isinstance(error, RankFailedError):
            agreement, failure = self._agreement, failure_of(self.rank, error)
            self._deliver(lambda: self._board.report(failure, agreement))
        self._next_agreement()

    def abort(self, error: BaseException) -> None:
        """Let the other ranks raise in this and every later agreement."""
        failure = failure_of(self.rank, error)
        self._deliver(lambda: self._board.report(failure))

    def failure_of_other(self, error: BaseException) -> RankFailedError | None:
        """Return the failure of another rank that may be the cause of an error, or `None` if none is known.

        A collective fails a moment before it is known which rank has ended.
        """
        if isinstance(error, RankFailedError):
            return error
        with self._changed:
            if type(error) is RuntimeError or isinstance(error, distributed.DistError):
                self._changed.wait_for(lambda: self._fatal or self._failed, _SECONDS_TO_LEARN)
            failure = self._fatal or self._failed
        return None if failure is None or failure.rank == self.rank else RankFailedError(*failure.args)

    @contextmanager
    def naming_failures(self) -> Iterator[None]:
        """If a collective fails because of another rank, raise an error that names it.

        Raises:
            RankFailedError: In this case.
        """
        try:
            yield
        except RuntimeError as error:
            cause = self.failure_of_other(error)
            if cause is None:
                raise
            raise cause from error

    def unlinked_ranks(self) -> list[int]:
        """Return the ranks that have not opened their link; rank 0 if its store cannot be reached."""
        found = [0]
        self._deliver(lambda: found.__setitem__(slice(None), self._board.unlinked()))
        return found

    def _store_answers(self, seconds: float) -> bool:
        """Return whether the thread exchanges texts with the store within some seconds, or a failure is known."""
        before = self._exchanges
        return self._changed.wait_for(lambda: self._exchanges != before or self._fatal is not None, seconds)

    def _deliver(self, action: Callable[[], None]) -> None:
        delivered = threading.Event()

        def deliver() -> None:
            action()
            delivered.set()

        with self._changed:
            if self._thread is None or self._fatal is not None:
                return
            self._actions.append(deliver)
            self._changed.notify_all()
        delivered.wait(_DELIVERY_SECONDS)

    def _next_agreement(self) -> None:
        with self._changed:
            self._agreement += 1
            self._shares = 0
            self._flag = self._failed = None
            self._work.steps += 1

    def _set_fatal(self, failure: RankFailedError) -> None:
        if self._fatal is None:
            self._fatal = failure

    def _run(self) -> None:
        """Send beats, and read failures and arrivals, until `stop`."""
        thread = threading.current_thread()
        try:
            if self._watch is None:
                self._board = RankBoard(self._connect(), self.rank, self.world_size)
                where = (self._board, self.rank, self.world_size)
                self._watch = RankWatch(*where, self._work, patience=self.patience, silent_after=SILENT_AFTER)
            pause = 0.0
            while True:
                is_last = self._thread is not thread
                self._exchange(self._watch)
                if is_last:
                    return
                with self._changed:
                    waits = self._flag is not None and self._result is None
                    pause = min(_LONGEST_PAUSE, 1.3 * pause + 0.001) if waits else 0.0
                    if not self._actions:
                        self._changed.wait(pause or SECONDS_BETWEEN_BEATS)
        except Exception as error:  # noqa: BLE001 (whatever ends the connection is reported by the main thread)
            with self._changed:
                lost = "its process was killed or its machine failed, and the connection to it was lost"
                self._set_fatal(RankFailedError(0, f"{lost} ({describe_error(error, limit=100)})"))
                self._changed.notify_all()

    def _exchange(self, watch: RankWatch) -> None:
        """Write to the board what the main thread has asked for, and read what concerns the current agreement."""
        with self._changed:
            actions, self._actions = self._actions, []
        for action in actions:
            action()
        with self._changed:
            agreement, flag = self._agreement, self._flag
        failed, fatal = self._board.failure(agreement), self._board.failure()
        # Read after the failures: a rank may fail after an agreement that others still wait for.
        result = self._board.result(agreement) if flag is not None else None
        notice = ""
        if time.monotonic() >= self._next_beat:
            self._next_beat = time.monotonic() + SECONDS_BETWEEN_BEATS
            notice = watch.beat(agreement, waits=flag is not None)
        with self._changed:
            if agreement == self._agreement:
                if result is not None and self._flag is not None:
                    self._result = result
                self._failed = failed
            if fatal is not None:
                self._set_fatal(fatal)
            self._notice = notice or self._notice
            self._exchanges += 1
            self._last_exchange = time.monotonic()
            self._changed.notify_all()
        if failed is not None or fatal is not None:
            self._leave_board()

    def _leave_board(self) -> None:
        """Write, once after each start, that this rank knows of a failure or stops, so that rank 0 may end."""
        if self._left_after_start != self._starts:
            self._left_after_start = self._starts
            self._board.leave(self._starts)

    def _say_goodbye(self) -> None:
        self._leave_board()
        if self.rank == 0:
            self._board.wait_for_leave(self._starts, FAREWELL_SECONDS, without=self._gone())
        self._board.write_status(Status("resting", self._agreement))

    def _gone(self) -> set[int]:
        """Return the ranks that will not leave: the one that has failed, or all that have never linked."""
        if self._fatal is None:
            return set()
        return set(self._board.unlinked()) if self._fatal.rank is None else {self._fatal.rank}


def _host_is_silent() -> RankFailedError:
    return RankFailedError(0, f"it has not responded for {SILENT_AFTER} s; it is stopped, or cannot be reached")
