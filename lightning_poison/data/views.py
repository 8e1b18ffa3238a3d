"""Views of other data sets: the ones of this package, and a walk down to the data set that contains a sample."""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.checks import describe, expected
from lightning_poison.errors import NothingKeptError

_STRUCTURE = ("indices", "datasets", "cumulative_sizes", "tensors")
"""Attributes that describe where a data set's samples are. They are not forwarded by a view."""


class View(Protocol):
    """One step down from a data set to those that contain its samples.

    To support another view, implement these methods and return it from `as_view`. Lists of labels, raw images and
    manifests follow.
    """

    @property
    def parts(self) -> Sequence[Any]:
        """The data sets directly below."""

    def locate(self, index: int) -> tuple[Any, int]:
        """Return the part that contains a sample, and the sample's position in it."""

    def gather(self, values: Sequence[Tensor]) -> Tensor:
        """Return values for all samples of the view from the values for all samples of each part."""


@dataclass(frozen=True)
class _Subset:
    dataset: Any
    indices: Any

    @property
    def parts(self) -> Sequence[Any]:
        return [self.dataset]

    def locate(self, index: int) -> tuple[Any, int]:
        return self.dataset, int(self.indices[index])

    def gather(self, values: Sequence[Tensor]) -> Tensor:
        return values[0][torch.as_tensor(self.indices)]


@dataclass(frozen=True)
class _Concatenation:
    parts: Sequence[Any]
    ends: Sequence[int]

    def locate(self, index: int) -> tuple[Any, int]:
        index += self.ends[-1] if index < 0 else 0
        part = bisect.bisect_right(self.ends, index)
        return self.parts[part], index - (self.ends[part - 1] if part else 0)

    def gather(self, values: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(values))


def as_view(dataset: Any) -> View | None:
    """Return one step down from a `Subset`, a `ConcatDataset` or a `SanitizedDataset`; `None` for any other data set.

    The structure is read from the data set's own attributes, since views forward others.

    Example:
        >>> from torch.utils.data import Subset
        >>> as_view(Subset(["a", "b", "c"], [2, 0])).locate(1)
        (['a', 'b', 'c'], 0)
    """
    own = getattr(dataset, "__dict__", {})
    if "cumulative_sizes" in own and "datasets" in own:
        return _Concatenation(own["datasets"], own["cumulative_sizes"])
    if "dataset" in own and "indices" in own:
        return _Subset(own["dataset"], own["indices"])
    return None


def locate(dataset: Any, index: int) -> tuple[Any, int]:
    """Follow views and concatenations down to the data set that contains a sample.

    Returns:
        That data set, and the position of the sample in it.

    Example:
        >>> from torch.utils.data import ConcatDataset, Subset
        >>> locate(ConcatDataset([["a"], Subset(["b", "c"], [1])]), 1)
        (['b', 'c'], 1)
    """
    while (view := as_view(dataset)) is not None:
        dataset, index = view.locate(index)
    return dataset, index


class SampleView(Dataset[Any]):
    """A view of another data set that forwards unknown attributes to it.

    Attributes that describe where the other data set's samples are (`indices`, `tensors`, …) are not forwarded, since
    a reader would mistake the view for a `Subset` or a `TensorDataset` with those samples.

    Args:
        dataset: Map-style data set.

    Example:
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> view = SampleView(TinyImages(6))
        >>> view.classes, hasattr(view, "indices")
        (['class 0', 'class 1', 'class 2'], False)
    """

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in _STRUCTURE or "dataset" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        return getattr(self.dataset, name)

    def _read_many(self, indices: list[int]) -> list[Any]:
        batched = getattr(self.dataset, "__getitems__", None)
        return list(batched(indices)) if batched is not None else [self.dataset[index] for index in indices]


class SanitizedDataset(SampleView):
    """A view of a data set with only the samples that are kept, in their original order.

    `indices[i]` is the position in the original of the view's sample `i`. `targets` and `labels`, if the data set
    lists them, are filtered too; any other attribute is the data set's own.

    Args:
        dataset: Map-style data set of N samples.
        keep: Boolean mask `(N,)`; `True` stays.

    Raises:
        ValueError: If `keep` is not a boolean mask over the data set.
        NothingKeptError: If it keeps no sample.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> clean = TensorDataset(torch.arange(4.0), torch.tensor([0, 1, 0, 1]))
        >>> view = SanitizedDataset(clean, torch.tensor([True, False, True, True]))
        >>> len(view), view[1][0].item()
        (3, 2.0)
    """

    def __init__(self, dataset: Any, keep: Tensor) -> None:
        super().__init__(dataset)
        if keep.dtype != torch.bool or keep.shape != (len(dataset),):
            raise ValueError(expected("keep", f"a boolean mask ({len(dataset)},)", describe(keep)))
        if not keep.any():
            raise NothingKeptError(
                f"Expected a mask that keeps some of the {len(keep)} samples, but it keeps none.\n"
                "Check the scores before training: the scorer does not fit this data, or the threshold is wrong."
            )
        self.indices = keep.nonzero().flatten()
        if getattr(dataset, "__getitems__", None) is not None:
            self.__getitems__ = self._getitems

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        chosen = self.indices[index]
        return self.dataset[int(chosen) if chosen.ndim == 0 else chosen.tolist()]

    def _getitems(self, indices: list[int]) -> list[Any]:
        return self._read_many(self.indices[torch.as_tensor(indices)].tolist())

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        return _filtered(value, self.indices, len(self.dataset)) if name in ("targets", "labels") else value


def _filtered(values: Any, indices: Tensor, length: int) -> Any:
    if not isinstance(values, list | tuple | Tensor | np.ndarray) or len(values) != length:
        return values
    if isinstance(values, Tensor):
        return values[indices.to(values.device)]
    if isinstance(values, np.ndarray):
        return values[indices.numpy()]
    return type(values)(values[index] for index in indices.tolist())
