"""Controls: the best and the worst filter, to compare others with. None is a defense, and every filter rejects them.

A scorer that ranks no better than `RandomScorer` has found nothing. None can rank better than `PerfectScorer`, which
uses the ground truth.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_poison.checks import describe, expected, positive_int
from lightning_poison.randomness import derived_generator
from lightning_poison.scorers.protocol import SetScorer


class RandomScorer(SetScorer):
    """Scores at random; a control.

    Args:
        seed: At least 0. Attacks with the same seed draw other random numbers. Default: 0.

    Raises:
        ValueError: If the seed is not an integer of at least 0.

    Example:
        >>> scorer = RandomScorer(seed=3)
        >>> first, second = (scorer.score_features(torch.zeros(5, 2), torch.zeros(5).long()) for _ in range(2))
        >>> first.shape, first.equal(second), scorer.is_control
        (torch.Size([5]), True, True)
    """

    name = "random"
    is_control = True

    def __init__(self, seed: int = 0) -> None:
        self.seed = positive_int("seed", seed, minimum=0)

    def score_features(self, features: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002 (scores are random)
        """Return uniform random numbers in [0, 1), float32 `(N,)`."""
        return torch.rand(len(labels), generator=derived_generator(self.seed, "random scorer")).to(labels.device)


class PerfectScorer(SetScorer):
    """Scores poison 1 and all other samples 0; a control that uses the ground truth.

    Args:
        is_poison: bool `(N,)`, such as `PoisonedDataset.is_poison`.

    Raises:
        ValueError: If `is_poison` is not a boolean mask.

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
        self._mask = is_poison.clone()

    def __repr__(self) -> str:
        return f"PerfectScorer({int(self._mask.sum())} of {len(self._mask)})"

    def score_features(self, features: Tensor, labels: Tensor) -> Tensor:  # noqa: ARG002 (uses the ground truth)
        """Return the ground truth, float32 `(N,)`.

        Raises:
            ValueError: If there are more or fewer samples than in the mask.
        """
        if len(labels) != len(self._mask):
            raise ValueError(
                expected("labels", f"the labels of the {len(self._mask)} samples in the mask", len(labels))
            )
        return self._mask.float().to(labels.device)

    def settings(self) -> Mapping[str, Any]:
        """Return the number of poisoned samples and of all samples."""
        return {"poison": int(self._mask.sum()), "samples": len(self._mask)}
