"""`RankWatch`: sends beats of this rank, and reports ranks that were killed, are stopped or make no progress."""

import time
from dataclasses import dataclass, field

from lightning_poison._lightning.rank_board import RankBoard, Status
from lightning_poison.checks import printable
from lightning_poison.errors import RankFailedError

NOTICE_EVERY = 60
"""Beats of waiting between two messages about the ranks that others wait for."""


@dataclass
class Work:
    """What a rank does. Its main thread writes it, and the thread that sends beats reads it.

    Args:
        depth: Number of nested parts of the scoring that run; 0 while Lightning or the user's code runs.
        doing: Name of the part of the work.
        progress: How much of it is done.
        since: When it began, by `time.monotonic`.
        steps: Number of steps finished so far.
    """

    depth: int = 0
    doing: str = ""
    progress: str = ""
    since: float = field(default_factory=time.monotonic)
    steps: int = 0

    def report(self, doing: str, progress: str) -> None:
        """Note that a step was finished, or that another part of the work starts."""
        if doing != self.doing:
            self.doing, self.since = doing, time.monotonic()
        self.progress = progress
        self.steps += 1


class RankWatch:
    """Watches this rank and the next one, by beats of one a second. Used in a single thread.

    Args:
        board: The board on which beats and failures are written.
        rank: Number of this rank.
        world_size: Number of ranks.
        work: What this rank does.
        patience: Longest duration of a single step, in beats.
        silent_after: Number of beats after which a rank that sends none counts as stopped.

    Example:
        >>> from torch.distributed import HashStore
        >>> board = RankBoard(HashStore(), 0, 1)
        >>> watch = RankWatch(board, 0, 1, Work(depth=1, doing="Fitting"), patience=2, silent_after=45)
        >>> notices = [watch.beat(agreement=0, waits=False) for _ in range(4)]
        >>> board.status(0).state, board.failure().reason
        ('working', 'it has not made progress for 2 s: Fitting')
    """

    def __init__(
        self, board: RankBoard, rank: int, world_size: int, work: Work, *, patience: float, silent_after: int
    ) -> None:
        self.beats = 0
        """Number of beats sent so far."""
        self._board, self._rank, self._world_size = board, rank, world_size
        self._work, self._patience, self._silent_after = work, patience, silent_after
        self._idle = self._steps_seen = 0
        self._agreement, self._waited = 0, 0
        self._last_status, self._silent = "", 0

    def beat(self, agreement: int, *, waits: bool) -> str:
        """Send a beat, and report a failure of this rank, of the next one, or of one that others wait for.

        Args:
            agreement: Number of the current agreement.
            waits: Whether this rank has reached it and waits for the others.

        Returns:
            A message about the ranks that have not reached it, after each minute of waiting; otherwise empty.
        """
        self._send(agreement, waits=waits)
        self._report_if_idle(waits=waits)
        self._waited = (self._waited if agreement == self._agreement else 0) + waits
        self._agreement = agreement
        notice = self._late_ranks() if waits and self._waited % NOTICE_EVERY == 0 else ""
        self._watch_next()
        return notice

    def _send(self, agreement: int, *, waits: bool) -> None:
        self.beats += 1
        state = "waiting" if waits else "working" if self._work.depth else "away"
        doing = printable(f"{self._work.doing}{self._work.progress}")
        seconds = int(time.monotonic() - self._work.since)
        self._board.write_status(Status(state, agreement + waits, doing, seconds, self.beats))

    def _report_if_idle(self, *, waits: bool) -> None:
        steps = self._work.steps
        is_idle = not waits and self._work.depth > 0 and steps == self._steps_seen
        self._idle, self._steps_seen = self._idle + 1 if is_idle else 0, steps
        if self._idle > self._patience:
            doing = f": {self._work.doing}" if self._work.doing else ""
            self._report(self._rank, f"it has not made progress for {_duration(self._patience)}{doing}")

    def _watch_next(self) -> None:
        """Report the next rank if its process has ended, or it has sent no beat for too long.

        A process of this machine that runs may block all of its threads for a while; it is not silent.
        """
        watched = (self._rank + 1) % self._world_size
        status = self._board.status(watched)
        if status is None or status.state == "resting" or str(status) != self._last_status:
            self._last_status, self._silent = str(status), 0
            return
        self._silent += 1
        state = self._board.process_state(watched)
        if state == "ended" and self._silent > 1:
            self._report(watched, "its process was killed or has ended without an error")
        elif self._silent > self._silent_after and state != "running":
            way = "its process is stopped" if state == "stopped" else "it is stopped, or its machine cannot be reached"
            self._report(watched, f"it has not responded for {self._silent_after} s; {way}")

    def _late_ranks(self) -> str:
        """Describe the ranks that have not arrived, and report one that is not even at work for too long."""
        late = []
        for rank in range(self._world_size):
            status = self._board.status(rank)
            if rank == self._rank or (status is not None and status.arrived > self._agreement):
                continue
            if (status is None or status.state in ("away", "resting")) and self._waited >= self._patience:
                self._report(rank, f"it has not requested the training data for {_duration(self._patience)}")
            doing = "" if status is None or not status.doing else f" ({status.doing}, for {_duration(status.seconds)})"
            late.append(f"rank {rank}{doing}")
        more = f" and {len(late) - 3} more" if len(late) > 3 else ""
        return f"Waiting for {', '.join(late[:3])}{more}." if late else ""

    def _report(self, rank: int, reason: str) -> None:
        self._board.report(RankFailedError(rank, reason))


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
