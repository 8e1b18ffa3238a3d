"""Plug-ins: those that installed distributions declare, which of them are disabled, and guarded calls of their code.

Only `import_plugins` and `Candidate.load` import anything, and only what a distribution declares under our group.
"""

import functools
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any, TypeVar

from packaging.utils import canonicalize_name

from lightning_poison import errors
from lightning_poison.checks import describe_error, printable, type_name
from lightning_poison.contexts import exceptions_of_signals, process_state_restored, warned_when_slow
from lightning_poison.errors import PluginError, RankFailedError

_logger = logging.getLogger(__name__)

GROUP = "lightning_poison.plugins"
"""Entry-point group of the plug-ins."""

HOST = "lightning-poison"
"""Distribution of this package, and plug-in name of its own scorers."""

DISABLED = "LIGHTNING_POISON_DISABLED_PLUGINS"
"""Environment variable: plug-ins to skip, by entry point or distribution, separated by commas."""

DISABLE_AUTOLOAD = "LIGHTNING_POISON_DISABLE_AUTOLOAD"
"""Environment variable: `1` skips all plug-ins except our own scorers."""

ResultT = TypeVar("ResultT")


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


def call_plugin(
    call: Callable[[], ResultT], what: str, *, passed: tuple[type[Exception], ...] = (ValueError,)
) -> ResultT:
    """Call code of a plug-in: its errors name it, and what it changes of the process is restored.

    Args:
        call: The call.
        what: What is called, at the start of error messages, such as "`craft` of the attack `frog`"; printable.
        passed: Errors that keep their type, since they are addressed to the user. Errors of `lightning_poison.errors`
            always do, and a `PluginError` also keeps its message. Default: `ValueError`.

    Raises:
        PluginError: If the code raises anything else, `SystemExit` and `KeyboardInterrupt` included, chained to it.
        BaseException: Whatever a signal handler raises, as on Ctrl-C, and the exceptions by which Lightning ends a run.

    Example:
        >>> call_plugin(lambda: 1 / 0, "`craft` of the attack `frog`")
        Traceback (most recent call last):
        lightning_poison.errors.PluginError: Expected `craft` of the attack `frog` to succeed, but it raised
        ZeroDivisionError: division by zero.
        Correct the plug-in, or do without it.
    """
    with process_state_restored(), exceptions_of_signals() as by_signals:
        try:
            return call()
        except BaseException as error:
            if any(error is each for each in by_signals) or _ends_run(error):
                raise
            attributed = _attributed(error, what, passed, by_signals)
            if attributed is error:
                raise
            raise attributed from error


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
        try:
            described = each.read_text("METADATA") or each.read_text("PKG-INFO")
            if described and GROUP in (each.read_text("entry_points.txt") or ""):
                found.setdefault(canonicalize_name(each.metadata["Name"]), each)
        except Exception as error:  # noqa: BLE001 (a distribution of others, whose files may be damaged)
            _logger.warning("Skipped a distribution whose metadata cannot be read: %s.", describe_error(error))
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
        PluginError: If reading or importing them fails, chained to the original error.

    Example:
        >>> import_plugins("not-installed")  # no error: there is nothing to import
    """
    what = f"the import of the distribution `{printable(distribution)}`"
    for each in plugin_distributions():
        name = each.metadata["Name"]
        if canonicalize_name(name) == canonicalize_name(distribution):
            for point in call_plugin(functools.partial(_plugin_points, each), what, passed=()):
                if not is_disabled(point.name, name):
                    with warned_when_slow(f"Importing the distribution `{printable(distribution)}`"):
                        call_plugin(point.load, what, passed=())


def _ends_run(error: BaseException) -> bool:
    """Whether an exception is one by which the host ends a run, such as Lightning's on SIGTERM."""
    if isinstance(error, RankFailedError):
        return True
    package = type(error).__module__.partition(".")[0]
    return not isinstance(error, Exception) and package in ("lightning", "pytorch_lightning", "lightning_poison")


def _attributed(
    error: BaseException, what: str, passed: tuple[type[Exception], ...], by_signals: list[BaseException]
) -> BaseException:
    """Return an error that names its origin: the same one with another message, or one to be chained to it."""
    try:
        described = describe_error(error)
    except KeyboardInterrupt:
        if by_signals:
            raise
        described = type_name(error)
    if type(error) is PluginError:
        return error
    if type(error) in passed or vars(errors).get(type_name(error)) is type(error):
        if len(error.args) == 1 and type(error.args[0]) is str:
            if not error.args[0].startswith(f"In {what}: "):
                error.args = (f"In {what}: {error.args[0]}",)
            return error
    elif not isinstance(error, passed):
        return PluginError(
            f"Expected {what} to succeed, but it raised {described}.\nCorrect the plug-in, or do without it."
        )
    kind = next((each for each in passed if isinstance(error, each)), PluginError)
    return kind(f"In {what}: {described}.")


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
