"""`ClassShieldingGenerator`: class shielding by a learned generator."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_poison import Poison, Surrogate, Threat, checks
from lightning_poison.randomness import isolated_rng
from lightning_poison_shielding.casting import draw_bases, members_of
from lightning_poison_shielding.losses import Roles
from lightning_poison_shielding.meta_training import MetaTrainer
from lightning_poison_shielding.paper_generator import PaperGenerator
from lightning_poison_shielding.scene import Scene
from lightning_poison_shielding.terms import Terms
from lightning_poison_shielding.unet import ResidualUNet

ARCHITECTURES = {"paper": PaperGenerator, "unet": ResidualUNet}


@dataclass(frozen=True, kw_only=True)
class ClassShieldingGenerator:
    """Class shielding by a network that is trained to make the poison from pairs of images.

    The generator gets an image to protect and one to shield it with, and returns what is added to the latter. It is
    trained through the victim's head, on super-batches of protected, shield and control images, and then makes the
    whole poison at once. Pinkava, Towards Class-Shielding Data Poisoning, sections 2.2 and 2.3 (`"paper"`) and 4.3
    (`"unet"`), where no success is reported.

    Differences from the paper: the perturbation is bounded and rounded to the grid; the head is solved and the
    gradient goes through the solution, where the paper trains it for an epoch and generates the poison a second time;
    and the victim sees clean samples of all classes beside the poison, the protected class among them.

    Args:
        protected_class: the class to be misread.
        shield_class: the class whose images carry the poison.
        architecture: `"paper"`, two dense layers and two deconvolutions, or `"unet"`, a residual U-Net.
        protected_weight: t, what the protected class counts for in the loss.
        ridge_steps: how many super-batches are learned from against least squares.
        logistic_steps: how many against logistic regression after that.
        super_batch: how many images a super-batch has, a third of each group; the paper's are 1000.
        learning_rate: Adam's.
        others: among how many images of other classes the control images are drawn at most.
        poisons_per_base: how often an image of the shield class may serve as a base, each time in another pair.
        placement: `"append"` adds the poison to the training set, `"replace"` puts it in the place of its bases.
        batch_size: how many images are mapped at once outside of training; bounds memory.

    Raises:
        ValueError: where an argument is out of its range.

    Example:
        >>> from torch import nn
        >>> from torch.utils.data import TensorDataset
        >>> images = torch.rand(60, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> data = TensorDataset(images, torch.arange(60) % 3)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> attack = ClassShieldingGenerator(protected_class=0, shield_class=2, ridge_steps=1, logistic_steps=1)
        >>> attack.craft(
        ...     data, Threat(8), surrogates=[Surrogate(model, "2")], holdout=data, generator=torch.Generator()
        ... )
        Poison(class-shielding-generator: 8 samples, sample inputs (1, 8, 8))
    """

    name = "class-shielding-generator"
    clean_label = True

    protected_class: int
    shield_class: int
    architecture: Literal["paper", "unet"] = "unet"
    protected_weight: float = 1.0
    ridge_steps: int = 150
    logistic_steps: int = 100
    super_batch: int = 1000
    learning_rate: float = 3e-3
    others: int = 4000
    poisons_per_base: int = 1
    placement: Literal["append", "replace"] = "append"
    batch_size: int = 500

    def __post_init__(self) -> None:
        Terms.of(self)
        checks.one_of("architecture", self.architecture, tuple(ARCHITECTURES))
        checks.positive("learning_rate", self.learning_rate)
        checks.positive_int("super_batch", self.super_batch, minimum=3)

    def craft(
        self,
        dataset: "Dataset[Any]",
        threat: Threat,
        *,
        surrogates: Sequence[Surrogate],
        holdout: "Dataset[Any] | None",
        generator: torch.Generator,
    ) -> Poison:
        """Train a generator and let it make as many poisons as the budget says.

        Args:
            dataset: the training set that bases are drawn from; without random augmentation where it can be had.
            threat: the budget, the pixel range, and the radius; a pixel may take any value where there is none.
            surrogates: one at least, each with a feature layer; their features go into the generator too.
            holdout: the owner's pool: protected images and others that are not trained on, the more the better.
            generator: draws weights, super-batches, bases and pairs.

        Returns:
            Poison of domain `"sample"`, labeled as its bases, with a `ProtectedClassObjective`.

        Raises:
            ValueError: where there is no surrogate, no pool or no sample of a class, a surrogate has no such layer,
                images lie outside the pixel range or are none, the budget exceeds what the shield class allows, or
                the threat forbids appending.
        """
        terms = Terms.of(self)
        with terms.scene(dataset, threat, surrogates, holdout, validate=False, generator=generator) as scene:
            labels = scene.training.labels
            bases = draw_bases(
                labels,
                self.shield_class,
                threat.budget,
                poisons_per_base=self.poisons_per_base,
                generator=generator,
            )
            trainer = self._trainer(scene, threat, bases, generator)
            trainer.train(
                bases if self.placement == "replace" else members_of(labels, self.shield_class, "shield_class", ""),
                (self.ridge_steps, self.logistic_steps),
                size=self.super_batch,
                learning_rate=self.learning_rate,
                generator=generator,
            )
            partners = scene.protected[torch.randint(len(scene.protected), (len(bases),), generator=generator)]
            images = trainer.poison(bases, partners)
        return terms.poison(
            images,
            bases,
            self.shield_class,
            threat=threat,
            length=len(labels),
            attack=self.name,
            settings=asdict(self),
        )

    def _trainer(self, scene: Scene, threat: Threat, bases: Tensor, generator: torch.Generator) -> MetaTrainer:
        keep = torch.ones(len(scene.training.labels), dtype=torch.bool)
        if self.placement == "replace":
            keep[bases] = False
        shape = scene.images(bases[:1]).shape[1:]
        if len(shape) != 3 or min(shape[1:]) < 4:
            raise ValueError(
                checks.expected("dataset", "images (C, H, W) of at least 4 x 4", f"samples {tuple(shape)}")
            )
        device = scene.maps[0].device
        size = sum(rows.shape[1] for rows in scene.training.features)
        with isolated_rng(int(torch.randint(2**31, (), generator=generator)), device):
            network: nn.Module = ARCHITECTURES[self.architecture](size, tuple(shape)).to(device)
        return MetaTrainer(
            network,
            scene,
            Roles(self.protected_class, self.shield_class, self.protected_weight),
            keep,
            budget=threat.budget,
            radius=1.0 if threat.epsilon is None else threat.epsilon,
            pixels=threat.pixels,
        )
