"""`AdaptiveFrogs`: poison frogs of an attacker who knows the scorer that they will meet, and its threshold."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import Poison, Surrogate, Threat, checks
from lightning_poison.attacks import RawFeatures
from lightning_poison.data import index_blocks
from lightning_poison_collisions.crafting import Block, craft_on_targets
from lightning_poison_collisions.distance import FeatureDistance, squared_norm, value_and_gradient
from lightning_poison_collisions.evading import EvadingDistance, Penalty, retreat
from lightning_poison_collisions.known_scorers import KnownScorer, check_differentiable, worst_excess
from lightning_poison_collisions.pairing import group_sizes
from lightning_poison_collisions.signed_adam import descend_within
from lightning_poison_collisions.targeted import Selection


@dataclass(frozen=True, kw_only=True)
class AdaptiveFrogs:
    """Feature collisions that known scorers let pass.

    `FrogAttack` whose objective has a further term for each scorer that the attacker knows, with its weights and its
    thresholds: an attacker in the white box (Carlini and Wagner, *Adversarial Examples Are Not Easily Detected*, 2017,
    arXiv 1705.07263, for detectors of adversarial examples). The descent is Adam on the signs of the gradient, which
    the edge of a hinge does not stop; bases are taken that pass themselves, and what is noticed in the end is pulled
    back toward its base until it passes. What such a filter is worth is what the poison that passes can still do.

    Args:
        defenses: the scorers that are to be evaded, all of them at once; `KnownScorer.of` builds one.
        penalty: `"hinge"` charges for what lies above a threshold; `"soft"` for every score.
        weight: the price of one unit of excess, against the relative feature distance, above 0.
        slack: how far below a threshold the hinge begins, in units of the spread of clean scores, at least 0; what
            rounding to the data's grid and another precision may cost.
        source_class: as for `FrogAttack`.
        base_class: as for `FrogAttack`.
        beta: as for `FrogAttack`.
        steps: how many gradients are taken.
        step_size: how far a pixel moves in the first steps at most, in units of the raw [0, 1] image, above 0.
        placement: as for `FrogAttack`.
        poisons_per_target: as for `FrogAttack`.
        base_choice: as for `FrogAttack`.
        candidates: as for `FrogAttack`.
        batch_size: as for `FrogAttack`.

    Raises:
        ValueError: where an argument is out of its range, or no scorer is known.
        TypeError: where a defense is no `KnownScorer`.

    Example:
        >>> from torch import nn
        >>> from torch.utils.data import TensorDataset
        >>> class Brightness:
        ...     name, is_control, is_fitted = "brightness", False, True
        ...     def score_batch(self, inputs, labels):
        ...         return inputs.flatten(1).mean(1)
        >>> images = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        >>> data = TensorDataset(images, torch.arange(40) % 2)
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> known = KnownScorer.of(Brightness(), data, false_positive_rate=0.2)
        >>> AdaptiveFrogs(defenses=[known], base_class=1, poisons_per_target=4).craft(
        ...     data, Threat(8), surrogates=[Surrogate(model, "2")], holdout=data, generator=torch.Generator()
        ... )
        Poison(adaptive-frog: 8 samples, sample inputs (1, 4, 4))
    """

    name = "adaptive-frog"
    clean_label = True

    defenses: Sequence[KnownScorer]
    penalty: Penalty = "hinge"
    weight: float = 5.0
    slack: float = 0.1
    source_class: int | None = None
    base_class: int | None = None
    beta: float = 8e-3
    steps: int = 200
    step_size: float = 0.05
    placement: Literal["append", "replace"] = "append"
    poisons_per_target: int = 1
    base_choice: Literal["nearest", "random"] = "nearest"
    candidates: int = 1000
    batch_size: int = 128

    def __post_init__(self) -> None:
        Selection.of(self)
        for name in ("steps", "poisons_per_target", "batch_size"):
            checks.positive_int(name, getattr(self, name))
        checks.positive("beta", self.beta)
        checks.positive("weight", self.weight)
        checks.positive("step_size", self.step_size)
        checks.not_negative("slack", self.slack)
        checks.one_of("penalty", self.penalty, ("hinge", "soft"))
        if not self.defenses:
            hint = "Without one this is `FrogAttack`; `KnownScorer.of(scorer, clean)` builds one."
            raise ValueError(checks.expected("defenses", "the scorers that the attacker knows", "none", hint))
        for defense in tuple[object, ...](self.defenses):
            if not isinstance(defense, KnownScorer):
                hint = "`KnownScorer.of(scorer, clean)` calibrates a fitted scorer."
                raise TypeError(checks.expected("defenses", "known scorers", checks.describe(defense), hint))

    def craft(
        self,
        dataset: "Dataset[Any]",
        threat: Threat,
        *,
        surrogates: Sequence[Surrogate],
        holdout: "Dataset[Any] | None",
        generator: torch.Generator,
    ) -> Poison:
        """Craft as many poisons as the budget allows; see `FrogAttack.craft`.

        Raises:
            ValueError: as `FrogAttack.craft`; and where a scorer's scores are not differentiable in the inputs.
        """

        def move(maps: Sequence[RawFeatures], block: Block) -> Tensor:
            bases, labels = block.bases, block.wanted[block.target_of]
            check_differentiable(self.defenses, bases, labels, threat.pixels)
            distance = EvadingDistance(
                FeatureDistance(maps, bases, block.targets[block.target_of]),
                self.defenses,
                labels,
                threat.pixels,
                penalty=self.penalty,
                weight=self.weight,
                slack=self.slack,
            )
            beta = self.beta if threat.epsilon is None else 0.0

            def objective(images: Tensor) -> tuple[Tensor, Tensor]:
                return value_and_gradient(lambda leaf: distance(leaf) + beta * squared_norm(leaf - bases), images)

            radius = 1.0 if threat.epsilon is None else threat.epsilon
            moved, _ = descend_within(
                objective, bases, epsilon=radius, steps=self.steps, step_size=min(radius, self.step_size)
            )

            def passes(images: Tensor) -> Tensor:
                rounded = threat.pixels.round_raw(images, around=bases, epsilon=threat.epsilon)
                with torch.no_grad():
                    return worst_excess(self.defenses, rounded, labels, threat.pixels) <= -self.slack / 2

            return retreat(bases, moved, passes)

        def admit(images: Tensor, labels: Tensor) -> Tensor:
            with torch.no_grad():
                return worst_excess(self.defenses, images, labels, threat.pixels) <= -self.slack

        known = [dict(defense.settings()) for defense in self.defenses]
        own = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "defenses"}
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
            settings={**own, "defenses": known},
            admit=admit,
        )
