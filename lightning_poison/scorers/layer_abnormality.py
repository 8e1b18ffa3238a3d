"""`LayerAbnormalityScorer`: whether a sample is in a group whose activations are unlikely, in any layers.

Hou, Luo, Hua, Li, Zhang, Chen, Li, "FLARE: Towards Universal Dataset Purification against Backdoor Attacks", IEEE TIFS
2025, arXiv 2411.19479.
"""

from collections.abc import Sequence

from torch import Tensor

from lightning_poison.checks import positive_int
from lightning_poison.scorers.feature_model import FeatureModel, checked_feature_model
from lightning_poison.scorers.group_scorer import GroupScorer
from lightning_poison.scorers.network_probes import AbnormalityFeatures
from lightning_poison.statistics.feature_sets import check_feature_set
from lightning_poison.statistics.layer_groups import find_layer_groups
from lightning_poison.statistics.subgroups import MIN_CLASS_SIZE, TOO_SMALL, Subgroup


class LayerAbnormalityScorer(GroupScorer):
    """Scores by the log-odds of belonging to a group with unlikely activations, and tests the effect of the group.

    For backdoors of any target, also where each label has little poison. For each sample and batch norm layer, the most
    unlikely activation under the running statistics of the layer counts: FLARE. All samples are clustered as one set,
    since a trigger is the same for all labels, and the clusters are divided by label. Each part is tested for two
    effects (see `lightning_poison.scorers.protocol.SetScorer`). A part without an effect is kept.

    It differs from the paper and its published code: the search over the layers to leave out is made, log-densities are
    clustered as distances in standard deviations instead of after UMAP, so that a gap remains a gap, and a cluster is
    not removed because it is smaller.

    It needs one forward pass more than a `RobustFeatureScorer` with the same `FeatureModel`.

    Args:
        feature_model: Network with batch norm that is trained on the data. A trained network must have been trained on
            the judged samples. Default: `FeatureModel()`.
        exclusion_model: Network that is trained without the groups, and predicts their members. Default: one like
            `feature_model`.
        min_separation: Ashman's D from which a group is separated. Default: 4.
        min_size: Minimum number of samples in a group of one label. Default: 20.
        min_transfer: Share of samples of each other class that must be predicted as the group's, in (0, 1). Default:
            .6.
        min_resemblance: Share of a group that must at least look like other classes, in (0, 1). Default: .4.
        seed: Seeds the clustering. Default: 0.

    Raises:
        TypeError: If `feature_model` or `exclusion_model` is not a `FeatureModel`.
        ValueError: If an argument is out of range, or the network is a pretrained one or has no batch norm.

    Example:
        >>> import torch
        >>> densities = -torch.randn(400, 5, generator=torch.Generator().manual_seed(0)).square()
        >>> densities[:40, :3] -= 200
        >>> scores = LayerAbnormalityScorer().score_features(densities, torch.arange(400) % 2)
        >>> (scores > 0).nonzero().flatten().equal(torch.arange(40))
        True
    """

    name = "layer-abnormality"

    def __init__(
        self,
        feature_model: FeatureModel | None = None,
        *,
        exclusion_model: FeatureModel | None = None,
        min_separation: float = 4.0,
        min_size: int = 20,
        min_transfer: float = 0.6,
        min_resemblance: float = 0.4,
        seed: int = 0,
    ) -> None:
        model = checked_feature_model(feature_model)
        self._source = AbnormalityFeatures(model)
        super().__init__(
            model,
            self._source,
            exclusion_model,
            min_separation=min_separation,
            min_size=min_size,
            min_transfer=min_transfer,
            min_resemblance=min_resemblance,
        )
        self.seed = positive_int("seed", seed, minimum=0)

    def find_groups(self, features: Tensor, labels: Tensor) -> Sequence[Subgroup]:
        """Return groups with unlikely activations, one label each; see `find_layer_groups`.

        Args:
            features: What `AbnormalityFeatures` returns, float32 `(N, D + L)`, or its last columns.
            labels: int64 `(N,)`.
        """
        check_feature_set(features, labels, per_class=MIN_CLASS_SIZE, why=TOO_SMALL)
        return find_layer_groups(
            self._source.numbers_in(features),
            labels,
            min_separation=self.min_separation,
            min_size=self.min_size,
            seed=self.seed,
        )
