"""What a scorer is: fitted on data that it is told to believe, it says how suspicious a sample is."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.runtime import Runtime
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.statistics.subgroups import Subgroup


@runtime_checkable
class Scorer(Protocol):
    """Fits on trusted samples; the flow layer owns loops, loaders, ranks, folds and thresholds.

    A scorer judges sample by sample (this protocol) or the whole set at once (`FeatureScorer`). Larger scores are more
    suspicious. A deep copy of an unfitted scorer is a scorer of the same settings.
    """

    name: str
    is_control: bool
    """`True` for what may know the truth, or guesses: never a defense."""

    @property
    def is_fitted(self) -> bool:
        """Whether it can score."""

    def fit(
        self, trusted: "Dataset[Any]", *, runtime: Runtime | None = None, generator: torch.Generator | None = None
    ) -> Self:
        """Fit on samples that are believed, and return itself.

        Args:
            trusted: a map-style data set.
            runtime: where to compute; this machine where it is `None`.
            generator: the only source of randomness; a fixed seed where it is `None`.
        """

    def score_batch(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return how suspicious samples are, sample by sample.

        Args:
            inputs: float `(B, ...)`, as the data set returns them.
            labels: int64 `(B,)`, the labels that they carry.

        Returns:
            float32 `(B,)`; differentiable in `inputs` where it can be.
        """

    def settings(self) -> Mapping[str, Any]:
        """Return what the scorer was built with, as JSON can hold it; part of a decision's fingerprint."""

    def state(self) -> Mapping[str, Tensor]:
        """Return what was fitted."""

    def load(self, state: Mapping[str, Tensor]) -> Self:
        """Take over what `state` of a scorer of the same settings returned, and return itself."""


@runtime_checkable
class LabelScorer(Scorer, Protocol):
    """A scorer that can be asked how suspicious a sample would be under every label.

    Deciding without trusted data needs one.
    """

    def score_labels(self, inputs: Tensor) -> Tensor:
        """Return the score of each sample under each label, float32 `(B, C)`."""


@runtime_checkable
class RehearsableScorer(Protocol):
    """A scorer that can say beforehand how long a fit will take.

    Cross-fitting tells its user about the time that it needs where the scorer offers this as well.
    """

    def rehearse(self, trusted: "Dataset[Any]", *, steps: int, runtime: Runtime | None = None) -> int:
        """Do the first steps of a fit on a throw-away copy, so that a caller can time them; the scorer stays unfitted.

        Args:
            trusted: a map-style data set, as for `fit`.
            steps: how many steps to do.
            runtime: where to compute; this machine where it is `None`.

        Returns:
            How many such steps a whole fit on `trusted` takes.
        """


@runtime_checkable
class FeatureScorer(Protocol):
    """A scorer that must see the whole set: spectral signatures, clustering, neighbors.

    It looks at features, which the flow gathers once and hands over: those of its `feature_model`, an attribute that
    holds a `FeatureModel`, or of a default one where it has none.
    """

    name: str
    is_control: bool

    def score_features(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return how suspicious samples are.

        Args:
            features: float32 `(N, D)`, of all samples.
            labels: int64 `(N,)`, the labels that they carry.

        Returns:
            float32 `(N,)`.
        """


@runtime_checkable
class CheckingScorer(Protocol):
    """A scorer of sets that can say from the labels alone that it cannot judge a set.

    The flow asks it before it trains a network and gathers features, where the scorer offers this as well.
    """

    def check_labels(self, labels: Tensor) -> None:
        """Raise where a set cannot be judged.

        Args:
            labels: int64 `(N,)`, that its samples carry.

        Raises:
            ValueError: naming what is missing and the way out.
        """


@runtime_checkable
class GroupScorer(FeatureScorer, Protocol):
    """One that finds groups of samples, about which the flow then asks what they do to others.

    Deciding without trusted data needs one, or a `LabelFeatureScorer`. A group that stands apart may be a part of its
    class by nature, so it is taken for poison where it has an effect as well: what its features have more of than those
    of samples that look like its members makes samples of every class be read as its own; or a network that was trained
    without it takes it for rightly labeled samples of other classes.
    """

    exclusion_model: FeatureModel
    """The network that is trained without the groups and reads them."""

    def find_groups(self, features: Tensor, labels: Tensor) -> Sequence[Subgroup]:
        """Return the groups of each class, float32 features `(N, D)` and int64 labels `(N,)` given."""

    def stands_apart(self, group: Subgroup) -> bool:
        """Tell whether there is a gap between a group and the rest of its class."""

    def is_poison(self, *, transfer: float, resemblance: float) -> bool:
        """Tell whether the effects of a group that stands apart make it poison.

        Args:
            transfer: see `lightning_poison.statistics.group_effects.transfer_share`.
            resemblance: see `lightning_poison.statistics.group_effects.resemblance`.
        """


@runtime_checkable
class LabelFeatureScorer(FeatureScorer, Protocol):
    """One that can be asked how suspicious each sample would be under every label.

    Deciding without trusted data needs one.
    """

    def score_feature_labels(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the score of each sample under each label, float32 `(N, C)`, where C is the largest label plus 1.

        The column of a sample's own label agrees with `score_features`.
        """
