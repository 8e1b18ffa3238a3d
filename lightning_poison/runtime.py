"""`Runtime`: device, precision, ranks, collectives and progress bar."""

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from lightning_poison.checks import boolean, describe_error, expected, one_of, positive_int, printable

_logger = logging.getLogger(__name__)


ValueT = TypeVar("ValueT")


DEFAULT_THREADS = max(1, min(4, (os.cpu_count() or 1) // 2))
"""Number of CPU threads for scoring: half the cores, at most four.

It depends on the machine, not on the number of ranks, so that masks agree. Small networks gain little from more
threads, and threads that outnumber the free cores wait for each other.
"""


_SECONDS_BETWEEN_SAVES = 0.5

_TIMES_AS_LONG = 100
"""Half-finished work is saved again after this many times the duration of the last save."""


class Progress(Protocol):
    """A running progress bar."""

    def advance(self, steps: int = 1) -> None:
        """Advance by `steps`."""


class Units(Protocol):
    """Storage of finished and half-finished work, so that an interrupted run continues where it stopped."""

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return the tensors and the JSON object of a unit, or `None` if there is none."""

    def save(self, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Store a unit in place of any other of this name. Never raises for lack of space."""

    def load_parts(self, name: str) -> list[tuple[dict[str, Tensor], dict[str, Any]]]:
        """Return what any rank has stored with `save_part`, also in an earlier run with more or fewer ranks."""

    def save_part(self, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Store this rank's part of a unit, in place of any other that this rank has stored. Like `save`."""

    def within(self, name: str) -> "Units":
        """Return the storage of the units of a part of the work."""


class NoUnits:
    """Stores nothing.

    Example:
        >>> units = NoUnits()
        >>> units.save("fold-0", {}, {})
        >>> units.within("fold-0").load("fit") is None
        True
    """

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Return `None`."""

    def save(self, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Do nothing."""

    def load_parts(self, name: str) -> list[tuple[dict[str, Tensor], dict[str, Any]]]:  # noqa: ARG002
        """Return an empty list."""
        return []

    def save_part(self, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Do nothing."""

    def within(self, name: str) -> "Units":  # noqa: ARG002 (nothing is stored)
        """Return itself."""
        return self


class SaveTimer:
    """Decides when to save half-finished work: after half a second, and so that saving takes at most 1 % of the time.

    Example:
        >>> timer = SaveTimer()
        >>> timer.is_due()
        False
    """

    def __init__(self) -> None:
        self._next = time.monotonic() + _SECONDS_BETWEEN_SAVES

    def is_due(self) -> bool:
        """Return whether it is time to save."""
        return time.monotonic() >= self._next

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Measure how long saving takes."""
        start = time.monotonic()
        yield
        end = time.monotonic()
        self._next = end + max(_SECONDS_BETWEEN_SAVES, _TIMES_AS_LONG * (end - start))


class Runtime(Protocol):
    """Where scorers are fitted and samples are scored."""

    device: torch.device
    rank: int
    world_size: int
    threads: int
    num_workers: int
    units: Units

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which networks run forward."""

    def reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, on every rank."""

    def broadcast(self, value: ValueT) -> ValueT:
        """Return rank 0's value on every rank."""

    def all_true(self, flag: bool) -> bool:
        """Return whether the flag is set on every rank."""

    def share(self, count: int) -> Iterator[int]:
        """Yield the units that this rank computes, so that each of `count` units is computed by one rank.

        Ranks may take units as soon as they are free, so nothing may depend on which rank computes which unit. All
        ranks call it equally often, in the same order, and there are no collectives until the iterator ends.
        """

    def agree(self, error: BaseException | None = None) -> None:
        """Wait until every rank has finished a block without an error.

        Args:
            error: The error of this rank. The other ranks are told, and this rank does not wait for them.

        Raises:
            RankFailedError: If another rank has an error. Never on a rank that passes one.
        """

    def progress(self, total: int, description: str) -> AbstractContextManager[Progress]:
        """Return a progress bar over `total` steps, shown on rank 0 at most."""

    def announce(self, message: str) -> None:
        """Show a message once, on rank 0."""


_section: ContextVar[tuple[float, float]] = ContextVar("section", default=(0.0, 1.0))


@contextmanager
def section(start: float, end: float) -> Iterator[None]:
    """Declare which part of the surrounding work runs inside, for progress bars over a whole run.

    Args:
        start: Share of the surrounding work that is done before, in [0, 1].
        end: Share that is done afterwards.

    Example:
        >>> with section(0.5, 1.0), section(0.0, 0.5):
        ...     print(current_section())
        (0.5, 0.75)
    """
    begin, width = _section.get()
    token = _section.set((begin + start * width, (end - start) * width))
    try:
        yield
    finally:
        _section.reset(token)


def current_section() -> tuple[float, float]:
    """Return start and end of the current section, as shares of the whole run."""
    start, width = _section.get()
    return start, start + width


class SilentProgress:
    """A progress bar that shows nothing.

    Example:
        >>> with LocalRuntime().progress(10, "scoring") as progress:
        ...     isinstance(progress, SilentProgress), progress.advance()
        (True, None)
    """

    def advance(self, steps: int = 1) -> None:
        """Do nothing."""


class _Bar:
    def __init__(self, update: Callable[[int], Any]) -> None:
        self._update = update

    def advance(self, steps: int = 1) -> None:
        self._update(steps)


class _OneRank:
    """The collectives of a single process."""

    rank = 0
    world_size = 1

    def reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the tensor."""
        return tensor

    def broadcast(self, value: ValueT) -> ValueT:
        """Return the value."""
        return value

    def all_true(self, flag: bool) -> bool:
        """Return the flag."""
        return flag

    def share(self, count: int) -> Iterator[int]:
        """Yield all units, in their order."""
        return iter(range(self.rank, count, self.world_size))

    def agree(self, error: BaseException | None = None) -> None:
        """Do nothing."""


class LocalRuntime(_OneRank):
    """One process without a Trainer.

    Args:
        device: Device to compute on, one that is available: `"cpu"`, `"cuda"`, `"cuda:1"`, `"mps"`. Default: `"cpu"`.
        precision: `"bf16"` runs networks under bfloat16 autocast, `"32"` does not, and `"auto"` uses bfloat16 if the
            device has instructions for it. Default: `"auto"`.
        threads: Number of CPU threads. Default: half the cores, at most four.
        num_workers: Number of processes that read samples. The result does not depend on it. Default: 0.
        quiet: Whether to show neither progress bars, which appear if standard error is a terminal, nor messages, one
            line each, which are written there unless logging shows them. Default: `False`.

    Raises:
        ValueError: If an argument is out of range, or the device is unknown or not available.

    Example:
        >>> LocalRuntime().world_size
        1
        >>> LocalRuntime("gpu")
        Traceback (most recent call last):
        ValueError: Expected `device` to be an available device, such as 'cpu' or 'cuda', but got 'gpu'.
        For an NVIDIA GPU write `LocalRuntime('cuda')`.
    """

    def __init__(
        self,
        device: str | torch.device = "cpu",
        *,
        precision: str = "auto",
        threads: int = DEFAULT_THREADS,
        num_workers: int = 0,
        quiet: bool = False,
    ) -> None:
        one_of("precision", precision, ("auto", "32", "bf16"))
        self.device = _available(device)
        self.bf16 = has_fast_bf16(self.device) if precision == "auto" else precision == "bf16"
        self.threads = positive_int("threads", threads)
        self.num_workers = positive_int("num_workers", num_workers, minimum=0)
        self.quiet = boolean("quiet", quiet)
        self.units: Units = NoUnits()

    def autocast(self) -> AbstractContextManager[Any]:
        """Return bfloat16 autocast, or nothing."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext()

    @contextmanager
    def progress(self, total: int, description: str) -> Iterator[Progress]:
        """Show a progress bar if standard error is a terminal."""
        if self.quiet or not total or sys.stderr is None or not sys.stderr.isatty():
            yield SilentProgress()
            return
        from tqdm import tqdm

        with tqdm(total=total, desc=description, leave=False, dynamic_ncols=True, file=sys.stderr) as bar:
            yield _Bar(bar.update)

    def announce(self, message: str) -> None:
        """Log at level INFO, and write to standard error if no log shows it."""
        _logger.info(message)
        is_logged = _logger.isEnabledFor(logging.INFO) and _logger.hasHandlers()
        if not self.quiet and not is_logged and sys.stderr is not None:
            sys.stderr.write(f"{message}\n")
            sys.stderr.flush()


class SingleRank(_OneRank):
    """A runtime without collectives: device, threads and progress bar of another runtime.

    Args:
        runtime: The other runtime.
        units: Storage of half-finished work. Default: that of `runtime`.
        quiet: Whether to show nothing. Default: `False`.

    Example:
        >>> SingleRank(LocalRuntime()).world_size
        1
    """

    def __init__(self, runtime: Runtime, *, units: Units | None = None, quiet: bool = False) -> None:
        self.device = runtime.device
        self.threads = runtime.threads
        self.num_workers = runtime.num_workers
        self.units = runtime.units if units is None else units
        self.autocast = runtime.autocast
        shown = LocalRuntime(quiet=True) if quiet else runtime
        self.progress = shown.progress
        self.announce = shown.announce


def _available(device: Any) -> torch.device:
    """Return a device that computes. The CUDA driver is not started, since forked workers could not use it then."""
    try:
        if device is None or isinstance(device, bool):
            raise TypeError
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(_unavailable(device, "For an NVIDIA GPU write `LocalRuntime('cuda')`.")) from None
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            what = f"PyTorch sees {count} CUDA devices" if count else "PyTorch sees no CUDA device"
            raise ValueError(_unavailable(device, f"{what}. Check the driver and the installed version of PyTorch."))
    elif found.type != "cpu":
        try:
            torch.zeros(1, device=found).item()
        except Exception as error:
            raise ValueError(_unavailable(device, f"It cannot compute: {describe_error(error, limit=120)}")) from error
    return found


def _unavailable(device: Any, hint: str) -> str:
    came = printable(repr(str(device) if isinstance(device, torch.device) else device))
    return expected("device", "an available device, such as 'cpu' or 'cuda'", came, hint)


def has_fast_bf16(device: torch.device) -> bool:
    """Return whether a device multiplies bfloat16 matrices faster than float32 ones.

    Example:
        >>> has_fast_bf16(torch.device("meta"))
        False
        >>> LocalRuntime(precision="auto").bf16 == has_fast_bf16(torch.device("cpu"))
        True
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return device.type == "cpu" and bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


@contextmanager
def all_ranks(runtime: Runtime) -> Iterator[None]:
    """Run a block on every rank, and raise on all ranks if it fails on any, so that none waits for the others.

    Collectives belong outside of the block: a rank that fails does not reach them.

    Raises:
        RankFailedError: On the other ranks if the block fails on one; it names the rank and its error. The error itself
            is raised on that rank.

    Example:
        >>> with all_ranks(LocalRuntime()):
        ...     total = 1 + 1
    """
    try:
        yield
    except BaseException as error:
        runtime.agree(error)
        raise
    runtime.agree()
