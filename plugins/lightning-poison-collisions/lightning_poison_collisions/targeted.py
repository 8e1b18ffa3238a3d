"""`TargetedAttack`: the base of attacks that make a model misclassify chosen test samples."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import PixelRange, Poison, Surrogate, Threat, checks
from lightning_poison.attacks import InstancesObjective, RawFeatures, check_surrogates, read_features
from lightning_poison.contexts import evaluating, frozen
from lightning_poison.data import RawImages, index_blocks, labels_of
from lightning_poison_collisions.pairing import Pairs, distances_to_each, draw_pool, draw_targets, pick_bases


@dataclass(frozen=True)
class Block:
    """Poisons that are crafted together, and their targets, on the device of the first surrogate.

    Args:
        bases: Raw images in [0, 1], `(B, ...)`.
        targets: Raw images in [0, 1], `(T, ...)`; each is the target of at least one poison.
        target_of: Target of each poison, int64 `(B,)`, in [0, T).
        wanted: Class that the attacker wants for each target, the label of its bases, int64 `(T,)`.
    """

    bases: Tensor
    targets: Tensor
    target_of: Tensor
    wanted: Tensor


BlockCrafter = Callable[[Sequence[RawFeatures], Block], Tensor]
"""Maps the feature maps of the surrogates and a block to raw images in [0, 1], `(B, ...)`, not yet rounded."""


@dataclass(frozen=True, kw_only=True)
class TargetedAttack(ABC):
    """Clean-label poison, made from training images of one class, that targets test images of another class.

    Poison is grouped by target, in the order of the objective's targets. Subclasses define `_sizes` and `_crafter`, and
    `_blocks`, `_radius` or `_filter_pool` if needed.

    Args:
        source_class: Class of the targets, which are to be misclassified. Default: any class but that of the bases.
        base_class: Class of the bases, which is to be predicted for the targets. Default: for each target the class of
            its nearest candidate, or of a random one.
        placement: `"append"` adds the poison to the training set, `"replace"` replaces its bases.
        base_choice: `"nearest"` chooses the candidates nearest to the target in feature space, which makes the attack
            stronger; `"random"` chooses any.
        candidates: Number of training samples, drawn at random, from which bases are chosen.
        batch_size: Number of poisons crafted at once. Bounds memory; changes the poison by rounding errors only.

    Raises:
        ValueError: If an argument is out of range.
    """

    name = "targeted"
    clean_label = True

    source_class: int | None = None
    base_class: int | None = None
    placement: Literal["append", "replace"] = "append"
    base_choice: Literal["nearest", "random"] = "nearest"
    candidates: int = 1000
    batch_size: int = 128

    def __post_init__(self) -> None:
        for name in ("source_class", "base_class"):
            if (value := getattr(self, name)) is not None:
                checks.positive_int(name, value, minimum=0)
        if self.source_class is not None and self.source_class == self.base_class:
            what = f"another class than `source_class` ({self.source_class})"
            raise ValueError(checks.expected("base_class", what, "the same"))
        checks.positive_int("candidates", self.candidates)
        checks.positive_int("batch_size", self.batch_size)
        checks.one_of("placement", self.placement, ("append", "replace"))
        checks.one_of("base_choice", self.base_choice, ("nearest", "random"))

    @abstractmethod
    def _sizes(self, budget: int) -> list[int]:
        """Return the number of poisons of each target; the sum is the budget."""

    @abstractmethod
    def _crafter(
        self, surrogates: Sequence[Surrogate], threat: Threat, classes: int, generator: torch.Generator
    ) -> BlockCrafter:
        """Return the function that crafts a block, for training data with `classes` classes."""

    def _blocks(self, sizes: list[int]) -> list[Tensor]:
        """Return the positions of the poisons that are crafted together. Default: batches."""
        return index_blocks(torch.arange(sum(sizes)), self.batch_size)

    def _radius(self, threat: Threat) -> float | None:
        """Return the L∞ radius of the perturbation. Default: that of the threat."""
        return threat.epsilon

    def _filter_pool(self, pool: Tensor, training: RawImages, labels: Tensor, pixels: PixelRange) -> Tensor:  # noqa: ARG002
        """Return the candidates that may be bases. Default: all."""
        return pool

    def _settings(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return asdict(self)

    def craft(
        self,
        dataset: "Dataset[Any]",
        threat: Threat,
        *,
        surrogates: Sequence[Surrogate],
        holdout: "Dataset[Any] | None",
        generator: torch.Generator,
    ) -> Poison:
        """Craft as many poisons as the budget.

        Surrogates are used in evaluation mode on their device and in their precision, and their state is restored.
        Several surrogates contribute equally to the objective.

        Args:
            dataset: Training set from which bases are drawn, without random augmentation if possible.
            threat: Budget, pixel range, and the radius if it sets one.
            surrogates: Models with a feature layer, at least one.
            holdout: Data set from which targets are drawn.
            generator: The only source of randomness.

        Returns:
            Poison of domain `"sample"` with the labels of its bases and an `InstancesObjective`.

        Raises:
            ValueError: If there is no surrogate or held-out set, a class has too few samples, a surrogate has no such
                layer or its outputs do not fit, images are outside the pixel range, or the threat forbids appending.
        """
        check_surrogates(surrogates)
        targets_from = self.check_holdout(threat, holdout)
        sizes, pixels = self._sizes(threat.budget), threat.pixels
        labels, target_labels = labels_of(dataset), labels_of(targets_from)
        classes = 1 + max(int(labels.max()), int(target_labels.max()))
        craft_block = self._crafter(surrogates, threat, classes, generator)
        models = [surrogate.model for surrogate in surrogates]
        maps = [RawFeatures(surrogate, pixels) for surrogate in surrogates]
        seed = int(torch.randint(2**31, (), generator=generator))
        training, others = (
            RawImages(data, pixels, seed=seed, batch_size=self.batch_size) for data in (dataset, targets_from)
        )
        with evaluating(*models), frozen(*models):
            pairs = self.choose_pairs(training, others, sizes, maps=maps, pixels=pixels, generator=generator)
            targets = others(pairs.targets)
            crafted = []
            for members in self._blocks(sizes):
                block = _read_block(training, pairs, targets, members, maps[0].device)
                images = craft_block(maps, block)
                images = pixels.round_raw(images, around=block.bases, epsilon=self._radius(threat))
                crafted.append(pixels.from_raw(images).cpu())
        append = self.placement == "append"
        return Poison(
            indices=len(labels) + torch.arange(len(pairs.bases)) if append else pairs.bases,
            base_indices=pairs.bases if append else None,
            inputs=torch.cat(crafted),
            labels=pairs.wanted[pairs.target_of],
            objective=InstancesObjective(pixels.from_raw(targets), target_labels[pairs.targets], pairs.wanted),
            attack=self.name,
            settings=self._settings(),
        )

    def choose_pairs(
        self,
        training: RawImages,
        holdout: RawImages,
        sizes: list[int],
        *,
        maps: Sequence[RawFeatures],
        pixels: PixelRange,
        generator: torch.Generator,
    ) -> Pairs:
        """Draw targets and candidates, and choose the bases among the candidates.

        Args:
            training: Raw images of the training set.
            holdout: Raw images of the set from which targets are drawn.
            sizes: Number of bases of each target.
            maps: Feature maps in which distances are measured; at least one unless bases are random.
            pixels: Normalization of the samples.
            generator: The only source of randomness.

        Raises:
            ValueError: If a class is absent or has too few samples.
        """
        labels, target_labels = labels_of(training.dataset), labels_of(holdout.dataset)
        pool = draw_pool(labels, max(self.candidates, sum(sizes)), base_class=self.base_class, generator=generator)
        targets = draw_targets(
            target_labels, len(sizes), source_class=self.source_class, base_class=self.base_class, generator=generator
        )
        pool = self._filter_pool(pool, training, labels, pixels)
        if self.base_choice == "nearest":
            costs = distances_to_each(read_features(holdout, targets, maps), read_features(training, pool, maps))
        else:
            costs = (torch.rand(len(pool), generator=generator) for _ in sizes)
        once = self.placement == "replace"
        picked, wanted = pick_bases(costs, sizes, labels[pool], target_labels[targets], once=once)
        target_of = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        return Pairs(pool[torch.cat(picked)], targets, target_of, wanted)

    def check_holdout(self, threat: Threat, holdout: "Dataset[Any] | None") -> "Dataset[Any]":
        """Return the held-out set if there is one and the threat allows the placement.

        Raises:
            ValueError: Otherwise.
        """
        if self.placement == "append" and not threat.may_append:
            raise ValueError(
                'Expected a threat that allows appending, but got `may_append=False`.\nSet `placement="replace"`.'
            )
        if holdout is None:
            hint = "Pass samples that are not trained on, such as a part of the test set."
            raise ValueError(checks.expected("holdout", "a data set from which targets are drawn", "None", hint))
        return holdout


def _read_block(training: RawImages, pairs: Pairs, targets: Tensor, members: Tensor, device: torch.device) -> Block:
    present, target_of = torch.unique(pairs.target_of[members], return_inverse=True)
    bases = training(pairs.bases[members])
    parts = (bases, targets[present], target_of, pairs.wanted[present])
    return Block(*(part.to(device) for part in parts))
