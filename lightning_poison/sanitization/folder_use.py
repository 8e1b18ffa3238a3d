"""Folders that several processes use at once: while one of them does, no other removes what is in it."""

import contextlib
import os
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None

LOCK = ".lock"
"""Name of the file in a folder on which its users hold a shared lock. Locks end with their process, however it ends."""

_UNUSED_AFTER = 24 * 3600.0
"""Age in seconds of the latest file from which a folder counts as unused where there are no locks."""


class FolderUse:
    """Use of a folder by this process, from the first call of `begin` until the object is gone.

    Args:
        folder: The folder, which need not exist.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name:
        ...     use = FolderUse(Path(name))
        ...     use.begin()
        ...     during = is_used(Path(name))
        ...     del use
        ...     during, is_used(Path(name))
        (True, False)
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._end: weakref.finalize | None = None  # type: ignore[type-arg]

    def begin(self, *, create: bool = False) -> None:
        """Use the folder from now on, if it exists or `create` is set. Where there are no locks, nothing happens.

        Raises:
            OSError: If it cannot be created.
        """
        while self._end is None and (create or self.folder.is_dir()):
            if create:
                _create(self.folder)
            handle = _open(self.folder, create=True)
            if handle is None and create and not self.folder.is_dir():
                continue  # removed since it was created
            if handle is None:
                return
            if not _lock(handle, shared=True):
                os.close(handle)
                return
            if _is_current(handle, self.folder):
                self._end = weakref.finalize(self, os.close, handle)
            else:  # removed while this process waited for the lock
                os.close(handle)


@contextmanager
def unused(folder: Path) -> Iterator[bool]:
    """Yield whether no process uses a folder. If none does, none can begin to until the block ends.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as name, unused(Path(name)) as is_free:
        ...     is_free
        True
    """
    handle = _open(folder, create=True)
    if handle is None:
        yield _is_old(folder)
        return
    try:
        found = _lock(handle, shared=False)
        yield (found and _is_current(handle, folder)) if found is not None else _is_old(folder)
    finally:
        os.close(handle)


def is_used(folder: Path) -> bool:
    """Return whether a process uses a folder. Nothing is written."""
    handle = _open(folder, create=False)
    if handle is None:
        return ((folder / LOCK).exists() or fcntl is None) and not _is_old(folder)
    try:
        found = _lock(handle, shared=False)
        return not _is_old(folder) if found is None else not found
    finally:
        os.close(handle)


def _create(folder: Path) -> None:
    """Create a folder if it does not exist, also if another process removes it while its existence is asked for."""
    while not folder.is_dir():
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            if folder.exists() and not folder.is_dir():
                raise


def _open(folder: Path, *, create: bool) -> int | None:
    """Open the lock of a folder, read-only if nothing can be written there; `None` if there is none."""
    if fcntl is None:
        return None
    for flags in (os.O_RDWR | (os.O_CREAT if create else 0), os.O_RDONLY):
        with contextlib.suppress(OSError):
            return os.open(folder / LOCK, flags, 0o666)
    return None


def _lock(handle: int, *, shared: bool) -> bool | None:
    """Lock a file; return whether it is, or `None` if there are no locks. A shared lock is waited for."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_current(handle: int, folder: Path) -> bool:
    """Whether the locked file is still that of the folder."""
    try:
        return os.path.samestat(os.fstat(handle), (folder / LOCK).stat())
    except OSError:
        return False


def _is_old(folder: Path) -> bool:
    try:
        latest = max((each.stat().st_mtime for each in folder.iterdir()), default=0.0)
    except OSError:
        return False
    return time.time() - latest > _UNUSED_AFTER
