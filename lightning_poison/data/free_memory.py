"""How much memory a process can still use: main memory, and that of a device."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch

_ROOT = Path("/")


def free_memory(root: Path = _ROOT) -> int | None:
    """Return the bytes of memory that this process can still use without swapping, or `None` if that is unknown.

    On Linux, this is what the kernel estimates to be available, and not more than what the limits of the process's
    control groups leave, as in a container or a batch job.

    Args:
        root: Folder that contains `proc` and `sys`.

    Example:
        >>> free = free_memory()
        >>> free is None or free > 0
        True
    """
    try:
        found = [*_available(root), *_left_by_groups(root)]
        if not found and root == _ROOT:
            found = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    except (AttributeError, IndexError, OSError, ValueError):  # another system, or files of another form
        return None
    return min(found, default=None)


def free_device_memory(device: torch.device) -> int | None:
    """Return the bytes of a device's memory that this process can still use, or `None` if that is unknown.

    They include what PyTorch holds without using it. Known on CUDA alone.

    Example:
        >>> free_device_memory(torch.device("cpu")) is None
        True
    """
    if device.type != "cuda":
        return None
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused


def _available(root: Path) -> Iterator[int]:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield 1024 * int(line.split()[1])


def _left_by_groups(root: Path) -> Iterator[int]:
    """Yield what the limit of each control group above this process leaves (version 2 of control groups)."""
    top = root / "sys/fs/cgroup"
    for line in _lines(root / "proc/self/cgroup"):
        if not line.startswith("0::/") or ".." in line:
            continue
        group = top / line.strip().removeprefix("0::/")
        for folder in (group, *group.parents):
            if folder != top and top not in folder.parents:
                break
            limit, used = (_lines(folder / name) for name in ("memory.max", "memory.current"))
            if limit and used and limit[0] != "max":
                usage = dict(line.split() for line in _lines(folder / "memory.stat"))
                yield max(0, int(limit[0]) - int(used[0]) + int(usage.get("inactive_file", 0)))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
