"""Which plug-ins are installed and not switched off, as their metadata say; nothing is imported."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from lightning_poison.checks import printable
from lightning_poison.errors import PluginError
from lightning_poison.installed import DISABLED, declared_points, declaring_distributions, is_switched_off

HOST = "lightning-poison"
"""The host's distribution, and the plug-in name of its own scorers."""


@dataclass(frozen=True)
class Source:
    """Where a plug-in comes from.

    Args:
        plugin: the name of its entry point.
        distribution: the installed distribution.
        version: the version of that.
    """

    plugin: str
    distribution: str
    version: str

    def __str__(self) -> str:
        return printable(f"{self.plugin} ({self.distribution} {self.version})")


@dataclass(frozen=True)
class Candidate:
    """A plug-in that may be loaded.

    Args:
        source: where it comes from.
        load: imports it.
        fault: the phase and the error, where it is plain before loading that it must not be.
    """

    source: Source
    load: Callable[[], Any]
    fault: tuple[str, Exception] | None = None


def find_candidates() -> list[Candidate]:
    """Return the plug-ins that are not switched off; two of one name are both at fault, whoever came first."""
    found = [each for each in _declared() if not is_switched_off(each.source.plugin, each.source.distribution)]
    return [replace(each, fault=each.fault or _name_fault(each, found)) for each in found]


def _declared() -> Iterator[Candidate]:
    """Yield the entry points of our group; a file that cannot be read is the fault of its distribution alone."""
    for distribution in declaring_distributions():
        name, version = distribution.metadata["Name"], distribution.metadata["Version"] or "unknown"
        try:
            points = declared_points(distribution)
        except Exception as error:  # noqa: BLE001 (a stranger's file; recorded, reported and raised on request)
            yield Candidate(Source(name, name, version), object, ("metadata", error))
            continue
        for point in points:
            yield Candidate(Source(point.name, name, version), point.load)


def _name_fault(candidate: Candidate, found: list[Candidate]) -> tuple[str, Exception] | None:
    same = [str(other.source) for other in found if other.source.plugin == candidate.source.plugin]
    if candidate.source.plugin == HOST:
        same.append(f"{HOST} itself")
    if len(same) == 1:
        return None
    return "name", PluginError(
        f"Expected entry points of different names, but {' and '.join(same)} share one.\n"
        f"Leave one out by its distribution: {DISABLED}={printable(candidate.source.distribution)}."
    )
