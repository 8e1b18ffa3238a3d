"""`Runtime`: the device, the ranks and the progress bar, whoever provides them."""

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from lightning_poison.checks import one_of, positive_int

_logger = logging.getLogger(__name__)


ValueT = TypeVar("ValueT")


DEFAULT_THREADS = max(1, min(4, (os.cpu_count() or 1) // 2))
"""How many CPU threads scoring uses: a figure of the machine, never of the number of ranks, so that masks agree.

Half the cores, four at most: small networks gain little from more, and threads that outnumber the free cores wait for
each other, which costs far more than they bring.
"""


class Progress(Protocol):
    """A progress bar that is under way."""

    def advance(self, steps: int = 1) -> None:
        """Move on."""


class Runtime(Protocol):
    """Where scorers are fitted and samples scored."""

    device: torch.device
    rank: int
    world_size: int
    threads: int
    num_workers: int

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context in which networks run forward."""

    def reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, on every rank."""

    def broadcast(self, value: ValueT) -> ValueT:
        """Return rank 0's value on every rank."""

    def all_true(self, flag: bool) -> bool:
        """Tell whether the flag is set on every rank."""

    def progress(self, total: int, description: str) -> AbstractContextManager[Progress]:
        """Return a progress bar over `total` steps, shown on rank 0 at most."""

    def announce(self, message: str) -> None:
        """Tell the user something, once, on rank 0."""


class SilentProgress:
    """A progress bar that nobody sees.

    Example:
        >>> with LocalRuntime().progress(10, "scoring") as progress:
        ...     isinstance(progress, SilentProgress), progress.advance()
        (True, None)
    """

    def advance(self, steps: int = 1) -> None:
        """Do nothing."""


class LocalRuntime:
    """One process without a Trainer.

    Args:
        device: where to compute.
        precision: `"bf16"` runs networks under bfloat16 autocast; `"32"` does not; `"auto"` takes bfloat16 where the
            device has instructions for it.
        threads: how many CPU threads to use.
        num_workers: how many processes read samples; the result does not depend on it.

    Example:
        >>> LocalRuntime().world_size
        1
    """

    rank = 0
    world_size = 1

    def __init__(
        self,
        device: str | torch.device = "cpu",
        *,
        precision: str = "auto",
        threads: int = DEFAULT_THREADS,
        num_workers: int = 0,
    ) -> None:
        one_of("precision", precision, ("auto", "32", "bf16"))
        self.device = torch.device(device)
        self.bf16 = has_fast_bf16(self.device) if precision == "auto" else precision == "bf16"
        self.threads = positive_int("threads", threads)
        self.num_workers = positive_int("num_workers", num_workers, minimum=0)

    def autocast(self) -> AbstractContextManager[Any]:
        """Return bfloat16 autocast, or nothing."""
        return torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext()

    def reduce_sum(self, tensor: Tensor) -> Tensor:
        """Return the tensor."""
        return tensor

    def broadcast(self, value: ValueT) -> ValueT:
        """Return the value."""
        return value

    def all_true(self, flag: bool) -> bool:
        """Return the flag."""
        return flag

    @contextmanager
    def progress(self, total: int, description: str) -> Iterator[Progress]:  # noqa: ARG002 (nothing is shown)
        """Show nothing."""
        yield SilentProgress()

    def announce(self, message: str) -> None:
        """Log at level INFO."""
        _logger.info(message)


def has_fast_bf16(device: torch.device) -> bool:
    """Tell whether a device multiplies bfloat16 matrices faster than float32 ones.

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


def agreed(runtime: Runtime, work: Callable[[], ValueT]) -> ValueT:
    """Do work on every rank and raise on all of them where it fails on one: none is left waiting for the others."""
    try:
        result = work()
    except BaseException:
        runtime.all_true(False)
        raise
    if not runtime.all_true(True):
        raise RuntimeError("Expected every rank to score its samples, but another rank failed.\nIts own log says why.")
    return result
