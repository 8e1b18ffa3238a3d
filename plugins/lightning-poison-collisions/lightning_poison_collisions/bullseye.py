"""`BullseyePolytope`: clean-label poisons around each target, the mean of their features at the target's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import Poison, Surrogate, Threat, checks
from lightning_poison.attacks import RawFeatures
from lightning_poison_collisions.bounded import collide_within
from lightning_poison_collisions.crafting import Block, craft_on_targets
from lightning_poison_collisions.pairing import group_sizes
from lightning_poison_collisions.polytope import MeanDistance
from lightning_poison_collisions.targeted import Selection, whole_groups


@dataclass(frozen=True, kw_only=True)
class BullseyePolytope:
    """The bullseye polytope: several images of one class whose features have their mean at a test image of another.

    No poison has to reach the target's features by itself, so a small change of each is enough; and a target in the
    middle of them stays among them for another network too. All poisons of a target are crafted together, within an L∞
    ball around each. Aghakhani, Meng, Wang, Kruegel, Vigna, "Bullseye Polytope: A Scalable Clean-Label Poisoning
    Attack with Improved Transferability", EuroS&P 2021, arXiv 2005.00191: the variant for transfer learning, one image
    of each target.

    Differences from the paper: signed gradient steps of one length in place of Adam, of which the best point is kept;
    surrogates are used without dropout, once each; crafted images are rounded to the data's grid; and bases may be
    chosen near their target.

    The poison comes grouped by target, in the order of the objective's targets; a budget that `poisons_per_target`
    does not divide is shared out evenly, so that no target gets fewer (`pairing.group_sizes`).

    Args:
        source_class: the class of the targets, which are to be misread; any other than the bases' where it is `None`.
        base_class: the class of the bases, which targets shall be read as; where it is `None`, for each target that
            of its nearest candidate, or of a random one.
        epsilon: the L∞ radius where the threat sets none, in units of the raw [0, 1] image; the paper's is 0.1.
        steps: how many gradients are taken.
        placement: `"append"` adds the poison to the training set, `"replace"` puts it in the place of its bases.
        poisons_per_target: how many poisons surround a target; the paper's is 5.
        base_choice: `"nearest"` takes the candidates nearest to the target in feature space, which makes the attack
            stronger; `"random"` any.
        candidates: among how many training samples, drawn at random, bases are looked for.
        batch_size: about how many poisons are crafted at once; bounds memory. The poisons of a target are never parted.

    Raises:
        ValueError: where an argument is out of its range.

    Example:
        >>> from torch import nn
        >>> from torch.utils.data import TensorDataset
        >>> images = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> data = TensorDataset(images, torch.arange(40) % 2)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> BullseyePolytope(base_class=1).craft(
        ...     data,
        ...     Threat(10, epsilon=16 / 255),
        ...     surrogates=[Surrogate(model, "2")],
        ...     holdout=data,
        ...     generator=torch.Generator(),
        ... )
        Poison(bullseye-polytope: 10 samples, sample inputs (1, 4, 4))
    """

    name = "bullseye-polytope"
    clean_label = True

    source_class: int | None = None
    base_class: int | None = None
    epsilon: float = 0.1
    steps: int = 200
    placement: Literal["append", "replace"] = "append"
    poisons_per_target: int = 5
    base_choice: Literal["nearest", "random"] = "nearest"
    candidates: int = 1000
    batch_size: int = 128

    def __post_init__(self) -> None:
        Selection.of(self)
        checks.epsilon(self.epsilon)
        for name in ("steps", "poisons_per_target", "batch_size"):
            checks.positive_int(name, getattr(self, name))

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
        they were. Several of them share the objective evenly. Only their features are used, so they may have been
        trained on other classes.

        Args:
            dataset: the training set that bases are drawn from; without random augmentation where it can be had.
            threat: the budget, the pixel range, and the radius if it sets one.
            surrogates: one at least, each with a feature layer.
            holdout: what the targets are drawn from.
            generator: draws targets and candidates.

        Returns:
            Poison of domain `"sample"`, labeled as its bases, with an `InstancesObjective`.

        Raises:
            ValueError: where there is no surrogate, no held-out set or too few samples of a class, a surrogate has no
                such layer, images lie outside the pixel range, or the threat forbids appending.
        """
        epsilon = self.epsilon if threat.epsilon is None else threat.epsilon
        sizes = group_sizes(threat.budget, self.poisons_per_target)

        def surround(maps: Sequence[RawFeatures], block: Block) -> Tensor:
            distance = MeanDistance(maps, block.targets, block.target_of)
            return collide_within(distance, block.bases, epsilon=epsilon, steps=self.steps)

        return craft_on_targets(
            self,
            dataset,
            threat,
            surrogates=surrogates,
            holdout=holdout,
            generator=generator,
            sizes=sizes,
            blocks=whole_groups(sizes, self.batch_size),
            epsilon=epsilon,
            move=surround,
        )
