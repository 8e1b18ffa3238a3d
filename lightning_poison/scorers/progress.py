"""Progress of methods that are handed no runtime, such as those of a `SetScorer`."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

from lightning_poison.runtime import Progress, Runtime, SilentProgress

_shown: ContextVar[Runtime | None] = ContextVar("shown", default=None)


@contextmanager
def progress_in(runtime: Runtime) -> Iterator[None]:
    """Let `progress_bar` inside of the block show its bars with a runtime.

    Args:
        runtime: The runtime, whose ranks all run the block.
    """
    token = _shown.set(runtime)
    try:
        yield
    finally:
        _shown.reset(token)


def progress_bar(total: int, description: str) -> AbstractContextManager[Progress]:
    """Return a progress bar of the runtime of the surrounding `progress_in`; one that shows nothing outside of any.

    Args:
        total: Number of steps.
        description: What is computed.

    Example:
        >>> from lightning_poison.runtime import LocalRuntime
        >>> with progress_in(LocalRuntime()), progress_bar(3, "Fitting linear classifiers") as bar:
        ...     bar.advance(3)
    """
    runtime = _shown.get()
    return nullcontext(SilentProgress()) if runtime is None else runtime.progress(total, description)
