"""`CharacteristicVectorScorer`: whether a sample's batch-norm statistics are those of another class than its label's.

De Gaspari, Hitaj, Mancini, "Have You Poisoned My Data? Defending Neural Networks against Data Poisoning", ESORICS 2024,
arXiv 2403.13523, section 4.1.
"""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.checks import expected, share
from lightning_poison.contexts import evaluating
from lightning_poison.data.blocks import Block
from lightning_poison.data.inference import score_set
from lightning_poison.errors import NotFittedError
from lightning_poison.runtime import LocalRuntime, Runtime
from lightning_poison.scorers.batchnorm_statistics import (
    ChannelStatistics,
    RunningCentroids,
    batchnorm_layers,
    centroid_distances,
    channel_statistics,
)
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.label_scores import margins_to_best_other
from lightning_poison.scorers.training_data import TrainingData

_KINDS = ChannelStatistics._fields
_FARTHEST = 2.0  # the largest cosine distance, for a class that had no samples


class CharacteristicVectorScorer:
    """Scores by how much nearer a sample's characteristic vector lies to another class's centroid than to its own.

    The characteristic vector holds the mean and the variance, over positions, of each channel that reaches a batch-norm
    layer of a network. The score is the distance to the centroid of the label minus the smallest to that of any other
    class; above 0 it is the authors' decision.

    It differs from the paper in the network, which there is trained on other data and frozen: hand one in as
    `FeatureModel(network)`, or a classifier is trained on the samples that are believed. There centroids are those of
    the judged samples, poison among them; here those of the samples that are believed.

    Args:
        feature_model: the network with batch norm; all such layers are looked at, so its `layer` must be left out. One
            of its own is trained on the samples that are believed; `None` for one with default settings. A network that
            was handed to it stays as it is.
        mean_weight: β, what the means count against the variances, in [0, 1]; the paper does not state its own.

    Raises:
        ValueError: where the network has no batch norm, a layer is named, or a number is out of its range.

    Example:
        >>> from torch import nn
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
    is_control = False

    def __init__(self, feature_model: FeatureModel | None = None, *, mean_weight: float = 0.5) -> None:
        self.feature_model = feature_model if feature_model is not None else FeatureModel()
        for network in (self.feature_model.model, self.feature_model.backbone):
            if network is not None:
                batchnorm_layers(network)
        if self.feature_model.layer:
            way = "All batch-norm layers are looked at: leave `layer` out."
            raise ValueError(
                expected("feature_model", "one without a layer's name", repr(self.feature_model.layer), way)
            )
        self.mean_weight = share("mean_weight", mean_weight)
        self._fitted_model: FeatureModel | None = None
        self._centroids: ChannelStatistics | None = None

    def __repr__(self) -> str:
        return f"CharacteristicVectorScorer({self.feature_model!r}, mean_weight={self.mean_weight:g})"

    @property
    def is_fitted(self) -> bool:
        """Whether it can score."""
        return self._centroids is not None

    def fit(
        self, trusted: "Dataset[Any]", *, runtime: Runtime | None = None, generator: torch.Generator | None = None
    ) -> Self:
        """Train a classifier of its own where no network was handed in, measure the classes, and return itself.

        See `Scorer.fit`.

        Raises:
            ValueError: where there are fewer than two classes, or the backbone returns features of another size.
            UnreadableSampleError: where a sample cannot be read.
        """
        generator = generator or torch.Generator().manual_seed(0)
        runtime = runtime or LocalRuntime()
        data = TrainingData.of(trusted, why="A centroid has nothing to compare with.")
        model = self.feature_model.for_fit()
        if model.model is None:
            model.fit(trusted, runtime=runtime, generator=generator)
        running = RunningCentroids(data.num_classes)

        def measure(block: Block) -> Tensor:
            statistics = _statistics(model, block.inputs)
            if not all(bool(layer.isfinite().all()) for part in statistics for layer in part):
                hint = "Look at the network: its weights may have diverged, or a layer may overflow."
                raise ValueError(
                    expected("trusted", "finite at every batch-norm layer", "NaN or infinite values", hint)
                )
            running.add(statistics, block.labels)
            return torch.zeros(len(block.labels))

        score_set(
            trusted,
            torch.arange(len(data.labels)),
            measure,
            sample=data.sample,
            runtime=runtime,
            seed=int(torch.randint(2**31, (1,), generator=generator)),
            labels=data.labels,
            description="measuring the classes",
            share=False,
        )
        self._fitted_model, self._centroids = model, running.centroids()
        return self

    def rehearse(self, trusted: "Dataset[Any]", *, steps: int, runtime: Runtime | None = None) -> int:
        """Train a throw-away classifier for a few steps, so that a caller can time them; return those of a whole fit.

        Where a network was handed in there is nothing to train, and nothing is done.
        """
        if self.feature_model.model is not None:
            return 0
        return self.feature_model.rehearse(trusted, steps=steps, runtime=runtime)

    def score_labels(self, inputs: Tensor) -> Tensor:
        """Return the score of each sample under each label.

        Args:
            inputs: float `(B, ...)`, as the data set returns them.

        Returns:
            float32 `(B, C)`, in [−2, 2]; differentiable in `inputs`.

        Raises:
            NotFittedError: before a fit.
            ValueError: where samples have another shape than those that it was fitted on.
        """
        model, centroids = self._fitted()
        statistics = _statistics(model, inputs)
        home = statistics.means[0].device
        moved = ChannelStatistics(*(tuple(layer.to(home) for layer in layers) for layers in centroids))
        distances = centroid_distances(statistics, moved, mean_weight=self.mean_weight)
        absent = moved.means[0].isnan().any(1)
        return margins_to_best_other(torch.where(absent, _FARTHEST, distances)).to(inputs.device)

    def score_batch(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the score of each sample under the label that it carries, float32 `(B,)`; see `score_labels`."""
        return self.score_labels(inputs).gather(1, labels[:, None])[:, 0]

    def settings(self) -> Mapping[str, Any]:
        """Return what the scorer was built with, as JSON can hold it."""
        return {"feature_model": dict(self.feature_model.settings()), "mean_weight": self.mean_weight}

    def state(self) -> Mapping[str, Tensor]:
        """Return the centroids, and the weights of the network.

        Raises:
            NotFittedError: before a fit.
        """
        model, centroids = self._fitted()
        named = centroids._asdict().items()
        measured = {f"{kind}.{place}": each.clone() for kind, part in named for place, each in enumerate(part)}
        return {**model.state(), **measured}

    def load(self, state: Mapping[str, Tensor]) -> Self:
        """Take over what `state` of a scorer of the same settings returned, and return itself.

        A network that was handed in keeps the weights that it has.

        Raises:
            ValueError: where it is the state of another scorer.
        """
        count = sum(name.startswith("means.") for name in state)
        if not count or any(f"{kind}.{place}" not in state for kind in _KINDS for place in range(count)):
            raise ValueError(expected("state", f"that of {self!r}", "that of another scorer"))
        self._fitted_model = self.feature_model.for_fit().load(state)
        self._centroids = ChannelStatistics(
            *(tuple(state[f"{kind}.{place}"] for place in range(count)) for kind in _KINDS)
        )
        return self

    def _fitted(self) -> tuple[FeatureModel, ChannelStatistics]:
        if self._fitted_model is None or self._centroids is None:
            raise NotFittedError("Expected a fitted CharacteristicVectorScorer.\nCall `fit(trusted)`.")
        return self._fitted_model, self._centroids


def _statistics(model: FeatureModel, inputs: Tensor) -> ChannelStatistics:
    """Return what reaches the batch-norm layers, on the device of the network."""
    network = model.network
    home = next((held.device for held in network.parameters()), inputs.device)
    if model.model is None and home != inputs.device:
        network.to(inputs.device)
        home = inputs.device
    with evaluating(network):
        return channel_statistics(network, inputs.to(home))
