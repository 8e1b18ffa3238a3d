"""`TrainerRuntime`: the device, the ranks and the progress bar of a Trainer."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, TypeVar, cast

from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from lightning_poison._lightning.interrupts import has_sigterm, sigterm_exception
from lightning_poison._lightning.rank_link import RankLink
from lightning_poison._lightning.ranks import active_link
from lightning_poison._lightning.shared_units import shared_units
from lightning_poison.errors import RankFailedError
from lightning_poison.runtime import (
    DEFAULT_THREADS,
    LocalRuntime,
    NoUnits,
    Progress,
    Runtime,
    SilentProgress,
    Units,
)

ValueT = TypeVar("ValueT")


class TrainerRuntime:
    """Computes on a Trainer's device and communicates through its strategy.

    Every collective begins with an agreement of the ranks, which names a rank that has failed, was killed or is
    stopped. A collective itself would wait for it.

    Args:
        trainer: A Trainer whose strategy is set up.
        num_workers: Worker processes that read samples.
        link: The link between its ranks. Default: none, for a single rank.
    """

    def __init__(self, trainer: Any, *, num_workers: int = 0, link: RankLink | None = None) -> None:
        self._trainer = trainer
        self._link = link
        self._local = LocalRuntime(trainer.strategy.root_device)
        self.device = self._local.device
        self.rank: int = trainer.global_rank
        self.world_size: int = trainer.world_size
        self.threads = DEFAULT_THREADS
        self.num_workers = num_workers
        self.units: Units = NoUnits()

    def autocast(self) -> AbstractContextManager[Any]:
        """Return bfloat16 autocast if the device supports it natively; a Trainer's precision applies to its module."""
        return self._local.autocast()

    def reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum over all ranks, on the CPU."""
        with self._collective():
            summed = self._trainer.strategy.reduce(tensor.to(self.device, copy=True), reduce_op="sum")
        return cast("Tensor", summed).cpu()

    def broadcast(self, value: ValueT) -> ValueT:
        """Return rank 0's value on every rank."""
        with self._collective():
            return cast("ValueT", self._trainer.strategy.broadcast(value, src=0))

    def all_true(self, flag: bool) -> bool:
        """Return whether the flag is set on every rank, however long the slowest rank takes."""
        if self._link is None:
            return bool(self._trainer.strategy.reduce_boolean_decision(flag, all=True))
        with self._translating_sigterm():
            return self._link.agree(flag, check=self._check_sigterm)

    def share(self, count: int) -> Iterator[int]:
        """Yield units that no other rank has taken; without a link, every `world_size`-th."""
        if self._link is None:
            return iter(range(self.rank, count, self.world_size))
        return self._translated(shared_units(self._link, count, check=self._check_sigterm))

    def agree(self, error: BaseException | None = None) -> None:
        """Wait for all ranks, or tell them about the error of this one.

        Raises:
            RankFailedError: If another rank has failed, was killed, is stopped or takes too long.
            SIGTERMException: If any rank was asked to end.
        """
        if error is None:
            self._check_sigterm()
        if self._link is None:
            if not self.all_true(error is None) and error is None:
                raise RankFailedError(None)
        elif error is None:
            self.all_true(True)
        else:
            self._link.fail(error)

    @contextmanager
    def progress(self, total: int, description: str) -> Iterator[Progress]:
        """Show a progress bar in the style of the Trainer's own, which ends the work if any rank has to end."""
        with trainer_progress(self._trainer, total, description) as bar:
            yield _WatchedProgress(bar, self._check_ranks, total, description)

    def announce(self, message: str) -> None:
        """Log at level INFO with Lightning's logger, on rank 0."""
        if self.rank == 0:
            rank_zero_info(message)

    @contextmanager
    def _collective(self) -> Iterator[None]:
        if self._link is None:
            yield
            return
        self.all_true(True)
        with self._link.naming_failures():
            yield

    def _check_ranks(self, doing: str, progress: str) -> None:
        self._check_sigterm()
        if self._link is not None:
            self._link.report(doing, progress)
            with self._translating_sigterm():
                self._link.check()

    def _check_sigterm(self) -> None:
        if has_sigterm(self._trainer):
            raise sigterm_exception(self._trainer)

    def _translated(self, units: Iterator[int]) -> Iterator[int]:
        with self._translating_sigterm():
            yield from units

    @contextmanager
    def _translating_sigterm(self) -> Iterator[None]:
        try:
            yield
        except RankFailedError as error:
            if error.is_interrupt:
                raise sigterm_exception(self._trainer) from error
            raise


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
    with active_link(trainer) as link:
        yield TrainerRuntime(trainer, num_workers=num_workers, link=link)


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
        with _tqdm_bar(host, total, description) as bar:
            yield bar
    elif hasattr(host, "configure_columns"):
        with _rich_bar(host, total, description) as bar:
            yield bar
    else:
        yield _ProgressMessages(total, description)


@contextmanager
def _tqdm_bar(host: Any, total: int, description: str) -> Iterator[Progress]:
    bar = host.init_predict_tqdm()
    bar.set_description(description)
    bar.reset(total=total)
    bar.leave = False
    try:
        yield _ProgressBar(bar.update)
    finally:
        bar.close()


@contextmanager
def _rich_bar(host: Any, total: int, description: str) -> Iterator[Progress]:
    with _rich_display(host) as display:
        task = display.add_task(description, total=total)
        try:
            yield _ProgressBar(lambda steps: display.advance(task, steps))
        finally:
            display.remove_task(task)


@contextmanager
def _rich_display(host: Any) -> Iterator[Any]:
    """Yield the live display of the Trainer's bar, or a temporary one before training."""
    if getattr(host, "progress", None) is not None and host.progress.live.is_started:
        yield host.progress
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    with Progress(TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn(), transient=True) as display:
        yield display


class _WatchedProgress:
    """Checks at every step whether this rank or another one has to end."""

    def __init__(self, bar: Progress, check: Callable[[str, str], None], total: int, description: str) -> None:
        self._bar, self._check, self._total, self._description = bar, check, total, description
        self._done = 0
        check(description, "")

    def advance(self, steps: int = 1) -> None:
        self._bar.advance(steps)
        self._done += steps
        self._check(self._description, f", {self._done} of {self._total}")


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
