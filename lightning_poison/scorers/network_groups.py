"""`NetworkGroupScorer`: groups in the features of a network and in the activations of its layers, in one."""

from collections.abc import Sequence

from torch import Tensor

from lightning_poison.checks import positive_int
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.layer_abnormality import LayerAbnormalityScorer
from lightning_poison.statistics.subgroups import Subgroup, find_subgroups


class NetworkGroupScorer(LayerAbnormalityScorer):
    """Scores by the log-odds of belonging to a group, in features or in layers, and tests the effect of the group.

    The groups of `RobustFeatureScorer`, parts of a class that are separated from it in the features of a network, and
    those of `LayerAbnormalityScorer`, parts of the whole set with unlikely activations, found with one network that is
    trained on the data, and tested with one that is trained without all of them. Each finds poison that the other
    misses: a warp shows in the features, and a trigger that turns each class into another one in the layers. A group
    without an effect is kept.

    Args:
        feature_model: As for `LayerAbnormalityScorer`.
        exclusion_model: As for `LayerAbnormalityScorer`.
        components: Number of principal components of a class, limited to a sixth of its samples. Default: 10.
        restarts: Number of k-means starts. Default: 4.
        min_separation: As for `LayerAbnormalityScorer`.
        min_size: As for `LayerAbnormalityScorer`.
        min_transfer: As for `LayerAbnormalityScorer`.
        min_resemblance: As for `LayerAbnormalityScorer`.
        seed: Seeds the clustering. Default: 0.

    Raises:
        TypeError: If `feature_model` or `exclusion_model` is not a `FeatureModel`.
        ValueError: If an argument is out of range, or the network is a pretrained one or has no batch norm.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> features, labels = torch.randn(600, 8, generator=generator), torch.arange(600) % 2
        >>> densities = -torch.randn(600, 5, generator=generator).square()
        >>> features[:80:2, 0] += 15
        >>> densities[100:140] -= 200
        >>> scorer = NetworkGroupScorer(FeatureModel(feature_size=8))
        >>> groups = scorer.find_groups(torch.cat([features, densities], 1), labels)
        >>> sorted((group.label, len(group.members)) for group in groups if scorer.stands_apart(group))
        [(0, 20), (0, 40), (1, 20)]
    """

    name = "network-groups"

    def __init__(
        self,
        feature_model: FeatureModel | None = None,
        *,
        exclusion_model: FeatureModel | None = None,
        components: int = 10,
        restarts: int = 4,
        min_separation: float = 4.0,
        min_size: int = 20,
        min_transfer: float = 0.6,
        min_resemblance: float = 0.4,
        seed: int = 0,
    ) -> None:
        super().__init__(
            feature_model,
            exclusion_model=exclusion_model,
            min_separation=min_separation,
            min_size=min_size,
            min_transfer=min_transfer,
            min_resemblance=min_resemblance,
            seed=seed,
        )
        self.components = positive_int("components", components)
        self.restarts = positive_int("restarts", restarts)

    def find_groups(self, features: Tensor, labels: Tensor) -> Sequence[Subgroup]:
        """Return the groups of each class in the features, and those in the layers, divided by label.

        Args:
            features: What `AbnormalityFeatures` returns, float32 `(N, D + L)`.
            labels: int64 `(N,)`.
        """
        in_layers = super().find_groups(features, labels)
        head = features[:, : features.shape[1] - self._source.numbers_in(features).shape[1]]
        if not head.shape[1]:
            return in_layers
        in_features = find_subgroups(
            head,
            labels,
            min_separation=self.min_separation,
            components=self.components,
            restarts=self.restarts,
            seed=self.seed,
        )
        return (*in_features, *in_layers)
