"""What the attacks on chosen test samples share: what they need, whom they take, and the poison that they return."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import checks
from lightning_poison.labels import labels_of
from lightning_poison.objectives import InstancesObjective
from lightning_poison.poison import Poison
from lightning_poison.threat import Surrogate, Threat
from lightning_poison_collisions.pairing import Pairs, draw_pool, draw_targets, pick_bases
from lightning_poison_collisions.raw_features import RawFeatures, RawReader, distances_to_each


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

    def pairs(
        self,
        dataset: "Dataset[Any]",
        holdout: "Dataset[Any]",
        sizes: list[int],
        *,
        maps: Sequence[RawFeatures],
        reader: RawReader,
        generator: torch.Generator,
    ) -> Pairs:
        """Draw targets and candidates, and pick the bases among these.

        Args:
            dataset: the training set.
            holdout: what targets are drawn from.
            sizes: how many bases each target gets.
            maps: the feature maps in which the nearest are near; at least one, unless bases are taken at random.
            reader: reads raw images.
            generator: draws targets and candidates.

        Raises:
            ValueError: where a class is absent, or has too few samples.
        """
        labels, held_labels = labels_of(dataset), labels_of(holdout)
        pool = draw_pool(labels, max(self.candidates, sum(sizes)), base_class=self.base_class, generator=generator)
        targets = draw_targets(
            held_labels, len(sizes), source_class=self.source_class, base_class=self.base_class, generator=generator
        )
        if self.base_choice == "nearest":
            goals, known = reader.features(holdout, targets, maps), reader.features(dataset, pool, maps)
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
        """Return the poison, labelled as its bases.

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


def check_surrogates(surrogates: Sequence[Surrogate]) -> None:
    """Check that there is a model to craft on.

    Raises:
        ValueError: where there is none.
    """
    if not surrogates:
        raise ValueError(
            checks.expected("surrogates", "at least one model to craft on", "none")
            + '\nPass `surrogates=[Surrogate(model, "name of its feature layer")]`.'
        )


def whole_groups(target_of: Tensor, size: int) -> list[Tensor]:
    """Cut positions into blocks of about `size` that hold every poison of their targets.

    Args:
        target_of: int64 `(P,)`, ascending: the target of each poison.
        size: how many poisons a block may hold; one that holds a single target may hold more.

    Returns:
        int64 positions `(B,)` of each block.

    Example:
        >>> whole_groups(torch.tensor([0, 0, 1, 1, 2, 2, 2]), 4)
        [tensor([0, 1, 2, 3]), tensor([4, 5, 6])]
    """
    blocks: list[list[int]] = []
    start = 0
    for count in torch.unique_consecutive(target_of, return_counts=True)[1].tolist():
        group = list(range(start, start + count))
        start += count
        if blocks and len(blocks[-1]) + count <= size:
            blocks[-1] += group
        else:
            blocks.append(group)
    return [torch.tensor(block) for block in blocks]
