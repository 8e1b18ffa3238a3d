"""A runtime of one process whose progress bar is about the whole run, not about each part of it."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning_poison.runtime import LocalRuntime, Progress, SilentProgress, current_section

_SECONDS_BETWEEN_LINES = 30.0


class WholeRun(LocalRuntime):
    """Shows one progress bar for everything that runs inside of `with runtime.shown():`.

    The bar says which part is running, with its rate, and how long the whole run may still take, by the shares that
    `section` declares. If standard error is not a terminal, a line is written there every 30 seconds instead.

    Args:
        device: See `LocalRuntime`.
        num_workers: See `LocalRuntime`.

    Example:
        >>> runtime = WholeRun()
        >>> with runtime.shown(), runtime.progress(4, "Fitting") as part:
        ...     part.advance(3)
        >>> runtime.done
        0.75
    """

    def __init__(self, device: str = "cpu", *, num_workers: int = 0) -> None:
        super().__init__(device, num_workers=num_workers)
        self.done = 0.0
        """Share of the run that is done, in [0, 1]."""
        self._bar: Any = None
        self._start = self._last_line = 0.0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show progress until the block ends."""
        self.done, self._start = 0.0, time.monotonic()
        self._last_line = self._start
        if sys.stderr is not None and sys.stderr.isatty():
            from tqdm import tqdm

            form = "{desc} {percentage:3.0f} %|{bar}| {elapsed} < {remaining}{postfix}"
            self._bar = tqdm(total=1.0, bar_format=form, smoothing=0, leave=False, dynamic_ncols=True, file=sys.stderr)
        try:
            yield
        finally:
            if self._bar is not None:
                self._bar.close()
                self._bar = None

    @contextmanager
    def progress(self, total: int, description: str) -> Iterator[Progress]:
        """Advance the bar of the whole run by the steps of a part."""
        if not total:
            yield SilentProgress()
            return
        yield _Part(self, total, description)

    def announce(self, message: str) -> None:
        """Write a message above the bar."""
        with self.aside():
            super().announce(message)

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Hide the bar while something else is written to the terminal."""
        if self._bar is not None:
            self._bar.clear()
        yield
        if self._bar is not None:
            self._bar.refresh()

    def reach(self, done: float, part: str, rate: float) -> None:
        """Move the bar forward to a share of the run; it never moves back.

        Args:
            done: Share of the run, in [0, 1].
            part: What is running.
            rate: Its steps per second.
        """
        before, self.done = self.done, max(self.done, min(done, 1.0))
        if self._bar is not None:
            self._bar.set_description_str(part, refresh=False)
            self._bar.set_postfix_str(f"{rate:.3g} steps/s" if rate else "", refresh=False)
            self._bar.update(self.done - before)
            return
        now = time.monotonic()
        if self._start and self.done and now - self._last_line >= _SECONDS_BETWEEN_LINES and sys.stderr is not None:
            self._last_line, spent = now, now - self._start
            left = spent * (1 - self.done) / self.done
            sys.stderr.write(f"{100 * self.done:.0f} % after {clock(spent)}, about {clock(left)} left: {part}\n")
            sys.stderr.flush()


class _Part:
    """The progress of one part of the run."""

    def __init__(self, run: WholeRun, total: int, description: str) -> None:
        self._run, self._total, self._description = run, total, description
        self._begin, self._end = current_section()
        self._start, self._steps = time.monotonic(), 0

    def advance(self, steps: int = 1) -> None:
        self._steps += steps
        done = self._begin + (self._end - self._begin) * min(1.0, self._steps / self._total)
        self._run.reach(done, self._description, self._steps / max(1e-3, time.monotonic() - self._start))


def clock(seconds: float) -> str:
    """Describe a time.

    Example:
        >>> clock(42.3), clock(200), clock(4000)
        ('42 s', '3 min 20 s', '1 h 6 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
