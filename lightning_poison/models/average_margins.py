"""`AverageMargins`: how well a network predicts the labels of the samples that it is trained on, averaged over a fit.

Pleiss, Zhang, Elenberg, Weinberger, *Identifying Mislabeled Data using the Area Under the Margin Ranking*, NeurIPS
2020, arXiv 2001.10528, equations 1 and 2.
"""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_poison.checks import positive_int


class AverageMargins:
    """Cross-entropy that records the margin of each sample at each step of a fit.

    The margin is the logit of the label minus the largest other logit, before the step. A network learns samples with a
    wrong label later than those with a correct one, against what it has learned from these, so their average margin is
    small.

    It differs from the paper in two points. All epochs count, not those up to the first reduction of the learning rate,
    since a one-cycle schedule has none. And no class of its own is planted whose samples give a threshold: such samples
    would be lost to the fit, and the cut follows from out-of-fold scores.

    Args:
        length: N, the number of samples of the data set.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_poison.models.fitting import FitSettings, fit_module
        >>> labels = torch.arange(60) % 2
        >>> data = TensorDataset(F.one_hot(labels).float(), torch.where(torch.arange(60) == 7, 0, labels))
        >>> margins = AverageMargins(60)
        >>> quick = FitSettings(epochs=10, batch_size=20, learning_rate=0.1, min_steps=0)
        >>> network = fit_module(nn.Linear(2, 2), data, margins, settings=quick, before_step=margins.at)
        >>> int(margins.average().argmin())
        7
    """

    def __init__(self, length: int) -> None:
        positive_int("length", length)
        self._sums = torch.zeros(length, dtype=torch.float64)
        self._counts = torch.zeros(length, dtype=torch.float64)
        self._indices = torch.zeros(0, dtype=torch.int64)

    def at(self, indices: Tensor) -> None:
        """Set the positions of the samples of the next step, int64 `(B,)`, all different."""
        self._indices = indices

    def __call__(self, module: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of a batch, and record its margins.

        Args:
            module: Maps inputs to logits `(B, C)`, with at least two classes.
            inputs: `(B, ...)`.
            labels: int64 `(B,)`.
        """
        logits = module(inputs)
        margins = _margins(logits.detach().float(), labels).double()
        indices = self._indices.to(margins.device, non_blocking=True)
        self._sums, self._counts = self._sums.to(margins.device), self._counts.to(margins.device)
        self._sums[indices] += margins
        self._counts[indices] += 1
        return F.cross_entropy(logits, labels)

    def average(self) -> Tensor:
        """Return the average margin of each sample, float64 `(N,)`, on the CPU.

        Samples that had no step have the overall average. An incomplete last batch of an epoch is dropped, so a sample
        may be left out of an epoch or, in a very short fit, of all.
        """
        sums, counts = self._sums.cpu(), self._counts.cpu()
        return torch.where(counts > 0, sums / counts.clamp_min(1), sums.sum() / counts.sum().clamp_min(1))

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of what was recorded."""
        return {"sums": self._sums.cpu().clone(), "counts": self._counts.cpu().clone()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue with what was recorded."""
        self._sums, self._counts = state["sums"].clone(), state["counts"].clone()


def _margins(logits: Tensor, labels: Tensor) -> Tensor:
    own = labels[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -torch.inf).amax(1)
