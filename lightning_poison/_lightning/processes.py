"""Whether a process of this machine runs, is stopped or has ended; known on Linux only."""

import json
import os
from pathlib import Path
from typing import Literal

State = Literal["running", "stopped", "ended", "unknown"]

_PROC = Path("/proc")


def own_process() -> str:
    """Return a text that identifies this process, also to other machines.

    Example:
        >>> process_state(own_process()) in ("running", "unknown")
        True
    """
    return json.dumps([_machine(), os.getpid(), _state_and_start(os.getpid())[1]])


def process_state(text: str) -> State:
    """Return the state of a process.

    Args:
        text: What `own_process` returned in that process.

    Returns:
        `"unknown"` for a process of another machine or container.
    """
    machine, number, start = json.loads(text)
    if not machine or machine != _machine():
        return "unknown"
    state, started = _state_and_start(number)
    if started != start or state in ("Z", "X"):
        return "ended"
    return "stopped" if state in ("T", "t") else "running"


def _machine() -> str:
    """Return the start of the machine and the namespace of process numbers, or an empty text if they are unknown."""
    try:
        booted = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{booted} {(_PROC / 'self/ns/pid').readlink()}"
    except OSError:
        return ""


def _state_and_start(number: int) -> tuple[str, str]:
    """Return the state of a process as a letter and its start time; both empty if there is no such process."""
    try:
        values = (_PROC / str(number) / "stat").read_text().rpartition(")")[2].split()
        return values[0], values[19]
    except (OSError, IndexError):
        return "", ""
