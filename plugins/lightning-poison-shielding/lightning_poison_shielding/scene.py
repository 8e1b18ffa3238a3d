"""What an attacker looks at before crafting: the training set and the owner's pool, as the surrogates see them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import Surrogate, Threat, checks
from lightning_poison.attacks import check_surrogates, read_features
from lightning_poison.data import RawImages, labels_of
from lightning_poison_shielding.casting import divide_pool, members_of
from lightning_poison_shielding.frozen_features import FrozenFeatures
from lightning_poison_shielding.heads import Known


@dataclass(frozen=True)
class Rows:
    """Images of one part, as features.

    Args:
        features: for each surrogate, `(M, D)`.
        labels: int64 `(M,)`, their true labels.
    """

    features: list[Tensor]
    labels: Tensor


@dataclass(frozen=True)
class Scene:
    """The training set and the owner's pool.

    Args:
        maps: one for each surrogate, all scaled on the training set.
        training: all clean training samples.
        outer: what the loss is measured on: the pool's part and the protected training samples.
        validation: what shield classes are compared on; without rows where nothing has to be chosen.
        images: reads raw images of the training set.
        pool: reads raw images of the owner's pool.
        protected: int64, positions in the pool of the protected images in `outer`.
        classes: how many classes there are.
    """

    maps: list[FrozenFeatures]
    training: Rows
    outer: Rows
    validation: Rows
    images: RawImages
    pool: RawImages
    protected: Tensor
    classes: int

    def known(self, keep: Tensor) -> list[Known]:
        """Return what is known for each surrogate; of the training samples those where bool `(N,)` is true stay."""
        labels, outer_labels = self.training.labels[keep], self.outer.labels
        return [
            Known(
                training[keep.to(training.device)],
                labels.to(training.device),
                outer,
                outer_labels.to(outer.device),
                self.classes,
            )
            for training, outer in zip(self.training.features, self.outer.features, strict=True)
        ]


def look(
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
) -> Scene:
    """Read both data sets and map them to features, on the devices of the surrogates.

    Args:
        dataset: the training set.
        threat: says how samples are normalized.
        surrogates: one at least, in evaluation mode.
        holdout: the owner's pool: protected images and others that are not trained on.
        protected_class: the class to be misread.
        others: how many images of other classes the loss is measured on at most.
        validate: whether a part of the pool is kept back.
        batch_size: how many images are read and mapped at once.
        generator: draws the parts of the pool.

    Raises:
        ValueError: where there is no surrogate or no pool, the protected class has no sample in one of the two, a
            surrogate has no such layer or features of no use, or images lie outside the pixel range.
    """
    check_surrogates(surrogates)
    if holdout is None:
        raise ValueError(
            checks.expected("holdout", "the owner's pool of protected images and others", "None")
            + "\nPass samples that are not trained on; the more protected images, the better."
        )
    maps = [FrozenFeatures(surrogate, threat.pixels, batch_size=batch_size) for surrogate in surrogates]
    labels, pool_labels = labels_of(dataset), labels_of(holdout)
    parts = divide_pool(pool_labels, protected_class, others=others, validate=validate, generator=generator)
    members_of(labels, protected_class, "protected_class", "training set")
    seed = int(torch.randint(2**31, (), generator=generator))
    images, pool = (RawImages(data, threat.pixels, seed=seed, batch_size=batch_size) for data in (dataset, holdout))
    found = _features(images, torch.arange(len(labels)), maps)
    training = Rows([extract.fit_scale(rows) for extract, rows in zip(maps, found, strict=True)], labels)
    mine = labels == protected_class
    outer = [
        torch.cat([rows, seen[mine.to(seen.device)]])
        for rows, seen in zip(_features(pool, parts.outer, maps), training.features, strict=True)
    ]
    outer_labels = pool_labels[parts.outer]
    return Scene(
        maps,
        training,
        Rows(outer, torch.cat([outer_labels, labels[mine]])),
        Rows(_features(pool, parts.validation, maps), pool_labels[parts.validation]),
        images,
        pool,
        parts.outer[outer_labels == protected_class],
        int(torch.cat([labels, pool_labels]).max()) + 1,
    )


def _features(images: RawImages, indices: Tensor, maps: Sequence[FrozenFeatures]) -> list[Tensor]:
    """Return the features `(M, D)` at those positions, for each map."""
    return read_features(images, indices, [extract.known for extract in maps]) if len(indices) else []
