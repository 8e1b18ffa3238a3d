"""Scorers as options of a command: by their names, with settings from YAML, and with a pretrained network."""

import difflib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from jsonargparse import ArgumentError, ArgumentParser

from lightning_poison.checks import expected, printable
from lightning_poison.registry.registry import available_scorers, get_scorer
from lightning_poison.scorers.recommended import PRESETS, RecommendedScorer
from lightning_poison.scorers.union import UnionScorer

ScorerOption = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]
"""A preset; the names of scorers, with commas between them; a mapping with `name` and settings; or a list of these."""


def scorer_from_option(option: ScorerOption, backbone: str | None = None) -> Any:
    """Return the scorer that an option describes, or a union of several.

    Args:
        option: See `ScorerOption`. Settings that are objects, such as `fit_settings`, are mappings of their arguments.
        backbone: Network with pretrained weights for a preset, `timm:NAME` or `torchvision:NAME`. Default: none.

    Raises:
        ValueError: If there is no such scorer or setting, or `backbone` is given without a preset.

    Example:
        >>> scorer_from_option("fast"), scorer_from_option({"name": "likelihood", "margin": 0.5}).settings()["margin"]
        (RecommendedScorer('fast'), 0.5)
        >>> list(scorer_from_option(["confidence", {"name": "likelihood"}]).members)
        ['confidence', 'likelihood']
    """
    if isinstance(option, str) and option in PRESETS:
        return RecommendedScorer(option, encoder=backbone)
    if backbone is not None:
        what, way = (
            f"without other scorers than {', '.join(PRESETS)}",
            "Name the network in the settings of the scorer.",
        )
        raise ValueError(expected("backbone", what, repr(printable(option)), way))
    parts = option.split(",") if isinstance(option, str) else [option] if isinstance(option, Mapping) else option
    scorers = [_built(part) for part in parts if not isinstance(part, str) or part.strip()]
    if not scorers:
        raise _unknown(str(option))
    if len(scorers) == 1:
        return scorers[0]
    named = {scorer.name: scorer for scorer in scorers}
    if len(named) < len(scorers):
        twice = next(name for name in named if [each.name for each in scorers].count(name) > 1)
        raise ValueError(expected("scorer", "different scorers", f"{printable(twice)} twice"))
    return UnionScorer(named)


def _built(part: str | Mapping[str, Any]) -> Any:
    settings: dict[str, Any] = {"name": part.strip()} if isinstance(part, str) else dict(part)
    name = settings.pop("name", None)
    if not isinstance(name, str):
        came = printable(", ".join(map(str, part)) or "nothing")
        raise ValueError(expected("a scorer with settings", "the key `name`", came))
    entry = next((each for each in available_scorers() if each.name == name), None)
    if entry is None:
        raise _unknown(name)
    try:
        return get_scorer(name, **_with_objects(entry.factory, name, settings))
    except TypeError as error:
        raise ValueError(str(error)) from error


def _with_objects(factory: Any, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings in which mappings are replaced by the objects that the factory takes."""
    accepted = inspect.signature(factory).parameters
    unknown = next((key for key in settings if key not in accepted), None)
    if unknown is not None:
        raise ValueError(_unknown_setting(name, unknown, list(accepted)))
    if not any(isinstance(value, Mapping) for value in settings.values()):
        return dict(settings)
    parser = ArgumentParser(exit_on_error=False)
    add = parser.add_class_arguments if inspect.isclass(factory) else parser.add_function_arguments
    add(factory)
    try:
        built = parser.instantiate(parser.parse_object(dict(settings)))
    except ArgumentError as error:
        raise ValueError(
            f"The settings of the scorer {name} are not accepted: {printable(error, limit=500)}"
        ) from error
    return {key: built[key] for key in settings}


def _unknown_setting(name: str, key: str, accepted: Sequence[str]) -> str:
    close = difflib.get_close_matches(str(key), accepted, n=1)
    hint = f"Did you mean {close[0]}?" if close else ""
    return expected(f"the settings of {name}", f"some of {', '.join(accepted)}", repr(printable(key)), hint)


def _unknown(name: str) -> ValueError:
    what = f"one of the presets {', '.join(PRESETS)}, or scorers that are installed"
    close = difflib.get_close_matches(name.strip(), [*PRESETS, *(each.name for each in available_scorers())], n=1)
    hint = f"Did you mean {close[0]}? " if close else ""
    return ValueError(
        expected("scorer", what, repr(printable(name)), hint + "`lightning-poison attacks --scorers` lists them.")
    )
