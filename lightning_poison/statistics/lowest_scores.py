"""The lowest scores of each sample under all labels, which every estimate from these scores needs, computed once."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from lightning_poison.statistics.row_blocks import small_row_blocks


@dataclass(frozen=True)
class LowestScores:
    """The label under which each sample is least suspicious, and the two lowest scores.

    Args:
        predicted: Label with the lowest score, the first of several, int64 `(N,)`.
        lowest: The lowest score, float64 `(N,)`.
        second: The lowest score under any other label, float64 `(N,)`.
        is_finite: Whether all scores are finite.

    Example:
        >>> found = LowestScores.of(torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 5.0]]))
        >>> found.predicted, found.lowest.tolist(), found.second.tolist()
        (tensor([1, 0]), [1.0, 0.0], [2.0, 0.0])
    """

    predicted: Tensor
    lowest: Tensor
    second: Tensor
    is_finite: bool

    @classmethod
    def of(cls, label_scores: Tensor) -> Self:
        """Read scores, floating-point `(N, C)`, C at least 1, a block of samples at a time."""
        rows = [_of_block(label_scores[part]) for part in small_row_blocks(*label_scores.shape)]
        predicted, lowest, second, finite = (torch.cat(each) for each in zip(*rows, strict=True))
        return cls(predicted, lowest.double(), second.double(), bool(finite.all()))

    def under_other_labels(self, labels: Tensor) -> Tensor:
        """Return the lowest score of each sample under any label but its own, float64 `(N,)`."""
        return torch.where(self.predicted == labels, self.second, self.lowest)


def _of_block(block: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    lowest, predicted = block.min(1)
    second = block.scatter(1, predicted[:, None], torch.inf).amin(1)
    return predicted, lowest, second, torch.isfinite(torch.stack([lowest, block.amax(1)])).all()[None]
