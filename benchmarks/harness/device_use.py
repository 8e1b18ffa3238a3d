"""How busy a GPU is, and which part of a decision runs meanwhile."""

import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import torch

from lightning_poison.runtime import LocalRuntime, Progress

Span = tuple[float, float]
"""Start and end of a part, in seconds of `time.monotonic`."""


def smi_command() -> list[str]:
    """Return the command that prints the utilization of the first visible GPU in percent.

    It is the share of the last fraction of a second in which at least one kernel ran, by NVIDIA's management library.
    """
    uuid = getattr(torch.cuda.get_device_properties(0), "uuid", None)
    chosen = f"--id={'0' if uuid is None else f'GPU-{uuid}'}"
    return ["nvidia-smi", chosen, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]


class DeviceUse:
    """Runs a command that prints a utilization in percent again and again, and records the numbers with their times.

    Args:
        command: The command. `None` records nothing, as on a CPU.
        every_s: Seconds between two calls.

    Example:
        with DeviceUse(smi_command()) as use:
            work()
        use.busy()  # such as 0.93; None without a measurement
    """

    def __init__(self, command: Sequence[str] | None, *, every_s: float = 0.2) -> None:
        self.command, self.every_s = command, every_s
        self.samples: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        while self.command is not None and not self._ended.wait(self.every_s):
            try:
                printed = subprocess.run(self.command, capture_output=True, text=True, timeout=20, check=False).stdout  # noqa: S603
            except (OSError, subprocess.TimeoutExpired):  # no driver, or one that hangs
                return
            if printed.strip().isdigit():  # some GPUs report "[N/A]"
                self.samples.append((time.monotonic(), int(printed) / 100))

    def busy(self, spans: Sequence[Span] | None = None) -> float | None:
        """Return the mean share of time in which the device is busy, in [0, 1], in all or within some spans of time."""
        found = [
            share for when, share in self.samples if spans is None or any(start <= when <= end for start, end in spans)
        ]
        return sum(found) / len(found) if found else None


class ObservedRuntime(LocalRuntime):
    """A quiet runtime that records when which progress bar runs."""

    def __init__(self, device: str, **settings: Any) -> None:
        super().__init__(device, quiet=True, **settings)
        self.parts: list[tuple[str, Span]] = []

    @contextmanager
    def progress(self, total: int, description: str) -> Iterator[Progress]:
        begin = time.monotonic()
        with super().progress(total, description) as bar:
            yield bar
        self.parts.append((description, (begin, time.monotonic())))

    def spans(self) -> list[Span]:
        """Return when networks were fitted and samples were scored: all progress bars but those of reading."""
        return [span for name, span in self.parts if not name.startswith(("Reading", "Comparing"))]

    def seconds(self) -> dict[str, float]:
        """Return the seconds of all progress bars by their text."""
        found: dict[str, float] = {}
        for name, (begin, end) in self.parts:
            found[name] = found.get(name, 0.0) + end - begin
        return found
