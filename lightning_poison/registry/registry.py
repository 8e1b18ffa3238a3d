"""Attacks and scorers by name, from all installed plug-ins, which are loaded on first use."""

import difflib
import functools
import inspect
import threading
import warnings
from collections.abc import Sequence
from typing import Any

from packaging.utils import canonicalize_name

from lightning_poison.attacks.crafting import check_interface
from lightning_poison.attacks.poison import Attack
from lightning_poison.checks import describe, printable
from lightning_poison.entry_points import DISABLED, HOST, call_plugin, plugin_distributions
from lightning_poison.errors import PluginError, UnknownNameError
from lightning_poison.registry.loading import BUNDLED_ATTACKS, Entry, Plugins, load_all
from lightning_poison.scorers.inspection import AnyScorer


def load_plugins(*, strict: bool = False) -> Plugins:
    """Return the attacks and scorers of all installed plug-ins, and the plug-ins that are broken.

    Plug-ins are loaded once. A broken plug-in is recorded and reported by one warning; the others stay usable.

    Args:
        strict: Whether to raise an error for a broken plug-in. Default: `False`.

    Raises:
        PluginError: If `strict` is set and a plug-in is broken, chained to the original error; or if a plug-in calls
            this while plug-ins are loaded.

    Example:
        >>> plugins = load_plugins()
        >>> "likelihood" in [entry.name for entry in plugins.scorers if entry.source.distribution == "lightning-poison"]
        True
        >>> plugins is load_plugins()
        True
    """
    with _lock:
        if _is_loading:
            raise PluginError(
                "Expected the registry to be used after plug-ins are loaded, but a plug-in uses it while it is loaded "
                "itself.\nUse it inside of the functions that need it, not at import or in a hook."
            )
        plugins = _load_once()
    if strict and plugins.broken:
        raise PluginError(str(plugins.broken[0])) from plugins.broken[0].error
    for broken in plugins.broken:
        if str(broken) not in _reported:
            _reported.add(str(broken))
            warnings.warn(str(broken), RuntimeWarning, stacklevel=3)
    return plugins


def available_attacks() -> tuple[Entry, ...]:
    """Return the installed attacks, sorted by name.

    Example:
        >>> names = [entry.name for entry in available_attacks()]
        >>> names == sorted(entry.name for entry in load_plugins().attacks)
        True
    """
    return tuple(sorted(load_plugins().attacks, key=_sort_key))


def available_scorers() -> tuple[Entry, ...]:
    """Return the installed scorers, sorted by name.

    Example:
        >>> own = [entry.name for entry in available_scorers() if entry.source.distribution == "lightning-poison"]
        >>> own[:4]
        ['activation-clustering', 'characteristic-vectors', 'combined', 'confidence']
    """
    return tuple(sorted(load_plugins().scorers, key=_sort_key))


def get_attack(name: str, **settings: Any) -> Attack:
    """Build an attack by its name.

    Args:
        name: Name as listed by `available_attacks`; `plugin:name` if several plug-ins provide the same name.
        **settings: Arguments of the attack's factory.

    Raises:
        UnknownNameError: If no plug-in provides the name. The message lists the available names and the closest ones,
            or names the distribution to install.
        PluginError: If several plug-ins provide the name, the plug-in is broken or its factory fails (chained to the
            original error), or the factory does not return an attack.
        TypeError: If the factory does not accept these settings. The message shows its signature.
        ValueError: If the factory refuses a setting. The message names the attack.

    Example:
        >>> try:
        ...     get_attack("no-such-attack")
        ... except UnknownNameError as error:
        ...     print(error)
        Expected the name of an installed attack (...), but got 'no-such-attack'.
        Install the distribution that provides it.
    """
    entry = find_entry("attack", name, load_plugins().attacks)
    attack = _build("attack", entry, settings)
    try:
        check_interface(attack)
    except PluginError as error:
        raise PluginError(f"In the attack `{entry.name}` of {entry.source}: {error}") from error
    return attack  # type: ignore[no-any-return]


def attack_factory(name: str) -> Any:
    """Return the factory of an attack, which declares what the attack is like before it is built; see `Attack`.

    Raises:
        UnknownNameError: See `get_attack`.
        PluginError: If several plug-ins provide the name, or the plug-in is broken.
    """
    return find_entry("attack", name, load_plugins().attacks).factory


def adaptive_attacks(scorer: str) -> tuple[Entry, ...]:
    """Return the installed attacks that were made to evade a scorer: those whose `adaptive_to` names it.

    Args:
        scorer: Name of a scorer or of a preset.

    Example:
        >>> adaptive_attacks("no-such-scorer")
        ()
    """
    entries = available_attacks()
    return tuple(entry for entry in entries if scorer in tuple(getattr(entry.factory, "adaptive_to", ())))


def get_adaptive_attack(
    name: str,
    scorer: AnyScorer,
    clean: Any,
    *,
    false_positive_rate: float = 0.01,
    runtime: Any = None,
    generator: Any = None,
    **settings: Any,
) -> Attack:
    """Build an attack that knows the scorer that it is to evade, with `against` of its factory.

    Args:
        name: Name of the attack, whose factory sets `knows_scorer`.
        scorer: The scorer. It is not changed: the attack fits a copy of it.
        clean: Samples that the attacker has, on which the copy is fitted and calibrated.
        false_positive_rate: False-positive rate of the defender, in (0, 1).
        runtime: Where to compute. Default: the CPU.
        generator: The only source of randomness. Default: a fixed seed.
        **settings: Further arguments of the attack.

    Raises:
        UnknownNameError: See `get_attack`.
        PluginError: If the factory does not set `knows_scorer`, or fails.
        ValueError: If the attack cannot evade this scorer, or refuses a setting.
        TypeError: As `ValueError`.
    """
    entry = find_entry("attack", name, load_plugins().attacks)
    what = f"`against` of the attack `{entry.name}` in {entry.source}"
    if not getattr(entry.factory, "knows_scorer", False):
        raise PluginError(
            f"Expected the attack `{printable(name)}` to know a scorer, but its factory does not set `knows_scorer`.\n"
            "Build it with `get_attack`."
        )
    arguments: dict[str, Any] = {"false_positive_rate": false_positive_rate, "runtime": runtime, "generator": generator}
    attack = call_plugin(lambda: entry.factory.against(scorer, clean, **arguments, **settings), what, passed=_PASSED)  # type: ignore[attr-defined]
    check_interface(attack)
    return attack  # type: ignore[no-any-return]


def get_scorer(name: str, **settings: Any) -> AnyScorer:
    """Build a scorer by its name.

    Args:
        name: Name as listed by `available_scorers`; `plugin:name` if several plug-ins provide the same name.
        **settings: Arguments of the scorer's class.

    Raises:
        UnknownNameError: If no plug-in provides the name. The message lists the available names and the closest ones.
        PluginError: If several plug-ins provide the name, the plug-in is broken or its factory fails (chained to the
            original error), or the factory does not return a scorer.
        TypeError: If the factory does not accept these settings. The message shows its signature.
        ValueError: If the factory refuses a setting.

    Example:
        >>> get_scorer("likelihood", margin=0.5).settings()["margin"]
        0.5
    """
    entry = find_entry("scorer", name, load_plugins().scorers)
    scorer = _build("scorer", entry, settings)
    if not issubclass(type(scorer), AnyScorer):
        raise PluginError(
            f"Expected the factory of the scorer `{printable(name)}` in {entry.source} to return a scorer, "
            f"but got {call_plugin(lambda: describe(scorer), 'its description')}.\n"
            "Derive its class from `Scorer` or `SetScorer`."
        )
    return scorer  # type: ignore[no-any-return]


_reported: set[str] = set()
_lock = threading.RLock()
_is_loading: list[bool] = []
"""Not empty while plug-ins are loaded, by the thread that holds the lock."""


@functools.cache
def _load_once() -> Plugins:
    _is_loading.append(True)
    try:
        return load_all()
    finally:
        _is_loading.clear()


def _sort_key(entry: Entry) -> tuple[str, str]:
    return entry.name, entry.source.plugin


def find_entry(noun: str, name: str, entries: Sequence[Entry]) -> Entry:
    """Return the only entry of this name; `plugin:name` selects that of a plug-in.

    Args:
        noun: `"attack"` or `"scorer"`, for messages.
        name: Its name.
        entries: The entries among which it is found.

    Raises:
        UnknownNameError: See `get_attack`.
        PluginError: See `get_attack`.
    """
    plugin, _, bare = name.rpartition(":")
    found = [entry for entry in entries if entry.name == bare and plugin in ("", entry.source.plugin)]
    if not found:
        raise _unknown_name(noun, name, entries)
    if len(found) > 1:
        sources = " and ".join(str(entry.source) for entry in found)
        qualified = " or ".join(f"`{entry.source.plugin}:{bare}`" for entry in found)
        raise PluginError(
            f"Expected one plug-in with the {noun} `{printable(bare)}`, but got {sources}.\nWrite {qualified}."
        )
    return found[0]


def _unknown_name(noun: str, name: str, entries: Sequence[Entry]) -> Exception:
    """Return an error that names a broken plug-in if it may provide the name, else the available names."""
    plugin, _, bare = name.rpartition(":")
    names = sorted({entry.name for entry in entries})
    misspelled = difflib.get_close_matches(bare, names, n=1)
    bundle = BUNDLED_ATTACKS.get(bare) if noun == "attack" and not plugin else None
    suspects = [each for each in load_plugins().broken if plugin in ("", each.source.plugin)]
    suspects = [each for each in suspects if bundle in (None, canonicalize_name(each.source.distribution))]
    if suspects and (plugin or not misspelled):
        listed = "\n".join(map(str, suspects))
        error = PluginError(
            f"Expected the {noun} `{printable(name)}`, but a plug-in that may provide it is broken.\n{listed}"
        )
        error.__cause__ = suspects[0].error
        return error
    if bundle is not None:
        return _not_installed(bare, bundle, names)
    containing = sorted((each for each in names if bare and bare.casefold() in each.casefold()), key=len)
    closest = containing[:3] or misspelled
    bundled = difflib.get_close_matches(bare, BUNDLED_ATTACKS, n=1, cutoff=0.8) if noun == "attack" else []
    if bundled and not closest:
        return _not_installed(name, BUNDLED_ATTACKS[bundled[0]], names, hint=f"Did you mean `{bundled[0]}`? ")
    suggested = " or ".join(f"`{each}`" for each in closest)
    hint = f"Did you mean {suggested}?" if closest else "Install the distribution that provides it."
    return UnknownNameError(
        f"Expected the name of an installed {noun} ({', '.join(names) or 'none'}), but got {printable(name)!r}.\n{hint}"
    )


def _not_installed(name: str, distribution: str, names: Sequence[str], *, hint: str = "") -> UnknownNameError:
    """Return the error for an attack of this repository whose distribution is not installed, or is disabled."""
    installed = {canonicalize_name(each.metadata["Name"]) for each in plugin_distributions()}
    hint += f"Install its distribution: pip install {distribution}"
    if distribution in installed:
        hint = f"Its distribution `{distribution}` is installed, but disabled: see {DISABLED}."
    listed = ", ".join(names) or "none"
    return UnknownNameError(
        f"Expected the name of an installed attack ({listed}), but got {printable(name)!r}.\n{hint}"
    )


_PASSED = (ValueError, TypeError, LookupError, OSError)
"""Errors of factories that are addressed to the user, who chose the settings."""


def _build(noun: str, entry: Entry, settings: dict[str, Any]) -> Any:
    what = f"the factory of the {noun} `{entry.name}` in {entry.source}"
    fault = call_plugin(lambda: _fault_of_settings(noun, entry, settings), what, passed=_PASSED)
    if fault is not None:
        raise TypeError(fault)
    if entry.source.distribution == HOST:
        return entry.factory(**settings)
    return call_plugin(lambda: entry.factory(**settings), what, passed=_PASSED)


def _nearest_setting(signature: inspect.Signature, settings: dict[str, Any]) -> str:
    """Return a line that names the setting that was probably meant, or an empty text."""
    known = [name for name in signature.parameters if name != "_"]
    unknown = [name for name in settings if name not in known]
    nearest = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5) if unknown else []
    return f"\nDid you mean `{printable(nearest[0])}`?" if nearest else ""


def _fault_of_settings(noun: str, entry: Entry, settings: dict[str, Any]) -> str | None:
    try:
        signature = inspect.signature(entry.factory)
    except (TypeError, ValueError):  # a factory without one, such as some classes written in C
        return None
    try:
        signature.bind(**settings)
    except TypeError as error:
        received = printable(", ".join(f"{name}={value!r}" for name, value in settings.items()) or "none")
        return (
            f"Expected settings of the {noun} `{entry.name}`, but got {received}: {printable(error)}.\n"
            f"The signature is {entry.name}{printable(signature, limit=1000)}.{_nearest_setting(signature, settings)}"
        )
    return None
