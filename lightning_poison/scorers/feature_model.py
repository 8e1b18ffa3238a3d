"""`FeatureModel`: the network whose features the filters that must see the whole set look at."""

import copy
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from lightning_poison.adversarial.adversaries import FGSM, PGD
from lightning_poison.checks import describe, expected, instance, positive_int, with_method
from lightning_poison.contexts import evaluating
from lightning_poison.data.fingerprints import architecture_of
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.errors import NotFittedError
from lightning_poison.models.feature_extractor import FeatureExtractor, shifted_output
from lightning_poison.models.fitting import FitSettings
from lightning_poison.runtime import Runtime
from lightning_poison.scorers.classifier import Classifier, classifier_state, fit_classifier, loaded_classifier


class FeatureModel:
    """Maps inputs to feature vectors: a named layer of somebody's trained network, or of a classifier of its own.

    For filters that must see the whole set, one of its own is trained on the very samples that are judged, as their
    authors do: a backdoor shows in the features of a network that has learned it. Filters that are fitted on samples
    that are believed train it on those.

    Args:
        model: a trained network, run in evaluation mode and never changed; `None` for a classifier of its own.
        layer: the name of the layer of `model` whose output is the feature vector; `""` is its own output.
        backbone: of a classifier of its own: maps inputs to features `(B, feature_size)`, copied for each fit and
            trained from the weights that it has; chosen by the shape of a sample where it is `None`.
        feature_size: the length of the feature vector of a classifier of its own.
        fit_settings: how that one is trained.
        adversary: trains that one adversarially, so that robust features are looked at: `FGSM(0.3)` for MNIST,
            `FGSM(8 / 255)` for natural images.
        pixels: how inputs are normalized, for the adversary; raw images in [0, 1] where it is `None`.

    Raises:
        TypeError: where `model` is no network, or `adversary` cannot change inputs.
        ValueError: where the network has no such layer, or both `model` and `backbone` or an adversary are given.

    Example:
        >>> model = FeatureModel(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU()), "1")
        >>> model.is_fitted, model.features(torch.zeros(5, 1, 2, 2)).shape
        (True, torch.Size([5, 3]))
    """

    def __init__(
        self,
        model: nn.Module | None = None,
        layer: str = "",
        *,
        backbone: nn.Module | None = None,
        feature_size: int = 64,
        fit_settings: FitSettings = FitSettings(),  # noqa: B008 (frozen)
        adversary: PGD | FGSM | None = None,
        pixels: PixelRange | None = None,
    ) -> None:
        if model is not None:
            instance("model", model, nn.Module, hint="For robust features write `FeatureModel(adversary=FGSM(0.3))`.")
        if adversary is not None:
            with_method("adversary", adversary, "perturb", hint="Write `FeatureModel(adversary=FGSM(0.3))`.")
        if model is not None and (backbone is not None or adversary is not None):
            raise ValueError(
                f"Expected `model` or `{'backbone' if backbone is not None else 'adversary'}`, but got both.\n"
                "`model` is a trained network that is left as it is; the other is for one that is trained on the data."
            )
        self.model = model
        self.layer = layer
        self.backbone = backbone
        self.feature_size = positive_int("feature_size", feature_size)
        self.fit_settings = fit_settings
        self.adversary = adversary
        self.pixels = pixels
        self._read = FeatureExtractor(model, layer) if model is not None else None
        self._own: Classifier | None = None

    def __repr__(self) -> str:
        if self.model is not None:
            return f"FeatureModel({type(self.model).__name__}, {self.layer!r})"
        robust = f", adversary={self.adversary!r}" if self.adversary is not None else ""
        return f"FeatureModel(feature_size={self.feature_size}{robust})"

    @property
    def is_fitted(self) -> bool:
        """Whether it can be asked for features."""
        return self._read is not None or self._own is not None

    @property
    def network(self) -> nn.Module:
        """The network whose features are looked at.

        Raises:
            NotFittedError: before a fit, where none was handed in.
        """
        return self.model if self.model is not None else self._fitted_classifier()

    def for_fit(self) -> "FeatureModel":
        """Return itself where a network was handed in, else a copy to be fitted, so that the setting stays as it is."""
        return self if self.model is not None else copy.deepcopy(self)

    def fit(self, dataset: Any, *, runtime: Runtime | None = None, generator: torch.Generator | None = None) -> Self:
        """Train the classifier of its own and return itself.

        Args:
            dataset: a map-style data set, untrusted samples among it.
            runtime: where to compute; this machine where it is `None`.
            generator: the only source of randomness; a fixed seed where it is `None`.

        Raises:
            ValueError: where there are fewer than two classes, or the backbone returns features of another size.
            UnreadableSampleError: where a sample cannot be read.
        """
        self._own = self._trained(dataset, runtime, generator)
        return self

    def rehearse(self, dataset: Any, *, steps: int, runtime: Runtime | None = None) -> int:
        """Train a throw-away classifier for a few steps, so that a caller can time them; return those of a fit."""
        self._trained(dataset, runtime, None, max_steps=steps)
        return self.fit_settings.total_steps(len(dataset))

    def features(self, inputs: Tensor) -> Tensor:
        """Return features, float32 `(B, D)`, on the device of the inputs.

        Raises:
            NotFittedError: before a fit.
            ValueError: where samples have another shape than those that it was fitted on, or the layer returns no
                vector for each sample.
        """
        if self._read is not None and self.model is not None:
            home = next((held.device for held in self.model.parameters()), inputs.device)
            with evaluating(self.model):
                return self._read(inputs.to(home)).float().to(inputs.device)
        own = self._fitted_classifier()
        if own.linear.weight.device != inputs.device:
            own.to(inputs.device)
        with evaluating(own):
            return own.features(inputs).float()

    def logits(self, inputs: Tensor, *, shift: Tensor | None = None) -> Tensor:
        """Return what the network makes of inputs, float32 `(B, C)`, on their device.

        Args:
            inputs: `(B, ...)`.
            shift: `(D,)`, added to the features of each sample.

        Raises:
            NotFittedError: before a fit.
            ValueError: where a network that was handed in returns no logits, or its features are its output.
        """
        if self.model is None:
            own = self._fitted_classifier()
            features = self.features(inputs)
            return own.linear(features if shift is None else features + shift.to(features)).float()  # type: ignore[no-any-return]
        home = next((held.device for held in self.model.parameters()), inputs.device)
        with evaluating(self.model):
            if shift is None:
                found = self.model(inputs.to(home))
            else:
                found = shifted_output(self.model, self.layer, inputs.to(home), shift)
        if not self.layer or not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(inputs):
            came = f"layer {self.layer!r} and {describe(found)}"
            way = "Hand in a classifier, and name a layer inside of it."
            raise ValueError(expected("model", "a network that makes logits (B, C) of the features", came, way))
        return found.float().to(inputs.device)

    def settings(self) -> Mapping[str, Any]:
        """Return what it was built with, as JSON can hold it."""
        if self.model is not None:
            return {"model": architecture_of(self.model), "layer": self.layer}
        backbone = None if self.backbone is None else architecture_of(self.backbone)
        fit_settings = dict(vars(self.fit_settings))
        found = {"backbone": backbone, "feature_size": self.feature_size, "fit_settings": fit_settings}
        if self.adversary is None:
            return found
        pixels = None if self.pixels is None else dict(vars(self.pixels))
        return {**found, "adversary": {type(self.adversary).__name__: dict(vars(self.adversary))}, "pixels": pixels}

    def state(self) -> Mapping[str, Tensor]:
        """Return the weights, by name.

        Raises:
            NotFittedError: before a fit.
        """
        if self.model is not None:
            return {f"model.{name}": value.detach().clone() for name, value in self.model.state_dict().items()}
        return classifier_state(self._fitted_classifier())

    def load(self, state: Mapping[str, Tensor]) -> Self:
        """Take over the weights that `state` of one of the same settings returned, and return itself.

        A network that was handed in keeps the weights that it has.

        Raises:
            ValueError: where they do not fit.
        """
        if self.model is None:
            self._own = loaded_classifier(
                dict(state), backbone=self.backbone, feature_size=self.feature_size, scorer=repr(self)
            )
        return self

    def _fitted_classifier(self) -> Classifier:
        if self._own is None:
            raise NotFittedError("Expected a fitted FeatureModel, but it has no network yet.\nCall `fit(dataset)`.")
        return self._own

    def _trained(
        self, dataset: Any, runtime: Runtime | None, generator: torch.Generator | None, max_steps: int | None = None
    ) -> Classifier:
        return fit_classifier(
            dataset,
            backbone=copy.deepcopy(self.backbone),
            feature_size=self.feature_size,
            settings=self.fit_settings,
            runtime=runtime,
            generator=generator,
            description="fitting the network whose features are looked at",
            max_steps=max_steps,
            adversary=self.adversary,
            pixels=self.pixels,
        )
