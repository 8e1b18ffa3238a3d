"""The installed plug-ins, loaded and checked one by one; a broken one is recorded and breaks no other."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any

import pluggy

from lightning_poison.checks import describe, printable
from lightning_poison.entry_points import DISABLED, HOST, Candidate, Source, find_candidates
from lightning_poison.errors import PluginError
from lightning_poison.registry import hookspecs
from lightning_poison.registry.hookspecs import API_VERSION, PROJECT, hookimpl
from lightning_poison.scorers.activation_clustering import ActivationClusteringScorer
from lightning_poison.scorers.characteristic_vectors import CharacteristicVectorScorer
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.confidence import ConfidenceScorer
from lightning_poison.scorers.deep_knn import DeepKNNScorer
from lightning_poison.scorers.discriminator.scorer import DiscriminatorScorer
from lightning_poison.scorers.inspection import AnyScorer
from lightning_poison.scorers.likelihood import LikelihoodScorer
from lightning_poison.scorers.mahalanobis import MahalanobisScorer
from lightning_poison.scorers.pixel_counting import PixelCountingScorer
from lightning_poison.scorers.robust_features import RobustFeatureScorer
from lightning_poison.scorers.spectral_signatures import SpectralSignatureScorer

OWN_SCORERS: Mapping[str, Callable[..., AnyScorer]] = {
    scorer.name: scorer
    for scorer in (
        ActivationClusteringScorer,
        CharacteristicVectorScorer,
        CombinedScorer,
        ConfidenceScorer,
        DeepKNNScorer,
        DiscriminatorScorer,
        LikelihoodScorer,
        MahalanobisScorer,
        PixelCountingScorer,
        RobustFeatureScorer,
        SpectralSignatureScorer,
    )
}
"""Defenses alone; the controls are not offered by name."""


ATTACKS, SCORERS = "lightning_poison_attacks", "lightning_poison_scorers"


@dataclass(frozen=True)
class Offer:
    """One attack or scorer that a plug-in offers.

    Args:
        name: what `get_attack` or `get_scorer` finds it by.
        source: where it comes from.
        summary: one line, the first of the factory's docstring, fit for a terminal.
        factory: builds it; its arguments are the settings.
    """

    name: str
    source: Source
    summary: str
    factory: Callable[..., Any] = field(repr=False)


@dataclass(frozen=True)
class BrokenPlugin:
    """A plug-in that could not be used.

    Args:
        source: where it comes from.
        phase: what failed: `metadata`, `name`, `import`, `version`, `register` or `hook`.
        error: what was raised.
    """

    source: Source
    phase: str
    error: BaseException

    def __str__(self) -> str:
        said = printable(" ".join(f"{type(self.error).__name__}: {self.error}".split()).rstrip("."), limit=500)
        return (
            f"Expected the plug-in {self.source} to load, but its {self.phase} failed with {said}.\n"
            f"Repair or uninstall the distribution, or leave it out with {DISABLED}={printable(self.source.plugin)}."
        )


@dataclass(frozen=True)
class Plugins:
    """What loading found.

    Args:
        attacks: all attacks that are offered, names given twice included.
        scorers: all scorers.
        broken: the plug-ins that could not be used.
    """

    attacks: tuple[Offer, ...]
    scorers: tuple[Offer, ...]
    broken: tuple[BrokenPlugin, ...]


class _PhaseError(Exception):
    """Carries what failed and in which phase."""

    def __init__(self, phase: str, error: BaseException) -> None:
        super().__init__(phase)
        self.phase = phase
        self.error = error


class _Host:
    """The host's own scorers, through the door that everybody uses."""

    LIGHTNING_POISON_API = API_VERSION

    @hookimpl
    def lightning_poison_scorers(self) -> Mapping[str, hookspecs.ScorerFactory]:

        return OWN_SCORERS


def load_all() -> Plugins:
    """Load every installed plug-in that is not switched off, and ask it what it offers."""
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    attacks: list[Offer] = []
    scorers: list[Offer] = []
    broken = []
    host = Candidate(Source(HOST, HOST, metadata.version(HOST)), _Host)
    for candidate in [host, *find_candidates()]:
        try:
            offered = _load(manager, candidate)
        except _PhaseError as failure:
            broken.append(BrokenPlugin(candidate.source, failure.phase, failure.error))
        else:
            attacks += offered[ATTACKS]
            scorers += offered[SCORERS]
    return Plugins(tuple(attacks), tuple(scorers), tuple(broken))


def _load(manager: pluggy.PluginManager, candidate: Candidate) -> dict[str, list[Offer]]:
    if candidate.fault is not None:
        raise _PhaseError(*candidate.fault)
    plugin = _in_phase("import", candidate.load)
    _in_phase("version", lambda: _check_version(plugin))
    _in_phase("register", lambda: manager.register(plugin, name=candidate.source.plugin))
    _in_phase("register", lambda: _check_hooks(manager, plugin))
    return {hook: _offers(manager, plugin, hook, candidate.source) for hook in (ATTACKS, SCORERS)}


def _check_version(plugin: Any) -> None:
    stated = getattr(plugin, "LIGHTNING_POISON_API", API_VERSION)
    whole = isinstance(stated, tuple) and len(stated) == 2 and all(isinstance(number, int) for number in stated)
    if not whole or stated[0] != API_VERSION[0] or stated[1] > API_VERSION[1]:
        major, minor = API_VERSION
        raise PluginError(
            f"Expected `LIGHTNING_POISON_API` to be ({major}, 0) to ({major}, {minor}), but got {stated!r}.\n"
            "Install versions of the plug-in and of lightning-poison that fit each other."
        )


def _check_hooks(manager: pluggy.PluginManager, plugin: Any) -> None:
    """Refuse what pluggy takes in silence: unknown names, unmarked functions, wrappers, no hook at all."""
    callers = {each.name: each for each in manager.get_hookcallers(plugin) or []}
    known = f"{ATTACKS} and {SCORERS}"
    own = [each for caller in callers.values() for each in caller.get_hookimpls() if each.plugin is plugin]
    fault = None
    if unknown := [name for name, caller in callers.items() if not caller.has_spec()]:
        fault = f"Expected hooks of the names {known}, but got {', '.join(map(printable, unknown))}."
    elif unmarked := [name for name in (ATTACKS, SCORERS) if hasattr(plugin, name) and name not in callers]:
        fault = f"Expected `{unmarked[0]}` to be marked, but it is not.\nWrite `@hookimpl` above it."
    elif not callers:
        fault = f"Expected hooks of the names {known}, but got none."
    elif any(each.wrapper or each.hookwrapper for each in own):
        fault = "Expected hooks that return names and factories, but got a wrapper of other plug-ins' hooks."
    if fault is not None:
        raise PluginError(fault)


def _offers(manager: pluggy.PluginManager, plugin: Any, hook: str, source: Source) -> list[Offer]:
    """Ask one plug-in alone, so that none can stop another."""
    others = [each for each in manager.get_plugins() if each is not plugin]
    caller = manager.subset_hook_caller(hook, others)
    if not caller.get_hookimpls():
        return []
    answers = _in_phase("hook", caller) or [None]
    _in_phase("hook", lambda: _check_answer(hook, answers[0]))
    return [Offer(name, source, _summary(factory), factory) for name, factory in answers[0].items()]


def _check_answer(hook: str, answer: Any) -> None:
    fault = None
    if not isinstance(answer, Mapping):
        fault = f"Expected `{hook}` to return a dict, but got {describe(answer)}."
    elif strange := [name for name in answer if not _is_name(name)]:
        fault = f"Expected `{hook}` to return names without colons and control characters, but got {strange[0]!r}."
    elif idle := [name for name, factory in answer.items() if not callable(factory)]:
        fault = f"Expected `{hook}` to return a factory for {idle[0]!r}, but got {describe(answer[idle[0]])}."
    if fault is not None:
        raise PluginError(fault)


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and name.isprintable() and name.strip() == name != "" and ":" not in name


def _summary(factory: Callable[..., Any]) -> str:
    lines = (inspect.getdoc(factory) or "").strip().splitlines()
    return printable(lines[0]) if lines else ""


def _in_phase(phase: str, call: Callable[[], Any]) -> Any:
    """Call a stranger's code, which may raise anything and even exit; all of it is recorded and shown."""
    try:
        return call()
    except (Exception, SystemExit) as error:
        raise _PhaseError(phase, error) from error
