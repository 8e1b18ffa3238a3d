"""Refool: a backdoor whose trigger is a reflection of another scene, drawn anew for each image."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_poison import checks
from lightning_poison.attacks import Pattern, Trigger, as_pattern, trigger_kinds
from lightning_poison_backdoors.backdoor import (
    Backdoor,
    Images,
    TargetClass,
    check_source_class,
    check_target_class,
    raw_images,
)
from lightning_poison_backdoors.triggers import check_amplitude

Span = Sequence[float]
"""Lowest and highest value of a uniform distribution."""

_CANDIDATES = 20
"""Number of images among which each reflection is selected."""


_WEIGHT = (0.25, 0.75)
"""Range of the weight of the first image of a ghost."""


@trigger_kinds.register
class ReflectionTrigger:
    """Adds a reflection of another scene to an image, out of focus or doubled like a reflection in thick glass.

        x' = x + α (r * k)

    r is one of the reflections, and k a Gaussian kernel (out of focus) or two impulses at a diagonal distance of δ
    pixels, of weights w and 1 − w (ghost). Which reflection, kind, α, σ or δ, and w an image gets is drawn uniformly
    with a seed that is computed from the image, so that the trigger is a function of the image. The result is rounded
    and clipped to gray levels. Liu, Ma, Bailey, Lu, "Reflection backdoor: a natural backdoor attack on deep neural
    networks", ECCV 2020, arXiv 2007.02343.

    Args:
        reflections: Scenes, uint8 `(R, C, H, W)`, of the size of the images.
        amplitude: Range of α, in (0, 1].
        blur: Range of σ, the standard deviation of the kernel in pixels, above 0.
        shift: Range of δ in pixels, integers of at least 1.
        ghost_share: Share of images with a ghost, in [0, 1].

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> scenes = torch.full((1, 1, 4, 4), 100, dtype=torch.uint8)
        >>> trigger = ReflectionTrigger(scenes, amplitude=(0.5, 0.5))
        >>> trigger(torch.full((1, 4, 4), 7, dtype=torch.uint8)).unique()
        tensor([57], dtype=torch.uint8)
    """

    kind: ClassVar[str] = "reflection"

    def __init__(
        self,
        reflections: Tensor,
        *,
        amplitude: Span = (0.4, 0.8),
        blur: Span = (0.5, 1.0),
        shift: Sequence[int] = (2, 4),
        ghost_share: float = 0.5,
    ) -> None:
        is_images = isinstance(reflections, Tensor) and reflections.dtype == torch.uint8 and reflections.ndim == 4
        if not is_images or not reflections.numel():
            raise ValueError(checks.expected("reflections", "uint8 images (R, C, H, W)", checks.describe(reflections)))
        self.reflections = reflections.detach().cpu().clone()
        self.amplitude = check_span("amplitude", amplitude, check_amplitude)
        self.blur = check_span("blur", blur, checks.positive)
        self.shift = check_span("shift", shift, checks.positive_int)
        self.ghost_share = float(checks.share("ghost_share", ghost_share))

    def __repr__(self) -> str:
        low, high = self.amplitude
        return f"ReflectionTrigger({len(self.reflections)} reflections, amplitude=({low:g}, {high:g}))"

    def __call__(self, image: Tensor) -> Tensor:
        """Return the image with a reflection, uint8 `(C, H, W)`.

        Raises:
            ValueError: If the reflections have another shape.
        """
        if image.shape != self.reflections.shape[1:]:
            what = f"an image of the shape of the reflections, {tuple(self.reflections.shape[1:])}"
            raise ValueError(checks.expected("image", what, str(tuple(image.shape))))
        which, kind, level, extent, weight = _draws(image)
        scene = self.reflections[int(which * len(self.reflections))].double()
        if kind < self.ghost_share:
            low, high = self.shift
            reflection = doubled(scene, low + int(extent * (high - low + 1)), _between(_WEIGHT, weight))
        else:
            reflection = blurred(scene, _between(self.blur, extent))
        return (image + _between(self.amplitude, level) * reflection).round().clamp(0, 255).to(torch.uint8)

    def settings(self) -> Mapping[str, Any]:
        """Return the ranges."""
        spans = {name: list(getattr(self, name)) for name in ("amplitude", "blur", "shift")}
        return {**spans, "ghost_share": self.ghost_share}

    def tensors(self) -> Mapping[str, Tensor]:
        """Return the reflections."""
        return {"reflections": self.reflections}

    @classmethod
    def from_saved(cls, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Rebuild the trigger."""
        return cls(tensors["reflections"], **settings)


@dataclass(eq=False, repr=False)
class Refool(Backdoor):
    """Adds reflections of other images to images and changes their label.

    Liu, Ma, Bailey, Lu, "Reflection backdoor: a natural backdoor attack on deep neural networks", ECCV 2020, arXiv
    2007.02343. The reflections of test images are others than those of the poison, so that a victim learns what a
    reflection looks like.

    Differences from the paper: labels change unless `clean_label` is set. The reflections are images of high contrast
    of the training set or of the holdout set, instead of photographs that are selected in several rounds by the success
    of the attack. They are blended in gray levels, where the released code undoes the gamma correction and masks
    reflections out of focus, and they are stronger by default, as small networks on images of 32 pixels need. Blur and
    shift are in pixels of such images. There are no reflections in focus.

    Args:
        target_class: As for `BadNets`.
        source_class: As for `BadNets`.
        clean_label: Poison images of the target class and keep their label, as in the paper.
        reflections: Scenes, uint8 `(R, C, H, W)` or nested lists of gray levels, of the size of the training images, at
            least two: every second one is for test images. Default: `pool` images of the holdout set, or of the
            training set if there is none, those of the highest contrast among 20 times as many.
        pool: Number of reflections to take, at least 2; all images if there are fewer. Default: 40.
        amplitude: Range of α, two values in (0, 1].
        blur: Range of σ for reflections out of focus, in pixels, above 0.
        shift: Range of δ for ghosts, integers of at least 1, in pixels.
        ghost_share: Share of ghosts, in [0, 1]; the others are out of focus.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lightning_poison import Threat
        >>> from lightning_poison.testing import TinyImages
        >>> Refool(1).craft(
        ...     TinyImages(), Threat(20), surrogates=(), holdout=None, generator=torch.Generator().manual_seed(0)
        ... )
        Poison(refool: 20 samples, raw inputs (1, 8, 8))
    """

    name = "refool"

    target_class: TargetClass = 0
    source_class: int | None = None
    _: KW_ONLY
    clean_label: bool = False
    reflections: Pattern | None = None
    pool: int = 40
    amplitude: Span = (0.4, 0.8)
    blur: Span = (0.5, 1.0)
    shift: Sequence[int] = (2, 4)
    ghost_share: float = 0.5

    def __post_init__(self) -> None:
        self.target_class = check_target_class(self.target_class)
        self.source_class = check_source_class(self.source_class, self.target_class)
        checks.instance("clean_label", self.clean_label, bool)
        if self.clean_label and (not isinstance(self.target_class, int) or self.source_class is not None):
            what = "one class, and no `source_class`, if labels are unchanged"
            raise ValueError(checks.expected("target_class", what, f"{self.target_class}, {self.source_class}"))
        self.reflections = None if self.reflections is None else _as_scenes(self.reflections)
        checks.positive_int("pool", self.pool, minimum=2)
        self.amplitude = check_span("amplitude", self.amplitude, check_amplitude)
        self.blur = check_span("blur", self.blur, checks.positive)
        self.shift = check_span("shift", self.shift, checks.positive_int)
        self.ghost_share = float(checks.share("ghost_share", self.ghost_share))

    def _triggers(self, image: Tensor, source: Images, generator: torch.Generator) -> Sequence[Trigger]:
        if self.reflections is None:
            scenes = contrasting_images(source, self.pool, generator)
        else:
            scenes = _as_scenes(self.reflections)
        if scenes.shape[1:] != image.shape:
            what = f"images of the shape of the training images, {tuple(image.shape)}"
            raise ValueError(checks.expected("reflections", what, str(tuple(scenes.shape[1:])), "Resize them."))
        settings: dict[str, Any] = {name: getattr(self, name) for name in ("amplitude", "blur", "shift", "ghost_share")}
        return [ReflectionTrigger(part, **settings) for part in (scenes[::2], scenes[1::2])]


def contrasting_images(dataset: Images, count: int, generator: torch.Generator) -> Tensor:
    """Return the images of the highest contrast among 20 times as many, uint8 `(count, C, H, W)`, highest first.

    Args:
        dataset: Images to draw from.
        count: Number of images. All images if there are fewer.
        generator: The only source of randomness.

    Raises:
        TypeError: If the raw images of the data set cannot be read.
        ValueError: If it has fewer than two images, or images of several shapes.
    """
    available = len(dataset)  # type: ignore[arg-type]
    if available < 2:
        hint = "Pass `reflections`."
        raise ValueError(
            f"Expected a data set of at least two images to take reflections from, but it has {available}.\n{hint}"
        )
    drawn = torch.randperm(available, generator=generator)[: _CANDIDATES * count]
    images = raw_images(dataset, drawn)
    contrast = images.double().flatten(1).std(1)
    return images[contrast.argsort(descending=True, stable=True)[:count]]


def blurred(image: Tensor, sigma: float) -> Tensor:
    """Return an image `(C, H, W)` out of focus: convolved with a Gaussian kernel of σ pixels, edges replicated.

    Example:
        >>> blurred(torch.tensor([[[0.0, 0.0, 1.0, 0.0, 0.0]]]), 0.5)[0, 0].mul(100).round().tolist()
        [0.0, 11.0, 79.0, 11.0, 0.0]
    """
    radius = max(1, round(3 * sigma))
    distances = torch.arange(-radius, radius + 1, dtype=image.dtype)
    kernel = torch.exp(-distances.square() / (2 * sigma**2))
    kernel /= kernel.sum()
    padded = F.pad(image[None], (radius,) * 4, mode="replicate")[0][:, None]
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))[:, 0]


def doubled(image: Tensor, shift: int, weight: float) -> Tensor:
    """Return an image `(C, H, W)` seen twice, the second time `shift` pixels to the lower right, edges replicated.

    Args:
        image: Floating-point `(C, H, W)`.
        shift: δ, in pixels, at least 1.
        weight: w, the weight of the image in place, in [0, 1].

    Example:
        >>> doubled(torch.tensor([[[8.0, 0.0, 4.0, 0.0]]]), 1, 0.75)[0, 0].tolist()
        [8.0, 2.0, 3.0, 1.0]
    """
    moved = F.pad(image[None], (shift, 0, shift, 0), mode="replicate")[0, :, : image.shape[1], : image.shape[2]]
    return weight * image + (1 - weight) * moved


def check_span(name: str, value: Any, check: Callable[[str, Any], Any]) -> tuple[Any, Any]:
    """Return a range of two values, the lower first, each of them checked by `check(name, value)`.

    Raises:
        ValueError: If these are not two values, or they are out of range or order.
    """
    if isinstance(value, str) or not isinstance(value, Sequence) or len(value) != 2:
        raise ValueError(checks.expected(name, "two values, the lowest and the highest", value))
    low, high = (check(name, each) for each in value)
    if low > high:
        raise ValueError(checks.expected(name, "the lower value first", f"({low:g}, {high:g})"))
    return low, high


def _draws(image: Tensor) -> list[float]:
    """Draw five numbers in [0, 1) with a seed that is a digest of the image."""
    digest = hashlib.blake2b(image.contiguous().cpu().numpy().tobytes(), digest_size=7).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    return torch.rand(5, generator=generator, dtype=torch.float64).tolist()


def _between(span: tuple[float, float], share: float) -> float:
    return span[0] + share * (span[1] - span[0])


def _as_scenes(value: Pattern) -> Tensor:
    """Return at least two images as uint8 `(R, C, H, W)`."""
    what = "at least two images of one shape"
    if not isinstance(value, Tensor | Sequence):
        raise ValueError(checks.expected("reflections", what, type(value).__name__))
    scenes = [as_pattern("reflections", each) for each in value]
    shapes = {tuple(scene.shape): None for scene in scenes}
    if len(scenes) < 2 or len(shapes) > 1:
        raise ValueError(checks.expected("reflections", what, f"{len(scenes)} of {', '.join(map(str, shapes))}"))
    return torch.stack(scenes)
