"""Input and output types of the judges."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from torch import Tensor

from lightning_poison.data.labeled_data import LabeledData
from lightning_poison.randomness import derived_generator, derived_seed
from lightning_poison.runtime import Runtime, SingleRank, all_ranks
from lightning_poison.sanitization.coverage import Calibration
from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.finding import Finding
from lightning_poison.sanitization.scorer_calls import call_deepcopy, call_fit, call_load, call_state
from lightning_poison.sanitization.settings import DecisionSettings
from lightning_poison.scorers.inspection import AnyScorer
from lightning_poison.scorers.protocol import FeatureSource, Scorer

ModelT = TypeVar("ModelT", bound="Scorer | FeatureSource")

CONFIDENCE = 0.95
"""Coverage of the interval around an estimated contamination."""


@dataclass(frozen=True)
class Job:
    """A data set, the scorer and settings of its decision, and where to compute.

    `training_margins`, float64 `(N,)`, are those of a network that another scorer has trained on the data set, if any;
    see `Scorer.training_margins`.
    """

    data: LabeledData
    scorer: AnyScorer
    runtime: Runtime
    settings: DecisionSettings = field(default_factory=DecisionSettings)
    training_margins: Tensor | None = None

    @property
    def labels(self) -> Tensor:
        """Labels of the data set, int64 `(N,)`."""
        return self.data.labels

    @property
    def seed(self) -> int:
        """The only source of randomness."""
        return self.settings.seed

    def seed_of(self, number: int) -> int:
        """Return the seed of a member of a combination. The first member, and a single scorer, has the job's own."""
        return derived_seed(self.seed, "member", number) if number else self.seed

    def fit(self, model: ModelT, dataset: Callable[[], Any], purpose: str, *, number: int = 0) -> ModelT:
        """Fit a copy of a model on every rank, and return it with the weights of rank 0.

        Args:
            model: A scorer or feature source. It is not changed.
            dataset: Returns the data set to fit on.
            purpose: Name of the random stream.
            number: Position of the scorer in a combination.
        """
        with all_ranks(self.runtime):
            generator = derived_generator(self.seed_of(number), purpose)
            units = self.runtime.units.within(f"{purpose}-{number}")
            own = SingleRank(self.runtime, units=units)
            fitted = call_fit(call_deepcopy(model), dataset(), runtime=own, generator=generator)
            state = call_state(fitted)
        state = self.runtime.broadcast(state)
        with all_ranks(self.runtime):
            return call_load(fitted, state)


@dataclass(frozen=True)
class Decision:
    """Result of calibration. The fields are those of `Verdict`.

    Example:
        >>> import torch
        >>> from lightning_poison.sanitization.with_trusted import decide_by_trusted
        >>> labels, trusted_scores = torch.zeros(100).long(), torch.arange(100) / 100
        >>> decision = decide_by_trusted(
        ...     torch.full((50,), 3.0), labels[:50], trusted_scores, labels, DecisionSettings(false_positive_rate=0.05)
        ... )
        >>> decision.evidence.present, int(decision.keep.sum()), decision.posterior
        (True, 0, None)
    """

    p_values: Tensor
    keep: Tensor
    thresholds: Tensor
    evidence: Evidence
    posterior: Tensor | None = None
    posterior_threshold: float | None = None

    def of_copies(self, place: Tensor) -> "Decision":
        """Return the decision about N samples, each of which is decided as the sample at `place`, int64 `(N,)`."""
        posterior = None if self.posterior is None else self.posterior[place]
        return replace(self, p_values=self.p_values[place], keep=self.keep[place], posterior=posterior)


@dataclass(frozen=True)
class Outcome:
    """Scores of a data set and the decision about it.

    Args:
        scores: Suspicion scores, float64 `(N,)`.
        suggested_labels: Least suspicious label of each sample, int64 `(N,)`; −1 if unknown.
        decision: Result of calibrating the scores.
        calibration: What the decision is calibrated on; see `Verdict`.
        votes: p-values `(N,)` by the name of each member of a combination.
        groups: Number of the group in the evidence that each sample is a member of, int64 `(N,)`; −1 for none.
        findings: What each member of a union found.
        found_by: Number of the finding that a removed sample is due to, int64 `(N,)`; −1 if it is kept.
        judged: Mask of the samples that were judged, bool `(N,)`. `None` for all.
        notes: Sentences about what is not judged, and why.
        training_margins: How well a network that was trained on the data set learned each label, float64 `(N,)`; see
            `Scorer.training_margins`. `None` if none was, or it was not recorded.
    """

    scores: Tensor
    suggested_labels: Tensor
    decision: Decision
    calibration: Calibration
    votes: Mapping[str, Tensor] = field(default_factory=dict)
    groups: Tensor | None = None
    findings: tuple[Finding, ...] = ()
    found_by: Tensor | None = None
    judged: Tensor | None = None
    notes: tuple[str, ...] = ()
    training_margins: Tensor | None = None


@dataclass(frozen=True)
class MemberScores:
    """Scores of one scorer on the training data and on held-out trusted samples.

    Args:
        scores: Scores of the training data, float64 `(N,)`.
        suggested_labels: Least suspicious label of each sample, int64 `(N,)`; −1 if unknown.
        trusted: Scores of held-out trusted samples, float64 `(M,)`.
        trusted_labels: Least suspicious label of each of these, int64 `(M,)`; −1 if unknown.
        trusted_label_scores: Scores of these under each label, float64 `(M, C)`; `None` if unknown.
    """

    scores: Tensor
    suggested_labels: Tensor
    trusted: Tensor
    trusted_labels: Tensor
    trusted_label_scores: Tensor | None = None
