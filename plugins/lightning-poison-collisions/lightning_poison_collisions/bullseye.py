"""`BullseyePolytope`: clean-label poisons around each target, the mean of their features at the target's."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import checks
from lightning_poison.poison import Poison
from lightning_poison.scopes import evaluating, frozen
from lightning_poison.threat import Surrogate, Threat
from lightning_poison_collisions.bounded import collide_within
from lightning_poison_collisions.grid import to_grid
from lightning_poison_collisions.pairing import group_sizes
from lightning_poison_collisions.polytope import MeanDistance
from lightning_poison_collisions.raw_features import RawFeatures, RawReader
from lightning_poison_collisions.targeted import Selection, check_surrogates, whole_groups


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
        self._selection()
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
            Poison of domain `"sample"`, labelled as its bases, with an `InstancesObjective`.

        Raises:
            ValueError: where there is no surrogate, no held-out set or too few samples of a class, a surrogate has no
                such layer, images lie outside the pixel range, or the threat forbids appending.
        """
        selection = self._selection()
        check_surrogates(surrogates)
        held = selection.checked_holdout(threat, holdout)
        sizes = group_sizes(threat.budget, self.poisons_per_target)
        models = [surrogate.model for surrogate in surrogates]
        maps = [RawFeatures(surrogate, threat.pixels) for surrogate in surrogates]
        seed = int(torch.randint(2**31, (), generator=generator))
        reader = RawReader(threat.pixels, seed=seed, batch_size=self.batch_size)
        with evaluating(*models), frozen(*models):
            pairs = selection.pairs(dataset, held, sizes, maps=maps, reader=reader, generator=generator)
            targets = reader(held, pairs.targets)
            crafted = [
                self._surround(maps, reader(dataset, pairs.bases[block]), targets, pairs.target_of[block], threat)
                for block in whole_groups(pairs.target_of, self.batch_size)
            ]
        goals = threat.pixels.from_raw(targets)
        return selection.poison(
            dataset, held, pairs, inputs=torch.cat(crafted), targets=goals, attack=self.name, settings=asdict(self)
        )

    def _surround(
        self, maps: Sequence[RawFeatures], bases: Tensor, targets: Tensor, target_of: Tensor, threat: Threat
    ) -> Tensor:
        """Return crafted samples for raw bases of whole groups."""
        bases = bases.to(maps[0].device)
        present, group = torch.unique(target_of, return_inverse=True)
        distance = MeanDistance(maps, targets[present].to(bases.device), group)
        epsilon = self.epsilon if threat.epsilon is None else threat.epsilon
        images = collide_within(distance, bases, epsilon=epsilon, steps=self.steps)
        images = to_grid(images, levels=threat.pixels.levels, bases=bases, epsilon=epsilon)
        return threat.pixels.from_raw(images).cpu()

    def _selection(self) -> Selection:
        return Selection(
            source_class=self.source_class,
            base_class=self.base_class,
            placement=self.placement,
            base_choice=self.base_choice,
            candidates=self.candidates,
        )
