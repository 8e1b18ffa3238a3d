"""Class shielding: poison in one class hides another class from heads trained on frozen features."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from lightning_poison import Poison, Surrogate, Threat, checks
from lightning_poison.attacks import ProtectedClassObjective
from lightning_poison.contexts import evaluating, frozen
from lightning_poison.randomness import isolated_rng
from lightning_poison_shielding.bilevel import Shield, ShieldCrafter, choose_shield
from lightning_poison_shielding.generators import GeneratorTrainer, PaperGenerator, ResidualUNet
from lightning_poison_shielding.losses import ShieldingGoal
from lightning_poison_shielding.shielding_data import ShieldingData, draw_bases, positions_of_class, read_data

ARCHITECTURES = {"paper": PaperGenerator, "unet": ResidualUNet}


@dataclass(frozen=True, kw_only=True)
class ShieldingAttack(ABC):
    """The common part of class-shielding attacks. Subclasses define `_craft_shield`.

    Images of a shield class are changed and keep their labels, so that a protected class is misclassified. A victim
    that trains a linear head on frozen features, with the poison among clean samples of all classes, predicts other
    classes for the protected class, and classifies all other classes nearly as well as before.

    Args:
        protected_class: Class to be misclassified.
        shield_class: Class whose images carry the poison. `None`: chosen by the attack.
        protected_weight: t, the weight of the protected class in the loss.
        ridge_steps: Number of steps against least squares.
        logistic_steps: Number of subsequent steps against logistic regression.
        others: Maximum number of images of other classes on which the loss is measured.
        poisons_per_base: Maximum number of poisons made from an image of the shield class.
        placement: `"append"` adds the poison to the training set, `"replace"` replaces its bases.
        batch_size: Number of images mapped to features at once; bounds memory.

    Raises:
        ValueError: If an argument is out of range, the classes are equal, or copies would replace one base.
    """

    name = "shielding"
    clean_label = True

    protected_class: int
    shield_class: int | None
    protected_weight: float = 1.0
    ridge_steps: int
    logistic_steps: int
    others: int = 4000
    poisons_per_base: int = 1
    placement: Literal["append", "replace"] = "append"
    batch_size: int = 500

    def __post_init__(self) -> None:
        checks.positive_int("protected_class", self.protected_class, minimum=0)
        if self.shield_class is not None:
            checks.positive_int("shield_class", self.shield_class, minimum=0)
        if self.shield_class == self.protected_class:
            what = f"another class than `protected_class` ({self.protected_class})"
            raise ValueError(checks.expected("shield_class", what, "the same"))
        checks.one_of("placement", self.placement, ("append", "replace"))
        checks.positive("protected_weight", self.protected_weight)
        for name in ("ridge_steps", "logistic_steps", "others", "poisons_per_base", "batch_size"):
            checks.positive_int(name, getattr(self, name))
        if self.placement == "replace" and self.poisons_per_base > 1:
            hint = 'Copies can only be appended: `placement="append"`.'
            raise ValueError(
                checks.expected("poisons_per_base", '1 with `placement="replace"`', self.poisons_per_base, hint)
            )

    @abstractmethod
    def _craft_shield(self, data: ShieldingData, threat: Threat, generator: torch.Generator) -> Shield:
        """Return the poison as raw images."""

    def craft(
        self,
        dataset: "Dataset[Any]",
        threat: Threat,
        *,
        surrogates: Sequence[Surrogate],
        holdout: "Dataset[Any] | None",
        generator: torch.Generator,
    ) -> Poison:
        """Craft as many poisons as the budget.

        Surrogates are used in evaluation mode and their state is restored. Each surrogate has its own head, and their
        gradients are summed. Outputs of surrogates are not used, only features.

        Args:
            dataset: Training set from which bases are drawn, without random augmentation if possible.
            threat: Budget, pixel range, and the radius. Without a radius, a pixel may have any value.
            surrogates: Models with a feature layer, at least one.
            holdout: Pool of protected images and others that are not trained on; larger pools are better.
            generator: The only source of randomness.

        Returns:
            Poison of domain `"sample"` with the labels of its bases and a `ProtectedClassObjective`.

        Raises:
            ValueError: If there is no surrogate, pool or sample of a class, a surrogate has no such layer, images are
                outside the pixel range or do not fit the attack, the budget exceeds the limit of the shield class, or
                the threat forbids appending.
        """
        append = self.placement == "append"
        if append and not threat.may_append:
            raise ValueError(
                'Expected a threat that allows appending, but got `may_append=False`.\nSet `placement="replace"`.'
            )
        models = [surrogate.model for surrogate in surrogates]
        with evaluating(*models), frozen(*models):
            data = read_data(
                dataset,
                threat,
                surrogates,
                holdout,
                protected_class=self.protected_class,
                others=self.others,
                validate=self.shield_class is None,
                batch_size=self.batch_size,
                generator=generator,
            )
            shield = self._craft_shield(data, threat, generator)
        count = len(shield.bases)
        return Poison(
            indices=len(data.training.labels) + torch.arange(count) if append else shield.bases,
            base_indices=shield.bases if append else None,
            inputs=threat.pixels.from_raw(shield.images.cpu()),
            labels=torch.full((count,), shield.shield_class),
            objective=ProtectedClassObjective(self.protected_class),
            attack=self.name,
            settings=asdict(self) | {"shield_class": shield.shield_class},
        )


@dataclass(frozen=True, kw_only=True)
class ClassShielding(ShieldingAttack):
    """Class shielding by bilevel optimization: images of a shield class hide a protected class; labels are unchanged.

    At each step, the head is retrained on the clean samples and the poison, and the gradient of the shielding loss is
    taken through its solution: first for least squares, then for logistic regression.

    The strategy and the loss are those of Pinkava, Towards Class-Shielding Data Poisoning, section 2.2. The paper
    learns a generator instead (`ClassShieldingGenerator`), and its victims see no clean protected image. The attack
    requires a surrogate with the victim's features, a large `epsilon`, two or three poisons for each clean protected
    sample, and a shield class that resembles the protected one.

    Args:
        protected_class: Class to be misclassified.
        shield_class: Class whose images carry the poison. Default: all other classes are screened on a held-out part of
            the pool, and the best few are crafted in full.
        protected_weight: t, the weight of the protected class in the loss.
        ridge_steps: Number of steps against least squares.
        logistic_steps: Number of subsequent steps against logistic regression.
        others: Maximum number of images of other classes on which the loss is measured. All protected images are used.
        poisons_per_base: Maximum number of poisons made from an image of the shield class, each optimized separately.
        placement: `"append"` adds the poison to the training set, `"replace"` replaces its bases.
        batch_size: Number of images mapped to features at once; bounds memory.
        finalists: Number of shield classes crafted in full if `shield_class` is not set.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> images = torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> data = TensorDataset(images, torch.arange(60) % 3)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
        >>> attack = ClassShielding(protected_class=0, shield_class=2, ridge_steps=2, logistic_steps=2)
        >>> attack.craft(
        ...     data, Threat(8), surrogates=[Surrogate(model, "2")], holdout=data, generator=torch.Generator()
        ... )
        Poison(class-shielding: 8 samples, sample inputs (1, 4, 4))
    """

    name = "class-shielding"

    shield_class: int | None = None
    ridge_steps: int = 25
    logistic_steps: int = 40
    finalists: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int("finalists", self.finalists)

    def _craft_shield(self, data: ShieldingData, threat: Threat, generator: torch.Generator) -> Shield:
        crafter = ShieldCrafter(
            data,
            threat,
            self.protected_class,
            protected_weight=self.protected_weight,
            poisons_per_base=self.poisons_per_base,
            replace=self.placement == "replace",
            steps=(self.ridge_steps, self.logistic_steps),
            generator=generator,
        )
        if self.shield_class is None:
            return choose_shield(crafter, finalists=self.finalists)
        return crafter.craft(self.shield_class)


@dataclass(frozen=True, kw_only=True)
class ClassShieldingGenerator(ShieldingAttack):
    """Class shielding by a generator: a network trained to make poison from pairs of images; labels are unchanged.

    The generator maps an image to protect and an image of the shield class to a perturbation of the latter. It is
    trained through the victim's head on super-batches of protected, shield and control images, and then generates all
    poison at once. Pinkava, Towards Class-Shielding Data Poisoning, sections 2.2 and 2.3 (`"paper"`) and 4.3
    (`"unet"`), which reports no success.

    Differences from the paper: the perturbation is bounded and rounded to gray levels; the head is solved and the
    gradient is taken through the solution, where the paper trains it for an epoch and generates the poison a second
    time; and the victim sees clean samples of all classes in addition to the poison, including the protected class.

    Args:
        protected_class: Class to be misclassified.
        shield_class: Class whose images carry the poison.
        protected_weight: t, the weight of the protected class in the loss.
        ridge_steps: Number of super-batches for training against least squares.
        logistic_steps: Number of subsequent super-batches for training against logistic regression.
        others: Maximum number of images of other classes from which control images are drawn.
        poisons_per_base: Maximum number of poisons made from an image of the shield class, each with another partner.
        placement: `"append"` adds the poison to the training set, `"replace"` replaces its bases.
        batch_size: Number of images mapped at once outside of training; bounds memory.
        architecture: `"paper"`, two dense layers and two deconvolutions, or `"unet"`, a residual U-Net.
        super_batch: Number of images in a super-batch, a third from each group. The paper uses 1000.
        learning_rate: Learning rate of Adam.

    Raises:
        ValueError: If an argument is out of range.

    Example:
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

    shield_class: int
    ridge_steps: int = 150
    logistic_steps: int = 100
    architecture: Literal["paper", "unet"] = "unet"
    super_batch: int = 1000
    learning_rate: float = 3e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.one_of("architecture", self.architecture, tuple(ARCHITECTURES))
        checks.positive("learning_rate", self.learning_rate)
        checks.positive_int("super_batch", self.super_batch, minimum=3)

    def _craft_shield(self, data: ShieldingData, threat: Threat, generator: torch.Generator) -> Shield:
        labels = data.training.labels
        bases = draw_bases(
            labels, self.shield_class, threat.budget, poisons_per_base=self.poisons_per_base, generator=generator
        )
        trainer = self._trainer(data, threat, bases, generator)
        trainer.train(
            bases
            if self.placement == "replace"
            else positions_of_class(labels, self.shield_class, "shield_class", "training set"),
            (self.ridge_steps, self.logistic_steps),
            size=self.super_batch,
            learning_rate=self.learning_rate,
            generator=generator,
        )
        partners = data.protected[torch.randint(len(data.protected), (len(bases),), generator=generator)]
        return Shield(self.shield_class, bases, trainer.poison(bases, partners))

    def _trainer(
        self, data: ShieldingData, threat: Threat, bases: Tensor, generator: torch.Generator
    ) -> GeneratorTrainer:
        keep = torch.ones(len(data.training.labels), dtype=torch.bool)
        if self.placement == "replace":
            keep[bases] = False
        shape = data.images(bases[:1]).shape[1:]
        if len(shape) != 3 or min(shape[1:]) < 4:
            what = "images (C, H, W) of at least 4 x 4 pixels"
            raise ValueError(checks.expected("dataset", what, f"samples {tuple(shape)}"))
        device = data.maps[0].device
        feature_size = sum(rows.shape[1] for rows in data.training.features)
        with isolated_rng(int(torch.randint(2**31, (), generator=generator)), device):
            network: nn.Module = ARCHITECTURES[self.architecture](feature_size, tuple(shape)).to(device)
        return GeneratorTrainer(
            network,
            data,
            ShieldingGoal(self.protected_class, self.shield_class, self.protected_weight),
            keep,
            budget=threat.budget,
            radius=1.0 if threat.epsilon is None else threat.epsilon,
            pixels=threat.pixels,
        )
