"""Making the poison of a shield class, and choosing the class on images that are kept back."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_poison import Threat, checks
from lightning_poison_shielding.box import PixelBox
from lightning_poison_shielding.casting import draw_bases
from lightning_poison_shielding.heads import LOGISTIC_PENALTIES, Known, LogisticHead, RidgeHead
from lightning_poison_shielding.losses import Roles
from lightning_poison_shielding.optimizer import Team, shield
from lightning_poison_shielding.scene import Scene

SCREENING_POISONS, SCREENING_STEPS = 500, 15
"""A shield class is tried in short with so many poisons, each counted several times, and steps."""


@dataclass(frozen=True)
class Shield:
    """The poison of one shield class.

    Args:
        shield_class: the label that it carries.
        bases: int64 `(P,)`, the training samples that it was made from.
        images: raw `(P, ...)` in [0, 1].
        loss: the shielding loss on the images that were kept back; not a number where there are none.
    """

    shield_class: int
    bases: Tensor
    images: Tensor
    loss: float


class ShieldMaker:
    """Crafts shields of any class for one protected class.

    Args:
        scene: the data, as the surrogates see them.
        threat: the budget, the pixel range, and the radius; 1 where there is none.
        protected_class: the class to be misread.
        protected_weight: t of the shielding loss.
        poisons_per_base: how often a training sample may serve as a base.
        replaces: whether the poison takes the place of its bases.
        steps: how many against least squares, and against logistic regression.
        generator: draws bases and starts.
    """

    def __init__(
        self,
        scene: Scene,
        threat: Threat,
        protected_class: int,
        *,
        protected_weight: float,
        poisons_per_base: int,
        replaces: bool,
        steps: tuple[int, int],
        generator: torch.Generator,
    ) -> None:
        self._scene, self._threat, self._generator = scene, threat, generator
        self._protected_class, self._protected_weight = protected_class, protected_weight
        self._poisons_per_base, self._replaces, self._steps = poisons_per_base, replaces, steps

    def candidates(self) -> list[int]:
        """Return the classes that may be the shield.

        Raises:
            ValueError: where none has samples enough for the budget.
        """
        labels = self._scene.training.labels
        counts = labels.bincount(minlength=self._scene.classes) * self._poisons_per_base
        able = (counts >= self._threat.budget).nonzero().flatten().tolist()
        found = [one for one in able if one != self._protected_class]
        if not found:
            most = max((count for one, count in enumerate(counts.tolist()) if one != self._protected_class), default=0)
            raise ValueError(
                checks.expected("budget", f"at most {most}, what the largest shield class allows", self._threat.budget)
                + "\nLower it, or raise `poisons_per_base`."
            )
        return found

    def in_short(self, shield_class: int) -> Shield:
        """Craft a few poisons against least squares, to see what may come of the class."""
        budget = self._threat.budget
        few = min(budget, SCREENING_POISONS)
        bases = self._bases(shield_class)[torch.randperm(budget, generator=self._generator)[:few]]
        roles, known = self._roles(shield_class), self._known(bases)
        team = [RidgeHead(each, roles, weight=budget / few) for each in known]
        images = self._shield(bases, [([team], SCREENING_STEPS)])
        return Shield(shield_class, bases, images, self._validated(images, [team]))

    def in_full(self, shield_class: int) -> Shield:
        """Craft the whole budget: against least squares, then against logistic heads that take turns."""
        bases = self._bases(shield_class)
        roles, known = self._roles(shield_class), self._known(bases)
        ridge = [RidgeHead(each, roles) for each in known]
        logistic = [[LogisticHead(each, roles, penalty=penalty) for each in known] for penalty in LOGISTIC_PENALTIES]
        images = self._shield(bases, [([ridge], self._steps[0]), (logistic, self._steps[1])])
        return Shield(shield_class, bases, images, self._validated(images, logistic))

    def _roles(self, shield_class: int) -> Roles:
        return Roles(self._protected_class, shield_class, self._protected_weight)

    def _bases(self, shield_class: int) -> Tensor:
        return draw_bases(
            self._scene.training.labels,
            shield_class,
            self._threat.budget,
            poisons_per_base=self._poisons_per_base,
            generator=self._generator,
        )

    def _known(self, bases: Tensor) -> list[Known]:
        keep = torch.ones(len(self._scene.training.labels), dtype=torch.bool)
        if self._replaces:
            keep[bases] = False
        return self._scene.known(keep)

    def _shield(self, bases: Tensor, stages: Sequence[tuple[Sequence[Team], int]]) -> Tensor:
        threat, images = self._threat, self._scene.images(bases)
        radius = 1.0 if threat.epsilon is None else threat.epsilon
        box = PixelBox(images.to(self._scene.maps[0].device), radius, threat.pixels)
        return shield(box, self._scene.maps, stages, generator=self._generator)

    def _validated(self, images: Tensor, teams: Sequence[Team]) -> float:
        """Return the mean loss of the heads on the images that are kept back."""
        held = self._scene.validation
        losses = [
            head.loss(extract.known(images), features, held.labels.to(features.device))
            for team in teams
            for head, extract, features in zip(team, self._scene.maps, held.features or [], strict=False)
        ]
        return sum(losses) / len(losses) if losses else float("nan")


def choose_shield(maker: ShieldMaker, *, finalists: int) -> Shield:
    """Try all classes in short, the best ones in full, and return the best of these.

    Args:
        maker: crafts them; its scene has images that are kept back.
        finalists: how many are tried in full.
    """
    tried = sorted((maker.in_short(one) for one in maker.candidates()), key=lambda made: made.loss)
    return min((maker.in_full(made.shield_class) for made in tried[:finalists]), key=lambda made: made.loss)
