"""`BullseyePolytope`: clean-label poisons around each target whose mean features are those of the target."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_poison import Surrogate, Threat, checks
from lightning_poison.attacks import RawFeatures
from lightning_poison_collisions.descent import collide_within
from lightning_poison_collisions.distances import MeanDistance
from lightning_poison_collisions.pairing import group_sizes, whole_groups
from lightning_poison_collisions.targeted import Block, BlockCrafter, TargetedAttack


@dataclass(frozen=True, kw_only=True)
class BullseyePolytope(TargetedAttack):
    """The bullseye polytope: several images of one class whose mean features equal those of a test image of another.

    No poison has to reach the target's features on its own, so a small change of each is enough, and a target at their
    center stays between them for other networks too. All poisons of a target are crafted together, within an L∞ ball
    around each. Aghakhani, Meng, Wang, Kruegel, Vigna, "Bullseye Polytope: A Scalable Clean-Label Poisoning Attack with
    Improved Transferability", EuroS&P 2021, arXiv 2005.00191: the variant for transfer learning, with one image of each
    target.

    Differences from the paper: signed gradient steps of constant size instead of Adam, and the best point is kept;
    surrogates are used without dropout, once each; crafted images are rounded to the gray levels of the data; and bases
    may be chosen near their target.

    A budget that is not a multiple of `poisons_per_target` is divided evenly, so that no target gets fewer
    (`pairing.group_sizes`). Batches contain all poisons of their targets and may therefore exceed `batch_size`. The
    arguments not listed here are those of `TargetedAttack`.

    Args:
        epsilon: L∞ radius if the threat sets none, in units of the raw [0, 1] image. The paper uses 0.1.
        steps: Number of gradient steps.
        poisons_per_target: Number of poisons around each target. The paper uses 5.

    Raises:
        ValueError: If an argument is out of range.

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

    epsilon: float = 0.1
    steps: int = 200
    poisons_per_target: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.epsilon(self.epsilon)
        checks.positive_int("steps", self.steps)
        checks.positive_int("poisons_per_target", self.poisons_per_target)

    def _sizes(self, budget: int) -> list[int]:
        return group_sizes(budget, self.poisons_per_target)

    def _blocks(self, sizes: list[int]) -> list[Tensor]:
        return whole_groups(sizes, self.batch_size)

    def _radius(self, threat: Threat) -> float:
        return self.epsilon if threat.epsilon is None else threat.epsilon

    def _crafter(
        self,
        surrogates: Sequence[Surrogate],  # noqa: ARG002
        threat: Threat,
        classes: int,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> BlockCrafter:
        def craft_block(maps: Sequence[RawFeatures], block: Block) -> Tensor:
            distance = MeanDistance(maps, block.targets, block.target_of)
            return collide_within(distance, block.bases, epsilon=self._radius(threat), steps=self.steps)

        return craft_block
