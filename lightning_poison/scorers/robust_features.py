"""`RobustFeatureScorer`: whether a sample is in a group that is separated from its class in robust features.

Adversarial training removes from a network what small perturbations can change and keeps what they cannot, such as a
trigger of full intensity. So poison forms a cluster of its own in robust features, with a wide gap to its class. On why
the trigger survives: Gao, Wu, Zhang, Gan, Xia, Niu, Sugiyama, "On the Effectiveness of Adversarial Training against
Backdoor Attacks", 2022, arXiv 2202.10627.
"""

from collections.abc import Sequence

from torch import Tensor

from lightning_poison.adversarial.adversaries import FGSM
from lightning_poison.checks import positive_int
from lightning_poison.scorers.feature_model import FeatureModel, checked_feature_model
from lightning_poison.scorers.group_scorer import GroupScorer
from lightning_poison.statistics.subgroups import Subgroup, find_subgroups


class RobustFeatureScorer(GroupScorer):
    """Scores by the log-odds of belonging to a group that is separated from its class in robust features.

    For backdoors, with dirty and with clean labels. Each class is clustered, and a cluster behind a gap is tested for
    two effects (see `lightning_poison.scorers.protocol.SetScorer`): do its common features make other samples be
    predicted as its class, or does a network that was trained without its samples predict other classes for them?
    Natural parts of a class have no gap or no such effect, and are kept. Without trusted data these tests decide, and
    nothing is removed if no group is poison. With trusted data, the threshold is calibrated on the trusted samples of
    the class.

    A trigger that adversarial training removes is not detected: one whose pixels move by less than about twice the
    radius. A second scorer with `FeatureModel()`, whose network is trained plainly, detects those, and misses
    clean-label backdoors that a plain network hardly learns. Neither detects single wrong labels; `LikelihoodScorer`
    does.

    It builds on activation clustering of Chen et al. 2018 (arXiv 1811.03728), whose reclassification is the second
    test. It differs in the network, in clusters of a few percent, and in the gap (Ashman's D instead of a silhouette,
    which hardly separates poison from natural parts). The first test is close to CCA-UD of Guo, Tondi and Barni
    ("Universal detection of backdoor attacks via density-based clustering and centroids analysis", IEEE TIFS 2023,
    arXiv 2301.04554), which adds the representative of a cluster to the features of benign samples; here the samples
    are those that are judged, and what is added is the difference from samples that look alike.

    Args:
        feature_model: Network whose features are clustered: `FeatureModel(adversary=FGSM(0.3))` for MNIST, or a layer
            of a classifier that was trained on the judged data with `AdversarialTraining`. Default:
            `FeatureModel(adversary=FGSM(8 / 255))`, for natural images.
        exclusion_model: Network that is trained plainly without the groups, and predicts their members. Default: one
            with the backbone of `feature_model`, unless that is a trained network.
        components: Number of principal components of a class, limited to a sixth of its samples. Default: 10.
        restarts: Number of k-means starts. Default: 4.
        min_separation: Ashman's D from which a group is separated. In adversarially trained features of MNIST and
            CIFAR-10, natural groups reached 5.1, poison 9.6 and more; in plain features, natural groups of MNIST
            reached 6.1. Default: 6.5.
        min_size: Minimum number of samples in a group. With fewer, the shares below are too uncertain: in a class of
            180 digits, 27 that were naturally separated looked like other classes by .41. Default: 30.
        min_transfer: Share of samples of each other class that must be predicted as the group's, in (0, 1). Default:
            .6.
        min_resemblance: Share of a group that must at least look like other classes, beyond that of the rest of its
            class, in (0, 1). On MNIST, groups of an all-to-all backdoor reached .41 and more, natural ones .38 at most.
            Default: .4.
        seed: Seeds the starts. Default: 0.

    Raises:
        TypeError: If `feature_model` or `exclusion_model` is not a `FeatureModel`.
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> features = torch.randn(400, 8, generator=generator)
        >>> features[:40, 0] += 15
        >>> scores = RobustFeatureScorer().score_features(features, torch.zeros(400, dtype=torch.int64))
        >>> (scores > 0).nonzero().flatten().equal(torch.arange(40))
        True
    """

    name = "robust-features"

    def __init__(
        self,
        feature_model: FeatureModel | None = None,
        *,
        exclusion_model: FeatureModel | None = None,
        components: int = 10,
        restarts: int = 4,
        min_separation: float = 6.5,
        min_size: int = 30,
        min_transfer: float = 0.6,
        min_resemblance: float = 0.4,
        seed: int = 0,
    ) -> None:
        feature_model = checked_feature_model(
            feature_model,
            lambda: FeatureModel(adversary=FGSM(8 / 255)),
            example="FeatureModel(adversary=FGSM(0.3))",
        )
        super().__init__(
            feature_model,
            feature_model,
            exclusion_model,
            min_separation=min_separation,
            min_size=min_size,
            min_transfer=min_transfer,
            min_resemblance=min_resemblance,
        )
        self.components = positive_int("components", components)
        self.restarts = positive_int("restarts", restarts)
        self.seed = positive_int("seed", seed, minimum=0)

    def find_groups(self, features: Tensor, labels: Tensor) -> Sequence[Subgroup]:
        """Return the groups of each class; see `find_subgroups`."""
        return find_subgroups(
            features,
            labels,
            min_separation=self.min_separation,
            components=self.components,
            restarts=self.restarts,
            seed=self.seed,
        )
