"""What is said before long fits without trusted data, with an estimate of their time."""

import time
from collections.abc import Callable
from typing import Any

from lightning_poison.runtime import NoUnits, Runtime, SingleRank, Units

_MORE_STEPS = (4, 24)
"""Numbers of steps to rehearse beyond the first, until they take longer than `_SHORT_REHEARSAL`."""

_LONG_REHEARSAL, _SHORT_REHEARSAL = 3.0, 0.1
"""Seconds of a first step after which no further ones are rehearsed, and of further ones that suffice."""

_SHORTER, _LONGER = 0.7, 1.5
"""Ends of the announced range, in units of the estimates for a free machine and for this one."""


def announce_fits(
    runtime: Runtime,
    work: str,
    rehearse: Callable[..., int | None] | None,
    dataset: Any,
    fits: int,
    units: Units,
) -> None:
    """Announce fits, with an estimate of their time from a few steps of a temporary copy, or a stored estimate.

    Args:
        runtime: Where to compute. Only its rank 0 may call this.
        work: What is done, printable.
        rehearse: Runs the first steps of a fit and returns how many a fit has; see `Scorer.rehearse`. Default: no
            estimate.
        dataset: What a fit reads.
        fits: Number of fits, one after the other.
        units: Storage of the estimate.
    """
    stored = units.load("estimate")
    each = _estimate(rehearse, dataset, runtime) if stored is None else stored[1]["seconds"]
    units.save("estimate", {}, {"seconds": each})
    estimate = f", {_range(*(fits * seconds for seconds in each))}" if each else ""
    runtime.announce(f"No trusted data: {work}{estimate}.")


def _estimate(rehearse: Callable[..., int | None] | None, part: Any, runtime: Runtime) -> list[float]:
    """Return the ends of a range of the seconds of a fit: as its steps in a rehearsal, or as on a free machine.

    What a fit does once, such as reading labels, is not counted: two rehearsals differ in their steps alone. The range
    is empty if the scorer cannot rehearse.
    """
    if rehearse is None:
        return []
    quiet = SingleRank(runtime, units=NoUnits(), quiet=True)
    steps, wall, busy = _timed(rehearse, part, 1, quiet)
    if steps is None:
        return []
    for more in _MORE_STEPS if wall < _LONG_REHEARSAL else ():
        _, longer, busier = _timed(rehearse, part, 1 + more, quiet)
        wall_of_steps, busy_of_steps = max(longer - wall, 0), max(busier - busy, 0)
        if wall_of_steps > _SHORT_REHEARSAL or more == _MORE_STEPS[-1]:
            wall, busy = wall_of_steps / more, busy_of_steps / more
            break
    free = min(wall, busy / runtime.threads) if runtime.device.type == "cpu" else wall
    return [_SHORTER * free * steps, _LONGER * wall * steps]


def _timed(
    rehearse: Callable[..., int | None], part: Any, steps: int, runtime: Runtime
) -> tuple[int | None, float, float]:
    """Rehearse some steps; return the number of steps of a fit, and the time and the CPU time of the rehearsal."""
    wall, busy = time.perf_counter(), time.process_time()
    total = rehearse(part, steps=steps, runtime=runtime)
    return total, time.perf_counter() - wall, time.process_time() - busy


def _range(low: float, high: float) -> str:
    """Describe a range of times.

    Example:
        >>> _range(3.2, 11.0), _range(0.1, 0.2), _range(50, 200), _range(200, 900)
        ('about 3 to 11 s', 'about 1 s', 'about 50 s to 3 min', 'about 3 to 15 min')
    """
    (first, unit), (last, last_unit) = _rounded(low), _rounded(high)
    if (first, unit) == (last, last_unit):
        return f"about {first} {unit}"
    return f"about {first} to {last} {unit}" if unit == last_unit else f"about {first} {unit} to {last} {last_unit}"


def _rounded(seconds: float) -> tuple[str, str]:
    if seconds < 90:
        return str(max(1, round(seconds))), "s"
    return (str(round(seconds / 60)), "min") if seconds < 5400 else (f"{seconds / 3600:.1f}", "h")
