"""`AdaptiveFrogs`: poison frogs of an attacker who knows the scorers of the defender and their thresholds."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison import PixelRange, Surrogate, Threat, checks
from lightning_poison.attacks import RawFeatures
from lightning_poison.data import RawImages, index_blocks
from lightning_poison.runtime import Runtime
from lightning_poison.scorers import Scorer
from lightning_poison_collisions.descent import descend_within
from lightning_poison_collisions.distances import (
    Distance,
    FeatureDistance,
    per_image,
    squared_norm,
    value_and_gradient,
)
from lightning_poison_collisions.known_scorers import KnownScorer, check_differentiable, worst_excess
from lightning_poison_collisions.pairing import group_sizes
from lightning_poison_collisions.targeted import Block, BlockCrafter, TargetedAttack

Penalty = Literal["hinge", "soft"]

_BISECTIONS = 12


@dataclass(frozen=True, kw_only=True)
class AdaptiveFrogs(TargetedAttack):
    """Feature collisions that pass known scorers.

    `FrogAttack` with a penalty for each scorer that the attacker knows, including its weights and thresholds: a
    white-box attacker (Carlini and Wagner, *Adversarial Examples Are Not Easily Detected*, 2017, arXiv 1705.07263, for
    detectors of adversarial examples). The descent is Adam on the signs of the gradient, which does not stop at the
    edge of a hinge. Bases are chosen among samples that pass, and images that are detected in the end are interpolated
    back toward their base until they pass. The value of such a filter is measured by the effect of the poison that
    passes.

    The arguments not listed here are those of `FrogAttack` and `TargetedAttack`.

    Args:
        defenses: Scorers to evade, all at once. `KnownScorer.of` creates them.
        penalty: `"hinge"` penalizes the excess over a threshold, `"soft"` every score.
        weight: Weight of one unit of excess relative to the feature distance, above 0.
        slack: Distance below a threshold at which the hinge begins, in units of the spread of clean scores, at least
            0. It allows for the effects of rounding to gray levels and of another precision.
        beta: Weight of the penalty on the norm, as for `FrogAttack`.
        steps: Number of gradient steps.
        step_size: Initial step size in each pixel, in units of the raw [0, 1] image, above 0.
        poisons_per_target: Number of poisons of each target.

    Raises:
        ValueError: If an argument is out of range, or there are no defenses.
        TypeError: If a defense is not a `KnownScorer`.

    Example:
        >>> from torch import nn
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_poison.scorers import Scorer
        >>> class Brightness(Scorer):
        ...     name, fitted_tensors = "brightness", ()
        ...     def fit(self, trusted, *, runtime=None, generator=None):
        ...         return self
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
    adaptive_to = ("likelihood", "confidence", "mahalanobis", "characteristic-vectors", "discriminator")
    knows_scorer = True

    defenses: Sequence[KnownScorer]
    penalty: Penalty = "hinge"
    weight: float = 5.0
    slack: float = 0.1
    beta: float = 8e-3
    steps: int = 200
    step_size: float = 0.05
    poisons_per_target: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        checks.positive_int("steps", self.steps)
        checks.positive_int("poisons_per_target", self.poisons_per_target)
        checks.positive("beta", self.beta)
        checks.positive("weight", self.weight)
        checks.positive("step_size", self.step_size)
        checks.not_negative("slack", self.slack)
        checks.one_of("penalty", self.penalty, ("hinge", "soft"))
        if not self.defenses:
            hint = "For an attacker who knows none, use `FrogAttack`. `KnownScorer.of(scorer, clean)` creates one."
            raise ValueError(checks.expected("defenses", "at least one known scorer", "none", hint))
        for defense in tuple[object, ...](self.defenses):
            if not isinstance(defense, KnownScorer):
                hint = "`KnownScorer.of(scorer, clean)` calibrates a fitted scorer."
                raise TypeError(checks.expected("defenses", "known scorers", checks.describe(defense), hint))

    @classmethod
    def against(
        cls,
        scorer: Scorer,
        clean: "Dataset[Any]",
        *,
        false_positive_rate: float = 0.01,
        runtime: Runtime | None = None,
        generator: torch.Generator | None = None,
        **settings: Any,
    ) -> Self:
        """Return the attack on a scorer, of which the attacker fits and calibrates a copy; see `KnownScorer.copy_of`.

        Args:
            scorer: Scorer of single samples.
            clean: Samples that the attacker has.
            false_positive_rate: False-positive rate of the defender, in (0, 1).
            runtime: Where to compute. Default: `LocalRuntime()`, the CPU.
            generator: The only source of randomness. Default: a fixed seed.
            **settings: Other arguments of the attack.

        Raises:
            TypeError: If the scorer does not score single samples.
            ValueError: If an argument is out of range, or a class has too few samples in `clean`.
        """
        known = KnownScorer.copy_of(
            scorer, clean, false_positive_rate=false_positive_rate, runtime=runtime, generator=generator
        )
        return cls(defenses=[known], **settings)

    def _sizes(self, budget: int) -> list[int]:
        return group_sizes(budget, self.poisons_per_target)

    def _filter_pool(self, pool: Tensor, training: RawImages, labels: Tensor, pixels: PixelRange) -> Tensor:
        """Return the candidates that pass all defenses, or all candidates if none passes."""
        blocks = zip(training.blocks(pool), index_blocks(pool, training.batch_size), strict=True)
        with torch.no_grad():
            excess = [worst_excess(self.defenses, images, labels[indices], pixels).cpu() for images, indices in blocks]
        passing = pool[torch.cat(excess) <= -self.slack]
        return passing if len(passing) else pool

    def _settings(self) -> dict[str, Any]:
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return own | {"defenses": [dict(defense.settings()) for defense in self.defenses]}

    def _crafter(
        self,
        surrogates: Sequence[Surrogate],  # noqa: ARG002
        threat: Threat,
        classes: int,  # noqa: ARG002
        generator: torch.Generator,  # noqa: ARG002
    ) -> BlockCrafter:
        pixels = threat.pixels
        radius, beta = (1.0, self.beta) if threat.epsilon is None else (threat.epsilon, 0.0)

        def craft_block(maps: Sequence[RawFeatures], block: Block) -> Tensor:
            bases, labels = block.bases, block.wanted[block.target_of]
            check_differentiable(self.defenses, bases, labels, pixels)
            distance = EvadingDistance(
                FeatureDistance(maps, bases, block.targets[block.target_of]),
                self.defenses,
                labels,
                pixels,
                penalty=self.penalty,
                weight=self.weight,
                slack=self.slack,
            )

            def objective(images: Tensor) -> tuple[Tensor, Tensor]:
                return value_and_gradient(lambda leaf: distance(leaf) + beta * squared_norm(leaf - bases), images)

            def passes(images: Tensor) -> Tensor:
                rounded = pixels.round_raw(images, around=bases, epsilon=threat.epsilon)
                with torch.no_grad():
                    return worst_excess(self.defenses, rounded, labels, pixels) <= -self.slack / 2

            step_size = min(radius, self.step_size)
            images, _ = descend_within(objective, bases, epsilon=radius, steps=self.steps, step_size=step_size)
            return interpolate_back(bases, images, passes)

        return craft_block


class EvadingDistance:
    """A feature distance plus a penalty for the score of each known scorer.

    With the excess `e` of a score over its threshold, in units of the spread of clean scores, `"hinge"` adds
    w · max(0, e + slack) for each scorer. `"soft"` adds w · e, which also rewards lower scores of images that pass.

    Args:
        distance: Feature term.
        defenses: Scorers that the attacker knows.
        labels: Labels of the poison, int64 `(P,)`.
        pixels: Normalization of the samples.
        penalty: `"hinge"` or `"soft"`.
        weight: w, above 0.
        slack: Distance below the threshold at which the hinge begins, in the same unit.

    Example:
        >>> from lightning_poison.scorers import Scorer
        >>> class Brightness(Scorer):
        ...     name, fitted_tensors = "brightness", ()
        ...     def fit(self, trusted, *, runtime=None, generator=None):
        ...         return self
        ...     def score_batch(self, inputs, labels):
        ...         return inputs.flatten(1).mean(1)
        >>> known = KnownScorer(Brightness(), torch.tensor([0.5]), torch.tensor([0.1]))
        >>> distance = FeatureDistance([lambda images: images], torch.zeros(2, 3), torch.ones(2, 3))
        >>> evading = EvadingDistance(distance, [known], torch.zeros(2).long(), PixelRange(), weight=2.0, slack=0.0)
        >>> evading(torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
        tensor([ 1., 10.])
    """

    def __init__(
        self,
        distance: Distance,
        defenses: Sequence[KnownScorer],
        labels: Tensor,
        pixels: PixelRange,
        *,
        penalty: Penalty = "hinge",
        weight: float,
        slack: float,
    ) -> None:
        self._distance, self._labels = distance, labels
        self._defenses, self._pixels = tuple(defenses), pixels
        self._penalty, self._weight, self._slack = penalty, weight, slack

    def __call__(self, images: Tensor) -> Tensor:
        """Return the values `(P,)` of raw images `(P, ...)`, differentiable with respect to the images."""
        samples = self._pixels.from_raw(images)
        total = self._distance(images)
        for defense in self._defenses:
            excess = defense.excess(samples, self._labels).to(total.device)
            penalty = excess if self._penalty == "soft" else (excess + self._slack).relu()
            total = total + self._weight * penalty
        return total


def interpolate_back(bases: Tensor, images: Tensor, passes: Callable[[Tensor], Tensor]) -> Tensor:
    """Interpolate detected images toward their bases until they pass; images that never pass are unchanged.

    The point on the line from base to image is found by bisection. If passing is not monotone along the line, the point
    still passes but may not be the farthest.

    Args:
        bases: Raw images, `(P, ...)`.
        images: Raw images, `(P, ...)`.
        passes: Maps raw images to whether each passes, bool `(P,)`.

    Returns:
        Raw images, `(P, ...)`.

    Example:
        >>> images = torch.tensor([[0.4], [1.0]])
        >>> interpolate_back(torch.zeros(2, 1), images, lambda images: images[:, 0] <= 0.5).round(decimals=2)
        tensor([[0.4000],
                [0.5000]])
    """
    detected = ~passes(images)
    low, high = torch.zeros(len(images), device=images.device), torch.ones(len(images), device=images.device)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        passing = passes(torch.lerp(bases, images, per_image(middle, images)))
        low, high = torch.where(passing, middle, low), torch.where(passing, high, middle)
    interpolated = torch.lerp(bases, images, per_image(low, images))
    improved = per_image(detected & passes(interpolated), images)
    return torch.where(improved, interpolated, images)
