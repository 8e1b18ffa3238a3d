"""views."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.checks import describe, expected
from lightning_poison.errors import NothingKeptError

_STRUCTURE = ("indices", "datasets", "cumulative_sizes", "tensors")
"""What says how a data set's samples lie in others or in memory: it holds for that data set alone."""


class SampleView(Dataset[Any]):
    """A view of another data set that answers for it: unknown attributes are looked up there.

    What tells where the samples of the other data set lie (`indices`, `tensors`, …) is not passed on, since a reader
    would take the view for a `Subset` or a `TensorDataset` with its samples.

    Args:
        dataset: a map-style data set.

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
    """The view of a data set that holds only what was kept, in the order of the original.

    `indices[i]` is the position in the original of the view's sample `i`. `targets` and `labels`, where the data set
    lists them, are cut down; any other attribute is the data set's own.

    Args:
        dataset: a map-style data set.
        keep: bool `(N,)`; `True` stays.

    Raises:
        ValueError: where `keep` is no boolean mask over the data set.
        NothingKeptError: where it keeps nothing.

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
                "Look at the scores before training: the scorer does not fit this data, or the threshold is wrong."
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
        return _cut(value, self.indices, len(self.dataset)) if name in ("targets", "labels") else value


def _cut(values: Any, indices: Tensor, length: int) -> Any:
    if not isinstance(values, list | tuple | Tensor | np.ndarray) or len(values) != length:
        return values
    if isinstance(values, Tensor):
        return values[indices.to(values.device)]
    if isinstance(values, np.ndarray):
        return values[indices.numpy()]
    return type(values)(values[index] for index in indices.tolist())
