"""Which plug-ins the metadata of installed distributions declare, and which of them are switched off.

Nothing is imported here but by `import_plugins`, and then only what a distribution declares under our group.
"""

import functools
import os
from importlib import metadata

from packaging.utils import canonicalize_name

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
        >>> distribution_of("lightning_poison.triggers") is None
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
