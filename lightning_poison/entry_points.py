"""Plug-ins declared in the metadata of installed distributions, and which of them are disabled.

Only `import_plugins` and `Candidate.load` import anything, and only what a distribution declares under our group.
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
"""Entry-point group of the plug-ins."""

HOST = "lightning-poison"
"""Distribution of this package, and plug-in name of its own scorers."""

DISABLED = "LIGHTNING_POISON_DISABLED_PLUGINS"
"""Environment variable: plug-ins to skip, by entry point or distribution, separated by commas."""

DISABLE_AUTOLOAD = "LIGHTNING_POISON_DISABLE_AUTOLOAD"
"""Environment variable: `1` skips all plug-ins except our own scorers."""


@dataclass(frozen=True)
class Source:
    """Origin of a plug-in.

    Args:
        plugin: Name of the entry point.
        distribution: Name of the installed distribution.
        version: Version of the distribution.
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
        source: Origin of the plug-in.
        load: Imports the plug-in.
        fault: Phase and error if the metadata alone rule out loading it. Default: none.
    """

    source: Source
    load: Callable[[], Any]
    fault: tuple[str, Exception] | None = None


def find_candidates() -> list[Candidate]:
    """Return the plug-ins that are not disabled. Plug-ins of the same name are all marked as faulty."""
    found = [each for each in _declared_candidates() if not is_disabled(each.source.plugin, each.source.distribution)]
    return [replace(each, fault=each.fault or _name_conflict(each, found)) for each in found]


def plugin_distributions() -> list[metadata.Distribution]:
    """Return each distribution that mentions our group once: the first on the path, as imports resolve it.

    Example:
        >>> all(GROUP in each.read_text("entry_points.txt") for each in plugin_distributions())
        True
    """
    found: dict[str, metadata.Distribution] = {}
    for each in metadata.distributions():
        described = each.read_text("METADATA") or each.read_text("PKG-INFO")
        if described and GROUP in (each.read_text("entry_points.txt") or ""):
            found.setdefault(canonicalize_name(each.metadata["Name"]), each)
    return list(found.values())


def is_disabled(*names: str) -> bool:
    """Check whether the environment disables a plug-in with any of these entry-point or distribution names.

    Example:
        >>> from unittest.mock import patch
        >>> with patch.dict(os.environ, {DISABLED: "my_frogs, other", DISABLE_AUTOLOAD: ""}):
        ...     is_disabled("my-frogs"), is_disabled("frogs")
        (True, False)
    """
    if os.environ.get(DISABLE_AUTOLOAD, "") not in ("", "0"):
        return True
    disabled = {canonicalize_name(name.strip()) for name in os.environ.get(DISABLED, "").split(",")}
    return not disabled.isdisjoint(map(canonicalize_name, names))


@functools.cache
def distribution_of(module: str) -> str | None:
    """Return the distribution whose plug-in shares its top-level package with a module, or `None`.

    Example:
        >>> distribution_of("lightning_poison.attacks.triggers") is None
        True
    """
    package = module.partition(".")[0]
    if package == __name__.partition(".")[0]:
        return None
    for distribution in plugin_distributions():
        try:
            packages = {point.module.partition(".")[0] for point in _plugin_points(distribution)}
        except Exception:  # noqa: BLE001 (unreadable metadata of another distribution; the registry reports it)
            packages = set()
        if package in packages:
            return str(distribution.metadata["Name"])
    return None


def import_plugins(distribution: str) -> None:
    """Import the plug-ins of a distribution that are installed and not disabled.

    Raises:
        BaseException: Any error raised while reading or importing them.

    Example:
        >>> import_plugins("not-installed")  # no error: there is nothing to import
    """
    for each in plugin_distributions():
        name = each.metadata["Name"]
        if canonicalize_name(name) == canonicalize_name(distribution):
            for point in _plugin_points(each):
                if not is_disabled(point.name, name):
                    point.load()


def _plugin_points(distribution: metadata.Distribution) -> list[metadata.EntryPoint]:
    """Return the entry points of our group; reading the metadata of another distribution may raise anything."""
    return [point for point in distribution.entry_points if point.group == GROUP]


def _declared_candidates() -> Iterator[Candidate]:
    """Yield a candidate for each entry point, or one faulty candidate if the metadata cannot be read."""
    for distribution in plugin_distributions():
        name, version = distribution.metadata["Name"], distribution.metadata["Version"] or "unknown"
        try:
            points = _plugin_points(distribution)
        except Exception as error:  # noqa: BLE001 (recorded, reported, and raised on request)
            yield Candidate(Source(name, name, version), object, ("metadata", error))
            continue
        for point in points:
            yield Candidate(Source(point.name, name, version), point.load)


def _name_conflict(candidate: Candidate, found: list[Candidate]) -> tuple[str, Exception] | None:
    same = [str(other.source) for other in found if other.source.plugin == candidate.source.plugin]
    if candidate.source.plugin == HOST:
        same.append(f"{HOST} itself")
    if len(same) == 1:
        return None
    return "name", PluginError(
        f"Expected entry points with different names, but {' and '.join(same)} share one.\n"
        f"Disable one by its distribution: {DISABLED}={printable(candidate.source.distribution)}."
    )
