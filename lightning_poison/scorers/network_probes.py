"""Features of a trained network together with numbers that describe how it reaches its predictions.

A group of samples may show in these numbers and not in the features. The effect of a group is tested in the features.
"""

import json
from collections.abc import Mapping
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from lightning_poison.checks import expected, instance
from lightning_poison.models.batchnorm import amplified, called_order, layer_abnormality, log_odds_of
from lightning_poison.models.user_network import run_network
from lightning_poison.runtime import Runtime
from lightning_poison.scorers.characteristic_vectors import batchnorm_layers
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.networks import evaluating_on

MAX_LAYERS = 16
"""Maximum number of last batch norm layers that are amplified."""


class ProbedFeatures:
    """Base class of feature sources that append numbers to the features of a `FeatureModel`. Define `probe` and `kind`.

    The network is trained by the `FeatureModel`, and its weights are the state. So a copy that loads the state of a
    `FeatureModel` with the same `shared_key` needs no fit of its own.

    Args:
        base: Network with batch norm that is trained on the data, or was trained on them.

    Raises:
        TypeError: If `base` is not a `FeatureModel`.
        ValueError: If it is a pretrained network, which has not learned the labels, or has no batch norm.
    """

    kind: str
    """Name of the numbers that are appended, for keys and settings."""

    def __init__(self, base: FeatureModel) -> None:
        self.base: FeatureModel = instance("base", base, FeatureModel)
        if base.name is not None:
            way = "Pass `FeatureModel()`, or a classifier that was trained on the data."
            raise ValueError(expected("feature_model", "a network that has learned the labels", repr(base), way))
        for network in (base.model, base.backbone):
            if network is not None:
                batchnorm_layers(network)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.base!r})"

    @property
    def is_fitted(self) -> bool:
        """Whether the network is trained."""
        return self.base.is_fitted

    @property
    def training_margins(self) -> Tensor | None:
        """How well the last fit learned its labels; see `FeatureModel.training_margins`."""
        return self.base.training_margins

    def fit(self, dataset: Any, *, runtime: Runtime | None = None, generator: torch.Generator | None = None) -> Self:
        """Train the network and return the source; see `FeatureModel.fit`."""
        self.base.fit(dataset, runtime=runtime, generator=generator)
        return self

    def rehearse(self, dataset: Any, *, steps: int, runtime: Runtime | None = None) -> int:
        """Run the first steps of a fit on a temporary copy; see `FeatureModel.rehearse`."""
        return self.base.rehearse(dataset, steps=steps, runtime=runtime)

    def probe(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """Return the numbers that are appended, float32 `(B, K)`, for inputs on the device of the network."""
        raise NotImplementedError

    def features(self, inputs: Tensor) -> Tensor:
        """Return the features and the numbers of each sample, float32 `(B, D + K)`, on the device of the inputs.

        Raises:
            NotFittedError: Before a fit.
            ValueError: If samples differ in shape from those that the network was fitted on, or a layer is not reached.
        """
        network, movable = self.base.network, self.base.model is None
        with torch.no_grad():
            features = self.base.features(inputs)
            with evaluating_on(network, inputs, movable=movable) as moved:
                numbers = self.probe(network, moved)
        return torch.cat([features, numbers.float().to(features.device)], 1)

    def numbers_in(self, features: Tensor) -> Tensor:
        """Return the appended numbers of a matrix that `features` returned, `(N, K)`.

        A matrix with no more columns than a sample has features consists of such numbers only.

        Args:
            features: `(N, D + K)`.
        """
        if self.base.model is not None:
            return features[:, -self.columns(self.base.model) :]
        size = self.base.feature_size
        return features[:, size:] if features.shape[1] > size else features

    def columns(self, network: nn.Module) -> int:
        """Return K, the number of appended numbers. Default: one per batch norm layer."""
        return len(batchnorm_layers(network))

    def logits(self, inputs: Tensor, *, shift: Tensor | None = None) -> Tensor:
        """Return logits, float32 `(B, C)`, with the first D entries of `shift` added to the features."""
        if shift is None:
            return self.base.logits(inputs)
        return self.base.logits(inputs, shift=shift[: len(shift) - self.columns(self.base.network)])

    def shared_key(self) -> str:
        """Return a key that is equal for sources of the same kind and network."""
        return json.dumps([self.kind, self.base.shared_key()])

    def settings(self) -> Mapping[str, Any]:
        """Return the settings of the network and the kind of the numbers as JSON values."""
        return {**self.base.settings(), "probe": self.kind}

    def state(self) -> Mapping[str, Tensor]:
        """Return copies of the weights, by name; see `FeatureModel.state`."""
        return self.base.state()

    def load(self, state: Mapping[str, Tensor]) -> Self:
        """Load weights that `state` returned, and return the source; see `FeatureModel.load`."""
        self.base.load(state)
        return self


class AbnormalityFeatures(ProbedFeatures):
    """Appends the log-density of the inputs of each batch norm layer; see `layer_abnormality`.

    Args:
        base: Network with batch norm that is trained on the data, or was trained on them.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3))
        >>> source = AbnormalityFeatures(FeatureModel(network, "1"))
        >>> found = source.features(torch.zeros(5, 1, 2, 2))
        >>> found.shape, source.numbers_in(found)[0].round(decimals=2)
        (torch.Size([5, 5]), tensor([-0.9200]))
    """

    kind = "layer-abnormality"

    def probe(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """Return the log-densities of the layers, in the order of the forward pass, float32 `(B, L)`."""
        return layer_abnormality(batchnorm_layers(network), inputs, forward=partial(run_network, network))[0]

    def features(self, inputs: Tensor) -> Tensor:
        """Return features and log-densities, float32 `(B, D + L)`, of a network that is trained here in one pass."""
        if self.base.model is not None:
            return super().features(inputs)
        layers = batchnorm_layers(self.base.network)
        with torch.no_grad():
            numbers, features = layer_abnormality(layers, inputs, forward=self.base.features)
        return torch.cat([features, numbers.to(features)], 1)


class StabilityFeatures(ProbedFeatures):
    """Appends the log-odds that a prediction keeps when the last batch norm layers are amplified.

    Column k − 1 is for the last k layers, up to `MAX_LAYERS`.

    Args:
        base: Network with batch norm that is trained on the data, or was trained on them.
        factor: Factor of the weight and the bias of a layer. Default: 1.5, as in IBD-PSC.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2), nn.Linear(2, 3))
        >>> source = StabilityFeatures(FeatureModel(network, "1"))
        >>> source.features(torch.rand(5, 1, 1, 2)).shape
        torch.Size([5, 3])
    """

    kind = "prediction-stability"

    def __init__(self, base: FeatureModel, factor: float = 1.5) -> None:
        super().__init__(base)
        self.factor = factor

    def columns(self, network: nn.Module) -> int:
        """Return the number of layers that are amplified at most."""
        return min(len(batchnorm_layers(network)), MAX_LAYERS)

    def probe(self, network: nn.Module, inputs: Tensor) -> Tensor:
        """Return the log-odds of the predictions with the last 1, 2, ... layers amplified, float32 `(B, K)`."""
        forward = partial(run_network, network)
        layers = batchnorm_layers(network)
        order = called_order(layers, inputs[:1], forward=forward)
        if len(order) < len(layers):
            way = "Pass a network that calls each of them."
            came = f"one that calls {len(order)} of its {len(layers)} batch norm layers"
            raise ValueError(expected("network", "a classifier that calls all its batch norm", came, way))
        predictions = forward(inputs).argmax(1)
        columns = []
        for count in range(1, self.columns(network) + 1):
            with amplified(order[-count:], self.factor):
                columns.append(log_odds_of(forward(inputs), predictions))
        return torch.stack(columns, 1)

    def shared_key(self) -> str:
        """Return a key that is equal for sources of the same factor and network."""
        return json.dumps([self.kind, self.factor, self.base.shared_key()])

    def settings(self) -> Mapping[str, Any]:
        """Return the settings of the network, the kind of the numbers and the factor as JSON values."""
        return {**super().settings(), "factor": self.factor}
