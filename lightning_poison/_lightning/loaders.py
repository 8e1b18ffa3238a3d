"""Rebuilding a loader around a view of its data set.

The rebuilt loader's data set *is* the view and its sampler speaks positions of the view: Lightning re-creates loaders
from the data set when it injects a distributed sampler or overfits batches, and would bring back what a sampler alone
had left out.
"""

import copy
import inspect
from collections.abc import Callable, MutableMapping
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler

from lightning_poison._lightning.samplers import (
    Remapped,
    RemappedBatchSampler,
    extended,
    extended_batches,
    remapped,
    remapped_batches,
)
from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.checks import printable
from lightning_poison.data.views import SanitizedDataset
from lightning_poison.errors import UnsupportedDataError
from lightning_poison.runtime import Runtime, agreed

_SETTINGS = ("batch_size", "drop_last", "num_workers", "collate_fn", "worker_init_fn", "generator", "pin_memory")
"""What a loader that is built again must have in common with the user's own."""


def map_loaders(tree: Any, change: Callable[[str, Any], Any], path: str = "") -> Any:
    """Apply a function to every loader in a collection as a Trainer takes it, and rebuild the collection.

    Args:
        tree: a loader, or lists, tuples and dicts of loaders, nested, or Lightning's `CombinedLoader`; left as it is.
        change: maps the path of a loader (`""` for a bare one, `"['a'][0]"` in collections) and the loader to another.
        path: where in the collection the tree stands.
    """
    if hasattr(tree, "flattened") and hasattr(tree, "iterables"):
        combined = copy.copy(tree)
        changed: list[Any] = []
        map_loaders(tree.iterables, lambda where, loader: changed.append(change(where, loader)), path)
        combined.flattened = changed
        return combined
    if isinstance(tree, MutableMapping):
        mapped = copy.copy(tree)
        for key, value in tree.items():
            mapped[key] = map_loaders(value, change, f"{path}[{key!r}]")
        return mapped
    if isinstance(tree, list | tuple):
        items = [map_loaders(value, change, f"{path}[{index}]") for index, value in enumerate(tree)]
        return type(tree)(*items) if hasattr(tree, "_fields") else type(tree)(items)
    return change(path, tree)


def filterable(loader: Any, path: str) -> DataLoader[Any]:
    """Return a loader whose samples can be kept out by their index.

    Raises:
        UnsupportedDataError: where it is no torch loader, or its data set is read by iteration only.
    """
    where = f"the training loader {printable(path)}" if path else "the training loader"
    if not isinstance(loader, DataLoader):
        raise UnsupportedDataError(
            f"Expected {where} to be a torch DataLoader, but got {type(loader).__name__}.\n"
            "Samples are kept out by their index, which only a DataLoader over a map-style data set shows."
        )
    if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
        raise UnsupportedDataError(
            f"Expected {where} to read a map-style data set, but {type(loader.dataset).__name__} is iterable only.\n"
            "Samples are kept out by their index. Write the stream to files once and read it by index, or call "
            "`sanitize` on a finite part of it and filter the stream by its verdict."
        )
    return loader


def rebuild_loader(loader: DataLoader[Any], view: SanitizedDataset) -> DataLoader[Any]:
    """Return a loader of the same class and settings that reads a filtered view of the data set.

    Args:
        loader: the user's loader, left as it is.
        view: the filtered view of `loader.dataset`.
    """
    return _rebuilt(loader, view, lambda old: remapped(old, view), lambda old: remapped_batches(old, view))


def replace_dataset(loader: DataLoader[Any], poisoned: PoisonedDataset) -> DataLoader[Any]:
    """Return a loader of the same class and settings that reads a poisoned view of the data set.

    Raises:
        UnsupportedDataError: where samples were appended and the loader's sampler cannot be made to draw them.
    """
    return _rebuilt(loader, poisoned, lambda old: extended(old, poisoned), lambda old: extended_batches(old, poisoned))


def _rebuilt(
    loader: DataLoader[Any], dataset: Any, resample: Callable[[Any], Any], rebatch: Callable[[Any], Any]
) -> DataLoader[Any]:
    arguments = _recorded(loader)
    arguments["dataset"] = dataset
    if loader.batch_sampler is not None and loader.batch_size is None:
        batches = rebatch(loader.batch_sampler)
        for name in ("batch_size", "shuffle", "sampler", "drop_last"):
            arguments.pop(name, None)
        replaced: dict[str, Any] = {"batch_sampler": batches}
    else:
        for name in ("shuffle", "sampler", "batch_sampler"):
            arguments.pop(name, None)
        replaced = {"sampler": resample(loader.sampler)}
    built = _constructed(loader, arguments, replaced)
    return built if built is not None else _copied(loader, dataset, replaced)


def level(loader: DataLoader[Any], runtime: Runtime) -> DataLoader[Any]:
    """Cut the epoch of an uneven sampler to the shortest of all ranks: one that goes on alone would wait forever."""
    inner = getattr(loader.batch_sampler, "sampler", None)
    samplers = (loader.batch_sampler, inner, loader.sampler)
    uneven: Any = next((each for each in samplers if _is_uneven(each)), None)
    if uneven is not None and runtime.world_size > 1:
        lengths = torch.zeros(runtime.world_size, dtype=torch.int64)
        lengths[runtime.rank] = agreed(runtime, lambda: len(uneven))
        _cut(uneven, int(runtime.reduce_sum(lengths).min()))
    return loader


def _is_uneven(sampler: Any) -> bool:
    """Tell whether the length of an epoch depends on which samples are drawn, which ranks may each choose themselves.

    So it is with wrapped samplers, one over a subset among them, and with weights of zero where nothing is repeated.
    """
    if isinstance(sampler, Remapped):
        return sampler.is_sized
    return type(sampler).__name__ == "WeightedRandomSampler" and not sampler.replacement


def _cut(sampler: Any, length: int) -> None:
    """Make each epoch of an uneven sampler this long."""
    if isinstance(sampler, Remapped):
        sampler.cut(length)
    else:
        sampler.num_samples = length


def speaks_view(loader: Any, view: SanitizedDataset) -> bool:
    """Tell whether a loader reads a view, itself or through further views of it, by positions of what it reads."""
    dataset = getattr(loader, "dataset", None)
    if not _contains(dataset, view):
        return False
    sampler = loader.sampler
    batches = loader.batch_sampler
    if loader.batch_size is None and batches is not None:
        if isinstance(batches, RemappedBatchSampler):
            return batches.view is dataset
        sampler = getattr(batches, "sampler", None)
    return _speaks(sampler, dataset)


def _contains(dataset: Any, view: SanitizedDataset) -> bool:
    while dataset is not None:
        if dataset is view:
            return True
        dataset = dataset.__dict__.get("dataset") if hasattr(dataset, "__dict__") else None
    return False


def _speaks(sampler: Any, dataset: Any) -> bool:
    """Follow wrappers of samplers, Lightning's distributed one among them, to one that names its data set."""
    for _ in range(8):
        if sampler is None:
            return False
        for name in ("view", "data_source", "dataset"):
            if getattr(sampler, name, None) is dataset:
                return True
        inner = getattr(sampler, "_sampler", None) or getattr(sampler, "sampler", None)
        sampler = inner if inner is not None else getattr(sampler, "dataset", None)
    return False


def _recorded(loader: DataLoader[Any]) -> dict[str, Any]:
    """Return the arguments of a loader's constructor, as far as the loader still holds them."""
    names = {name for cls in (type(loader), DataLoader) for name in inspect.signature(cls.__init__).parameters}
    names -= {"self", "args", "kwargs"}
    arguments = {name: getattr(loader, name) for name in names if hasattr(loader, name)}
    if arguments.get("num_workers") == 0:
        for name in ("prefetch_factor", "persistent_workers", "multiprocessing_context", "timeout"):
            arguments.pop(name, None)
    return arguments


def _constructed(
    loader: DataLoader[Any], arguments: dict[str, Any], replaced: dict[str, Any]
) -> DataLoader[Any] | None:
    """Build a loader by the constructor of its class; return `None` where that cannot be done, or builds another."""
    cls = type(loader)
    parameters = inspect.signature(cls.__init__).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        arguments = {name: value for name, value in arguments.items() if name in parameters}
    try:
        built = cls(**arguments, **replaced)
    except TypeError:
        return None
    wanted = {name: getattr(loader, name) for name in _SETTINGS} | {"dataset": arguments.get("dataset")} | replaced
    return built if all(getattr(built, name) is value for name, value in wanted.items()) else None


def _copied(loader: DataLoader[Any], dataset: Any, replaced: dict[str, Any]) -> DataLoader[Any]:
    """Copy a loader that cannot be built again, without Lightning's record of how the original was built."""
    clone = copy.copy(loader)
    for name in [name for name in clone.__dict__ if name.startswith("__pl_")]:
        del clone.__dict__[name]
    if "batch_sampler" in replaced:
        replaced = {"sampler": SequentialSampler(dataset), **replaced}
    elif isinstance(loader.batch_sampler, BatchSampler):
        batches = type(loader.batch_sampler)(replaced["sampler"], loader.batch_size or 1, loader.drop_last)
        replaced = {"batch_sampler": batches, **replaced}
    clone.__dict__.update(dataset=dataset, _iterator=None, **replaced)
    return clone
