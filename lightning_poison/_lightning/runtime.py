"""`TrainerRuntime`: the device, the ranks and the progress bar of a Trainer."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, distributed

from lightning_poison.runtime import DEFAULT_THREADS, LocalRuntime, Progress, Runtime, SilentProgress

ValueT = TypeVar("ValueT")

_TIMEOUT = timedelta(days=7)
"""How long ranks wait for a rank that is still fitting; the usual 10 to 30 minutes are meant for training steps."""


class TrainerRuntime:
    """Computes on a Trainer's device and communicates through its strategy.

    Args:
        trainer: A Trainer whose strategy is set up.
        num_workers: Worker processes that read samples.
    """

    def __init__(self, trainer: Any, *, num_workers: int = 0) -> None:
        self._trainer = trainer
        self._local = LocalRuntime(trainer.strategy.root_device)
        self._group: Any = None
        self.device = self._local.device
        self.rank: int = trainer.global_rank
        self.world_size: int = trainer.world_size
        self.threads = DEFAULT_THREADS
        self.num_workers = num_workers

    def autocast(self) -> AbstractContextManager[Any]:
        """Return bfloat16 autocast if the device supports it natively; a Trainer's precision applies to its module."""
        return self._local.autocast()

    def reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks, on the CPU."""
        summed = self._trainer.strategy.reduce(tensor.to(self.device, copy=True), reduce_op="sum")
        return cast("Tensor", summed).cpu()

    def broadcast(self, value: ValueT) -> ValueT:
        """Return rank 0's value on every rank."""
        return cast("ValueT", self._trainer.strategy.broadcast(value, src=0))

    def all_true(self, flag: bool) -> bool:
        """Return whether the flag is set on every rank, however long the slowest rank takes."""
        if self.world_size == 1 or not (distributed.is_available() and distributed.is_initialized()):
            return bool(self._trainer.strategy.reduce_boolean_decision(flag, all=True))
        if self._group is None:
            self._group = distributed.new_group(backend="gloo", timeout=_TIMEOUT)
        flags = torch.tensor([int(flag)])
        distributed.all_reduce(flags, op=distributed.ReduceOp.MIN, group=self._group)
        return bool(flags.item())

    def progress(self, total: int, description: str) -> AbstractContextManager[Progress]:
        """Return a progress bar in the style of the Trainer's own."""
        return trainer_progress(self._trainer, total, description)

    def announce(self, message: str) -> None:
        """Log at level INFO with Lightning's logger, on rank 0."""
        if self.rank == 0:
            rank_zero_info(message)

    def close(self) -> None:
        """Destroy the process group of `all_true`."""
        if self._group is not None:
            distributed.destroy_process_group(self._group)
            self._group = None


@contextmanager
def open_runtime(trainer: Any, *, num_workers: int = 0) -> Iterator[Runtime]:
    """Yield the runtime of a Trainer, or a local one if there is no Trainer.

    Args:
        trainer: A Trainer whose strategy is set up, or `None`.
        num_workers: Worker processes that read samples.
    """
    if trainer is None:
        yield LocalRuntime(num_workers=num_workers)
        return
    runtime = TrainerRuntime(trainer, num_workers=num_workers)
    try:
        yield runtime
    finally:
        runtime.close()


@contextmanager
def trainer_progress(trainer: Any, total: int, description: str) -> Iterator[Progress]:
    """Show a tqdm or rich bar beside the Trainer's own; show none if the Trainer shows none.

    Args:
        trainer: Any Trainer.
        total: Number of steps.
        description: Label of the bar.
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
            yield _ProgressBar(bar.update)
        finally:
            bar.close()
    elif hasattr(host, "configure_columns"):
        with _rich_display(host) as display:
            task = display.add_task(description, total=total)
            try:
                yield _ProgressBar(lambda steps: display.advance(task, steps))
            finally:
                display.remove_task(task)
    else:
        yield _ProgressMessages(total, description)


@contextmanager
def _rich_display(host: Any) -> Iterator[Any]:
    """Yield the live display of the Trainer's bar, or a temporary one before training."""
    if getattr(host, "progress", None) is not None and host.progress.live.is_started:
        yield host.progress
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), transient=True) as display:
        yield display


class _ProgressBar:
    def __init__(self, advance: Callable[[int], Any]) -> None:
        self._advance = advance

    def advance(self, steps: int = 1) -> None:
        self._advance(steps)


class _ProgressMessages:
    """Logs a message every tenth of the steps, for progress bars that only show their own values."""

    def __init__(self, total: int, description: str) -> None:
        self._total = total
        self._description = description
        self._done = 0

    def advance(self, steps: int = 1) -> None:
        tenth = 10 * self._done // self._total
        self._done += steps
        if 10 * self._done // self._total > tenth:
            rank_zero_info(f"{self._description}: {self._done} of {self._total}")
