"""SIGTERM during scoring, which Lightning itself heeds between two batches.

The private names of Lightning used here are `_signal_connector` with `received_sigterm` and `_sigterm_notifier_fn`, and
`signal_handlers` of the handler that it registers. On several ranks, Lightning's handler waits for rank 0 in a
collective, which hangs unless all ranks receive the signal between the same two collectives.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import FrameType
from typing import Any


def has_sigterm(trainer: Any) -> bool:
    """Return whether a Trainer was asked to end."""
    return bool(getattr(trainer, "received_sigterm", False))


def sigterm_exception(trainer: Any) -> SystemExit:
    """Return the exception that a Trainer of either namespace raises after SIGTERM."""
    namespace = "pytorch_lightning" if type(trainer).__module__.startswith("pytorch_lightning") else "lightning.pytorch"
    exception: SystemExit = import_module(f"{namespace}.utilities.exceptions").SIGTERMException()
    return exception


@contextmanager
def heeding_sigterm(trainer: Any) -> Iterator[None]:
    """Replace Lightning's handler by one that does the same without a collective: the ranks agree on their own."""
    handler = signal.getsignal(signal.SIGTERM)
    connector: Any = getattr(trainer, "_signal_connector", None)
    notifier = getattr(connector, "_sigterm_notifier_fn", None)
    handlers = getattr(handler, "signal_handlers", ())
    if notifier not in handlers or threading.current_thread() is not threading.main_thread():
        yield
        return

    def heed(number: int, frame: FrameType | None) -> None:
        launcher = trainer.strategy.launcher
        if launcher is not None and not connector.received_sigterm:
            launcher.kill(number)
        connector.received_sigterm = True
        for other in handlers:
            if other != notifier and callable(other):
                other(number, frame)

    signal.signal(signal.SIGTERM, heed)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is heed:
            signal.signal(signal.SIGTERM, handler)
