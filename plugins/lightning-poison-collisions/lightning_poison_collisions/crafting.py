"""The way from surrogates and data sets to poison that the attacks on chosen test samples share."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import Poison, Surrogate, Threat
from lightning_poison.attacks import RawFeatures, check_surrogates
from lightning_poison.contexts import evaluating, frozen
from lightning_poison.data import RawImages
from lightning_poison_collisions.pairing import Pairs
from lightning_poison_collisions.targeted import Admit, Selection


class TargetedAttack(Protocol):
    """An attack on chosen test samples: a frozen dataclass, with the settings of a `Selection` among its own."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def batch_size(self) -> int:
        """How many samples are read at once."""


@dataclass(frozen=True)
class Block:
    """Poisons that are crafted at once, and the targets that they are meant for; on the first surrogate's device.

    Args:
        bases: `(B, ...)`, raw images in [0, 1].
        targets: `(T, ...)`, raw images in [0, 1], each the target of one poison at least.
        target_of: int64 `(B,)`, in [0, T).
        wanted: int64 `(T,)`, what each target shall be read as: the label of its bases.
    """

    bases: Tensor
    targets: Tensor
    target_of: Tensor
    wanted: Tensor


class Move(Protocol):
    """How an attack changes the bases of a block."""

    def __call__(self, maps: Sequence[RawFeatures], block: Block, /) -> Tensor:
        """Return raw images `(B, ...)` in [0, 1], not rounded to a grid; `maps` has one for each surrogate."""


def craft_on_targets(
    attack: TargetedAttack,
    dataset: "Dataset[Any]",
    threat: Threat,
    *,
    surrogates: Sequence[Surrogate],
    holdout: "Dataset[Any] | None",
    generator: torch.Generator,
    sizes: list[int],
    blocks: Sequence[Tensor],
    epsilon: float | None,
    move: Move,
    settings: Mapping[str, Any] | None = None,
    admit: Admit | None = None,
) -> Poison:
    """Draw targets and bases, move the bases block by block, and round what came out to the data's grid.

    The surrogates are in evaluation mode and frozen meanwhile, and given back as they were.

    Args:
        attack: its name, its settings, and whom it takes.
        dataset: the training set that bases are drawn from.
        threat: the pixel range, and whether poison may be appended.
        surrogates: one at least, each with a feature layer.
        holdout: what the targets are drawn from.
        generator: draws targets and candidates.
        sizes: how many poisons each target gets; together the budget.
        blocks: int64 `(B,)` each, which of the poisons are crafted at once; in ascending order, without a gap.
        epsilon: the L∞ radius that rounding keeps to; `None` for no limit.
        move: what the attack does.
        settings: the attack's settings, as JSON can hold them; its fields where it is `None`.
        admit: which candidates may be bases; all where it is `None`.

    Returns:
        Poison of domain `"sample"`, labeled as its bases, with an `InstancesObjective`.

    Raises:
        ValueError: where there is no surrogate, no held-out set or too few samples of a class, a surrogate has no such
            layer, images lie outside the pixel range, or the threat forbids appending.
    """
    selection, pixels = Selection.of(attack), threat.pixels
    check_surrogates(surrogates)
    held = selection.checked_holdout(threat, holdout)
    models = [surrogate.model for surrogate in surrogates]
    maps = [RawFeatures(surrogate, pixels) for surrogate in surrogates]
    seed = int(torch.randint(2**31, (), generator=generator))
    training, others = (RawImages(data, pixels, seed=seed, batch_size=attack.batch_size) for data in (dataset, held))
    with evaluating(*models), frozen(*models):
        pairs = selection.pairs(training, others, sizes, maps=maps, generator=generator, admit=admit)
        targets = others(pairs.targets)
        crafted = []
        for members in blocks:
            block = _block(training, pairs, targets, members, maps[0].device)
            images = pixels.round_raw(move(maps, block), around=block.bases, epsilon=epsilon)
            crafted.append(pixels.from_raw(images).cpu())
    return selection.poison(
        dataset,
        held,
        pairs,
        inputs=torch.cat(crafted),
        targets=pixels.from_raw(targets),
        attack=attack.name,
        settings=asdict(attack) if settings is None else settings,
    )


def _block(training: RawImages, pairs: Pairs, targets: Tensor, members: Tensor, device: torch.device) -> Block:
    """Return some of the poisons, as they stand before they are moved."""
    present, target_of = torch.unique(pairs.target_of[members], return_inverse=True)
    bases = training(pairs.bases[members])
    parts = (bases, targets[present], target_of, pairs.wanted[present])
    return Block(*(part.to(device) for part in parts))
