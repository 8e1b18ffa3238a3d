"""Controls: what a table compares filters with. None of them is a defense, and everything that filters refuses them.

A filter that ranks no better than `RandomScorer` has found nothing; none can rank better than `PerfectScorer`, which is
told the truth.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_poison.checks import describe, expected, positive_int
from lightning_poison.randomness import derived_generator


class RandomScorer:
    """Scores at random; a control.

    Args:
        seed: at least 0. Its random numbers are none that an attack under the same seed draws.

    Raises:
        ValueError: where the seed is no integer of at least 0.

    Example:
        >>> scorer = RandomScorer(seed=3)
        >>> one, again = (scorer.score_features(torch.zeros(5, 2), torch.zeros(5).long()) for _ in range(2))
        >>> one.shape, one.equal(again), scorer.is_control
        (torch.Size([5]), True, True)
    """

    name = "random"
    is_control = True

    def __init__(self, seed: int = 0) -> None:
        self.seed = positive_int("seed", seed, minimum=0)

    def __repr__(self) -> str:
        return f"RandomScorer(seed={self.seed})"

    def score_features(self, features: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002 (it looks at nothing)
        """Return uniform numbers in [0, 1), float32 `(N,)`."""
        return torch.rand(len(labels), generator=derived_generator(self.seed, "random scorer")).to(labels.device)

    def settings(self) -> Mapping[str, Any]:
        """Return the seed."""
        return {"seed": self.seed}


class PerfectScorer:
    """Scores poison 1 and everything else 0; a control, which knows the truth.

    Args:
        is_poison: bool `(N,)`, such as `PoisonedDataset.is_poison`.

    Raises:
        ValueError: where `is_poison` is no boolean mask.

    Example:
        >>> scorer = PerfectScorer(torch.tensor([False, True, False]))
        >>> scorer.score_features(torch.zeros(3, 2), torch.zeros(3).long()), scorer.is_control
        (tensor([0., 1., 0.]), True)
    """

    name = "perfect"
    is_control = True

    def __init__(self, is_poison: Tensor) -> None:
        if not isinstance(is_poison, Tensor) or is_poison.dtype != torch.bool or is_poison.ndim != 1:
            raise ValueError(expected("is_poison", "a boolean mask (N,)", describe(is_poison)))
        self.is_poison = is_poison.clone()

    def __repr__(self) -> str:
        return f"PerfectScorer({int(self.is_poison.sum())} of {len(self.is_poison)})"

    def score_features(self, features: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002 (it knows without looking)
        """Return the truth, float32 `(N,)`.

        Raises:
            ValueError: where there are more or fewer samples than it knows of.
        """
        if len(labels) != len(self.is_poison):
            what = f"those of the {len(self.is_poison)} samples that the control knows the truth about"
            raise ValueError(expected("labels", what, str(len(labels))))
        return self.is_poison.float().to(labels.device)

    def settings(self) -> Mapping[str, Any]:
        """Return how many samples are poison, and of how many."""
        return {"poison": int(self.is_poison.sum()), "samples": len(self.is_poison)}
