"""`ClassShielding`: poison in one class hides another, by bilevel optimization on frozen features."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch.utils.data import Dataset

from lightning_poison import Poison, Surrogate, Threat, checks
from lightning_poison_shielding.shields import ShieldMaker, choose_shield
from lightning_poison_shielding.terms import Terms


@dataclass(frozen=True, kw_only=True)
class ClassShielding:
    """Class shielding: images of a shield class, labels kept, are changed so that a protected class is misread.

    Whoever trains a linear head on frozen features, with the poison among clean samples of all classes, reads
    the protected class as another and all other classes nearly as well as before. The poison is found by bilevel
    optimization: at each step the head is trained again on the clean samples and the poison, and the gradient of the
    shielding loss is taken through its solution, first for least squares, then for logistic regression.

    The strategy and the loss are those of Pinkava, Towards Class-Shielding Data Poisoning, section 2.2; the paper
    learns a generator instead (`ClassShieldingGenerator`), and its victims see no clean protected image. Needed is a
    surrogate with the victim's own features, a large `epsilon`, two or three poisons for each clean protected sample
    and a shield class that looks like the protected one.

    Args:
        protected_class: the class to be misread.
        shield_class: the class whose images carry the poison. Where it is `None`, all others are tried in short on a
            part of the pool that is kept back, and the best few in full.
        protected_weight: t, what the protected class counts for in the loss.
        ridge_steps: how many steps are taken against least squares.
        logistic_steps: how many against logistic regression after that.
        others: on how many images of other classes the loss is measured at most; of the protected one on all there are.
        poisons_per_base: how often an image of the shield class may serve as a base; each copy is moved on its own.
        placement: `"append"` adds the poison to the training set, `"replace"` puts it in the place of its bases.
        finalists: how many shield classes are tried in full where none is given.
        batch_size: how many images are mapped at once; bounds memory.

    Raises:
        ValueError: where an argument is out of its range.

    Example:
        >>> from torch import nn
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
    clean_label = True

    protected_class: int
    shield_class: int | None = None
    protected_weight: float = 1.0
    ridge_steps: int = 25
    logistic_steps: int = 40
    others: int = 4000
    poisons_per_base: int = 1
    placement: Literal["append", "replace"] = "append"
    finalists: int = 2
    batch_size: int = 500

    def __post_init__(self) -> None:
        Terms.of(self)
        checks.positive_int("finalists", self.finalists)

    def craft(
        self,
        dataset: "Dataset[Any]",
        threat: Threat,
        *,
        surrogates: Sequence[Surrogate],
        holdout: "Dataset[Any] | None",
        generator: torch.Generator,
    ) -> Poison:
        """Craft as many poisons as the budget says.

        The surrogates are used in evaluation mode and given back as they were. Of several, each has a head of its own,
        and their gradients are added up.

        Args:
            dataset: the training set that bases are drawn from; without random augmentation where it can be had.
            threat: the budget, the pixel range, and the radius; a pixel may take any value where there is none.
            surrogates: one at least, each with a feature layer; their outputs are not used.
            holdout: the owner's pool: protected images and others that are not trained on, the more the better.
            generator: draws bases, parts of the pool and the start.

        Returns:
            Poison of domain `"sample"`, labeled as its bases, with a `ProtectedClassObjective`.

        Raises:
            ValueError: where there is no surrogate, no pool or no sample of a class, a surrogate has no such layer,
                images lie outside the pixel range, the budget exceeds what the shield class allows, or the threat
                forbids appending.
        """
        terms, chooses = Terms.of(self), self.shield_class is None
        with terms.scene(dataset, threat, surrogates, holdout, validate=chooses, generator=generator) as scene:
            maker = ShieldMaker(
                scene,
                threat,
                self.protected_class,
                protected_weight=self.protected_weight,
                poisons_per_base=self.poisons_per_base,
                replaces=self.placement == "replace",
                steps=(self.ridge_steps, self.logistic_steps),
                generator=generator,
            )
            if self.shield_class is None:
                made = choose_shield(maker, finalists=self.finalists)
            else:
                made = maker.in_full(self.shield_class)
        return terms.poison(
            made.images,
            made.bases,
            made.shield_class,
            threat=threat,
            length=len(scene.training.labels),
            attack=self.name,
            settings=asdict(self),
        )
