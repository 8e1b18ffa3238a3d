"""Samplers of a data set, adapted to a filtered or poisoned view of it."""

import copy
import inspect
from collections.abc import Iterator
from itertools import islice
from pickle import PicklingError
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler, Sampler

from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.checks import printable
from lightning_poison.data.views import SanitizedDataset
from lightning_poison.errors import NothingKeptError, UnsupportedDataError
from lightning_poison.randomness import seeded_rng

_NOT_DELEGATED = ("batch_size", "drop_last", "state_dict", "load_state_dict")


def adapt_sampler(sampler: Any, view: SanitizedDataset | PoisonedDataset) -> Any:
    """Return a sampler that draws from a view as the given one draws from the whole data set.

    Torch's own samplers are rebuilt. They are recognized by class name, since torchdata has its own classes. Over a
    filtered view, any other sampler is wrapped, and so is one over a subset, which may differ between ranks.

    Raises:
        UnsupportedDataError: If samples were appended and the sampler cannot draw them, or it distributes samples over
            ranks in its own way.
        NothingKeptError: If it would draw no samples.
    """
    if isinstance(view, SanitizedDataset) and isinstance(sampler, BatchSampler):
        return adapt_batch_sampler(sampler, view)
    if isinstance(sampler, DistributedSampler):
        return _distributed(sampler, view)
    kind = type(sampler).__name__
    if kind == "SequentialSampler":
        return type(sampler)(view)
    if kind == "RandomSampler":
        count = getattr(sampler, "_num_samples", None)
        if count is not None and isinstance(view, SanitizedDataset):
            count = _scaled(count, view)
        return type(sampler)(view, replacement=sampler.replacement, num_samples=count, generator=sampler.generator)
    return _filtered(sampler, view) if isinstance(view, SanitizedDataset) else _extended(sampler, view)


def adapt_batch_sampler(batch_sampler: Any, view: SanitizedDataset | PoisonedDataset) -> Any:
    """Return a batch sampler over a view, rebuilt if its constructor has the usual arguments; see `adapt_sampler`."""
    if _has_usual_arguments(batch_sampler):
        sampler = adapt_sampler(batch_sampler.sampler, view)
        return type(batch_sampler)(sampler, batch_sampler.batch_size, batch_sampler.drop_last)
    if isinstance(view, SanitizedDataset):
        return RemappedBatchSampler(batch_sampler, view)
    if len(view) == len(view.dataset):
        return batch_sampler
    raise UnsupportedDataError(
        f"Expected a batch sampler of torch to draw the appended samples, but got {type(batch_sampler).__name__}.\n"
        "Use poison that replaces samples, or a loader with `shuffle=True`."
    )


def view_positions(view: SanitizedDataset) -> Tensor:
    """Return the position in the view of each index of the original data set, int64 `(N,)`; −1 if it is removed."""
    positions = torch.full((len(view.dataset),), -1)
    positions[view.indices] = torch.arange(len(view.indices))
    return positions


def _filtered(sampler: Any, view: SanitizedDataset) -> Any:
    """Return a weighted or wrapped sampler over a filtered view."""
    kind = type(sampler).__name__
    if kind == "WeightedRandomSampler":
        weights = torch.as_tensor(sampler.weights)
        before, weights = int((weights > 0).sum()), weights[view.indices]
        kept = int((weights > 0).sum())
        _check_draws_some(kept, kind)
        count = max(1, round(sampler.num_samples * kept / before))
        count = count if sampler.replacement else min(count, kept)
        rebuilt = type(sampler)(weights, count, sampler.replacement, getattr(sampler, "generator", None))
        rebuilt.view = view
        return rebuilt
    if kind == "SubsetRandomSampler":
        positions = view_positions(view)[torch.as_tensor(list(sampler.indices))]
        _check_draws_some(int((positions >= 0).sum()), kind)
    return RemappedSampler(sampler, view)


def _extended(sampler: Any, view: PoisonedDataset) -> Any:
    """Return a sampler that also draws the appended samples of a poisoned view."""
    if len(view) == len(view.dataset):
        return sampler
    kind = type(sampler).__name__
    bases = view.poison.base_indices
    if kind != "WeightedRandomSampler" or bases is None:
        count = len(view) - len(view.dataset)
        raise UnsupportedDataError(
            f"Expected a sampler that can draw the {count} appended samples, but {kind} draws from a list of its own.\n"
            "Use poison that replaces samples, or a loader with `shuffle=True`."
        )
    order = view.poison.indices.argsort()
    appended = order[view.poison.appended(len(view.dataset))[order]]
    weights = torch.as_tensor(sampler.weights)
    weights = torch.cat([weights, weights[bases[appended]]])
    return type(sampler)(weights, sampler.num_samples + len(appended), sampler.replacement, sampler.generator)


def _distributed(sampler: DistributedSampler[Any], dataset: Any) -> Any:
    """Return a copy of a distributed sampler over another data set."""
    if type(sampler).__iter__ is not DistributedSampler.__iter__:
        raise UnsupportedDataError(
            f"Expected torch's DistributedSampler, but {type(sampler).__name__} distributes samples in its own way. "
            "Ranks could get different numbers of batches.\nRemove it and let the Trainer distribute the samples."
        )
    rebuilt = copy.copy(sampler)
    plain = DistributedSampler[Any](
        dataset, num_replicas=sampler.num_replicas, rank=sampler.rank, drop_last=sampler.drop_last
    )
    rebuilt.dataset, rebuilt.num_samples, rebuilt.total_size = dataset, plain.num_samples, plain.total_size
    return rebuilt


def _has_usual_arguments(batch_sampler: Any) -> bool:
    """Return whether a batch sampler can be rebuilt from its sampler, batch size and `drop_last`."""
    names = set(inspect.signature(type(batch_sampler).__init__).parameters) - {"self"}
    usual = {"sampler", "batch_size", "drop_last"}
    return names == usual and all(hasattr(batch_sampler, name) for name in usual)


def _scaled(count: int, view: SanitizedDataset) -> int:
    return max(1, round(count * len(view) / len(view.dataset)))


def _check_draws_some(count: int, kind: str) -> None:
    if not count:
        raise NothingKeptError(f"Expected {kind} to draw samples that are kept, but it draws none.")


class SamplerWrapper:
    """Maps what another sampler draws to positions in a view, with an exact length.

    The epoch length is fixed at the first `len`, by drawing from a copy: a Trainer that expects one batch too many
    never finishes its epoch. Later epochs are extended or truncated to that length.

    Attributes are delegated to the inner sampler, except those by which the wrapper would be rebuilt as the inner
    sampler (`batch_size`, `drop_last`) or its state would be restored from that of the inner sampler.
    """

    def __init__(self, inner: Any, view: SanitizedDataset) -> None:
        self._sampler = inner
        self.view = view
        self._positions = view_positions(view).tolist()
        self._length: int | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in _NOT_DELEGATED or "_sampler" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        return getattr(self._sampler, name)

    @property
    def has_length(self) -> bool:
        """Whether the epoch length is known in advance."""
        return hasattr(self._sampler, "__len__")

    def truncate(self, length: int) -> None:
        """Set the length of each epoch."""
        self._length = length

    def __len__(self) -> int:
        if self._length is None:
            total = len(self._sampler)  # raises TypeError if the sampler is endless
            with seeded_rng(0):
                self._length = sum(1 for _ in self._remap(islice(iter(self._copied_sampler()), total)))
            _check_draws_some(self._length, type(self._sampler).__name__)
        return self._length

    def __iter__(self) -> Iterator[Any]:
        return self._draw(iter(self._sampler))

    def _draw(self, inner: Iterator[Any]) -> Iterator[Any]:
        remaining = len(self) if self.has_length else -1
        while remaining:
            remapped, before = self._remap(inner), remaining
            for drawn in remapped:
                yield drawn
                remaining -= 1
                if not remaining:
                    next(remapped, None)  # the sampler finishes, and uses as many random numbers as without the wrapper
                    return
            if remaining == before or not self.has_length:
                return
            inner = iter(self._sampler)

    def _copied_sampler(self) -> Any:
        """Return a copy of the sampler that shares its data, or the sampler itself if it cannot be copied.

        Raises:
            UnsupportedDataError: If its own copying code fails.
        """
        shared: dict[int, Any] = {}
        dataset: Any = self.view
        while dataset is not None:
            shared[id(dataset)] = dataset
            dataset = getattr(dataset, "__dict__", {}).get("dataset")
        try:
            return copy.deepcopy(self._sampler, shared)
        except (TypeError, RuntimeError, PicklingError):  # it stores an object without copies, such as a file
            return self._sampler
        except Exception as error:
            kind = type(self._sampler).__name__
            raise UnsupportedDataError(
                f"Expected a sampler that can be copied, to count its samples, but copying {kind} raises "
                f"{type(error).__name__}: {printable(error)}.\nFix its `__deepcopy__`, `__getstate__` or "
                f"`__setstate__`, or use one of torch's samplers."
            ) from error

    def _remap(self, inner: Iterator[Any]) -> Iterator[Any]:
        raise NotImplementedError


class RemappedSampler(SamplerWrapper, Sampler[int]):
    """Draws the kept samples of any sampler, as positions in the view."""

    def _remap(self, inner: Iterator[Any]) -> Iterator[int]:
        for index in inner:
            if (position := self._positions[int(index)]) >= 0:
                yield position


class RemappedBatchSampler(SamplerWrapper, Sampler[list[int]]):
    """Draws the kept samples of each batch of any batch sampler, and skips empty batches."""

    def _remap(self, inner: Iterator[Any]) -> Iterator[list[int]]:
        for batch in inner:
            kept = [position for index in batch if (position := self._positions[int(index)]) >= 0]
            if kept:
                yield kept
