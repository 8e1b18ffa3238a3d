"""`RecommendedScorer`: the scorers to use for data of which nothing is known, by what they may cost."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lightning_poison.adversarial.adversaries import FGSM
from lightning_poison.checks import expected, instance, one_of, printable
from lightning_poison.data.pixel_range import PixelRange
from lightning_poison.models.detail_network import DetailConvNet
from lightning_poison.models.fitting import FitSettings
from lightning_poison.models.pretrained import EMBEDDED, has_embedded_encoder
from lightning_poison.randomness import seeded_rng
from lightning_poison.scorers.confidence import ConfidenceScorer
from lightning_poison.scorers.feature_model import FeatureModel
from lightning_poison.scorers.linear_probe import LinearProbeScorer
from lightning_poison.scorers.protocol import Scorer, SetScorer
from lightning_poison.scorers.robust_features import RobustFeatureScorer
from lightning_poison.scorers.union import UnionScorer

Preset = Literal["fast", "balanced", "thorough"]
"""`"fast"` looks for wrong labels, `"balanced"` for backdoors too, `"thorough"` for clean-label backdoors too."""

PRESETS: tuple[Preset, ...] = ("fast", "balanced", "thorough")

_FAST = FitSettings(epochs=5)

_GROUPS = FitSettings(learning_rate=4e-3, shift=0)
"""Without shifts, which move a pattern in a corner."""

_ANY_GROUP: dict[str, Any] = {"min_separation": 4.0, "min_size": 20}
"""Groups whose effects are tested, natural ones included: on MNIST, natural groups of this separation had a transfer
and a resemblance of at most .01, 30 poisoned images .77 and more."""


class RecommendedScorer:
    """The default of `sanitize`, `Sanitizer` and the DataModule wrappers; `Sanitizer("fast")` is short for a preset.

    Which scorers it consists of depends on the data:

    - *Wrong labels*: for color images, if `lightning-poison[pretrained]` is installed, a linear classifier on features
      that never saw the labels (`LinearProbeScorer`); otherwise a small network (`ConfidenceScorer`). To the former,
      backdoors with wrong labels are wrong labels too.
    - *Backdoors*, of images, except with `"fast"`: groups in the features of a network that was trained on the data
      (`RobustFeatureScorer` with a plain network), and with `"thorough"` of one that was trained adversarially.

    Each decides by its own rule; see `UnionScorer`. What could not be looked for is named in the verdict.

    Args:
        preset: `"fast"`, at most 1.3 times the time of one training of a small network on the data; `"balanced"`, at
            most 3 times; or `"thorough"`, at most 6 times. Default: `"balanced"`.
        pixels: Normalization of the images. Default: raw images in [0, 1].

    Raises:
        ValueError: If `preset` is not one of these.

    Example:
        >>> RecommendedScorer().for_shape((1, 28, 28)).members.keys()
        dict_keys(['confidence', 'groups'])
        >>> RecommendedScorer("fast").for_shape((20,)).name
        'confidence'
    """

    name = "recommended"
    is_control = False

    def __init__(self, preset: Preset = "balanced", *, pixels: PixelRange | None = None) -> None:
        self.preset: Preset = one_of("preset", preset, PRESETS)
        if pixels is not None:
            instance("pixels", pixels, PixelRange)
        self.pixels = pixels

    def __repr__(self) -> str:
        return f"RecommendedScorer({self.preset!r})"

    def settings(self) -> Mapping[str, Any]:
        """Return what the choice of scorers depends on, besides the data, as JSON values."""
        pixels = None if self.pixels is None else dict(vars(self.pixels))
        return {"preset": self.preset, "pixels": pixels, "pretrained": has_embedded_encoder()}

    def for_shape(self, shape: Sequence[int]) -> Scorer | SetScorer | UnionScorer:
        """Return the scorers for samples of a shape.

        Args:
            shape: Shape of one sample, such as `(3, 32, 32)`.
        """
        members: dict[str, Scorer | SetScorer] = {}
        if len(shape) == 3 and shape[0] == 3 and has_embedded_encoder():
            members["label-blind"] = LinearProbeScorer(FeatureModel(EMBEDDED, pixels=self.pixels))
        elif self.preset == "fast":
            members["confidence"] = ConfidenceScorer(fit_settings=_FAST)
        else:
            members["confidence"] = ConfidenceScorer()
        if _is_image(shape) and self.preset != "fast":
            members["groups"] = RobustFeatureScorer(_model(shape), exclusion_model=_model(shape), **_ANY_GROUP)
        if _is_image(shape) and self.preset == "thorough":
            robust = FGSM(0.3) if shape[0] == 1 else FGSM(8 / 255)
            model = _model(shape, adversary=robust, pixels=self.pixels)
            members["robust-groups"] = RobustFeatureScorer(model, exclusion_model=_model(shape), **_ANY_GROUP)
        return UnionScorer(members) if len(members) > 1 else next(iter(members.values()))


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


def _is_image(shape: Sequence[int]) -> bool:
    return len(shape) == 3 and min(shape[1:]) >= 4


def _model(shape: Sequence[int], **settings: Any) -> FeatureModel:
    with seeded_rng(0):
        backbone = DetailConvNet(shape, 64)
    return FeatureModel(backbone=backbone, feature_size=64, fit_settings=_GROUPS, **settings)
