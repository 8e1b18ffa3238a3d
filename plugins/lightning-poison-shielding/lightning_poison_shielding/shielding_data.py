"""`ShieldingData`: the training set and the attacker's pool as features of the surrogates, and draws from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import Surrogate, Threat, checks
from lightning_poison.attacks import check_surrogates, known_class, read_features
from lightning_poison.data import RawImages, labels_of
from lightning_poison_shielding.frozen_features import FrozenFeatures
from lightning_poison_shielding.heads import HeadData

VALIDATION_SHARE = 0.25
"""Share of the pool that is held out for the choice of the shield class."""


@dataclass(frozen=True)
class FeatureRows:
    """Features and labels of some images.

    Args:
        features: Features of each surrogate, `(M, D)`.
        labels: True labels, int64 `(M,)`.
    """

    features: list[Tensor]
    labels: Tensor


@dataclass(frozen=True)
class ShieldingData:
    """The training set and the attacker's pool.

    Args:
        maps: One feature map for each surrogate, scaled on the training set.
        training: All clean training samples.
        outer: Images on which the loss is measured: a part of the pool, and the protected training samples.
        validation: Images on which shield classes are compared; empty if the shield class is given.
        images: Raw images of the training set.
        pool: Raw images of the pool.
        protected: Positions in the pool of the protected images in `outer`, int64.
        classes: Number of classes.
    """

    maps: list[FrozenFeatures]
    training: FeatureRows
    outer: FeatureRows
    validation: FeatureRows
    images: RawImages
    pool: RawImages
    protected: Tensor
    classes: int

    def head_data(self, keep: Tensor) -> list[HeadData]:
        """Return the data of the heads for each surrogate, with the training samples of the mask `keep`, `(N,)`."""
        labels, outer_labels = self.training.labels[keep], self.outer.labels
        return [
            HeadData(
                training[keep.to(training.device)],
                labels.to(training.device),
                outer,
                outer_labels.to(outer.device),
                self.classes,
            )
            for training, outer in zip(self.training.features, self.outer.features, strict=True)
        ]


def read_data(
    dataset: "Dataset[Any]",
    threat: Threat,
    surrogates: Sequence[Surrogate],
    holdout: "Dataset[Any] | None",
    *,
    protected_class: int,
    others: int,
    validate: bool,
    batch_size: int,
    generator: torch.Generator,
) -> ShieldingData:
    """Read both data sets and compute their features on the devices of the surrogates.

    Args:
        dataset: Training set.
        threat: Its `pixels` are the normalization of the samples.
        surrogates: Models in evaluation mode, at least one.
        holdout: The attacker's pool: protected images and others that are not trained on.
        protected_class: Class to be misclassified.
        others: Maximum number of images of other classes on which the loss is measured.
        validate: Whether to hold out a part of the pool.
        batch_size: Number of images read and mapped at once.
        generator: Draws the parts of the pool.

    Raises:
        ValueError: If there is no surrogate or pool, the protected class is absent from one of the data sets, a
            surrogate has no such layer or degenerate features, or images are outside the pixel range.
    """
    check_surrogates(surrogates)
    if holdout is None:
        hint = "Pass samples that are not trained on; more protected images make the attack stronger."
        raise ValueError(checks.expected("holdout", "a pool of protected images and others", "None", hint))
    maps = [FrozenFeatures(surrogate, threat.pixels, batch_size=batch_size) for surrogate in surrogates]
    labels, pool_labels = labels_of(dataset), labels_of(holdout)
    split = split_pool(pool_labels, protected_class, others=others, validate=validate, generator=generator)
    positions_of_class(labels, protected_class, "protected_class", "training set")
    seed = int(torch.randint(2**31, (), generator=generator))
    images, pool = (RawImages(data, threat.pixels, seed=seed, batch_size=batch_size) for data in (dataset, holdout))
    unscaled = _read_rows(images, torch.arange(len(labels)), maps)
    training = FeatureRows([extract.fit_scale(rows) for extract, rows in zip(maps, unscaled, strict=True)], labels)
    is_protected = labels == protected_class
    outer = [
        torch.cat([pool_rows, rows[is_protected.to(rows.device)]])
        for pool_rows, rows in zip(_read_rows(pool, split.outer, maps), training.features, strict=True)
    ]
    outer_labels = pool_labels[split.outer]
    return ShieldingData(
        maps,
        training,
        FeatureRows(outer, torch.cat([outer_labels, labels[is_protected]])),
        FeatureRows(_read_rows(pool, split.validation, maps), pool_labels[split.validation]),
        images,
        pool,
        split.outer[outer_labels == protected_class],
        int(torch.cat([labels, pool_labels]).max()) + 1,
    )


def _read_rows(images: RawImages, indices: Tensor, maps: Sequence[FrozenFeatures]) -> list[Tensor]:
    """Return the features `(M, D)` of each map at positions of the images."""
    return read_features(images, indices, [extract.detached for extract in maps]) if len(indices) else []


@dataclass(frozen=True)
class PoolSplit:
    """Positions in the pool.

    Args:
        outer: Images on which the loss is measured while crafting, int64 `(M,)`.
        validation: Images held out for the choice of the shield class, int64 `(V,)`; may be empty.
    """

    outer: Tensor
    validation: Tensor


def split_pool(
    labels: Tensor, protected_class: int, *, others: int, validate: bool, generator: torch.Generator
) -> PoolSplit:
    """Split the pool: all protected images, and a random part of the others.

    Args:
        labels: Labels of the pool, int64 `(H,)`.
        protected_class: Class to be misclassified. All its images are used, because poison overfits to few of them.
        others: Maximum number of images of other classes.
        validate: Whether to hold out `VALIDATION_SHARE` of the protected images and of the others.
        generator: The only source of randomness.

    Raises:
        ValueError: If the pool has no protected image, no other image, or too few to hold some out.
    """
    protected = positions_of_class(labels, protected_class, "protected_class", "held-out set")
    rest = (labels != protected_class).nonzero().flatten()
    if not len(rest) or (validate and len(protected) < 2):
        what = "a pool of protected images and others, with at least two protected images if `shield_class` is not set"
        received = f"{len(protected)} images of class {protected_class} and {len(rest)} others"
        raise ValueError(checks.expected("holdout", what, received))
    outer, validation = [], []
    for group, limit in ((protected, len(protected)), (rest, others)):
        shuffled = group[torch.randperm(len(group), generator=generator)][:limit]
        count = math.ceil(VALIDATION_SHARE * len(shuffled)) if validate else 0
        validation.append(shuffled[:count])
        outer.append(shuffled[count:])
    return PoolSplit(torch.cat(outer), torch.cat(validation))


def draw_bases(
    labels: Tensor, shield_class: int, budget: int, *, poisons_per_base: int, generator: torch.Generator
) -> Tensor:
    """Draw the samples from which poison is made; the numbers of poisons per sample differ by at most one.

    Args:
        labels: Labels of the training set, int64 `(N,)`.
        shield_class: Class of the bases.
        budget: Number of poisons.
        poisons_per_base: Maximum number of poisons made from a sample.
        generator: The only source of randomness.

    Returns:
        Positions in the training set, int64 `(budget,)`.

    Raises:
        ValueError: If the class has no sample, or too few for the budget.

    Example:
        >>> draw_bases(torch.tensor([0, 1, 1]), 0, 2, poisons_per_base=2, generator=torch.Generator())
        tensor([0, 0])
    """
    members = positions_of_class(labels, shield_class, "shield_class", "training set")
    if budget > poisons_per_base * len(members):
        what = (
            f"at most {poisons_per_base * len(members)}, as class {shield_class} has {len(members)} samples and "
            f"`poisons_per_base` is {poisons_per_base}"
        )
        hint = f"Lower it, or append copies: `poisons_per_base={math.ceil(budget / len(members))}`."
        raise ValueError(checks.expected("budget", what, budget, hint))
    rounds = [members[torch.randperm(len(members), generator=generator)] for _ in range(-(-budget // len(members)))]
    return torch.cat(rounds)[:budget]


def positions_of_class(labels: Tensor, class_index: int, name: str, where: str) -> Tensor:
    """Return the positions of a class's samples.

    Raises:
        ValueError: If there are none.
    """
    return (labels == known_class(name, class_index, labels, where=where)).nonzero().flatten()
