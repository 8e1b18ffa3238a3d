"""Properties of any scorer, single or combined, that a decision depends on."""

from collections.abc import Mapping
from typing import Any

from lightning_poison.checks import describe, expected, printable, type_name
from lightning_poison.data.fingerprints import digest_of
from lightning_poison.entry_points import call_plugin
from lightning_poison.errors import PluginError
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.protocol import FeatureSource, Scorer, SetScorer
from lightning_poison.scorers.recommended import RecommendedScorer
from lightning_poison.scorers.union import Member, UnionScorer

AnyScorer = Member | UnionScorer | RecommendedScorer


def members_of(scorer: AnyScorer) -> Mapping[str, Scorer | SetScorer]:
    """Return the members of a combination by name. A single scorer is its only member.

    Raises:
        TypeError: If it is a union, whose members decide separately.

    Example:
        >>> from lightning_poison.scorers.likelihood import LikelihoodScorer
        >>> list(members_of(LikelihoodScorer()))
        ['likelihood']
        >>> list(members_of(CombinedScorer([LikelihoodScorer(), LikelihoodScorer("posterior")])))
        ['likelihood', 'likelihood-2']
    """
    if isinstance(scorer, UnionScorer | RecommendedScorer):
        raise TypeError(expected("scorer", "a scorer or a combination", f"a {type(scorer).__name__}"))
    return scorer.members if isinstance(scorer, CombinedScorer) else {scorer.name: scorer}


def all_members_of(scorer: AnyScorer) -> list[Scorer | SetScorer]:
    """Return the scorers in a union and its combinations. A `RecommendedScorer` has none until the data are known.

    Example:
        >>> from lightning_poison.scorers.likelihood import LikelihoodScorer
        >>> first, second, third = (LikelihoodScorer() for _ in range(3))
        >>> len(all_members_of(UnionScorer([CombinedScorer([first, second]), third])))
        3
    """
    if isinstance(scorer, RecommendedScorer):
        return []
    parts = scorer.members.values() if isinstance(scorer, UnionScorer) else [scorer]
    return [member for part in parts for member in members_of(part).values()]


def feature_model_of(scorer: SetScorer) -> FeatureSource:
    """Return the network whose features are scored. Default: `FeatureModel()`.

    Example:
        >>> class Brightness(SetScorer):
        ...     name = "brightness"
        ...     def score_features(self, features, labels):
        ...         return features.sum(1)
        >>> feature_model_of(Brightness())
        FeatureModel(feature_size=64)
    """
    return scorer.feature_model or FeatureModel()


def never_saw_labels(scorer: AnyScorer) -> bool:
    """Return whether a scorer reads features of a network with pretrained weights, named by `FeatureModel(NAME)`.

    Example:
        >>> from lightning_poison.scorers.linear_probe import LinearProbeScorer
        >>> [never_saw_labels(LinearProbeScorer(FeatureModel(name))) for name in ("auto", None)]
        [True, False]
    """
    source = scorer.feature_model if isinstance(scorer, SetScorer) else None
    return isinstance(source, FeatureModel) and source.name is not None


def is_own(scorer: object) -> bool:
    """Return whether the class of a scorer or feature source is part of this package.

    Example:
        >>> from lightning_poison.scorers.likelihood import LikelihoodScorer
        >>> is_own(LikelihoodScorer()), is_own(type("Mine", (LikelihoodScorer,), {"__module__": "mine"})())
        (True, False)
    """
    return str(type(scorer).__module__).partition(".")[0] == __name__.partition(".")[0]


def settings_in(part: Any) -> dict[str, Any]:
    """Return what `settings` of a scorer or feature source returns; for one of another package guarded.

    Raises:
        PluginError: If it raises an error, or returns something else than a dict.

    Example:
        >>> from lightning_poison.scorers.likelihood import LikelihoodScorer
        >>> settings_in(LikelihoodScorer(margin=0.5))["margin"]
        0.5
    """
    if is_own(part):
        return dict(part.settings())
    kind, fallback = "scorer" if isinstance(part, Scorer | SetScorer) else "feature model", type_name(part)
    name = call_plugin(lambda: printable(getattr(part, "name", fallback)), f"`name` of {fallback}")
    what = f"`settings` of the {kind} `{name}`"
    found = call_plugin(part.settings, what)
    if not isinstance(found, Mapping):
        raise PluginError(f"Expected {what} to return a dict of JSON values, but got {printable(describe(found))}.")
    return call_plugin(lambda: dict(found), what)


def settings_of(scorer: AnyScorer) -> dict[str, Any]:
    """Return the name and the settings of a scorer as JSON values. They are part of a decision's fingerprint.

    Example:
        >>> from lightning_poison.scorers.likelihood import LikelihoodScorer
        >>> settings_of(LikelihoodScorer())["name"]
        'likelihood'
    """
    if isinstance(scorer, RecommendedScorer):
        return {"name": scorer.name, **scorer.settings()}
    if isinstance(scorer, CombinedScorer | UnionScorer):
        members = {name: settings_of(member) for name, member in scorer.members.items()}
        return {"name": scorer.name, **scorer.settings(), "members": members}
    found = {"name": scorer.name, **settings_in(scorer)}
    if isinstance(scorer, Scorer):
        return found
    return {**found, "feature_model": settings_in(feature_model_of(scorer))}


def weights_of(scorer: AnyScorer) -> str | None:
    """Return a digest of the tensors that a scorer was fitted with before the decision. `None` if there are none.

    They include the weights of a trained network whose features are scored. A module of the user is left out: it may be
    in training, with other weights when the training is resumed.

    Example:
        >>> from lightning_poison.scorers.likelihood import LikelihoodScorer
        >>> weights_of(LikelihoodScorer()) is None
        True
    """
    if isinstance(scorer, RecommendedScorer):
        return None
    if isinstance(scorer, CombinedScorer | UnionScorer):
        members = {name: weights_of(member) for name, member in scorer.members.items()}
        return repr(members) if any(members.values()) else None
    if isinstance(scorer, Scorer) and scorer.is_fitted:
        return digest_of(scorer.state()) if scorer.borrowed_module is None else None
    source = scorer.feature_model
    return digest_of(source.state()) if source is not None and source.is_fitted else None
