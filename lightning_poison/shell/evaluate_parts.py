"""What the processes of an evaluation call: attacks, defenses and training. Loads torch when called."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lightning_poison.evaluation.grid import Parts
from lightning_poison.shell.evaluate_settings import AttackSettings, DataSettings, DefenseSettings, ModelSettings

if TYPE_CHECKING:
    from torch import Tensor

    from lightning_poison.attacks.poison import Poison
    from lightning_poison.attacks.threat import Surrogate
    from lightning_poison.evaluation.measurement import Judgment, TrainedModel
    from lightning_poison.sanitization.verdict import Verdict


@dataclass(frozen=True)
class PartsOfSeed:
    """Returns the data of a seed."""

    data: DataSettings

    def __call__(self, seed: int) -> Parts:
        """Return the data, divided."""
        from lightning_poison.shell.evaluate_data import parts_of

        return parts_of(self.data, seed)


@dataclass(frozen=True)
class Training:
    """Trains the model on a data set."""

    data: DataSettings
    model: ModelSettings
    device: str = "cpu"

    def __call__(self, dataset: Any, seed: int) -> TrainedModel:
        """Return a new model."""
        from lightning_poison.shell.evaluate_model import fitted_model, trained_model

        module = fitted_model(self.data, self.model, dataset, seed, self.device)
        return trained_model(module, self.model.feature_layer)


@dataclass(frozen=True)
class HeldOutSurrogate:
    """Trains the surrogate of a seed: a model like the victim's, on the samples that the attacker has."""

    data: DataSettings
    model: ModelSettings
    device: str = "cpu"

    def __call__(self, parts: Parts, seed: int) -> Sequence[Surrogate]:
        """Return the surrogates."""
        from lightning_poison.shell.evaluate_model import surrogate_of

        return [surrogate_of(self.data, self.model, parts.holdout, seed, self.device)]


@dataclass(frozen=True)
class Crafting:
    """Crafts the poison of an attack, which may know the scorer of a defense."""

    attack: AttackSettings
    data: DataSettings
    known: DefenseSettings | None = None

    def __call__(self, parts: Parts, seed: int, prepared: Sequence[Surrogate] | None) -> Poison:
        """Return the poison for the training set."""
        from lightning_poison.attacks.crafting import craft
        from lightning_poison.attacks.threat import Threat
        from lightning_poison.data.labels import labels_of
        from lightning_poison.randomness import derived_generator
        from lightning_poison.shell.evaluate_data import pixels_of

        of = self.attack
        labels = labels_of(parts.train)
        count = len(labels) if of.of_class is None else int((labels == of.of_class).sum())
        threat = Threat(
            budget=of.budget or max(1, round(of.poison_fraction * count)),
            epsilon=of.epsilon,
            clean_label=of.clean_label,
            may_append=of.may_append,
            pixels=pixels_of(self.data),
        )
        generator = derived_generator(seed, f"evaluation attack {of.attack}")
        attack = self._attack(parts, seed)
        surrogates = prepared or ()
        return craft(attack, parts.train, threat, surrogates=surrogates, holdout=parts.holdout, generator=generator)

    def _attack(self, parts: Parts, seed: int) -> Any:
        from lightning_poison.randomness import derived_generator
        from lightning_poison.registry.registry import get_adaptive_attack, get_attack
        from lightning_poison.runtime import LocalRuntime

        settings = built_settings(self.attack.settings)
        if self.known is None:
            return get_attack(self.attack.attack, **settings)
        return get_adaptive_attack(
            self.attack.attack,
            scorer_of(self.known),
            parts.holdout,
            false_positive_rate=self.known.false_positive_rate,
            runtime=LocalRuntime(threads=1, quiet=True),
            generator=derived_generator(seed, f"evaluation attack {self.attack.attack} against {self.known.scorer}"),
            **settings,
        )


@dataclass(frozen=True)
class Sanitization:
    """Judges an untrusted data set by `sanitize`."""

    defense: DefenseSettings
    device: str = "cpu"

    def __call__(self, untrusted: Any, seed: int, trusted: Any) -> Judgment:
        """Return the mask of the samples to keep, and the scores."""
        from lightning_poison.evaluation.measurement import Judgment
        from lightning_poison.runtime import LocalRuntime
        from lightning_poison.sanitization.pipeline import sanitize
        from lightning_poison.sanitization.settings import DecisionSettings

        of, scorer = self.defense, scorer_of(self.defense)
        uses_trusted = needs_trusted(scorer) if of.trusted is None else of.trusted
        rate = DecisionSettings.natural_error_rate if of.natural_error_rate is None else of.natural_error_rate
        verdict = sanitize(
            untrusted,
            scorer,
            trusted=trusted if uses_trusted else None,
            false_positive_rate=of.false_positive_rate,
            folds=of.folds,
            remove_without_evidence=of.remove_without_evidence,
            max_removed=of.max_removed,
            seed=seed,
            runtime=LocalRuntime(self.device, threads=1, quiet=True),
            natural_error_rate=rate,
        )
        return Judgment(verdict.keep, suspicion_of(verdict), verdict.scores)


def suspicion_of(verdict: Verdict) -> Tensor:
    """Return by what a verdict ranks samples, float64 `(N,)`: equal posteriors are ordered by p-values.

    It is the number of the place in the ranking, counted from its end; samples that are equal share one. NaN for
    samples that were not judged.

    Example:
        >>> import torch
        >>> from lightning_poison.sanitization.evidence import Evidence
        >>> from lightning_poison.sanitization.verdict import Verdict
        >>> posterior = torch.tensor([0.9, 0.9, 0.1, 0.1]).double()
        >>> p_values = torch.tensor([0.2, 0.1, 0.5, 0.5]).double()
        >>> verdict = Verdict(
        ...     posterior, p_values, posterior < 0.5, torch.zeros(4).long(), torch.zeros(4).long(),
        ...     torch.tensor([torch.inf]).double(), Evidence(True, 0.5, 0.1, 0.9, 0.95, 0.003), "wrong-label null",
        ...     0.01, scorer="likelihood", fingerprint="5f0c", posterior=posterior, posterior_threshold=0.5,
        ... )
        >>> suspicion_of(verdict).tolist()
        [1.0, 2.0, 0.0, 0.0]
    """
    order = verdict.ranking.flip(0)
    suspicion, p_values = verdict.suspicion[order], verdict.p_values[order]
    differs = (suspicion[1:] != suspicion[:-1]) | (p_values[1:] != p_values[:-1])
    places = suspicion.new_zeros(len(order))
    places[order[1:]] = differs.cumsum(0).to(places)
    return places if verdict.judged is None else places.masked_fill(~verdict.judged, math.nan)


def scorer_of(defense: DefenseSettings) -> Any:
    """Return the scorer of a defense.

    Raises:
        ValueError: If there is no such scorer or setting, or the scorer refuses a setting.

    Example:
        >>> scorer_of(DefenseSettings("mine", "likelihood", {"margin": 0.5})).settings()["margin"]
        0.5
    """
    from lightning_poison.shell.scorer_options import scorer_from_option

    if not defense.settings:
        return scorer_from_option(defense.scorer)
    return scorer_from_option({"name": defense.scorer, **defense.settings})


def needs_trusted(scorer: Any) -> bool:
    """Whether a scorer, or one of several, decides nothing without trusted data.

    Example:
        >>> [needs_trusted(scorer_of(DefenseSettings("", name))) for name in ("fast", "spectral-signatures")]
        [False, True]
    """
    from lightning_poison.scorers.inspection import all_members_of
    from lightning_poison.scorers.recommended import RecommendedScorer

    if isinstance(scorer, RecommendedScorer):
        return False
    return any(not each.scores_labels and not getattr(each, "finds_groups", False) for each in all_members_of(scorer))


def built_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of an attack or scorer, with `fit_settings` as the class that they take.

    Example:
        >>> built_settings({"fit_settings": {"epochs": 3}})["fit_settings"].epochs
        3
    """
    built = dict(settings)
    if isinstance(fit := built.get("fit_settings"), Mapping):
        from lightning_poison.checks import from_json
        from lightning_poison.models.fitting import FitSettings

        built["fit_settings"] = from_json(FitSettings, asdict(FitSettings()) | dict(fit), "`fit_settings`")
    return built
