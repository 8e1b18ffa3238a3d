"""`GroupScorer`: what scorers share that propose groups, whose effects decide."""

from collections.abc import Sequence

from torch import Tensor

from lightning_poison.checks import fraction, instance, positive, positive_int
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.protocol import FeatureSource, SetScorer
from lightning_poison.statistics.feature_sets import check_class_sizes
from lightning_poison.statistics.subgroups import MIN_CLASS_SIZE, TOO_SMALL, Subgroup, subgroup_scores


class GroupScorer(SetScorer):
    """Base class of set scorers that find groups. Define `name` and `find_groups`.

    A group is removed only if it has an effect; see `SetScorer.find_groups`.

    Args:
        feature_model: The network that is trained on the data.
        source: What is read of it.
        exclusion_model: Network that is trained without the groups. Default: one with the settings of `feature_model`,
            trained plainly; `FeatureModel()` if that is a trained network.
        min_separation: Ashman's D from which a group is separated.
        min_size: Minimum number of samples of a group of one label.
        min_transfer: Share of samples of each other class that must be predicted as the group's, in (0, 1).
        min_resemblance: Share of a group that must at least look like other classes, in (0, 1).

    Raises:
        TypeError: If `exclusion_model` is not a `FeatureModel`.
        ValueError: If an argument is out of range.
    """

    finds_groups = True

    def __init__(
        self,
        feature_model: FeatureModel,
        source: FeatureSource,
        exclusion_model: FeatureModel | None,
        *,
        min_separation: float,
        min_size: int,
        min_transfer: float,
        min_resemblance: float,
    ) -> None:
        if exclusion_model is not None:
            way = "Write `exclusion_model=FeatureModel()`, or leave it out."
            instance("exclusion_model", exclusion_model, FeatureModel, hint=way)
        self.feature_model = source
        self.exclusion_model = exclusion_model if exclusion_model is not None else _plain(feature_model)
        self.min_separation = positive("min_separation", min_separation)
        self.min_size = positive_int("min_size", min_size)
        self.min_transfer = fraction("min_transfer", min_transfer)
        self.min_resemblance = fraction("min_resemblance", min_resemblance)

    def find_groups(self, features: Tensor, labels: Tensor) -> Sequence[Subgroup]:
        """Return groups of one label each; see `SetScorer.find_groups`."""
        raise NotImplementedError

    def score_features(self, features: Tensor, labels: Tensor) -> Tensor:
        """Score each sample by its log-odds of membership, float32 `(N,)`; above 0 for members of separated groups.

        Raises:
            ValueError: If a class is too small, or features are not finite.
        """
        groups = self.find_groups(features, labels)
        return subgroup_scores(groups, len(labels), is_apart=self.stands_apart).float().to(features.device)

    def stands_apart(self, group: Subgroup) -> bool:
        """Return whether a group is large enough, and there is a gap between it and other samples."""
        return group.separation >= self.min_separation and len(group.members) >= self.min_size

    def is_poison(self, *, transfer: float, resemblance: float) -> bool:
        """Return whether one of the effects of a group reaches its minimum; see `SetScorer`."""
        return transfer >= self.min_transfer or resemblance >= self.min_resemblance

    def check_set(self, labels: Tensor) -> None:
        """Raise if a class is too small; see `SetScorer`."""
        check_class_sizes(labels, MIN_CLASS_SIZE, TOO_SMALL)


def _plain(model: FeatureModel) -> FeatureModel:
    if model.model is not None:
        return FeatureModel()
    return FeatureModel(backbone=model.backbone, feature_size=model.feature_size, fit_settings=model.fit_settings)
