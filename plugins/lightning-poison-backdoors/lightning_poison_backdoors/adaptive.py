"""Adaptive backdoors: poison carries parts of the trigger, and cover samples carry parts and keep their label."""

from abc import ABC
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field

import torch
from torch import Tensor

from lightning_poison import checks
from lightning_poison.attacks import Pattern, Trigger, as_pattern
from lightning_poison_backdoors.backdoor import Backdoor, Images, check_cover_share, draw_covers
from lightning_poison_backdoors.triggers import blending_triggers, check_amplitude, checkerboard, corner_patches


class AdaptiveBackdoor(Backdoor, ABC):
    """The common part of `AdaptivePatch` and `AdaptiveBlend`: cover samples, and random pieces of the trigger.

    Qi, Xie, Li, Mahloujifar, Mittal, "Revisiting the assumption of latent separability for backdoor defenses", ICLR
    2023.
    """

    adaptive_to = (
        *("activation-clustering", "spectral-signatures", "deep-knn", "network-groups", "robust-features"),
        *("balanced", "thorough"),
    )
    """Scorers, and presets that contain one, which look for poison that is apart in feature space."""

    target_class: int
    cover_share: float
    shown: float
    amplitude: float
    test_amplitude: float
    pieces: int

    def __post_init__(self) -> None:
        checks.positive_int("target_class", self.target_class, minimum=0)
        self.cover_share = check_cover_share(self.cover_share)
        if checks.share("shown", self.shown) == 0:
            raise ValueError(checks.expected("shown", "above 0, so that the trigger is shown", 0))
        self.shown = float(self.shown)
        self.amplitude = check_amplitude("amplitude", self.amplitude)
        self.test_amplitude = check_amplitude("test_amplitude", self.test_amplitude)

    def _roles(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        return draw_covers(len(labels), self.cover_share, generator)

    def _apply(self, trigger: Trigger, images: Tensor, role: Tensor, generator: torch.Generator) -> Tensor:
        size = (images.shape[-2], images.shape[-1])
        masks = random_pieces(len(images), size, pieces=self.pieces, shown=self.shown, generator=generator)
        return torch.where(masks, super()._apply(trigger, images, role, generator), images)


@dataclass(eq=False, repr=False)
class AdaptivePatch(AdaptiveBackdoor):
    """Adds some of four corner patches to images; some of the images get the target label, the others are cover.

    A victim has to combine several weak patches, and triggered images spread among clean ones in feature space. Qi,
    Xie, Li, Mahloujifar, Mittal, ICLR 2023 (Adaptive-Patch).

    Differences from the paper: one pattern, mirrored in the four corners, instead of four pictures of different
    opacity; all four are shown at test time instead of two; cover is drawn from the attacked classes.

    Args:
        target_class: Class predicted for triggered images.
        cover_share: Share of cover in the budget, in [0, 1).
        shown: Share of the patches that each poisoned image carries, in (0, 1]; at least one patch.
        pattern: Patch of the lower right corner, uint8 `(C, h, w)` or nested lists of gray levels, at most half the
            height and width of the images. Default: a 3 × 3 checkerboard.
        amplitude: Opacity of the patches in the poison, in (0, 1].
        test_amplitude: Opacity of the patches at test time, in (0, 1].

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from lightning_poison import Threat
        >>> from lightning_poison.testing import TinyImages
        >>> AdaptivePatch(1).craft(
        ...     TinyImages(), Threat(20), surrogates=(), holdout=None, generator=torch.Generator().manual_seed(0)
        ... )
        Poison(adaptive-patch: 20 samples, 10 of them cover, raw inputs (1, 8, 8))
    """

    name = "adaptive-patch"
    pieces = 2

    target_class: int = 0
    _: KW_ONLY
    cover_share: float = 0.5
    shown: float = 0.25
    pattern: Pattern = field(default_factory=checkerboard)
    amplitude: float = 0.5
    test_amplitude: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.pattern = as_pattern("pattern", self.pattern)

    def _triggers(self, image: Tensor, source: Images, generator: torch.Generator) -> Sequence[Trigger]:  # noqa: ARG002
        pattern = as_pattern("pattern", self.pattern)
        height, width = image.shape[-2:]
        if 2 * pattern.shape[-2] > height or 2 * pattern.shape[-1] > width:
            what = f"at most half the height and width of the images, ({height}, {width})"
            raise ValueError(checks.expected("pattern", what, str(tuple(pattern.shape)), "Choose a smaller pattern."))
        amplitudes = (self.amplitude, self.test_amplitude)
        return [corner_patches(pattern, corners=4, amplitude=amplitude) for amplitude in amplitudes]


@dataclass(eq=False, repr=False)
class AdaptiveBlend(AdaptiveBackdoor):
    """Blends random pieces of a key image into images; some get the target label, the others are cover.

    Qi, Xie, Li, Mahloujifar, Mittal, ICLR 2023 (Adaptive-Blend): the image is divided into pieces like a chessboard,
    and each poisoned image carries a random half of them.

    Difference from the paper: cover is drawn from the attacked classes.

    Args:
        target_class: Class predicted for triggered images.
        cover_share: Share of cover in the budget, in [0, 1).
        shown: Share of the pieces that each poisoned image carries, in (0, 1]; at least one piece.
        pieces: Number of rows and of columns of pieces, at least 2.
        key: As for `Blended`.
        amplitude: α of the poison, in (0, 1].
        test_amplitude: α at test time, in (0, 1].

    Raises:
        ValueError: If an argument is out of range.
    """

    name = "adaptive-blend"

    target_class: int = 0
    _: KW_ONLY
    cover_share: float = 0.5
    shown: float = 0.5
    pieces: int = 4
    key: Pattern | None = None
    amplitude: float = 0.15
    test_amplitude: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int("pieces", self.pieces, minimum=2)
        self.key = None if self.key is None else as_pattern("key", self.key)

    def _triggers(self, image: Tensor, source: Images, generator: torch.Generator) -> Sequence[Trigger]:  # noqa: ARG002
        return blending_triggers(self.key, image, (self.amplitude, self.test_amplitude), generator)


def random_pieces(
    count: int, size: tuple[int, int], *, pieces: int, shown: float, generator: torch.Generator
) -> Tensor:
    """Return masks of random pieces of an image divided like a chessboard.

    Args:
        count: Number of masks.
        size: Height and width of the image.
        pieces: Number of rows and of columns of pieces.
        shown: Share of the pieces in each mask, in (0, 1]; at least one piece.
        generator: The only source of randomness.

    Returns:
        bool `(count, 1, H, W)`.
    """
    number = max(1, round(shown * pieces**2))
    order = torch.rand(count, pieces**2, generator=generator).argsort(1)
    board = (order < number).view(count, 1, pieces, pieces)
    rows, columns = (torch.arange(length) * pieces // length for length in size)
    return board[:, :, rows][..., columns]
