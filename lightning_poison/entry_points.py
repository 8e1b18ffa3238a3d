"""Which plug-ins the metadata of installed distributions declare, and which of them are switched off.

Nothing is imported here but by `import_plugins`, and then only what a distribution declares under our group.
"""

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

from packaging.utils import canonicalize_name

from lightning_poison.checks import printable
from lightning_poison.errors import PluginError

GROUP = "lightning_poison.plugins"
"""The entry-point group under which plug-ins are found."""


DISABLED = "LIGHTNING_POISON_DISABLED_PLUGINS"
"""Environment variable: plug-ins to leave out, by entry point or distribution, separated by commas."""


DISABLE_AUTOLOAD = "LIGHTNING_POISON_DISABLE_AUTOLOAD"
"""Environment variable: `1` leaves out all plug-ins but the host's own."""


def declaring_distributions() -> list[metadata.Distribution]:
    """Return the distributions that mention our group, each once: the first on the path, as an import finds it.

    Example:
        >>> all(GROUP in each.read_text("entry_points.txt") for each in declaring_distributions())
        True
    """
    found: dict[str, metadata.Distribution] = {}
    for each in metadata.distributions():
        described = each.read_text("METADATA") or each.read_text("PKG-INFO")
        if described and GROUP in (each.read_text("entry_points.txt") or ""):
            found.setdefault(canonicalize_name(each.metadata["Name"]), each)
    return list(found.values())


def declared_points(distribution: metadata.Distribution) -> list[metadata.EntryPoint]:
    """Return the entry points of our group; reading a stranger's file may raise anything.

    Example:
        >>> {point.group for each in declaring_distributions() for point in declared_points(each)} <= {GROUP}
        True
    """
    return [point for point in distribution.entry_points if point.group == GROUP]


def is_switched_off(*names: str) -> bool:
    """Tell whether the environment leaves out a plug-in of one of these names, entry point or distribution.

    Example:
        >>> from unittest.mock import patch
        >>> with patch.dict(os.environ, {DISABLED: "my_frogs, other", DISABLE_AUTOLOAD: ""}):
        ...     is_switched_off("my-frogs"), is_switched_off("frogs")
        (True, False)
    """
    if os.environ.get(DISABLE_AUTOLOAD, "") not in ("", "0"):
        return True
    disabled = {canonicalize_name(name.strip()) for name in os.environ.get(DISABLED, "").split(",")}
    return not disabled.isdisjoint(map(canonicalize_name, names))


@functools.cache
def distribution_of(module: str) -> str | None:
    """Return the name of the distribution whose plug-in lies in the same package as a module; `None` for any other.

    Example:
        >>> distribution_of("lightning_poison.attacks.triggers") is None
        True
    """
    package = module.partition(".")[0]
    if package == __name__.partition(".")[0]:
        return None
    for distribution in declaring_distributions():
        try:
            packages = {point.module.partition(".")[0] for point in declared_points(distribution)}
        except Exception:  # noqa: BLE001 (a stranger's file; the registry reports it)
            packages = set()
        if package in packages:
            return str(distribution.metadata["Name"])
    return None


def import_plugins(distribution: str) -> None:
    """Import the plug-ins of one distribution, as far as it is installed and they are not switched off.

    Raises:
        BaseException: whatever reading or importing them raises.

    Example:
        >>> import_plugins("not-installed")  # no error: there is nothing to import
    """
    for each in declaring_distributions():
        name = each.metadata["Name"]
        if canonicalize_name(name) == canonicalize_name(distribution):
            for point in declared_points(each):
                if not is_switched_off(point.name, name):
                    point.load()


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
