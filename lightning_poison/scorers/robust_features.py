"""`RobustFeatureScorer`: adversarial training as a microscope, under which a backdoor stands apart from its class.

Adversarial training takes from a network what small changes can take away, and leaves what they cannot: a trigger of
full intensity among it. So poison forms a cluster of its own in robust features, with a wide gap to its class. On
why the trigger survives: Gao, Wu, Zhang, Gan, Xia, Niu, Sugiyama, "On the Effectiveness of Adversarial Training against
Backdoor Attacks", 2022, arXiv 2202.10627.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from lightning_poison.adversarial.adversaries import FGSM
from lightning_poison.checks import fraction, instance, positive, positive_int
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.statistics.feature_sets import check_class_sizes
from lightning_poison.statistics.subgroups import SMALLEST_CLASS, TOO_SMALL, Subgroup, find_subgroups, subgroup_scores


class RobustFeatureScorer:
    """Scores by the log-odds of belonging to a group that stands apart from its class in robust features.

    For backdoors, with dirty and with clean labels. Each class is clustered, and a cluster that lies behind a gap is
    questioned (see `lightning_poison.scorers.protocol.GroupScorer`): does what it has in common make other samples be
    read as its class, or do its samples look like those of other classes to a network that has not seen them? Natural
    parts of a class have no gap or no such effect, and stay. Without trusted data these questions decide, and nothing
    is removed where no group is poison. With trusted data it is trusted samples of the class that say where to cut.

    A trigger that adversarial training removes is not seen: one whose pixels move by less than about twice the radius.
    A second scorer with `FeatureModel()`, whose network is trained plainly, sees those, and misses clean-label
    backdoors that a plain network hardly learns. Neither sees single wrong labels: `LikelihoodScorer` is for those.

    Activation clustering of Chen et al. 2018 (arXiv 1811.03728) is what it starts from; what differs is the network,
    clusters of a few per cent, the gap (Ashman's D in the place of a silhouette, which hardly tells poison from natural
    parts), and the first question.

    Args:
        feature_model: the network whose features are looked at: one of its own that is trained by `FGSM(8 / 255)`, for
            natural images, where it is `None`; `FeatureModel(adversary=FGSM(0.3))` for MNIST; or a classifier that was
            trained on the judged data by `AdversarialTraining`, and a layer of it.
        exclusion_model: the network that is trained plainly without the groups, and reads them; one with the backbone
            of `feature_model`, where that is one of its own, if it is `None`.
        components: how many principal components of a class are looked at; at most a sixth of its samples.
        restarts: from how many starts k-means runs.
        min_separation: Ashman's D from which a group stands apart. On MNIST and CIFAR-10 natural groups reached 5.1,
            poison 9.6 and more.
        min_size: how many samples a group has at least: of fewer the shares below are too uncertain. In a class of 180
            digits, 27 that stood apart by nature looked like other classes by .41.
        min_transfer: the share of samples of each other class that must be read as the group's, in (0, 1).
        min_resemblance: the share of a group that must look like other classes, in (0, 1); of mislabeled samples it is
            expected to be .75.
        seed: seeds the starts.

    Raises:
        TypeError: where `feature_model` or `exclusion_model` is no `FeatureModel`.
        ValueError: where an argument is out of its range.

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
    is_control = False

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
        models = {"feature_model": feature_model, "exclusion_model": exclusion_model}
        for name, model in models.items():
            if model is not None:
                instance(name, model, FeatureModel, hint=_WAYS[name])
        self.feature_model = feature_model if feature_model is not None else FeatureModel(adversary=FGSM(8 / 255))
        self.exclusion_model = exclusion_model if exclusion_model is not None else _plain(self.feature_model)
        self.components = positive_int("components", components)
        self.restarts = positive_int("restarts", restarts)
        self.min_separation = positive("min_separation", min_separation)
        self.min_size = positive_int("min_size", min_size)
        self.min_transfer = fraction("min_transfer", min_transfer)
        self.min_resemblance = fraction("min_resemblance", min_resemblance)
        self.seed = positive_int("seed", seed, minimum=0)

    def __repr__(self) -> str:
        chosen = ", ".join(f"{name}={value}" for name, value in self._own_settings().items())
        return f"RobustFeatureScorer({self.feature_model!r}, {chosen})"

    def score_features(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return the score of each sample, float32 `(N,)`; above 0 for members of groups that stand apart.

        Args:
            features: float32 `(N, D)`, of all samples.
            labels: int64 `(N,)`, the labels that they carry.

        Raises:
            ValueError: where a class is too small or does not vary, or features are not finite.
        """
        groups = self.find_groups(features, labels)
        return subgroup_scores(groups, len(labels), is_apart=self.stands_apart).float().to(features.device)

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

    def stands_apart(self, group: Subgroup) -> bool:
        """Tell whether a group is large enough, and there is a gap between it and the rest of its class."""
        return group.separation >= self.min_separation and len(group.members) >= self.min_size

    def is_poison(self, *, transfer: float, resemblance: float) -> bool:
        """Tell whether the effects of a group that stands apart make it poison; see `GroupScorer`."""
        return transfer >= self.min_transfer or resemblance >= self.min_resemblance

    def check_labels(self, labels: Tensor) -> None:
        """Raise where a class is too small to be parted; see `CheckingScorer`."""
        check_class_sizes(labels, SMALLEST_CLASS, TOO_SMALL)

    def settings(self) -> Mapping[str, Any]:
        """Return what the scorer was built with, as JSON can hold it."""
        models = {name: dict(getattr(self, name).settings()) for name in ("feature_model", "exclusion_model")}
        return {**models, **self._own_settings()}

    def _own_settings(self) -> dict[str, Any]:
        names = ("components", "restarts", "min_separation", "min_size", "min_transfer", "min_resemblance", "seed")
        return {name: getattr(self, name) for name in names}


_TRAINED = 'or, for a trained network, `FeatureModel(network, "layer")`.'
_WAYS = {
    "feature_model": f"Write `feature_model=FeatureModel(adversary=FGSM(0.3))`, {_TRAINED}",
    "exclusion_model": f"Write `exclusion_model=FeatureModel()`, {_TRAINED}",
}


def _plain(model: FeatureModel) -> FeatureModel:
    if model.model is not None:
        return FeatureModel()
    return FeatureModel(backbone=model.backbone, feature_size=model.feature_size, fit_settings=model.fit_settings)
