"""A progress bar of the kind that the Trainer shows."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_poison.runtime import Progress, SilentProgress


@contextmanager
def trainer_progress(trainer: Any, total: int, description: str) -> Iterator[Progress]:
    """Show a bar beside the Trainer's own: tqdm's or rich's, and none where the Trainer shows none.

    Args:
        trainer: any Trainer.
        total: how many steps there are.
        description: what the bar says.
    """
    host = trainer.progress_bar_callback
    hidden = host is None or trainer.global_rank != 0 or host.is_disabled or getattr(host, "refresh_rate", 1) == 0
    if hidden or not total:
        yield SilentProgress()
    elif hasattr(host, "init_predict_tqdm"):
        bar = host.init_predict_tqdm()
        bar.set_description(description)
        bar.reset(total=total)
        bar.leave = False
        try:
            yield _Tqdm(bar)
        finally:
            bar.close()
    elif hasattr(host, "configure_columns"):
        with _rich(host) as live:
            task = live.add_task(description, total=total)
            try:
                yield _Rich(live, task)
            finally:
                live.remove_task(task)
    else:
        yield _Messages(total, description)


@contextmanager
def _rich(host: Any) -> Iterator[Any]:
    """Yield the host's live display, or one of our own that stops before training."""
    if getattr(host, "progress", None) is not None and host.progress.live.is_started:
        yield host.progress
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), transient=True) as live:
        yield live


class _Tqdm:
    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def advance(self, steps: int = 1) -> None:
        self._bar.update(steps)


class _Rich:
    def __init__(self, live: Any, task: Any) -> None:
        self._live = live
        self._task = task

    def advance(self, steps: int = 1) -> None:
        self._live.advance(self._task, steps)


class _Messages:
    """A message at each tenth, for a progress bar of somebody's own, which shows nothing but its own bars."""

    def __init__(self, total: int, description: str) -> None:
        self._total = total
        self._description = description
        self._done = 0

    def advance(self, steps: int = 1) -> None:
        tenth = 10 * self._done // self._total
        self._done += steps
        if 10 * self._done // self._total > tenth:
            rank_zero_info(f"{self._description}: {self._done} of {self._total}")
