"""`PredictionStabilityScorer`: whether a sample is in the part of its class whose predictions are differently stable.

Hou, Feng, Hua, Luo, Zhang, Li, "IBD-PSC: Input-level Backdoor Detection via Parameter-oriented Scaling Consistency",
ICML 2024, arXiv 2405.09786; and Li, Chen, Ji, Chang, Hao, "PSBD: Prediction Shift Uncertainty Unlocks Backdoor
Detection", CVPR 2025, arXiv 2406.05826.
"""

from collections.abc import Sequence

from torch import Tensor

from lightning_poison.checks import fraction, positive, positive_int
from lightning_poison.scorers.feature_model import FeatureModel, checked_feature_model
from lightning_poison.scorers.group_scorer import GroupScorer
from lightning_poison.scorers.network_probes import StabilityFeatures
from lightning_poison.statistics.feature_sets import check_feature_set
from lightning_poison.statistics.prediction_stability import find_outer_parts, stability
from lightning_poison.statistics.subgroups import MIN_CLASS_SIZE, TOO_SMALL, Subgroup


class PredictionStabilityScorer(GroupScorer):
    """Scores by the log-odds of belonging to the part of a class that is more, or less, stable, and tests its effect.

    For triggers that form no cluster. The last batch norm layers are amplified, and how much of the probability of a
    prediction is left is measured. Two normal components are fitted to its log-odds in each class, and the smaller one
    is tested for two effects (see `lightning_poison.scorers.protocol.SetScorer`). A part without an effect is kept.

    It differs from IBD-PSC, which judges single samples by clean ones, in that it takes either side: warped images are
    far *less* stable than clean ones in a small network, not more. How many layers are amplified is chosen on the
    judged data, as in PSBD.

    It needs as many forward passes as the network has batch norm layers, at most 16, more than a `RobustFeatureScorer`
    with the same `FeatureModel`.

    Args:
        feature_model: Network with batch norm that is trained on the data. A trained network must have been trained on
            the judged samples. Default: `FeatureModel()`.
        exclusion_model: Network that is trained without the groups, and predicts their members. Default: one like
            `feature_model`.
        factor: Factor of the amplified layers, above 0. Default: 1.5, as in IBD-PSC.
        changed: Share of changed predictions that determines the smallest number of amplified layers, in (0, 1).
            Default: .6, as in IBD-PSC.
        models: Number of models over which the probability is averaged. Default: 5, as in IBD-PSC.
        min_separation: Ashman's D of the components from which a part is separated. Default: 4.
        min_size: Minimum number of samples in a part. Default: 20.
        min_transfer: Share of samples of each other class that must be predicted as the part's, in (0, 1). Default: .6.
        min_resemblance: Share of a part that must at least look like other classes, in (0, 1). Default: .4.

    Raises:
        TypeError: If `feature_model` or `exclusion_model` is not a `FeatureModel`.
        ValueError: If an argument is out of range, or the network is a pretrained one or has no batch norm.

    Example:
        >>> import torch
        >>> log_odds = 8 + torch.randn(400, 3, generator=torch.Generator().manual_seed(0))
        >>> log_odds[:40] -= 14
        >>> scores = PredictionStabilityScorer().score_features(log_odds, torch.arange(400) % 2)
        >>> (scores > 0).nonzero().flatten().equal(torch.arange(40))
        True
    """

    name = "prediction-stability"

    def __init__(
        self,
        feature_model: FeatureModel | None = None,
        *,
        exclusion_model: FeatureModel | None = None,
        factor: float = 1.5,
        changed: float = 0.6,
        models: int = 5,
        min_separation: float = 4.0,
        min_size: int = 20,
        min_transfer: float = 0.6,
        min_resemblance: float = 0.4,
    ) -> None:
        model = checked_feature_model(feature_model)
        self.factor = positive("factor", factor)
        self._source = StabilityFeatures(model, self.factor)
        super().__init__(
            model,
            self._source,
            exclusion_model,
            min_separation=min_separation,
            min_size=min_size,
            min_transfer=min_transfer,
            min_resemblance=min_resemblance,
        )
        self.changed = fraction("changed", changed)
        self.models = positive_int("models", models)

    def find_groups(self, features: Tensor, labels: Tensor) -> Sequence[Subgroup]:
        """Return the smaller part of each class, on either side.

        Args:
            features: What `StabilityFeatures` returns, float32 `(N, D + K)`, or its last columns.
            labels: int64 `(N,)`.
        """
        check_feature_set(features, labels, per_class=MIN_CLASS_SIZE, why=TOO_SMALL)
        values = stability(self._source.numbers_in(features), changed=self.changed, models=self.models)
        return find_outer_parts(values, labels)
