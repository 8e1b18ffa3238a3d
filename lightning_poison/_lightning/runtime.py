"""`TrainerRuntime`: the device, the ranks and the progress bar of a Trainer."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, distributed

from lightning_poison.runtime import DEFAULT_THREADS, LocalRuntime, Progress, Runtime, SilentProgress


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


ValueT = TypeVar("ValueT")


_PATIENCE = timedelta(days=7)
"""How long ranks wait for one that still fits a fold; the usual limit of 10 to 30 minutes is for training steps."""


class TrainerRuntime:
    """Computes where a Trainer does, by its strategy's own collectives.

    Args:
        trainer: any Trainer whose strategy has been set up.
        num_workers: how many processes read samples.
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
        """Return bfloat16 autocast where the device has instructions for it: a scorer is a network of its own."""
        return self._local.autocast()

    def reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks, on the CPU."""
        summed = self._trainer.strategy.reduce(tensor.to(self.device, copy=True), reduce_op="sum")
        return cast("Tensor", summed).cpu()

    def broadcast(self, value: ValueT) -> ValueT:
        """Return rank 0's value on every rank."""
        return cast("ValueT", self._trainer.strategy.broadcast(value, src=0))

    def all_true(self, flag: bool) -> bool:
        """Tell whether the flag is set on every rank, however long one of them works before it says so."""
        if self.world_size == 1 or not (distributed.is_available() and distributed.is_initialized()):
            return bool(self._trainer.strategy.reduce_boolean_decision(flag, all=True))
        if self._group is None:
            self._group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        flags = torch.tensor([int(flag)])
        distributed.all_reduce(flags, op=distributed.ReduceOp.MIN, group=self._group)
        return bool(flags.item())

    def progress(self, total: int, description: str) -> AbstractContextManager[Progress]:
        """Return a progress bar of the Trainer's kind."""
        return trainer_progress(self._trainer, total, description)

    def announce(self, message: str) -> None:
        """Log at level INFO with Lightning's own logger, on rank 0."""
        if self.rank == 0:
            rank_zero_info(message)

    def close(self) -> None:
        """Give the ranks' waiting room back."""
        if self._group is not None:
            distributed.destroy_process_group(self._group)
            self._group = None


@contextmanager
def opened_runtime(trainer: Any, *, num_workers: int = 0) -> Iterator[Runtime]:
    """Yield the runtime of a Trainer, or that of this machine where there is none.

    Args:
        trainer: any Trainer whose strategy has been set up, or `None`.
        num_workers: how many processes read samples.
    """
    if trainer is None:
        yield LocalRuntime(num_workers=num_workers)
        return
    runtime = TrainerRuntime(trainer, num_workers=num_workers)
    try:
        yield runtime
    finally:
        runtime.close()
