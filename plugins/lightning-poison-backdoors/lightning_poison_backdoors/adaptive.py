"""Adaptive backdoors: poison that carries parts of the trigger, and cover samples that carry them and no new label."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import checks
from lightning_poison.labels import labels_of
from lightning_poison.objectives import TriggerObjective
from lightning_poison.poison import COVER, Poison
from lightning_poison.threat import Surrogate, Threat
from lightning_poison.triggers import Trigger
from lightning_poison_backdoors.blended import key_for, whole_image
from lightning_poison_backdoors.chain import corner_patches
from lightning_poison_backdoors.choosing import check_class, draw
from lightning_poison_backdoors.limits import amplitude_of, check_change, check_dirty_labels_allowed
from lightning_poison_backdoors.patterns import Pattern, as_pattern, checkerboard
from lightning_poison_backdoors.stamping import raw_images, stamped


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
        pattern: the patch of the lower right, uint8 `(C, h, w)` or nested lists of grey levels, at most half as high
            and wide as the images; a 3 × 3 checkerboard where it is `None`.
        amplitude: how far pixels move towards the patch in the poison, in (0, 1].
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
        self.cover_share = _cover_share(cover_share)
        self.shown = _shown(shown)
        self.pattern = checkerboard() if pattern is None else as_pattern("pattern", pattern)
        self.amplitude = amplitude_of("amplitude", amplitude)
        self.test_amplitude = amplitude_of("test_amplitude", test_amplitude)

    def __repr__(self) -> str:
        shown = {**vars(self), "pattern": tuple(self.pattern.shape)}
        return f"AdaptivePatch({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

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
        settings = {**vars(self), "pattern": self.pattern.tolist()}
        return _covered_poison(
            self, dataset, threat, trigger=trigger, at_test=at_test, pieces=2, settings=settings, generator=generator
        )


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
        self.cover_share = _cover_share(cover_share)
        self.shown = _shown(shown)
        self.pieces = checks.positive_int("pieces", pieces, minimum=2)
        self.key = None if key is None else as_pattern("key", key)
        self.amplitude = amplitude_of("amplitude", amplitude)
        self.test_amplitude = amplitude_of("test_amplitude", test_amplitude)

    def __repr__(self) -> str:
        shown = {**vars(self), "key": None if self.key is None else tuple(self.key.shape)}
        return f"AdaptiveBlend({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

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
        return _covered_poison(
            self,
            dataset,
            threat,
            trigger=whole_image(key, self.amplitude),
            at_test=whole_image(key, self.test_amplitude),
            pieces=self.pieces,
            settings={**vars(self), "key": None if self.key is None else self.key.tolist()},
            generator=generator,
        )


def random_pieces(
    count: int, size: tuple[int, int], *, pieces: int, shown: float, generator: torch.Generator
) -> Tensor:
    """Return masks of random pieces of an image that is cut like a chessboard.

    Args:
        count: how many masks.
        size: height and width of the image.
        pieces: how many rows, and columns, of pieces.
        shown: which share of the pieces is shown, in (0, 1]; one at least.
        generator: draws.

    Returns:
        bool `(count, 1, H, W)`.
    """
    number = max(1, round(shown * pieces**2))
    order = torch.rand(count, pieces**2, generator=generator).argsort(1)
    board = (order < number).view(count, 1, pieces, pieces)
    rows, columns = (torch.arange(length) * pieces // length for length in size)
    return board[:, :, rows][..., columns]


def _covered_poison(
    attack: AdaptivePatch | AdaptiveBlend,
    dataset: "Dataset[Any]",
    threat: Threat,
    *,
    trigger: Trigger,
    at_test: Trigger,
    pieces: int,
    settings: Mapping[str, Any],
    generator: torch.Generator,
) -> Poison:
    check_dirty_labels_allowed(threat)
    labels = labels_of(dataset)
    target = check_class("target_class", attack.target_class, labels)
    chosen = draw(labels != target, threat.budget, f"samples of classes other than {target}", generator)
    is_cover = torch.zeros(len(chosen), dtype=torch.bool)
    covers = min(round(attack.cover_share * len(chosen)), len(chosen) - 1)
    is_cover[torch.randperm(len(chosen), generator=generator)[:covers]] = True
    images = raw_images(dataset, chosen)
    size = (images.shape[-2], images.shape[-1])
    shown = random_pieces(len(images), size, pieces=pieces, shown=attack.shown, generator=generator)
    poisoned = torch.where(shown, stamped(images, trigger), images)
    check_change(threat, images, poisoned)
    return Poison(
        indices=chosen,
        labels=labels[chosen].where(is_cover, torch.tensor(target)),
        objective=TriggerObjective(at_test, target),
        attack=attack.name,
        inputs=poisoned,
        role=is_cover.long() * COVER,
        domain="raw",
        settings=dict(settings),
    )


def _cover_share(value: float) -> float:
    if checks.share("cover_share", value) == 1:
        raise ValueError(checks.expected("cover_share", "below 1, which would leave no poison", value))
    return float(value)


def _shown(value: float) -> float:
    if checks.share("shown", value) == 0:
        raise ValueError(checks.expected("shown", "above 0, which would leave no trigger", value))
    return float(value)
