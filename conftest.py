"""Settings of the test processes, and of the programs that tests start. Set before PyTorch is imported."""

import os
import signal
import sys
from pathlib import Path

import pytest

if sys.dont_write_bytecode:
    # Containers often set PYTHONDONTWRITEBYTECODE. Without bytecode, every process compiles PyTorch and Lightning anew,
    # which takes about 15 s. Bytecode goes to a folder that git ignores, and none to the source tree.
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).parent / ".pytest_cache" / "bytecode")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    # The workers of pytest-xdist share the processors: threads of their own would wait for each other.
    workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell ignores SIGINT in what it starts with `&`. Tests about an interrupt by the user need Python's handler.
    signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST = ("tests/integration/", "tests/shell/", "plugins/lightning-poison-collisions/", "tests/scorers/discriminator/")
"""Where the longest files are."""


def pytest_collection_modifyitems(items):
    """Let workers start with the longest files, so that none waits for another at the end."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=lambda item: not item.nodeid.startswith(LONGEST))


@pytest.fixture(autouse=True)
def signal_handlers():
    """Restore the handler of SIGINT, which Lightning sets to ignore the signal after a `KeyboardInterrupt`."""
    before = signal.getsignal(signal.SIGINT)
    yield
    if signal.getsignal(signal.SIGINT) is not before:
        signal.signal(signal.SIGINT, before)
