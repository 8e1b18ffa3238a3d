"""Views of other data sets: the ones of this package, and a walk down to the data set that contains a sample."""

import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from lightning_poison.checks import describe, expected, printable
from lightning_poison.data.view_labels import are_listed, describe_list, kept_labels, replaced_labels
from lightning_poison.errors import NothingKeptError

_STRUCTURE = ("indices", "datasets", "cumulative_sizes", "tensors")
"""Attributes that describe where a data set's samples are. They are not forwarded by a view."""

_LABELS = ("targets", "labels")
"""Names under which a data set lists its labels."""


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


def _subsets(dataset: Any) -> list[Any]:
    """Return the data set and those below it, as long as they are a `Subset`, as `random_split` returns."""
    found = []
    while type(dataset) is Subset:
        found.append(dataset)
        dataset = dataset.dataset
    return found


class SampleView(Dataset[Any]):
    """A view of another data set that reads and sets unknown attributes on it.

    Setting `view.transform` therefore takes effect on the samples. Attributes that describe where the other data set's
    samples are (`indices`, `tensors`, …) are neither read nor set, since a reader would mistake the view for a `Subset`
    or a `TensorDataset` with those samples. Attributes of the view itself are read-only.

    Args:
        dataset: Map-style data set.

    Example:
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> view = SampleView(TinyImages(6))
        >>> view.classes, hasattr(view, "indices")
        (['class 0', 'class 1', 'class 2'], False)
        >>> view.strength = 0.5
        >>> view.dataset.strength
        0.5
    """

    dataset: Any
    _subset_attributes: list[set[str]]

    def __init__(self, dataset: Any) -> None:
        subsets = _subsets(dataset)
        self.__dict__.update(dataset=dataset, _subset_attributes=[set(vars(each)) for each in subsets])

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "dataset" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        if name in _STRUCTURE:
            raise AttributeError(f"{self._no_structure(name)}\nFor those of all samples use `.dataset`.")
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("__") or "dataset" not in self.__dict__:
            super().__setattr__(name, value)
            return
        if name in self.__dict__ or hasattr(type(self), name):
            raise AttributeError(
                f"Expected an attribute of the data set, but `{printable(name)}` belongs to its {type(self).__name__} "
                "and is read-only.\nSet it on the data set itself, `.dataset`, or build a new view."
            )
        if name in _STRUCTURE:
            raise AttributeError(
                f"{self._no_structure(name)}\nSet it on `.dataset` before training; the view keeps its positions."
            )
        if self._is_one_each(value) and not self._is_one_each(getattr(self.dataset, name, None)):
            raise ValueError(
                f"Expected `{printable(name)}` to have one entry for each of the {len(self.dataset):,} samples of the "
                f"data set, but got {len(self):,}, one for each sample of its {type(self).__name__}.\n"
                "Set it on the data set itself, `.dataset`, for all samples."
            )
        setattr(self.dataset, name, value)

    def __delattr__(self, name: str) -> None:
        if name.startswith("__") or name in self.__dict__ or "dataset" not in self.__dict__:
            super().__delattr__(name)
        else:
            delattr(self.dataset, name)

    def _follow_writes(self) -> None:
        """Move attributes that were set on a `Subset` since, such as a transform, to the data set that has them.

        Without the view, `loader.dataset` is the `Subset`, and `loader.dataset.dataset.transform = ...` reaches the
        data set below. With it, the same line sets the attribute on the `Subset`, where it would have no effect.
        """
        for subset, before in zip(_subsets(self.dataset), self._subset_attributes, strict=False):
            if len(vars(subset)) > len(before):
                for name in [name for name in vars(subset) if name not in before and hasattr(subset.dataset, name)]:
                    setattr(subset.dataset, name, vars(subset).pop(name))

    def _is_one_each(self, value: Any) -> bool:
        return len(self) != len(self.dataset) and are_listed(value, len(self))

    def _no_structure(self, name: str) -> str:
        kind = type(self).__name__
        return f"{kind!r} has no attribute {name!r}, which would describe other samples than those of the view."

    def _read_many(self, indices: list[int]) -> list[Any]:
        self._follow_writes()
        batched = getattr(self.dataset, "__getitems__", None)
        return list(batched(indices)) if batched is not None else [self.dataset[index] for index in indices]


class SanitizedDataset(SampleView):
    """A view of a data set with only the samples that are kept, in their original order.

    `indices[i]` is the position in the original of the view's sample `i`. `targets` and `labels`, if the data set
    lists them, are filtered too, and an assignment, to one or to `targets[i]`, changes the labels of the data set. Any
    other attribute is the data set's own, and is set on it.

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

    indices: Tensor

    def __init__(self, dataset: Any, keep: Tensor) -> None:
        super().__init__(dataset)
        if keep.dtype != torch.bool or keep.shape != (len(dataset),):
            raise ValueError(expected("keep", f"a boolean mask ({len(dataset)},)", describe(keep)))
        if not keep.any():
            raise NothingKeptError(
                f"Expected a mask that keeps some of the {len(keep)} samples, but it keeps none.\n"
                "Check the scores before training: the scorer does not fit this data, or the threshold is wrong."
            )
        self.__dict__["indices"] = keep.nonzero().flatten()

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        self._follow_writes()
        chosen = self.indices[index]
        return self.dataset[int(chosen) if chosen.ndim == 0 else chosen.tolist()]

    @property
    def __getitems__(self) -> Callable[[list[int]], list[Any]]:
        """Reads several samples at once; missing if the data set does not have it."""
        if getattr(self.dataset, "__getitems__", None) is None:
            raise AttributeError(f"{type(self.dataset).__name__!r} has no attribute '__getitems__'")
        return self._getitems

    def _getitems(self, indices: list[int]) -> list[Any]:
        return self._read_many(self.indices[torch.as_tensor(indices)].tolist())

    def __getattr__(self, name: str) -> Any:
        value = super().__getattr__(name)
        return kept_labels(value, self.indices) if self._are_labels(name, value) else value

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _LABELS or "indices" not in self.__dict__:
            super().__setattr__(name, value)
            return
        original = getattr(self.dataset, name, None)
        if self._are_labels(name, original) and not are_listed(value, len(self.dataset)):
            if not are_listed(value, len(self)):
                wanted = f"labels of the {len(self):,} kept samples, or of all {len(self.dataset):,}"
                raise ValueError(expected(name, wanted, describe_list(value)))
            value = replaced_labels(original, self.indices, value)
        setattr(self.dataset, name, value)

    def _are_labels(self, name: str, value: Any) -> bool:
        return name in _LABELS and are_listed(value, len(self.dataset))
