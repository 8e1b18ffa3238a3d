"""Whom the attacks on chosen test samples take as targets and as bases, and the poison that they return."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import Poison, Threat, checks
from lightning_poison.attacks import InstancesObjective, RawFeatures, read_features
from lightning_poison.data import RawImages, index_blocks, labels_of
from lightning_poison_collisions.distance import squared_norm
from lightning_poison_collisions.pairing import Pairs, draw_pool, draw_targets, pick_bases

Admit = Callable[[Tensor, Tensor], Tensor]
"""Maps raw images `(B, ...)` and their labels `(B,)` to whether each may be a base, bool `(B,)`."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Whom an attack on chosen test samples takes as targets and as bases.

    Args:
        source_class: the class of the targets; any other than the bases' where it is `None`.
        base_class: the class of the bases; that of each target's cheapest candidate where it is `None`.
        placement: `"append"` adds the poison to the training set, `"replace"` puts it in the place of its bases.
        base_choice: the candidates nearest to the target in feature space, or any.
        candidates: among how many training samples, drawn at random, bases are looked for.

    Raises:
        ValueError: where an argument is out of its range.
    """

    source_class: int | None
    base_class: int | None
    placement: Literal["append", "replace"]
    base_choice: Literal["nearest", "random"]
    candidates: int

    def __post_init__(self) -> None:
        for name in ("source_class", "base_class"):
            if (value := getattr(self, name)) is not None:
                checks.positive_int(name, value, minimum=0)
        if self.source_class is not None and self.source_class == self.base_class:
            raise ValueError(
                checks.expected("base_class", f"another class than `source_class` ({self.source_class})", "the same")
            )
        checks.positive_int("candidates", self.candidates)
        checks.one_of("placement", self.placement, ("append", "replace"))
        checks.one_of("base_choice", self.base_choice, ("nearest", "random"))

    @classmethod
    def of(cls, attack: object) -> Self:
        """Return the selection that an attack with settings of these names asks for."""
        return cls(**{field.name: getattr(attack, field.name) for field in fields(cls)})

    def pairs(
        self,
        training: RawImages,
        holdout: RawImages,
        sizes: list[int],
        *,
        maps: Sequence[RawFeatures],
        generator: torch.Generator,
        admit: Admit | None = None,
    ) -> Pairs:
        """Draw targets and candidates, and pick the bases among these.

        Args:
            training: reads the training set.
            holdout: reads what targets are drawn from.
            sizes: how many bases each target gets.
            maps: the feature maps in which the nearest are near; at least one, unless bases are taken at random.
            generator: draws targets and candidates.
            admit: which candidates may be bases; where it admits none, all of them may.

        Raises:
            ValueError: where a class is absent, or has too few samples.
        """
        labels, held_labels = labels_of(training.dataset), labels_of(holdout.dataset)
        pool = draw_pool(labels, max(self.candidates, sum(sizes)), base_class=self.base_class, generator=generator)
        targets = draw_targets(
            held_labels, len(sizes), source_class=self.source_class, base_class=self.base_class, generator=generator
        )
        if admit is not None:
            blocks = zip(training.blocks(pool), index_blocks(pool, training.batch_size), strict=True)
            admitted = torch.cat([admit(images, labels[places]).cpu() for images, places in blocks])
            pool = pool[admitted] if bool(admitted.any()) else pool
        if self.base_choice == "nearest":
            goals, known = read_features(holdout, targets, maps), read_features(training, pool, maps)
            costs = distances_to_each(goals, known)
        else:
            costs = (torch.rand(len(pool), generator=generator) for _ in sizes)
        once = self.placement == "replace"
        picked, wanted = pick_bases(costs, sizes, labels[pool], held_labels[targets], once=once)
        target_of = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        return Pairs(pool[torch.cat(picked)], targets, target_of, wanted)

    def poison(
        self,
        dataset: "Dataset[Any]",
        holdout: "Dataset[Any]",
        pairs: Pairs,
        *,
        inputs: Tensor,
        targets: Tensor,
        attack: str,
        settings: Mapping[str, Any],
    ) -> Poison:
        """Return the poison, labeled as its bases.

        Args:
            dataset: the training set.
            holdout: what the targets were drawn from.
            pairs: who is meant for whom.
            inputs: `(P, ...)`, the crafted samples.
            targets: `(T, ...)`, the targets, as samples.
            attack: its name.
            settings: its settings.
        """
        appended = len(labels_of(dataset)) + torch.arange(len(pairs.bases))
        append = self.placement == "append"
        return Poison(
            indices=appended if append else pairs.bases,
            base_indices=pairs.bases if append else None,
            inputs=inputs,
            labels=pairs.wanted[pairs.target_of],
            objective=InstancesObjective(targets, labels_of(holdout)[pairs.targets], pairs.wanted),
            attack=attack,
            settings=settings,
        )

    def checked_holdout(self, threat: Threat, holdout: "Dataset[Any] | None") -> "Dataset[Any]":
        """Return the held-out set, where there is one and the threat allows the placement.

        Raises:
            ValueError: otherwise.
        """
        if self.placement == "append" and not threat.may_append:
            raise ValueError('Expected a threat that may append, but got one that may not.\nSet `placement="replace"`.')
        if holdout is None:
            raise ValueError(
                checks.expected("holdout", "a data set that targets are drawn from", "None")
                + "\nPass samples that are not trained on, such as a part of the test set."
            )
        return holdout


def distances_to_each(targets: Sequence[Tensor], known: Sequence[Tensor]) -> Iterator[Tensor]:
    """Yield, for each target, its squared feature distance to each known sample, `(M,)`.

    Args:
        targets: for each map, features `(T, D)`.
        known: for each map, features `(M, D)`. Each map's distances are taken relative to their mean, then added up,
            on the CPU.
    """
    for features in zip(*targets, strict=True):
        distances = [squared_norm(others - own) for own, others in zip(features, known, strict=True)]
        yield torch.stack([(each / each.mean()).cpu() for each in distances]).sum(0)


def whole_groups(sizes: Sequence[int], most: int) -> list[Tensor]:
    """Cut poisons that come grouped by target into blocks that hold every poison of their targets.

    Args:
        sizes: how many poisons each target has.
        most: how many poisons a block may hold; one that holds a single target may hold more.

    Returns:
        int64 positions `(B,)` of each block.

    Example:
        >>> whole_groups([2, 2, 3], 4)
        [tensor([0, 1, 2, 3]), tensor([4, 5, 6])]
    """
    lengths: list[int] = []
    for size in sizes:
        if lengths and lengths[-1] + size <= most:
            lengths[-1] += size
        else:
            lengths.append(size)
    return list(torch.split(torch.arange(sum(sizes)), lengths))
