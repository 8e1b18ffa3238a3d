"""Metrics of a removal: what was kept, against the ground truth, which only an evaluation has.

Cover samples, which an attacker adds to hide the poison, count neither as caught poison nor as lost clean data;
`CoverRemovalRate` reports them apart.
"""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_poison.checks import describe, expected


class RemovalCounts(Metric):
    """How many samples of each role were removed, of how many.

    The metrics below differ from it in what they compute from these counts; in a `MetricCollection` they share one
    update.

    Args:
        **kwargs: torchmetrics' own, as `sync_on_compute`.

    Example:
        >>> keep = torch.tensor([True, False, False, True, False])
        >>> is_poison = torch.tensor([False, True, False, True, False])
        >>> is_cover = torch.tensor([False, False, False, False, True])
        >>> counts = RemovalCounts()
        >>> counts.update(keep, is_poison, is_cover)
        >>> counts.compute()
        tensor([[1, 2],
                [1, 2],
                [1, 1]])
    """

    is_differentiable = False
    full_state_update = False
    higher_is_better: bool | None = None

    counts: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("counts", torch.zeros(3, 2, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, keep: Tensor, is_poison: Tensor, is_cover: Tensor | None = None) -> None:
        """Add samples of a data set.

        Args:
            keep: bool `(N,)`, `True` stays.
            is_poison: bool `(N,)`, the ground truth.
            is_cover: bool `(N,)`, which samples are cover; none where it is not given.

        Raises:
            ValueError: where one is no boolean mask of the length of `keep`, or a sample is poison and cover.
        """
        clean, poison, cover = sample_roles("keep", _mask("keep", keep, keep.shape[:1]), is_poison, is_cover)
        rows = [[(role & ~keep).sum(), role.sum()] for role in (poison, clean, cover)]
        self.counts += torch.stack([torch.stack(row) for row in rows])

    def compute(self) -> Tensor:
        """Return int64 `(3, 2)`: for poison, clean and cover samples how many were removed, and how many there are.

        Raises:
            ValueError: where no sample was added on any rank.
        """
        return self._counted()

    def _counted(self) -> Tensor:
        if not self.counts[:, 1].any():
            raise ValueError("Expected samples to judge a removal by, but got none.\nCall `update` first.")
        return self.counts.clone()

    def _share(self, role: int) -> Tensor:
        counts = self._counted()[role]
        return counts[0] / counts[1]


class RemovalPrecision(RemovalCounts):
    """The share of poison among what was removed, cover samples left out; NaN where nothing was removed.

    Arguments and `update` are those of `RemovalCounts`.

    Example:
        >>> metric = RemovalPrecision()
        >>> metric(torch.tensor([True, False, False]), torch.tensor([False, True, False]))
        tensor(0.5000)
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        """Return the share, in [0, 1], or NaN."""
        removed = self._counted()[:2, 0]
        return removed[0] / removed.sum()


class RemovalRecall(RemovalCounts):
    """The share of the poison that was removed; NaN where there is no poison.

    Arguments and `update` are those of `RemovalCounts`.

    Example:
        >>> metric = RemovalRecall()
        >>> metric(torch.tensor([True, False, False]), torch.tensor([True, True, False]))
        tensor(0.5000)
    """

    higher_is_better = True

    def compute(self) -> Tensor:
        """Return the share, in [0, 1], or NaN."""
        return self._share(0)


class RemovalFalsePositiveRate(RemovalCounts):
    """The share of the clean samples that was removed; NaN where there are none.

    Arguments and `update` are those of `RemovalCounts`.

    Example:
        >>> metric = RemovalFalsePositiveRate()
        >>> metric(torch.tensor([True, False, False]), torch.tensor([False, True, False]))
        tensor(0.5000)
    """

    higher_is_better = False

    def compute(self) -> Tensor:
        """Return the share, in [0, 1], or NaN."""
        return self._share(1)


class CoverRemovalRate(RemovalCounts):
    """The share of the cover samples that was removed; NaN where there are none.

    Arguments and `update` are those of `RemovalCounts`.

    Example:
        >>> metric = CoverRemovalRate()
        >>> poison, cover = torch.tensor([True, False, False]), torch.tensor([False, True, True])
        >>> metric(torch.tensor([True, True, False]), poison, cover)
        tensor(0.5000)
    """

    def compute(self) -> Tensor:
        """Return the share, in [0, 1], or NaN."""
        return self._share(2)


def sample_roles(name: str, like: Tensor, is_poison: Tensor, is_cover: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the masks of clean, poison and cover samples.

    Args:
        name: the name of the argument `like`, for messages.
        like: `(N,)`, sets the length and the device.
        is_poison: bool `(N,)`.
        is_cover: bool `(N,)`; none where it is `None`.

    Raises:
        ValueError: where one is no boolean mask of that length, or a sample is poison and cover.

    Example:
        >>> poison, cover = torch.tensor([True, False, False]), torch.tensor([False, True, False])
        >>> sample_roles("scores", torch.zeros(3), poison, cover)[0]
        tensor([False, False,  True])
    """
    poison = _mask("is_poison", is_poison, like.shape, f", as `{name}`").to(like.device)
    cover = torch.zeros_like(poison)
    if is_cover is not None:
        cover = _mask("is_cover", is_cover, like.shape, f", as `{name}`").to(like.device)
    if (poison & cover).any():
        both = int((poison & cover).nonzero()[0])
        raise ValueError(expected("is_cover", "false for all poison", f"sample {both} as poison and cover"))
    return ~(poison | cover), poison, cover


def _mask(name: str, value: Tensor, shape: torch.Size, note: str = "") -> Tensor:
    if value.dtype != torch.bool or value.shape != shape or value.ndim != 1:
        raise ValueError(expected(name, f"a boolean mask {tuple(shape)}{note}", describe(value)))
    return value
