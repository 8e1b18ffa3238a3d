"""Samplers of a data set, turned into samplers of a filtered view of it."""

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

_NOT_PASSED_ON = ("batch_size", "drop_last", "state_dict", "load_state_dict")


def remapped(sampler: Any, view: SanitizedDataset) -> Any:
    """Return a sampler that does over a view what the given one does over the whole data set.

    Torch's own samplers are built again, by the names of their classes, since torchdata has classes of its own. Any
    other is wrapped, and so is one over a subset, which may be another on each rank.
    """
    if isinstance(sampler, BatchSampler):
        return remapped_batches(sampler, view)
    if isinstance(sampler, DistributedSampler):
        return _distributed(sampler, view)
    kind = type(sampler).__name__
    generator = getattr(sampler, "generator", None)
    if kind == "SequentialSampler":
        return type(sampler)(view)
    if kind == "RandomSampler":
        drawn = getattr(sampler, "_num_samples", None)
        wanted = None if drawn is None else _share(drawn, view)
        return type(sampler)(view, replacement=sampler.replacement, num_samples=wanted, generator=generator)
    if kind == "WeightedRandomSampler":
        weights = torch.as_tensor(sampler.weights)[view.indices]
        wanted = _share(sampler.num_samples, view)
        wanted = wanted if sampler.replacement else min(wanted, int((weights > 0).sum()))
        built = type(sampler)(weights, wanted, sampler.replacement, generator)
        built.view = view
        return built
    if kind == "SubsetRandomSampler":
        known = positions(view)[torch.as_tensor(list(sampler.indices))]
        _check_some(int((known >= 0).sum()), kind)
    return RemappedSampler(sampler, view)


def remapped_batches(batch_sampler: Any, view: SanitizedDataset) -> Any:
    """Return a batch sampler over a view: built again where its constructor is the usual one, wrapped otherwise."""
    if _is_usual(batch_sampler):
        sampler = remapped(batch_sampler.sampler, view)
        return type(batch_sampler)(sampler, batch_sampler.batch_size, batch_sampler.drop_last)
    return RemappedBatchSampler(batch_sampler, view)


def extended(sampler: Any, poisoned: PoisonedDataset) -> Any:
    """Return a sampler that draws from a poisoned data set, appended samples included.

    Raises:
        UnsupportedDataError: where samples were appended and the sampler cannot be made to draw them.
    """
    kind = type(sampler).__name__
    if kind == "SequentialSampler":
        return type(sampler)(poisoned)
    if kind == "RandomSampler":
        drawn = getattr(sampler, "_num_samples", None)
        return type(sampler)(poisoned, replacement=sampler.replacement, num_samples=drawn, generator=sampler.generator)
    if isinstance(sampler, DistributedSampler):
        return _distributed(sampler, poisoned)
    if len(poisoned) == len(poisoned.dataset):
        return sampler
    bases = poisoned.poison.base_indices
    if kind != "WeightedRandomSampler" or bases is None:
        count = len(poisoned) - len(poisoned.dataset)
        raise UnsupportedDataError(
            f"Expected a sampler that can draw the {count} appended samples, but {kind} "
            "draws by a list of its own.\nUse poison that replaces samples, or a loader with `shuffle=True`."
        )
    order = poisoned.poison.indices.argsort()
    appended = order[poisoned.poison.appended(len(poisoned.dataset))[order]]
    weights = torch.as_tensor(sampler.weights)
    weights = torch.cat([weights, weights[bases[appended]]])
    return type(sampler)(weights, sampler.num_samples + len(appended), sampler.replacement, sampler.generator)


def extended_batches(batch_sampler: Any, poisoned: PoisonedDataset) -> Any:
    """Return a batch sampler that draws from a poisoned data set; see `extended`."""
    if _is_usual(batch_sampler):
        sampler = extended(batch_sampler.sampler, poisoned)
        return type(batch_sampler)(sampler, batch_sampler.batch_size, batch_sampler.drop_last)
    if len(poisoned) == len(poisoned.dataset):
        return batch_sampler
    raise UnsupportedDataError(
        f"Expected a batch sampler that can draw appended samples, but {type(batch_sampler).__name__} is none of "
        "torch's.\nUse poison that replaces samples, or a loader with `shuffle=True`."
    )


def positions(view: SanitizedDataset) -> Tensor:
    """Return for each index of the original its position in the view, int64 `(N,)`, −1 where it is not kept."""
    places = torch.full((len(view.dataset),), -1)
    places[view.indices] = torch.arange(len(view.indices))
    return places


def _is_usual(batch_sampler: Any) -> bool:
    """Tell whether a batch sampler can be built again from its sampler, its batch size and `drop_last`."""
    names = set(inspect.signature(type(batch_sampler).__init__).parameters) - {"self"}
    usual = {"sampler", "batch_size", "drop_last"}
    return names == usual and all(hasattr(batch_sampler, name) for name in usual)


class Remapped:
    """What is shared by both wrappers: the map, the exact length, and the way to the inner sampler's attributes.

    The length of an epoch is fixed when it is first asked for, from a draw of a copy: a Trainer that is told one batch
    too many never reaches the end of its epoch. Later epochs are drawn on, or cut, to that length.

    Not passed on is what would have others build the wrapper again as if it were the inner sampler (`batch_size`,
    `drop_last`), or save the place of the inner one as that of the wrapper.
    """

    def __init__(self, inner: Any, view: SanitizedDataset) -> None:
        self._sampler = inner
        self.view = view
        self._positions = positions(view).tolist()
        self._length: int | None = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in _NOT_PASSED_ON or "_sampler" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} has no attribute {name!r}")
        return getattr(self._sampler, name)

    @property
    def is_sized(self) -> bool:
        """Whether an epoch has an end that is known before."""
        return hasattr(self._sampler, "__len__")

    def cut(self, length: int) -> None:
        """Make each epoch this long."""
        self._length = length

    def __len__(self) -> int:
        if self._length is None:
            whole = len(self._sampler)  # raises TypeError where the sampler goes on without an end
            with seeded_rng(0):
                self._length = sum(1 for _ in self._kept(islice(iter(self._trial()), whole)))
            _check_some(self._length, type(self._sampler).__name__)
        return self._length

    def __iter__(self) -> Iterator[Any]:
        return self._drawn(iter(self._sampler))

    def _drawn(self, inner: Iterator[Any]) -> Iterator[Any]:
        left = len(self) if self.is_sized else -1
        while left:
            kept, before = self._kept(inner), left
            for drawn in kept:
                yield drawn
                left -= 1
                if not left:
                    next(kept, None)  # lets the sampler come to its own end, and use its random numbers as ever
                    return
            if left == before or not self.is_sized:
                return
            inner = iter(self._sampler)

    def _trial(self) -> Any:
        """Return a copy of the sampler to draw from, or itself where it cannot be copied; data are never copied.

        Raises:
            UnsupportedDataError: where its own code fails while it is copied.
        """
        shared: dict[int, Any] = {}
        dataset: Any = self.view
        while dataset is not None:
            shared[id(dataset)] = dataset
            dataset = getattr(dataset, "__dict__", {}).get("dataset")
        try:
            return copy.deepcopy(self._sampler, shared)
        except (TypeError, RuntimeError, PicklingError):  # it holds what copies of are not made: a file, a generator
            return self._sampler
        except Exception as error:
            kind = type(self._sampler).__name__
            raise UnsupportedDataError(
                f"Expected a sampler that can be copied, to count what it draws, but copying {kind} raises "
                f"{type(error).__name__}: {printable(error)}.\nCorrect its `__deepcopy__`, `__getstate__` or "
                f"`__setstate__`, or use one of torch's samplers."
            ) from error

    def _kept(self, inner: Iterator[Any]) -> Iterator[Any]:
        raise NotImplementedError


class RemappedSampler(Remapped, Sampler[int]):
    """Draws what an unknown sampler draws, less what is not kept, as positions of the view."""

    def _kept(self, inner: Iterator[Any]) -> Iterator[int]:
        for index in inner:
            if (place := self._positions[int(index)]) >= 0:
                yield place


class RemappedBatchSampler(Remapped, Sampler[list[int]]):
    """Draws the batches of an unknown batch sampler, less what is not kept; empty batches are left out."""

    def _kept(self, inner: Iterator[Any]) -> Iterator[list[int]]:
        for batch in inner:
            kept = [place for index in batch if (place := self._positions[int(index)]) >= 0]
            if kept:
                yield kept


def _distributed(sampler: DistributedSampler[Any], dataset: Any) -> Any:
    """Return a copy of a distributed sampler that shares out another data set."""
    if type(sampler).__iter__ is not DistributedSampler.__iter__:
        raise UnsupportedDataError(
            f"Expected torch's DistributedSampler, but {type(sampler).__name__} shares samples out in its own way, and "
            "the ranks could end with more batches or fewer.\nLeave it out and let the Trainer share them out."
        )
    built = copy.copy(sampler)
    plain = DistributedSampler[Any](
        dataset, num_replicas=sampler.num_replicas, rank=sampler.rank, drop_last=sampler.drop_last
    )
    built.dataset, built.num_samples, built.total_size = dataset, plain.num_samples, plain.total_size
    return built


def _share(count: int, view: SanitizedDataset) -> int:
    return max(1, round(count * len(view) / len(view.dataset)))


def _check_some(kept: int, kind: str) -> None:
    if not kept:
        raise NothingKeptError(f"Expected {kind} to draw samples that are kept, but it draws none.")
