"""Load the installed plug-ins one by one; a broken plug-in is recorded and does not affect the others."""

import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from importlib import metadata
from typing import Any, TextIO

import pluggy

from lightning_poison.checks import describe, describe_error, printable, type_name
from lightning_poison.contexts import warned_when_slow
from lightning_poison.entry_points import DISABLED, HOST, Candidate, Source, call_plugin, find_candidates
from lightning_poison.errors import PluginError
from lightning_poison.registry import hookspecs
from lightning_poison.registry.hookspecs import PROJECT, ScorerFactory, hookimpl

ATTACKS, SCORERS = "lightning_poison_attacks", "lightning_poison_scorers"
"""Names of the hooks."""

MAX_NAME = 100
"""Maximum number of characters in the name of an attack or scorer."""

OWN_SCORERS: Mapping[str, str] = {
    "activation-clustering": "activation_clustering:ActivationClusteringScorer",
    "characteristic-vectors": "characteristic_vectors:CharacteristicVectorScorer",
    "combined": "combined:CombinedScorer",
    "confidence": "confidence:ConfidenceScorer",
    "deep-knn": "deep_knn:DeepKNNScorer",
    "discriminator": "discriminator.scorer:DiscriminatorScorer",
    "layer-abnormality": "layer_abnormality:LayerAbnormalityScorer",
    "likelihood": "likelihood:LikelihoodScorer",
    "linear-probe": "linear_probe:LinearProbeScorer",
    "mahalanobis": "mahalanobis:MahalanobisScorer",
    "network-groups": "network_groups:NetworkGroupScorer",
    "pixel-counting": "pixel_counting:PixelCountingScorer",
    "prediction-stability": "prediction_stability:PredictionStabilityScorer",
    "quantum-entropy": "quantum_entropy:QuantumEntropyScorer",
    "recommended": "recommended:RecommendedScorer",
    "robust-features": "robust_features:RobustFeatureScorer",
    "spectral-signatures": "spectral_signatures:SpectralSignatureScorer",
    "union": "union:UnionScorer",
}
"""Module and class in `lightning_poison.scorers` of each defense by its name; controls are not registered."""

BUNDLED_ATTACKS: Mapping[str, str] = {
    **dict.fromkeys(
        (
            *("adaptive-blend", "adaptive-patch", "badnets", "blended", "clean-label-backdoor", "refool"),
            *("sample-specific", "sig", "tact", "wanet"),
        ),
        "lightning-poison-backdoors",
    ),
    **dict.fromkeys(
        (
            *("adaptive-frog", "adversarial-poisoning", "bullseye-polytope", "gradient-matching", "hidden-trigger"),
            *("poison-frog", "sleeper-agent"),
        ),
        "lightning-poison-collisions",
    ),
    "label-flip": "lightning-poison-labels",
    **dict.fromkeys(("fgsm", "pgd", "random-sign", "smooth-pattern"), "lightning-poison-perturbations"),
    **dict.fromkeys(("class-shielding", "class-shielding-generator"), "lightning-poison-shielding"),
}
"""Distribution of each attack of this repository by its name, for the error if it is not installed."""


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
    factory: Callable[..., Any] = field(repr=False, compare=False)


@dataclass(frozen=True)
class BrokenPlugin:
    """A plug-in that cannot be used.

    Args:
        source: Origin of the plug-in.
        phase: Phase that failed: `metadata`, `name`, `import`, `register` or `hook`.
        error: Exception that was raised.

    The attribute `fault` describes the exception in one line.
    """

    source: Source
    phase: str
    error: BaseException = field(repr=False, compare=False)
    fault: str = field(init=False)

    def __post_init__(self) -> None:
        try:  # the class of the exception may be the plug-in's own
            fault = call_plugin(lambda: describe_error(self.error), "the error")
        except PluginError:
            fault = type_name(self.error)
        object.__setattr__(self, "fault", fault)

    def __str__(self) -> str:
        return (
            f"Expected the plug-in {self.source} to load, but its {self.phase} failed with {self.fault}.\n"
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
    """Load every installed plug-in that is not disabled, and collect its attacks and scorers.

    What a plug-in changes of the process while it is loaded is restored, and control characters that it prints are
    escaped. If loading one takes 10 s, a warning names it.
    """
    entries: dict[str, list[Entry]] = {ATTACKS: [], SCORERS: []}
    broken = []
    own = Candidate(Source(HOST, HOST, metadata.version(HOST)), _OwnScorers)
    loaded: list[Any] = []
    for candidate in [own, *find_candidates()]:
        try:
            with warned_when_slow(f"Loading the plug-in {candidate.source}"), _escaped_output():
                found = _load(candidate, loaded)
        except _PhaseError as failure:
            broken.append(BrokenPlugin(candidate.source, failure.phase, failure.error))
        else:
            for hook, each in found.items():
                entries[hook] += each
    return Plugins(tuple(entries[ATTACKS]), tuple(entries[SCORERS]), tuple(broken))


def _load(candidate: Candidate, loaded: list[Any]) -> dict[str, list[Entry]]:
    """Load a plug-in. Each has a manager of its own, since a manager compares its plug-ins, whose code may fail."""
    if candidate.fault is not None:
        raise _PhaseError(*candidate.fault)
    plugin = _run_phase("import", candidate.load)
    if any(plugin is each for each in loaded):
        raise _PhaseError("register", PluginError("Expected an object of its own, but got that of another plug-in."))
    loaded.append(plugin)
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(hookspecs)
    _run_phase("register", lambda: manager.register(plugin, name=candidate.source.plugin))
    _run_phase("register", lambda: _check_hooks(manager, plugin))
    return {hook: _entries(manager, hook, candidate.source) for hook in (ATTACKS, SCORERS)}


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


def _entries(manager: pluggy.PluginManager, hook: str, source: Source) -> list[Entry]:
    caller = getattr(manager.hook, hook)

    def call() -> list[Entry]:
        factories = _checked_factories(hook, next(iter(caller()), None))
        return [Entry(name, source, _summary(factory), factory) for name, factory in factories.items()]

    return _run_phase("hook", call) if caller.get_hookimpls() else []


def _checked_factories(hook: str, result: Any) -> dict[str, Callable[..., Any]]:
    if not isinstance(result, Mapping):
        raise PluginError(f"Expected `{hook}` to return a dict, but got {describe(result)}.")
    factories = list(result.items())
    if invalid := [name for name, _ in factories if not _is_name(name)]:
        rule = f"names of 1 to {MAX_NAME} characters without colons and control characters"
        raise PluginError(f"Expected `{hook}` to return {rule}, but got {printable(repr(invalid[0]))}.")
    if uncallable := [(name, factory) for name, factory in factories if not callable(factory)]:
        name, received = uncallable[0]
        raise PluginError(f"Expected `{hook}` to return a factory for {name!r}, but got {describe(received)}.")
    return dict(factories)


def _is_name(name: Any) -> bool:
    is_text = type(name) is str and name.isprintable() and name.strip() == name
    return is_text and ":" not in name and 1 <= len(name) <= MAX_NAME


def _summary(factory: Callable[..., Any]) -> str:
    lines = (inspect.getdoc(factory) or "").strip().splitlines()
    return printable(lines[0]) if lines else ""


def _run_phase(phase: str, call: Callable[[], Any]) -> Any:
    """Call plug-in code, which may raise anything or exit, and attach the phase to its error."""
    try:
        return call_plugin(call, f"the {phase}", passed=())
    except PluginError as error:
        raise _PhaseError(phase, error.__cause__ or error) from error


@contextmanager
def _escaped_output() -> Iterator[None]:
    """Escape control characters in what plug-ins print, which could otherwise change what a terminal shows."""
    out, err = (stream and _EscapedStream(stream) for stream in (sys.stdout, sys.stderr))  # without a console, None
    with redirect_stdout(out), redirect_stderr(err):
        yield


class _EscapedStream:
    """A stream that writes printable characters, tabs and line ends to another one, and escapes all others."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        lines = text.split("\n")
        shown = ["\t".join(printable(part, limit=len(part) * 10 + 1) for part in line.split("\t")) for line in lines]
        self._stream.write("\n".join(shown))
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        self.write("".join(lines))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
