"""Load the installed plug-ins one by one; a broken plug-in is recorded and does not affect the others."""

import inspect
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import pluggy

from lightning_poison.checks import describe, printable
from lightning_poison.entry_points import DISABLED, HOST, Candidate, Source, find_candidates
from lightning_poison.errors import PluginError
from lightning_poison.registry import hookspecs
from lightning_poison.registry.hookspecs import PROJECT, ScorerFactory, hookimpl

ATTACKS, SCORERS = "lightning_poison_attacks", "lightning_poison_scorers"
"""Names of the hooks."""

OWN_SCORERS: Mapping[str, str] = {
    "activation-clustering": "activation_clustering:ActivationClusteringScorer",
    "characteristic-vectors": "characteristic_vectors:CharacteristicVectorScorer",
    "combined": "combined:CombinedScorer",
    "confidence": "confidence:ConfidenceScorer",
    "deep-knn": "deep_knn:DeepKNNScorer",
    "discriminator": "discriminator.scorer:DiscriminatorScorer",
    "likelihood": "likelihood:LikelihoodScorer",
    "mahalanobis": "mahalanobis:MahalanobisScorer",
    "pixel-counting": "pixel_counting:PixelCountingScorer",
    "robust-features": "robust_features:RobustFeatureScorer",
    "spectral-signatures": "spectral_signatures:SpectralSignatureScorer",
}
"""Module and class in `lightning_poison.scorers` of each defense by its name; controls are not registered."""


@dataclass(frozen=True)
class Entry:
    """An attack or scorer of a plug-in.

    Args:
        name: Name for `get_attack` or `get_scorer`.
        source: Plug-in that provides it.
        summary: First line of the factory's docstring, printable in a terminal.
        factory: Builds the attack or scorer from its settings.
    """

    name: str
    source: Source
    summary: str
    factory: Callable[..., Any] = field(repr=False)


@dataclass(frozen=True)
class BrokenPlugin:
    """A plug-in that cannot be used.

    Args:
        source: Origin of the plug-in.
        phase: Phase that failed: `metadata`, `name`, `import`, `register` or `hook`.
        error: Exception that was raised.
    """

    source: Source
    phase: str
    error: BaseException

    def __str__(self) -> str:
        message = printable(" ".join(f"{type(self.error).__name__}: {self.error}".split()).rstrip("."), limit=500)
        return (
            f"Expected the plug-in {self.source} to load, but its {self.phase} failed with {message}.\n"
            f"Fix or uninstall the distribution, or disable it with {DISABLED}={printable(self.source.plugin)}."
        )


@dataclass(frozen=True)
class Plugins:
    """Result of loading all plug-ins.

    Args:
        attacks: All attacks, including those with the same name.
        scorers: All scorers, including those with the same name.
        broken: Plug-ins that cannot be used.
    """

    attacks: tuple[Entry, ...]
    scorers: tuple[Entry, ...]
    broken: tuple[BrokenPlugin, ...]


class _PhaseError(Exception):
    """An error and the phase in which it occurred."""

    def __init__(self, phase: str, error: BaseException) -> None:
        super().__init__(phase)
        self.phase = phase
        self.error = error


class _OwnScorers:
    """Our own scorers as a plug-in."""

    @hookimpl
    def lightning_poison_scorers(self) -> Mapping[str, ScorerFactory]:
        return {name: pkgutil.resolve_name(f"lightning_poison.scorers.{path}") for name, path in OWN_SCORERS.items()}


def load_all() -> Plugins:
    """Load every installed plug-in that is not disabled, and collect its attacks and scorers."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    entries: dict[str, list[Entry]] = {ATTACKS: [], SCORERS: []}
    broken = []
    own = Candidate(Source(HOST, HOST, metadata.version(HOST)), _OwnScorers)
    for candidate in [own, *find_candidates()]:
        try:
            loaded = _load(manager, candidate)
        except _PhaseError as failure:
            broken.append(BrokenPlugin(candidate.source, failure.phase, failure.error))
        else:
            for hook, found in loaded.items():
                entries[hook] += found
    return Plugins(tuple(entries[ATTACKS]), tuple(entries[SCORERS]), tuple(broken))


def _load(manager: pluggy.PluginManager, candidate: Candidate) -> dict[str, list[Entry]]:
    if candidate.fault is not None:
        raise _PhaseError(*candidate.fault)
    plugin = _run_phase("import", candidate.load)
    _run_phase("register", lambda: manager.register(plugin, name=candidate.source.plugin))
    _run_phase("register", lambda: _check_hooks(manager, plugin))
    return {hook: _entries(manager, plugin, hook, candidate.source) for hook in (ATTACKS, SCORERS)}


def _check_hooks(manager: pluggy.PluginManager, plugin: Any) -> None:
    """Refuse what pluggy accepts silently: unknown names, unmarked functions, wrappers, no hook at all."""
    callers = {each.name: each for each in manager.get_hookcallers(plugin) or []}
    known = f"{ATTACKS} and {SCORERS}"
    own = [each for caller in callers.values() for each in caller.get_hookimpls() if each.plugin is plugin]
    fault = None
    if unknown := [name for name, caller in callers.items() if not caller.has_spec()]:
        fault = f"Expected hooks named {known}, but got {', '.join(map(printable, unknown))}."
    elif unmarked := [name for name in (ATTACKS, SCORERS) if hasattr(plugin, name) and name not in callers]:
        fault = f"Expected `{unmarked[0]}` to be marked as a hook, but it is not.\nDecorate it with `@hookimpl`."
    elif not callers:
        fault = f"Expected hooks named {known}, but got none."
    elif any(each.wrapper or each.hookwrapper for each in own):
        fault = "Expected hooks that return factories by name, but got a hook wrapper."
    if fault is not None:
        raise PluginError(fault)


def _entries(manager: pluggy.PluginManager, plugin: Any, hook: str, source: Source) -> list[Entry]:
    """Call the hook of one plug-in only, so that its errors do not affect others."""
    others = [each for each in manager.get_plugins() if each is not plugin]
    caller = manager.subset_hook_caller(hook, others)
    if not caller.get_hookimpls():
        return []
    results = _run_phase("hook", caller) or [None]
    _run_phase("hook", lambda: _check_result(hook, results[0]))
    return [Entry(name, source, _summary(factory), factory) for name, factory in results[0].items()]


def _check_result(hook: str, result: Any) -> None:
    fault = None
    if not isinstance(result, Mapping):
        fault = f"Expected `{hook}` to return a dict, but got {describe(result)}."
    elif invalid := [name for name in result if not _is_name(name)]:
        fault = f"Expected `{hook}` to return names without colons and control characters, but got {invalid[0]!r}."
    elif uncallable := [name for name, factory in result.items() if not callable(factory)]:
        received = describe(result[uncallable[0]])
        fault = f"Expected `{hook}` to return a factory for {uncallable[0]!r}, but got {received}."
    if fault is not None:
        raise PluginError(fault)


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name.isprintable() and name.strip() == name != "" and ":" not in name


def _summary(factory: Callable[..., Any]) -> str:
    lines = (inspect.getdoc(factory) or "").strip().splitlines()
    return printable(lines[0]) if lines else ""


def _run_phase(phase: str, call: Callable[[], Any]) -> Any:
    """Call plug-in code, which may raise anything or exit, and attach the phase to its error."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        raise _PhaseError(phase, error) from error
