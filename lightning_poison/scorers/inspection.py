"""What the flow asks any scorer: who its members are, which features it looks at, and what a decision depends on."""

from collections.abc import Mapping
from typing import Any

from lightning_poison.data.fingerprints import digest_of
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.protocol import FeatureScorer, Scorer

AnyScorer = Scorer | FeatureScorer


def members_of(scorer: AnyScorer) -> Mapping[str, AnyScorer]:
    """Return the members of a combination by their names; of any other scorer itself.

    Example:
        >>> from lightning_poison.scorers.likelihood import LikelihoodScorer
        >>> list(members_of(LikelihoodScorer()))
        ['likelihood']
        >>> list(members_of(CombinedScorer([LikelihoodScorer(), LikelihoodScorer("posterior")])))
        ['likelihood', 'likelihood-2']
    """
    return scorer.members if isinstance(scorer, CombinedScorer) else {scorer.name: scorer}


def feature_model_of(scorer: FeatureScorer) -> FeatureModel:
    """Return the model whose features a scorer looks at; a default one where it says nothing.

    Example:
        >>> class Brightness:
        ...     name, is_control = "brightness", False
        ...     def score_features(self, features, labels):
        ...         return features.sum(1)
        >>> feature_model_of(Brightness())
        FeatureModel(feature_size=64)
    """
    model: FeatureModel = getattr(scorer, "feature_model", None) or FeatureModel()
    return model


def settings_of(scorer: AnyScorer) -> dict[str, Any]:
    """Return name and settings of a scorer, as JSON can hold them; part of a decision's fingerprint.

    Example:
        >>> from lightning_poison.scorers.likelihood import LikelihoodScorer
        >>> settings_of(LikelihoodScorer())["name"]
        'likelihood'
    """
    if isinstance(scorer, CombinedScorer):
        parts = {name: settings_of(member) for name, member in scorer.members.items()}
        return {"name": scorer.name, "combine": scorer.combine, "members": parts}
    found = {"name": scorer.name, **getattr(scorer, "settings", dict)()}
    if isinstance(scorer, Scorer):
        return found
    return {**found, "feature_model": dict(feature_model_of(scorer).settings())}


def weights_of(scorer: AnyScorer) -> str | None:
    """Return a digest of what a scorer was fitted with before it came here, or `None`.

    A trained network whose features it looks at is part of that. A module that it borrows is left out: it may be the
    one in training, and has other weights when that is resumed.

    Example:
        >>> from lightning_poison.scorers.likelihood import LikelihoodScorer
        >>> weights_of(LikelihoodScorer()) is None
        True
    """
    if isinstance(scorer, CombinedScorer):
        parts = {name: weights_of(member) for name, member in scorer.members.items()}
        return repr(parts) if any(parts.values()) else None
    if not isinstance(scorer, Scorer):
        model = feature_model_of(scorer)
        return digest_of(model.state()) if model.is_fitted else None
    if scorer.is_fitted:
        return digest_of(scorer.state()) if scorer.settings().get("module") is None else None
    looked_at = getattr(scorer, "feature_model", None)
    if not isinstance(looked_at, FeatureModel) or looked_at.model is None:
        return None
    return digest_of(looked_at.state())
