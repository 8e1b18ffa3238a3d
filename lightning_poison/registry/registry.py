"""Attacks and scorers by name, from all installed plug-ins, which are loaded on first use."""

import difflib
import functools
import inspect
import warnings
from collections.abc import Sequence
from typing import Any

from lightning_poison.attacks.crafting import check_identity
from lightning_poison.attacks.poison import Attack
from lightning_poison.checks import describe, printable
from lightning_poison.errors import PluginError, UnknownNameError
from lightning_poison.registry.loading import Offer, Plugins, load_all
from lightning_poison.scorers.protocol import FeatureScorer, Scorer


def load_plugins(*, strict: bool = False, afresh: bool = False) -> Plugins:
    """Return what the installed plug-ins offer, and which are broken.

    They are loaded once. One that is broken is recorded, is warned of once, and breaks no other.

    Args:
        strict: raise where a plug-in is broken.
        afresh: look at what is installed again; modules that are imported already stay as they are.

    Raises:
        PluginError: where `strict` is set and a plug-in is broken; what it raised is chained.

    Example:
        >>> plugins = load_plugins()
        >>> "likelihood" in [offer.name for offer in plugins.scorers if offer.source.distribution == "lightning-poison"]
        True
        >>> plugins is load_plugins()
        True
    """
    if afresh:
        _loaded.cache_clear()
        _warned.clear()
    plugins = _loaded()
    if strict and plugins.broken:
        raise PluginError(str(plugins.broken[0])) from plugins.broken[0].error
    for broken in plugins.broken:
        if str(broken) not in _warned:
            _warned.add(str(broken))
            warnings.warn(str(broken), RuntimeWarning, stacklevel=3)
    return plugins


def available_attacks() -> tuple[Offer, ...]:
    """Return the attacks that are installed, by name.

    Example:
        >>> names = [offer.name for offer in available_attacks()]
        >>> names == sorted(offer.name for offer in load_plugins().attacks)
        True
    """
    return tuple(sorted(load_plugins().attacks, key=_order))


def available_scorers() -> tuple[Offer, ...]:
    """Return the scorers that are installed, by name.

    Example:
        >>> own = [offer.name for offer in available_scorers() if offer.source.distribution == "lightning-poison"]
        >>> own[:4]
        ['activation-clustering', 'characteristic-vectors', 'combined', 'confidence']
    """
    return tuple(sorted(load_plugins().scorers, key=_order))


def get_attack(name: str, **settings: Any) -> Attack:
    """Build an attack by its name.

    Args:
        name: as `available_attacks` lists it; `plugin:name` where two plug-ins offer the same.
        **settings: the arguments of the attack's factory.

    Raises:
        UnknownNameError: where no plug-in offers the name; it lists those there are and the nearest.
        PluginError: where two plug-ins offer the name, where the plug-in is broken (what it raised is chained), or
            where the factory returns no attack.
        TypeError: where the factory does not take these settings; it shows those that it takes.

    Example:
        >>> try:
        ...     get_attack("no-such-attack")
        ... except UnknownNameError as error:
        ...     print(error)
        Expected the name of an installed attack (...), but got 'no-such-attack'.
        Install the distribution that offers it.
    """
    offer = _find("attack", name, load_plugins().attacks)
    attack = _build("attack", offer, settings)
    check_identity(attack)
    return attack  # type: ignore[no-any-return]


def get_scorer(name: str, **settings: Any) -> Scorer | FeatureScorer:
    """Build a scorer by its name; see `get_attack`.

    Example:
        >>> get_scorer("likelihood", margin=0.5).settings()["margin"]
        0.5
    """
    offer = _find("scorer", name, load_plugins().scorers)
    scorer = _build("scorer", offer, settings)
    if not isinstance(scorer, Scorer | FeatureScorer):
        raise PluginError(
            f"Expected the factory of the scorer `{printable(name)}` in {offer.source} to return a scorer, "
            f"but got {describe(scorer)}."
        )
    return scorer


_warned: set[str] = set()


@functools.cache
def _loaded() -> Plugins:
    return load_all()


def _order(offer: Offer) -> tuple[str, str]:
    return offer.name, offer.source.plugin


def _find(noun: str, name: str, offers: Sequence[Offer]) -> Offer:
    plugin, _, bare = name.rpartition(":")
    found = [offer for offer in offers if offer.name == bare and plugin in ("", offer.source.plugin)]
    if not found:
        raise _unknown(noun, name, offers)
    if len(found) > 1:
        sources = " and ".join(str(offer.source) for offer in found)
        ways = " or ".join(f"`{offer.source.plugin}:{bare}`" for offer in found)
        raise PluginError(f"Expected one {noun} `{printable(bare)}`, but got it from {sources}.\nWrite {ways}.")
    return found[0]


def _unknown(noun: str, name: str, offers: Sequence[Offer]) -> Exception:
    """Blame a broken plug-in where the name may well be its; else say what there is."""
    plugin, _, bare = name.rpartition(":")
    names = sorted({offer.name for offer in offers})
    misspelled = difflib.get_close_matches(bare, names, n=1)
    suspects = [each for each in load_plugins().broken if plugin in ("", each.source.plugin)]
    if suspects and (plugin or not misspelled):
        listed = "\n".join(map(str, suspects))
        error = PluginError(
            f"Expected a {noun} `{printable(name)}`, but the plug-in that may offer it is broken.\n{listed}"
        )
        error.__cause__ = suspects[0].error
        return error
    holding = sorted((each for each in names if bare and bare.casefold() in each.casefold()), key=len)
    near = holding[:3] or difflib.get_close_matches(bare, names, n=1, cutoff=0.5)
    meant = " or ".join(f"`{each}`" for each in near)
    hint = f"Did you mean {meant}?" if near else "Install the distribution that offers it."
    return UnknownNameError(
        f"Expected the name of an installed {noun} ({', '.join(names) or 'none'}), but got {printable(name)!r}.\n{hint}"
    )


def _build(noun: str, offer: Offer, settings: dict[str, Any]) -> Any:
    try:
        signature = inspect.signature(offer.factory)
    except (TypeError, ValueError):
        return offer.factory(**settings)
    try:
        signature.bind(**settings)
    except TypeError as error:
        raise TypeError(
            f"Expected settings that the {noun} `{offer.name}` takes, but got {_listed(settings)}: {error}.\n"
            f"It takes {offer.name}{signature}."
        ) from None
    return offer.factory(**settings)


def _listed(settings: dict[str, Any]) -> str:
    return printable(", ".join(f"{name}={value!r}" for name, value in settings.items()) or "none")
