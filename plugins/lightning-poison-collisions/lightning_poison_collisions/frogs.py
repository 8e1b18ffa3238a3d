"""`FrogAttack`: clean-label poison whose features collide with those of chosen test samples."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_poison import Surrogate, Threat, checks
from lightning_poison.attacks import RawFeatures
from lightning_poison_collisions.descent import collide, collide_within
from lightning_poison_collisions.distances import FeatureDistance
from lightning_poison_collisions.pairing import group_sizes
from lightning_poison_collisions.targeted import Block, BlockCrafter, TargetedAttack


@dataclass(frozen=True, kw_only=True)
class FrogAttack(TargetedAttack):
    """Poison frogs: images of one class whose features collide with those of chosen test images of another class.

    Bases are moved in feature space onto their targets and keep their label. A head trained on these features tends to
    predict the class of the bases for the targets. If the threat has an `epsilon`, it bounds the change of each pixel;
    otherwise a penalty limits the norm of the change. Shafahi et al., NeurIPS 2018, arXiv 1804.00792; Yaseen et al.
    2020, arXiv 2003.00798, eq. 1.

    Differences from the papers: the feature term is in units of the pair's initial distance, so that one `beta` suits
    every network; each poison has its own step size and stops when it has converged; crafted images are rounded to the
    gray levels of the data; and bases may be chosen near their target.

    A budget that is not a multiple of `poisons_per_target` is divided evenly, so that no target gets fewer
    (`pairing.group_sizes`). The arguments not listed here are those of `TargetedAttack`.

    Args:
        beta: Weight of the penalty, relative to the initial feature distance, for raw images in [0, 1]. No effect if
            the threat has an `epsilon`.
        steps: Maximum number of gradient steps.
        poisons_per_target: Number of poisons of each target. A head trained on many clean samples requires more.
        opacity: Opacity of the target that is blended into the base before the descent, in [0, 1). The watermark of
            Shafahi et al. is 0.3.

    Raises:
        ValueError: If an argument is out of range.

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

    beta: float = 8e-3
    steps: int = 120
    poisons_per_target: int = 1
    opacity: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int("steps", self.steps)
        checks.positive_int("poisons_per_target", self.poisons_per_target)
        checks.positive("beta", self.beta)
        if checks.share("opacity", self.opacity) == 1:
            raise ValueError(checks.expected("opacity", "below 1, which would be the target itself", self.opacity))

    def _sizes(self, budget: int) -> list[int]:
        return group_sizes(budget, self.poisons_per_target)

    def _crafter(
        self,
        surrogates: Sequence[Surrogate],  # noqa: ARG002
        threat: Threat,
        classes: int,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> BlockCrafter:
        def craft_block(maps: Sequence[RawFeatures], block: Block) -> Tensor:
            bases, targets = block.bases, block.targets[block.target_of]
            distance = FeatureDistance(maps, bases, targets)
            start = torch.lerp(bases, targets, self.opacity)
            if threat.epsilon is None:
                return collide(distance, start, beta=self.beta, steps=self.steps)
            return collide_within(distance, bases, epsilon=threat.epsilon, steps=self.steps, start=start)

        return craft_block
