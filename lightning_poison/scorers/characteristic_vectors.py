"""`CharacteristicVectorScorer`: whether the batch-norm statistics of a sample are those of another class.

De Gaspari, Hitaj, Mancini, "Have You Poisoned My Data? Defending Neural Networks against Data Poisoning", ESORICS 2024,
arXiv 2403.13523, section 4.1.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import Dataset

from lightning_poison.checks import expected, share
from lightning_poison.contexts import full_precision
from lightning_poison.data.blocks import Block
from lightning_poison.runtime import Runtime
from lightning_poison.scorers.feature_model import FeatureModel, checked_feature_model
from lightning_poison.scorers.label_scores import margins_to_best_other
from lightning_poison.scorers.networks import evaluating_on
from lightning_poison.scorers.protocol import Scorer
from lightning_poison.scorers.training_data import TrainingData

_MAX_DISTANCE = 2.0
"""Largest cosine distance, for a class without samples."""


class ChannelStatistics(NamedTuple):
    """Statistics at each batch-norm layer, in the order of the forward pass.

    Attributes:
        means: One tensor per layer, float32 `(B, channels)`.
        variances: Variances over positions, one tensor per layer; `(B, 0)` if a layer has one position per sample.

    Example:
        >>> network = nn.Sequential(nn.BatchNorm2d(1))
        >>> channel_statistics(network, torch.tensor([[[[1.0, 3.0]]]]))
        ChannelStatistics(means=(tensor([[2.]]),), variances=(tensor([[1.]]),))
    """

    means: tuple[Tensor, ...]
    variances: tuple[Tensor, ...]


def channel_statistics(network: nn.Module, inputs: Tensor) -> ChannelStatistics:
    """Compute the mean and the variance over positions of each input channel of the batch-norm layers.

    Args:
        network: Any module with batch norm, in evaluation mode.
        inputs: Batch `(B, ...)`.

    Returns:
        Statistics of each sample at each layer, the paper's characteristic vectors; differentiable in `inputs`. A layer
        that is called twice counts twice.

    Raises:
        ValueError: If the network has no batch norm, or a forward pass does not reach it.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(144))
        >>> [tuple(layer.shape) for layer in channel_statistics(network.eval(), torch.rand(2, 1, 8, 8)).means]
        [(2, 4), (2, 144)]
    """
    layers = batchnorm_layers(network)
    caught: list[Tensor] = []
    handles = [layer.register_forward_pre_hook(lambda _, arguments: caught.append(arguments[0])) for layer in layers]
    try:
        network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not caught or any(len(each) != len(inputs) for each in caught):
        raise ValueError(
            f"Expected a forward pass of {type(network).__name__} to pass all {len(inputs)} samples through its batch "
            "norm, but it did not.\nPass a network that does."
        )
    with full_precision(inputs.device):
        positions = [each.float().flatten(2) if each.ndim > 2 else each.float()[:, :, None] for each in caught]
        means = tuple(each.mean(2) for each in positions)
        variances = (each.var(2, correction=0) if each.shape[2] > 1 else each[:, :0, 0] for each in positions)
        return ChannelStatistics(means, tuple(variances))


def batchnorm_layers(network: nn.Module) -> list[nn.Module]:
    """Return the batch-norm layers of a network.

    Raises:
        ValueError: If there are none.

    Example:
        >>> len(batchnorm_layers(nn.Sequential(nn.BatchNorm2d(3), nn.Sequential(nn.BatchNorm1d(3)))))
        2
        >>> batchnorm_layers(nn.Linear(2, 2))
        Traceback (most recent call last):
        ValueError: Expected `network` to be a network with batch norm, but got Linear without any.
        Use a network with `BatchNorm` layers, or a scorer that reads features, such as `MahalanobisScorer`.
    """
    layers: list[nn.Module] = [part for part in network.modules() if isinstance(part, _BatchNorm)]
    if not layers:
        way = "Use a network with `BatchNorm` layers, or a scorer that reads features, such as `MahalanobisScorer`."
        raise ValueError(expected("network", "a network with batch norm", f"{type(network).__name__} without any", way))
    return layers


class RunningCentroids:
    """Accumulates the statistics of each class, block by block, as batch norm would compute them in one batch.

    The variance of a class is computed over samples and positions: the mean of the samples' variances plus the variance
    of their means. All samples must have the same number of positions.

    Args:
        num_classes: Number of classes.

    Example:
        >>> running = RunningCentroids(1)
        >>> statistics = ChannelStatistics((torch.tensor([[1.0], [3.0]]),), (torch.tensor([[0.5], [1.5]]),))
        >>> running.add(statistics, torch.tensor([0, 0]))
        >>> running.centroids()
        ChannelStatistics(means=(tensor([[2.]]),), variances=(tensor([[2.]]),))
    """

    def __init__(self, num_classes: int) -> None:
        self._counts = torch.zeros(num_classes, dtype=torch.float64)
        self._sums: list[tuple[Tensor, Tensor, Tensor]] = []

    def add(self, statistics: ChannelStatistics, labels: Tensor) -> None:
        """Add samples.

        Args:
            statistics: Statistics of each sample, layer by layer `(B, channels)`.
            labels: int64 `(B,)`, below the number of classes.
        """
        labels = labels.cpu()
        self._counts += torch.bincount(labels, minlength=len(self._counts))
        added = []
        for means, variances in zip(*statistics, strict=True):
            rows = (means.detach().double().cpu(), variances.detach().double().cpu())
            added.append(tuple(self._by_class(each, labels) for each in (rows[0], rows[0].square(), rows[1])))
        if self._sums:
            added = [tuple(map(torch.add, *pair)) for pair in zip(self._sums, added, strict=True)]
        self._sums = added  # type: ignore[assignment]

    def centroids(self) -> ChannelStatistics:
        """Return the statistics of each class, float32, layer by layer `(C, channels)`; NaN without samples."""
        means, variances = [], []
        for sums in self._sums:
            mean, square, within = (each / self._counts[:, None] for each in sums)
            means.append(mean.float())
            between = (square - mean.square()).clamp_min(0)
            variances.append((within + between).float() if within.shape[1] else within.float())
        return ChannelStatistics(tuple(means), tuple(variances))

    def _by_class(self, rows: Tensor, labels: Tensor) -> Tensor:
        return torch.zeros(len(self._counts), rows.shape[1], dtype=rows.dtype).index_add(0, labels, rows)


def centroid_distances(
    statistics: ChannelStatistics, centroids: ChannelStatistics, *, mean_weight: float = 0.5
) -> Tensor:
    """Compute the distance of characteristic vectors to the centroid of each class (equation 8 of the paper).

    d = Σ_i γ_i (β (1 − cos(μ_i(x), μ_i(X_y))) + (1 − β) (1 − cos(σ_i²(x), σ_i²(X_y)))) with all γ_i = 1 / layers; the
    paper states neither its γ_i nor its β. At a layer with one position per sample there is no variance, and only the
    means count.

    Args:
        statistics: Statistics of each sample, layer by layer `(B, channels)`.
        centroids: Statistics of each class, layer by layer `(C, channels)`.
        mean_weight: β, in [0, 1]. Default: .5.

    Returns:
        float32 `(B, C)`, in [0, 2]; NaN for NaN centroids.

    Raises:
        ValueError: If samples and centroids differ in the number of layers or channels.

    Example:
        >>> samples = ChannelStatistics((torch.tensor([[1.0, 0.0]]),), (torch.tensor([[2.0, 2.0]]),))
        >>> classes = ChannelStatistics((torch.tensor([[2.0, 0.0], [0.0, 1.0]]),), (torch.tensor([[1.0, 1.0]] * 2),))
        >>> centroid_distances(samples, classes).round(decimals=3)
        tensor([[0.0000, 0.5000]])
    """
    shapes = [tuple(layer.shape[1] for layer in each.means) for each in (statistics, centroids)]
    if shapes[0] != shapes[1]:
        raise ValueError(expected("statistics", f"of layers with {shapes[1]} channels", str(shapes[0])))
    with full_precision(statistics.means[0].device):
        total = torch.zeros((), device=statistics.means[0].device)
        for mean, variance, class_mean, class_variance in zip(*statistics, *centroids, strict=True):
            distances = _cosine_distances(mean, class_mean)
            if variance.shape[1]:
                distances = mean_weight * distances + (1 - mean_weight) * _cosine_distances(variance, class_variance)
            total = total + distances / len(shapes[0])
        return total


def _cosine_distances(rows: Tensor, others: Tensor) -> Tensor:
    first, second = (nn.functional.normalize(each, dim=1) for each in (rows, others))
    return 1 - first @ second.T


class CharacteristicVectorScorer(Scorer):
    """Scores by how much nearer a sample's characteristic vector is to the centroid of another class than to its own.

    The characteristic vector consists of the mean and the variance, over positions, of each input channel of the
    batch-norm layers of a network. The score is the distance to the centroid of the label minus the smallest distance
    to that of any other class. A score above 0 is the decision of the authors.

    It differs from the paper in the network, which there is trained on other data and frozen: pass such a network as
    `FeatureModel(network)`, or a classifier is trained on the known-clean samples. There, centroids are those of the
    judged samples, including poison; here, those of the known-clean samples.

    Args:
        feature_model: Network with batch norm. All such layers are read, so leave out `layer`. A trained network does
            not change; otherwise a classifier is trained on the known-clean samples. Default: `FeatureModel()`.
        mean_weight: β, the weight of the means against the variances, in [0, 1]. The paper does not state its value.
            Default: .5.

    Raises:
        ValueError: If the network has no batch norm, a layer is named, or a number is out of range.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> labels = torch.arange(40) % 2
        >>> noise = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> images = torch.where(labels[:, None, None, None] == 0, noise, noise.cumsum(3) / 4)
        >>> network = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 8, 3, bias=False), nn.BatchNorm2d(8))
        >>> scorer = CharacteristicVectorScorer(FeatureModel(network)).fit(TensorDataset(images, labels))
        >>> scorer.score_batch(images[:2], torch.tensor([0, 0])) > 0
        tensor([False,  True])
    """

    name = "characteristic-vectors"
    scores_labels = True
    feature_model: FeatureModel

    def __init__(self, feature_model: FeatureModel | None = None, *, mean_weight: float = 0.5) -> None:
        self.feature_model = checked_feature_model(feature_model)
        for network in (self.feature_model.model, self.feature_model.backbone):
            if network is not None:
                batchnorm_layers(network)
        if self.feature_model.layer:
            way = "All batch-norm layers are read: leave `layer` out."
            raise ValueError(expected("feature_model", "a model without a layer", repr(self.feature_model.layer), way))
        self.mean_weight = share("mean_weight", mean_weight)

    @property
    def is_fitted(self) -> bool:
        """Whether there are centroids."""
        return hasattr(self, "_centroids")

    def fit(
        self, trusted: "Dataset[Any]", *, runtime: Runtime | None = None, generator: torch.Generator | None = None
    ) -> Self:
        """Compute the centroids, after training a classifier if no network was passed in, and return the scorer.

        See `Scorer.fit`.

        Raises:
            ValueError: If there are fewer than two classes, statistics are not finite, or the backbone returns features
                of another size.
            UnreadableSampleError: If a sample cannot be read.
        """
        generator = generator or torch.Generator().manual_seed(0)
        data = TrainingData.of(trusted, why="A centroid has nothing to compare with.")
        model = self.feature_model.for_fit().fit(trusted, runtime=runtime, generator=generator)
        running = RunningCentroids(data.num_classes)

        def add(block: Block) -> Tensor:
            statistics = _statistics(model, block.inputs)
            if not all(bool(layer.isfinite().all()) for part in statistics for layer in part):
                way = "Check the network: its weights may have diverged, or a layer may overflow."
                raise ValueError(expected("trusted", "finite at every batch-norm layer", "NaN or infinite values", way))
            running.add(statistics, block.labels)
            return torch.zeros(len(block.labels))

        data.compute(add, runtime=runtime, generator=generator, description="Computing class statistics")
        self._model, self._centroids = model, running.centroids()
        return self

    def rehearse(self, trusted: "Dataset[Any]", *, steps: int, runtime: Runtime | None = None) -> int:
        """Run the first steps of a fit on a temporary copy; see `FeatureModel.rehearse`."""
        return self.feature_model.rehearse(trusted, steps=steps, runtime=runtime)

    def score_labels(self, inputs: Tensor) -> Tensor:
        """Score each sample under each label, in [−2, 2]; see `Scorer.score_labels`.

        Scores are differentiable in `inputs`.

        Raises:
            NotFittedError: Before a fit.
            ValueError: If samples differ in shape from those that the scorer was fitted on.
        """
        self.check_fitted()
        statistics = _statistics(self._model, inputs)
        device = statistics.means[0].device
        centroids = ChannelStatistics(*(tuple(layer.to(device) for layer in layers) for layers in self._centroids))
        distances = centroid_distances(statistics, centroids, mean_weight=self.mean_weight)
        absent = centroids.means[0].isnan().any(1)
        return margins_to_best_other(torch.where(absent, _MAX_DISTANCE, distances)).to(inputs.device)

    def state(self) -> Mapping[str, Tensor]:
        """Return copies of the weights of the network and of the centroids.

        Raises:
            NotFittedError: Before a fit.
        """
        self.check_fitted()
        named = self._centroids._asdict().items()
        centroids = {f"{kind}.{place}": each.clone() for kind, part in named for place, each in enumerate(part)}
        return {**self._model.state(), **centroids}

    def load(self, state: Mapping[str, Tensor]) -> Self:
        """Load what `state` of a scorer with the same settings returned, and return the scorer.

        A network that was passed in does not change.

        Raises:
            ValueError: If it is the state of another scorer.
        """
        layers, kinds = range(sum(name.startswith("means.") for name in state)), ChannelStatistics._fields
        if not layers or any(f"{kind}.{layer}" not in state for kind in kinds for layer in layers):
            way = "Pass what `state()` of a `CharacteristicVectorScorer` returned."
            raise ValueError(expected("state", f"the state of {self!r}", "one of another scorer", way))
        self._model = self.feature_model.for_fit().load(state)
        self._centroids = ChannelStatistics(*(tuple(state[f"{kind}.{layer}"] for layer in layers) for kind in kinds))
        return self


def _statistics(model: FeatureModel, inputs: Tensor) -> ChannelStatistics:
    """Return the statistics of a batch, on the device of the network."""
    with evaluating_on(model.network, inputs, movable=model.model is None) as moved:
        return channel_statistics(model.network, moved)
