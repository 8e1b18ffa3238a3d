"""Adaptive backdoors: poison that carries parts of the trigger, and cover samples that carry them and no new label."""

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from lightning_poison import Poison, Surrogate, Threat, checks
from lightning_poison_backdoors.blended import key_for, whole_image
from lightning_poison_backdoors.chain import corner_patches
from lightning_poison_backdoors.covering import check_cover_share, check_shown, covered_poison
from lightning_poison_backdoors.limits import amplitude_of
from lightning_poison_backdoors.patterns import Pattern, as_pattern, checkerboard
from lightning_poison_backdoors.settings import as_call
from lightning_poison_backdoors.stamping import raw_images


class AdaptivePatch:
    """Puts some of four corner patches on images; part of them get the target label, part keep theirs as cover.

    A victim must learn to weigh several weak patches, and triggered images spread among clean ones in feature space.
    Qi, Xie, Li, Mahloujifar, Mittal, "Revisiting the assumption of latent separability for backdoor defenses", ICLR
    2023 (Adaptive-Patch).

    Differences from the paper: one pattern, mirrored in the four corners, in place of four pictures of different
    opacity; all four are shown at test time in place of two; cover is drawn from the classes that are attacked.

    Args:
        target_class: what triggered images shall be read as.
        cover_share: which share of the budget is cover, in [0, 1).
        shown: which share of the patches each poisoned image carries, in (0, 1]; one of them at least.
        pattern: the patch of the lower right, uint8 `(C, h, w)` or nested lists of gray levels, at most half as high
            and wide as the images; a 3 × 3 checkerboard where it is `None`.
        amplitude: how far pixels move toward the patch in the poison, in (0, 1].
        test_amplitude: the same at test time.

    Raises:
        ValueError: where an argument is out of range.

    Example:
        >>> from lightning_poison.testing import TinyImages
        >>> AdaptivePatch(1).craft(
        ...     TinyImages(), Threat(20), surrogates=(), holdout=None, generator=torch.Generator().manual_seed(0)
        ... )
        Poison(adaptive-patch: 20 samples, 10 of them cover, raw inputs (1, 8, 8))
    """

    name = "adaptive-patch"
    clean_label = False

    def __init__(
        self,
        target_class: int = 0,
        *,
        cover_share: float = 0.5,
        shown: float = 0.25,
        pattern: Pattern | None = None,
        amplitude: float = 0.5,
        test_amplitude: float = 1.0,
    ) -> None:
        self.target_class = checks.positive_int("target_class", target_class, minimum=0)
        self.cover_share = check_cover_share(cover_share)
        self.shown = check_shown(shown)
        self.pattern = checkerboard() if pattern is None else as_pattern("pattern", pattern)
        self.amplitude = amplitude_of("amplitude", amplitude)
        self.test_amplitude = amplitude_of("test_amplitude", test_amplitude)

    def __repr__(self) -> str:
        return as_call(self)

    def craft(
        self,
        dataset: "Dataset[Any]",
        threat: Threat,
        *,
        surrogates: Sequence[Surrogate],  # noqa: ARG002 (no model is needed)
        holdout: "Dataset[Any] | None",  # noqa: ARG002
        generator: torch.Generator,
    ) -> Poison:
        """Return poison and cover, as many together as the budget says.

        Raises:
            TypeError: where the raw images of the data set cannot be reached.
            ValueError: where labels must stay, the class is absent, there are fewer samples than the budget, the
                patches do not fit the images, or they change more than the threat's epsilon.
        """
        height, width = raw_images(dataset, torch.tensor([0])).shape[-2:]
        if 2 * self.pattern.shape[-2] > height or 2 * self.pattern.shape[-1] > width:
            raise ValueError(
                f"Expected a trigger of at most half the height and width of the images, ({height}, {width}), but got "
                f"a pattern of {tuple(self.pattern.shape)}.\nChoose a smaller pattern."
            )
        trigger, at_test = (
            corner_patches(self.pattern, corners=4, amplitude=amplitude)
            for amplitude in (self.amplitude, self.test_amplitude)
        )
        return covered_poison(self, dataset, threat, trigger=trigger, at_test=at_test, pieces=2, generator=generator)


class AdaptiveBlend:
    """Blends random pieces of a key image into images; part of them get the target label, part keep theirs as cover.

    Qi, Xie, Li, Mahloujifar, Mittal, ICLR 2023 (Adaptive-Blend): the image is cut into pieces like a
    chessboard, and each poisoned image carries a random half of them.

    Difference from the paper: cover is drawn from the classes that are attacked.

    Args:
        target_class: what triggered images shall be read as.
        cover_share: which share of the budget is cover, in [0, 1).
        shown: which share of the pieces each poisoned image carries, in (0, 1]; one of them at least.
        pieces: into how many rows, and columns, of pieces the image is cut.
        key: as for `Blended`.
        amplitude: α of the poison, in (0, 1].
        test_amplitude: α at test time.

    Raises:
        ValueError: where an argument is out of range.
    """

    name = "adaptive-blend"
    clean_label = False

    def __init__(
        self,
        target_class: int = 0,
        *,
        cover_share: float = 0.5,
        shown: float = 0.5,
        pieces: int = 4,
        key: Pattern | None = None,
        amplitude: float = 0.15,
        test_amplitude: float = 0.2,
    ) -> None:
        self.target_class = checks.positive_int("target_class", target_class, minimum=0)
        self.cover_share = check_cover_share(cover_share)
        self.shown = check_shown(shown)
        self.pieces = checks.positive_int("pieces", pieces, minimum=2)
        self.key = None if key is None else as_pattern("key", key)
        self.amplitude = amplitude_of("amplitude", amplitude)
        self.test_amplitude = amplitude_of("test_amplitude", test_amplitude)

    def __repr__(self) -> str:
        return as_call(self)

    def craft(
        self,
        dataset: "Dataset[Any]",
        threat: Threat,
        *,
        surrogates: Sequence[Surrogate],  # noqa: ARG002 (no model is needed)
        holdout: "Dataset[Any] | None",  # noqa: ARG002
        generator: torch.Generator,
    ) -> Poison:
        """Return poison and cover; see `AdaptivePatch.craft`."""
        key = key_for(raw_images(dataset, torch.tensor([0]))[0], self.key, generator)
        return covered_poison(
            self,
            dataset,
            threat,
            trigger=whole_image(key, self.amplitude),
            at_test=whole_image(key, self.test_amplitude),
            pieces=self.pieces,
            generator=generator,
        )
