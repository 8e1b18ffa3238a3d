"""`GradientMatching`: clean-label poison whose training gradient is aligned with one that misreads the target."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import Poison, Surrogate, Threat, checks
from lightning_poison.attacks import RawFeatures, check_surrogates
from lightning_poison.data import labels_of
from lightning_poison_collisions.crafting import Block, craft_on_targets
from lightning_poison_collisions.matching import GradientMatch, TrainingGradient
from lightning_poison_collisions.pairing import shared_out
from lightning_poison_collisions.signed_adam import descend_within
from lightning_poison_collisions.targeted import Selection


@dataclass(frozen=True, kw_only=True)
class GradientMatching:
    """Gradient matching (Witches' Brew): whoever trains on the poison takes steps that misread the target.

    The summed training gradient of a target's poisons is turned, by small changes of the images, into the direction of
    the gradient that would have the target read as the bases' class. All poisons of a target are crafted together. It
    is made for networks that are trained from scratch; the surrogates are trained on clean data once, and no network is
    trained while crafting. Geiping, Fowl, Huang, Czaja, Taylor, Moeller, Goldstein, "Witches' Brew: Industrial Scale
    Data Poisoning via Gradient Matching", ICLR 2021, arXiv 2009.02276, algorithm 1.

    Differences from the paper: the cosine is that of the sum over all poisons of a target at any `batch_size`; images
    are not augmented while crafting, since the poison is what the data set returns, behind its augmentation; the best
    point is kept, not the last; crafted images are rounded to the data's grid.

    The poison comes grouped by target, in the order of the objective's targets.

    Args:
        source_class: the class of the targets, which are to be misread; any other than the bases' where it is `None`.
        base_class: the class of the bases, which targets shall be read as; for each target a random one, or that of
            its nearest candidate, where it is `None`.
        epsilon: the L∞ radius where the threat sets none, in units of the raw [0, 1] image; the paper's for CIFAR-10.
        targets: how many test images share the budget.
        steps: how many steps are taken; the paper's number.
        restarts: from how many random starts; the best one counts. The paper's is 8.
        step_size: of the first steps, in units of epsilon; it shrinks tenfold at 3/8, 5/8 and 7/8 of the steps.
        layers: names of the layers whose gradients are matched, as `model.named_modules()` gives them: the last ones
            alone are faster; all where it is `None`.
        placement: `"replace"` puts the poison in the place of its bases, as in the paper; `"append"` adds it.
        base_choice: `"random"` bases, as in the paper, or the `"nearest"` to the target at the feature layer.
        candidates: among how many training samples, drawn at random, bases are looked for.
        batch_size: how many poisons are differentiated at once; bounds memory and does not change what each becomes,
            up to rounding errors.

    Raises:
        ValueError: where an argument is out of its range.

    Example:
        >>> from torch import nn
        >>> from torch.utils.data import TensorDataset
        >>> images = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> data = TensorDataset(images, torch.arange(40) % 2)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> GradientMatching(steps=20).craft(
        ...     data, Threat(10), surrogates=[Surrogate(model, "2")], holdout=data, generator=torch.Generator()
        ... )
        Poison(gradient-matching: 10 samples, sample inputs (1, 4, 4))
    """

    name = "gradient-matching"
    clean_label = True

    source_class: int | None = None
    base_class: int | None = None
    epsilon: float = 16 / 255
    targets: int = 1
    steps: int = 250
    restarts: int = 1
    step_size: float = 0.4
    layers: Sequence[str] | None = None
    placement: Literal["append", "replace"] = "replace"
    base_choice: Literal["nearest", "random"] = "random"
    candidates: int = 1000
    batch_size: int = 512

    def __post_init__(self) -> None:
        Selection.of(self)
        checks.epsilon(self.epsilon)
        checks.positive("step_size", self.step_size)
        for name in ("targets", "steps", "restarts", "batch_size"):
            checks.positive_int(name, getattr(self, name))
        if self.layers is not None:
            if isinstance(self.layers, str) or not self.layers:
                hint = "For all layers leave it out."
                raise ValueError(checks.expected("layers", "a list of layer names", repr(self.layers), hint))
            object.__setattr__(self, "layers", tuple(self.layers))

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
        they were. Several of them share the objective evenly.

        Args:
            dataset: the training set that bases are drawn from; without random augmentation where it can be had.
            threat: the budget, the pixel range, and the radius if it sets one.
            surrogates: one at least, each trained on the classes of the training set.
            holdout: what the targets are drawn from.
            generator: draws targets, candidates and starts.

        Returns:
            Poison of domain `"sample"`, labeled as its bases, with an `InstancesObjective`.

        Raises:
            ValueError: where there is no surrogate, no held-out set or too few samples of a class, the budget is below
                the number of targets, a surrogate has no such layer or logits for fewer classes than there are, images
                lie outside the pixel range, or the threat forbids appending.
        """
        check_surrogates(surrogates)
        held = Selection.of(self).checked_holdout(threat, holdout)
        if threat.budget < self.targets:
            raise ValueError(checks.expected("targets", f"at most the budget ({threat.budget})", self.targets))
        classes = 1 + max(int(labels_of(part).max()) for part in (dataset, held))
        gradients = [
            TrainingGradient(surrogate, threat.pixels, layers=self.layers, classes=classes) for surrogate in surrogates
        ]
        epsilon = self.epsilon if threat.epsilon is None else threat.epsilon
        sizes = shared_out(threat.budget, self.targets)

        def align(_maps: Sequence[RawFeatures], block: Block) -> Tensor:
            wanted = int(block.wanted)
            labels = torch.full((len(block.bases),), wanted)
            match = GradientMatch(gradients, block.targets, wanted, labels, batch_size=self.batch_size)
            return self._best_of_starts(match, block.bases, epsilon, generator)

        return craft_on_targets(
            self,
            dataset,
            threat,
            surrogates=surrogates,
            holdout=held,
            generator=generator,
            sizes=sizes,
            blocks=torch.split(torch.arange(threat.budget), sizes),
            epsilon=epsilon,
            move=align,
        )

    def _best_of_starts(
        self, match: GradientMatch, bases: Tensor, epsilon: float, generator: torch.Generator
    ) -> Tensor:
        """Return raw images for the raw bases of one target."""
        best, best_value = bases, torch.tensor(torch.inf)
        for _ in range(self.restarts):
            noise = 2 * torch.rand(bases.shape, generator=generator).to(bases) - 1
            images, value = descend_within(
                match,
                bases,
                epsilon=epsilon,
                steps=self.steps,
                step_size=self.step_size * epsilon,
                start=bases + epsilon * noise,
            )
            if value < best_value:
                best, best_value = images, value
        return best
