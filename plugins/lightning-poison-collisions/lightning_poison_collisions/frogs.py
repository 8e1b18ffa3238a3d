"""`FrogAttack`: clean-label poison whose features collide with those of chosen test samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import Poison, Surrogate, Threat, checks
from lightning_poison.attacks import RawFeatures
from lightning_poison.data import index_blocks
from lightning_poison_collisions.bounded import collide_within
from lightning_poison_collisions.crafting import Block, craft_on_targets
from lightning_poison_collisions.distance import FeatureDistance
from lightning_poison_collisions.pairing import group_sizes
from lightning_poison_collisions.splitting import collide
from lightning_poison_collisions.targeted import Selection


@dataclass(frozen=True, kw_only=True)
class FrogAttack:
    """Poison frogs: images of one class whose features collide with those of chosen test images of another.

    Bases are moved in feature space onto their targets and keep their own label; whoever then trains a head on those
    features tends to read the targets as the bases' class. Where the threat has an `epsilon` the change is bounded by
    it in each pixel, else it is held down by a penalty on its length. Shafahi et al., NeurIPS 2018, arXiv 1804.00792;
    Yaseen et al. 2020, arXiv 2003.00798, eq. 1.

    Differences from the papers: the feature term is in units of the pair's initial distance, so that one `beta` serves
    every network; each poison has a step length of its own, and stops where it has arrived; crafted images are rounded
    to the data's grid; and bases may be chosen near their target.

    The poison comes grouped by target, in the order of the objective's targets; a budget that `poisons_per_target`
    does not divide is shared out evenly, so that no target gets fewer (`pairing.group_sizes`).

    Args:
        source_class: the class of the targets, which are to be misread; any other than the bases' where it is `None`.
        base_class: the class of the bases, which targets shall be read as; where it is `None`, for each target that
            of its nearest candidate, or of a random one.
        beta: the weight of the penalty, relative to the initial feature distance, for raw images in [0, 1]; without
            effect where the threat has an `epsilon`.
        steps: how many gradients are taken at most.
        placement: `"append"` adds the poison to the training set, `"replace"` puts it in the place of its bases.
        poisons_per_target: how many poisons share a target; a head that was trained on many clean samples needs more.
        base_choice: `"nearest"` takes the candidates nearest to the target in feature space, which makes the attack
            stronger; `"random"` any.
        candidates: among how many training samples, drawn at random, bases are looked for.
        opacity: how much of the target is blended into the base before it is moved, in [0, 1); 0.3 is the paper's
            watermark.
        batch_size: how many poisons are crafted at once; bounds memory and does not change what each becomes, up to
            rounding errors.

    Raises:
        ValueError: where an argument is out of its range.

    Example:
        >>> from torch import nn
        >>> from torch.utils.data import TensorDataset
        >>> images = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> data = TensorDataset(images, torch.arange(40) % 2)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> FrogAttack(base_class=1, poisons_per_target=4).craft(
        ...     data, Threat(8), surrogates=[Surrogate(model, "2")], holdout=data, generator=torch.Generator()
        ... )
        Poison(poison-frog: 8 samples, sample inputs (1, 4, 4))
    """

    name = "poison-frog"
    clean_label = True

    source_class: int | None = None
    base_class: int | None = None
    beta: float = 8e-3
    steps: int = 120
    placement: Literal["append", "replace"] = "append"
    poisons_per_target: int = 1
    base_choice: Literal["nearest", "random"] = "nearest"
    candidates: int = 1000
    opacity: float = 0.0
    batch_size: int = 128

    def __post_init__(self) -> None:
        Selection.of(self)
        for name in ("steps", "poisons_per_target", "batch_size"):
            checks.positive_int(name, getattr(self, name))
        checks.positive("beta", self.beta)
        if checks.share("opacity", self.opacity) == 1:
            raise ValueError(checks.expected("opacity", "below 1, which would be the target itself", self.opacity))

    def craft(
        self,
        dataset: "Dataset[Any]",
        threat: Threat,
        *,
        surrogates: Sequence[Surrogate],
        holdout: "Dataset[Any] | None",
        generator: torch.Generator,
    ) -> Poison:
        """Craft as many poisons as the budget allows.

        The surrogates are used in evaluation mode, in the place and precision they are found in, and given back as
        they were. Several of them share the distance evenly.

        Args:
            dataset: the training set that bases are drawn from; without random augmentation where it can be had.
            threat: the budget, the pixel range, and the radius if there is one.
            surrogates: one at least, each with a feature layer.
            holdout: what the targets are drawn from.
            generator: draws targets and candidates.

        Returns:
            Poison of domain `"sample"`, labeled as its bases, with an `InstancesObjective`.

        Raises:
            ValueError: where there is no surrogate, no held-out set or too few samples of a class, a surrogate has no
                such layer, images lie outside the pixel range, or the threat forbids appending.
        """

        def move(maps: Sequence[RawFeatures], block: Block) -> Tensor:
            bases, targets = block.bases, block.targets[block.target_of]
            distance = FeatureDistance(maps, bases, targets)
            anchors = torch.lerp(bases, targets, self.opacity)
            if threat.epsilon is None:
                return collide(distance, anchors, beta=self.beta, steps=self.steps)
            return collide_within(distance, bases, epsilon=threat.epsilon, steps=self.steps, start=anchors)

        return craft_on_targets(
            self,
            dataset,
            threat,
            surrogates=surrogates,
            holdout=holdout,
            generator=generator,
            sizes=group_sizes(threat.budget, self.poisons_per_target),
            blocks=index_blocks(torch.arange(threat.budget), self.batch_size),
            epsilon=threat.epsilon,
            move=move,
        )
