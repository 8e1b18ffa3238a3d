"""`RecommendedScorer`: the scorers to use on unknown data, by cost."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from torch import Tensor

from lightning_poison.adversarial.adversaries import FGSM
from lightning_poison.checks import expected, instance, one_of, printable
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.data.transforms import normalization_of
from lightning_poison.models.backbones import LARGE_IMAGE
from lightning_poison.models.detail_network import DetailConvNet
from lightning_poison.models.fitting import FitSettings
from lightning_poison.models.pretrained import EMBEDDED, has_embedded_encoder
from lightning_poison.randomness import seeded_rng
from lightning_poison.scorers.confidence import ConfidenceScorer
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.linear_probe import LinearProbeScorer
from lightning_poison.scorers.network_groups import NetworkGroupScorer
from lightning_poison.scorers.protocol import Scorer, SetScorer
from lightning_poison.scorers.robust_features import RobustFeatureScorer
from lightning_poison.scorers.union import UnionScorer

Preset = Literal["fast", "balanced", "thorough"]
"""`"fast"` looks for wrong labels, `"balanced"` for backdoors too, `"thorough"` for clean-label backdoors too."""

PRESETS: tuple[Preset, ...] = ("fast", "balanced", "thorough")

_FAST = FitSettings(epochs=5)

_GROUPS = FitSettings(learning_rate=4e-3, shift=0, mirror=False)
"""Without shifts and mirror images, which move a pattern in a corner."""

_ANY_GROUP: dict[str, Any] = {"min_separation": 4.0, "min_size": 20}
"""Groups whose effects are tested, natural ones included, which have none: `benchmarks/recommended_scorer.py`.

In robust features, whose network learns less, such groups have effects: with 10 % wrong labels, 4.7 % of the clean
images of CIFAR-10 were lost to them.
"""


class RecommendedScorer:
    """The default of `sanitize`, `Sanitizer` and the DataModule wrappers; `Sanitizer("fast")` is short for a preset.

    Which scorers it consists of depends on the data:

    - *Wrong labels*: for color images in [0, 1], or of a stated normalization, if `lightning-poison[pretrained]` is
      installed, a linear classifier on features
      that never saw the labels (`LinearProbeScorer`), as for vectors of 50 classes or more with fewer than 200 samples
      in the median class; otherwise a small network (`ConfidenceScorer`). To the former, backdoors with wrong labels
      are wrong labels too.
    - *Backdoors*, of images, except with `"fast"`: groups in the features and layers of a network that was trained on
      the data (`NetworkGroupScorer`), and with `"thorough"` in features of one that was trained adversarially
      (`RobustFeatureScorer`).

    Each decides by its own rule; see `UnionScorer`. Features that never saw the labels come last: how well the network
    of the groups learned each label helps to judge it. A small network comes first: what it finds would also form
    groups, from which more clean samples are removed. What could not be looked for is named in the verdict.

    Args:
        preset: `"fast"`, which looks for wrong labels; `"balanced"`, which trains one more network and looks for
            backdoors too; or `"thorough"`, which also trains one adversarially. Default: `"balanced"`.
        pixels: Normalization of the images. Default: that of a `torchvision` `Normalize` in the data set's transform,
            or none: raw images in [0, 1].
        encoder: Network with pretrained weights for the features that never saw the labels, of color and gray images,
            `"timm:NAME"` or `"torchvision:NAME"`; see `FeatureModel`. Default: the embedded one, for color images.

    Raises:
        MissingEncoderError: If a package or the weights of `encoder` are not on this machine.
        ValueError: If `preset` is not one of these, or there is no network `encoder`.

    Example:
        >>> import torch
        >>> RecommendedScorer().for_inputs(torch.zeros(9, 1, 28, 28)).members.keys()
        dict_keys(['confidence', 'groups'])
        >>> RecommendedScorer("fast").for_inputs(torch.zeros(9, 20)).name
        'confidence'
    """

    name = "recommended"
    is_control = False

    def __init__(
        self, preset: Preset = "balanced", *, pixels: PixelRange | None = None, encoder: str | None = None
    ) -> None:
        self.preset: Preset = one_of("preset", preset, PRESETS)
        if pixels is not None:
            instance("pixels", pixels, PixelRange)
        self.pixels = pixels
        self.encoder = encoder
        self._features = None if encoder is None else FeatureModel(encoder, pixels=pixels)

    def __repr__(self) -> str:
        return f"RecommendedScorer({self.preset!r})"

    def settings(self) -> Mapping[str, Any]:
        """Return what the choice of scorers depends on, besides the data, as JSON values."""
        pixels = None if self.pixels is None else dict(vars(self.pixels))
        settings = {"preset": self.preset, "pixels": pixels, "pretrained": has_embedded_encoder()}
        return settings if self.encoder is None else settings | {"encoder": self.encoder}

    def reading(self, dataset: Any, inputs: Tensor) -> Self:
        """Return the scorer with the normalization that the data set's transform applies, unless one is stated.

        Images in [0, 1] are taken for raw ones, whatever the transform: it was not applied to them.

        Args:
            dataset: The data set; see `normalization_of`.
            inputs: Some inputs of it, `(B, ...)`, which must fit the normalization.
        """
        if self.pixels is not None or not _is_image(tuple(inputs.shape[1:])) or _is_raw(inputs):
            return self
        found = normalization_of(dataset)
        if found is None or len(found.mean or ()) not in (1, inputs.shape[1]) or not found.contains(inputs):
            return self
        reader = copy.copy(self)
        reader.pixels = found
        if self.encoder is not None:
            reader._features = FeatureModel(self.encoder, pixels=found)
        return reader

    def for_inputs(self, inputs: Tensor, labels: Tensor | None = None) -> Scorer | SetScorer | UnionScorer:
        """Return the scorers for a data set.

        Args:
            inputs: Some inputs of it, `(B, ...)`.
            labels: Its labels, int64 `(N,)`; −1 stands for no label. Default: unknown, and no reason against a network.
        """
        shape = tuple(inputs.shape[1:])
        backdoors: dict[str, Scorer | SetScorer] = {}
        if _is_image(shape) and self.preset != "fast":
            backdoors["groups"] = NetworkGroupScorer(_model(shape), exclusion_model=_model(shape), **_ANY_GROUP)
        if _is_image(shape) and self.preset == "thorough":
            robust = FGSM(0.3) if shape[0] == 1 else FGSM(8 / 255)
            model = _model(shape, adversary=robust, pixels=self.pixels)
            backdoors["robust-groups"] = RobustFeatureScorer(model, exclusion_model=_model(shape))
        members: dict[str, Scorer | SetScorer]
        if self._features is not None and _is_image(shape):
            members = {**backdoors, "label-blind": LinearProbeScorer(self._features)}
        elif _is_color(shape) and has_embedded_encoder() and self._is_readable(inputs):
            members = {**backdoors, "label-blind": LinearProbeScorer(FeatureModel(EMBEDDED, pixels=self.pixels))}
        elif len(shape) == 1 and labels is not None and _has_many_small_classes(labels):
            members = {"linear": LinearProbeScorer(FeatureModel("auto"))}
        else:
            large = _is_image(shape) and max(shape[1:]) >= LARGE_IMAGE
            backbone = _network(shape, 32) if large else None
            settings = _FAST if self.preset == "fast" else FitSettings()
            members = {"confidence": ConfidenceScorer(backbone=backbone, fit_settings=settings), **backdoors}
        return UnionScorer(members) if len(members) > 1 else next(iter(members.values()))

    def notes_for(self, inputs: Tensor, dtype: str | None = None) -> tuple[str, ...]:
        """Return what the user could do so that more is found.

        Args:
            inputs: Some inputs of the data set, `(B, ...)`.
            dtype: Data type of an input as the data set returns it, such as `"int64"`. Default: that of `inputs`.
        """
        shape = tuple(inputs.shape[1:])
        if len(shape) == 1 and dtype in _TOKENS and bool(inputs.eq(inputs.floor()).logical_and(inputs.ge(0)).all()):
            return (
                f"The inputs are vectors of {shape[0]} integers and were scored as numbers. If they are token ids, few "
                "wrong labels are found, and clean samples are removed. Pass a network that embeds them: "
                "`LikelihoodScorer(backbone=...)`.",
            )
        if self._features is not None and not _is_image(shape):
            return (f"{printable(self.encoder)} was not used: it reads images, and the inputs have the shape {shape}.",)
        if self._features is not None or not _is_color(shape):
            return ()
        if not has_embedded_encoder():
            return (
                "Wrong labels in color images are found better, and rare backdoors too, with features that never saw "
                "the labels: `pip install 'lightning-poison[pretrained]'`.",
            )
        if not self._is_readable(inputs):
            return (
                "The pretrained encoder would find more wrong labels, but it reads images in [0, 1], and these are "
                f"from {float(inputs.min()):.3g} to {float(inputs.max()):.3g}. State their normalization: "
                "`lightning_poison.scorers.RecommendedScorer(pixels=PixelRange(mean=..., std=...))`.",
            )
        return ()

    def _is_readable(self, inputs: Tensor) -> bool:
        """Whether the encoder can read images: they are in [0, 1], or their normalization is known."""
        return self.pixels is not None or _is_raw(inputs)


_TOKENS = ("int64", "int32", "list")
"""Data types of sequences of token ids."""

_TOLERANCE = 0.02
"""How far pixels may be outside of [0, 1]; see `Encoder`."""


def scorer_from(value: Any) -> Any:
    """Return the scorer that an argument names: a preset by its name, or the argument itself.

    Raises:
        ValueError: If it is a text that names no preset.

    Example:
        >>> scorer_from("thorough")
        RecommendedScorer('thorough')
    """
    if not isinstance(value, str):
        return value
    if value not in PRESETS:
        way = "`get_scorer(name)` builds an installed scorer by its name."
        raise ValueError(expected("scorer", f"a scorer or one of {', '.join(PRESETS)}", repr(printable(value)), way))
    return RecommendedScorer(value)


_MANY, _SMALL = 50, 200
"""Number of classes, and median number of samples in one, from and below which vectors are classified linearly.

With 100 samples for each of 100 classes, and 50 for each of 1,000, a small network learns too little to find any wrong
label, and a linear classifier finds nine of ten: `benchmarks/many_classes.py`.
"""


def _has_many_small_classes(labels: Tensor) -> bool:
    counts = labels[labels >= 0].bincount()
    counts = counts[counts > 0]
    return len(counts) >= _MANY and float(counts.double().median()) < _SMALL


def _is_raw(inputs: Tensor) -> bool:
    return -_TOLERANCE <= float(inputs.min()) <= float(inputs.max()) <= 1 + _TOLERANCE


def _is_color(shape: Sequence[int]) -> bool:
    return _is_image(shape) and shape[0] == 3


def _is_image(shape: Sequence[int]) -> bool:
    return len(shape) == 3 and min(shape[1:]) >= 4


def _model(shape: Sequence[int], **settings: Any) -> FeatureModel:
    return FeatureModel(backbone=_network(shape, 64), feature_size=64, fit_settings=_GROUPS, **settings)


def _network(shape: Sequence[int], feature_size: int) -> DetailConvNet:
    with seeded_rng(0):
        return DetailConvNet(shape, feature_size)
