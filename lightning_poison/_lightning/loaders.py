"""Loaders rebuilt around a view of their data set.

The data set of a rebuilt loader *is* the view, and its sampler draws positions in the view. Lightning re-creates
loaders from their data set when it injects a distributed sampler or overfits batches. Samples that only a sampler had
left out would return.
"""

import copy
import inspect
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    SequentialSampler,
    get_worker_info,
)

from lightning_poison._lightning.samplers import (
    RemappedBatchSampler,
    SamplerWrapper,
    adapt_batch_sampler,
    adapt_sampler,
)
from lightning_poison.attacks.poisoned_dataset import PoisonedDataset
from lightning_poison.checks import describe_error, expected, printable
from lightning_poison.data.map_style_data import check_length
from lightning_poison.data.reading import show_dataset
from lightning_poison.data.views import SampleView, SanitizedDataset
from lightning_poison.errors import UnsupportedDataError
from lightning_poison.runtime import Runtime, all_ranks
from lightning_poison.sanitization.stream import SanitizedStream

_PRESERVED = ("batch_size", "drop_last", "num_workers", "collate_fn", "worker_init_fn", "generator", "pin_memory")
"""Attributes that a rebuilt loader must share with the original."""

_BY_INDEX = "Samples are changed by their index. Write the stream to files once and read them by index."

_OWN_LOADER = (
    "To filter a stream that another kind of loader reads, filter the data set and read it by a torch DataLoader: "
    "`DataLoader(SanitizedStream(dataset, stream_filter), batch_size=...)`."
)


def map_loaders(tree: Any, change: Callable[[str, Any], Any], path: str = "") -> Any:
    """Apply a function to every loader in a collection of training loaders, and rebuild the collection.

    Args:
        tree: A loader, nested lists, tuples and dicts of loaders, or Lightning's `CombinedLoader`. Left unchanged.
        change: Maps the path of a loader (`""` for a single one, `"['a'][0]"` in collections) and the loader to its
            replacement.
        path: Path of the tree in an outer collection.
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


def select_loaders(loaders: Any, wanted: Sequence[str | int] | None) -> dict[str, Any]:
    """Return the training loaders of a collection by path, all or some.

    Args:
        loaders: A training loader or a collection of them.
        wanted: Paths such as `"['a'][0]"`, or the keys or positions of loaders or nested collections, such as `"a"`.
            Default: all.

    Raises:
        ValueError: If there is no loader of this path.

    Example:
        >>> list(select_loaders({"a": ["first", "second"], "b": "third"}, None))
        ["['a'][0]", "['a'][1]", "['b']"]
        >>> select_loaders({"a": ["first", "second"], "b": "third"}, ["a"])
        {"['a'][0]": 'first', "['a'][1]": 'second'}
    """
    found: dict[str, Any] = {}
    map_loaders(loaders, found.__setitem__)
    if wanted is None:
        return found
    chosen: set[str] = set()
    for name in map(str, wanted):
        starts = (name, f"[{name!r}]", f"[{name}]")
        of_name = {path for path in found if any(f"{path}[".startswith(f"{start}[") for start in starts if start)}
        of_name |= {name} & found.keys()
        if not of_name:
            known = ", ".join(printable(path) for path in found)
            got = printable(repr(name))
            way = "A single training loader has no path: leave out `loaders`." if set(found) == {""} else ""
            raise ValueError(expected("loaders", f"paths or keys of the training loaders, {known}", got, way))
        chosen |= of_name
    return {path: loader for path, loader in found.items() if path in chosen}


def check_indexable(loader: Any, path: str, *, way: str = "", stream_way: str = "") -> DataLoader[Any]:
    """Return a training loader if it can be filtered by sample index.

    Args:
        loader: The loader.
        path: Its path in its collection, for messages.
        way: A further way out, for messages.
        stream_way: The way out for a stream. Default: to read its samples by index.

    Raises:
        UnsupportedDataError: If it is not a torch DataLoader, or its data set is iterable only.
        ValueError: If its data set is empty.
    """
    where = f"the training loader {printable(path)}" if path else "the training loader"
    if not isinstance(loader, DataLoader):
        raise UnsupportedDataError(
            f"Expected {where} to be a torch DataLoader, but got {printable(type(loader).__name__)}.\n"
            f"Samples are filtered by index, which requires a DataLoader over a map-style data set. {_OWN_LOADER}{way}"
        )
    if isinstance(loader.dataset, IterableDataset) or not hasattr(loader.dataset, "__len__"):
        raise UnsupportedDataError(
            f"Expected {where} to read a map-style data set, but {type(loader.dataset).__name__} is iterable only.\n"
            f"{stream_way or _BY_INDEX}{way}"
        )
    check_length(loader.dataset, f"the data set of {where}")
    return loader


def indexable_loaders(loaders: Any) -> list[DataLoader[Any]]:
    """Return all training loaders in a collection, each one checked by `check_indexable`."""
    return [check_indexable(loader, path) for path, loader in select_loaders(loaders, None).items()]


def rebuild_loader(loader: DataLoader[Any], view: SanitizedDataset | PoisonedDataset) -> DataLoader[Any]:
    """Return a loader of the same class and settings that reads a filtered or poisoned view of the data set.

    Args:
        loader: The original loader, left unchanged.
        view: A view of `loader.dataset`.

    Raises:
        UnsupportedDataError: If the loader's sampler cannot be adapted to the view.
    """
    arguments = _constructor_arguments(loader)
    arguments["dataset"] = view
    if (init := loader.worker_init_fn) is not None:
        arguments["worker_init_fn"] = init = BelowView(init)
    if loader.batch_sampler is not None and loader.batch_size is None:
        for name in ("batch_size", "shuffle", "sampler", "drop_last"):
            arguments.pop(name, None)
        replaced: dict[str, Any] = {"batch_sampler": adapt_batch_sampler(loader.batch_sampler, view)}
    else:
        for name in ("shuffle", "sampler", "batch_sampler"):
            arguments.pop(name, None)
        replaced = {"sampler": adapt_sampler(loader.sampler, view)}
    rebuilt = _constructed(loader, arguments, replaced)
    if rebuilt is None:
        rebuilt = _copied(loader, view, replaced)
    rebuilt.worker_init_fn = init
    return rebuilt


def rebuild_stream_loader(loader: DataLoader[Any], stream: SanitizedStream) -> DataLoader[Any]:
    """Return a loader of the same class and settings that reads a filtered stream.

    Args:
        loader: The original loader of a stream, left unchanged.
        stream: The filtered stream of `loader.dataset`.

    Raises:
        UnsupportedDataError: If the class of the loader does not accept it.
    """
    arguments = _constructor_arguments(loader)
    for name in ("shuffle", "sampler", "batch_sampler"):
        arguments.pop(name, None)
    if arguments.get("batch_size") is None:
        arguments.pop("drop_last", None)
    arguments["dataset"] = stream
    if (init := loader.worker_init_fn) is not None:
        arguments["worker_init_fn"] = init = BelowView(init)
    try:
        rebuilt = _constructed(loader, arguments, {})
    except Exception as error:
        kind = printable(type(loader).__name__)
        raise UnsupportedDataError(
            f"Expected {kind} to accept a filtered stream as its data set, but it raised {describe_error(error)}.\n"
            f"{_OWN_LOADER}"
        ) from error
    if rebuilt is None:
        rebuilt = _copied(loader, stream, {})
    rebuilt.worker_init_fn = init
    return rebuilt


class BelowView:
    """A `worker_init_fn` that finds in `get_worker_info()` the data set below the view, as without the view.

    Args:
        function: The user's function.
    """

    def __init__(self, function: Callable[[int], None]) -> None:
        self.function = function

    def __call__(self, number: int) -> None:
        info = get_worker_info()
        if info is not None and isinstance(info.dataset, SampleView | SanitizedStream):
            show_dataset(info.dataset.dataset)
        self.function(number)


def equalize_lengths(loader: DataLoader[Any], runtime: Runtime) -> DataLoader[Any]:
    """Truncate each epoch to the shortest length on any rank: a rank with extra batches would deadlock."""
    inner = getattr(loader.batch_sampler, "sampler", None)
    samplers = (loader.batch_sampler, inner, loader.sampler)
    uneven: Any = next((each for each in samplers if _is_uneven(each)), None)
    if uneven is not None and runtime.world_size > 1:
        lengths = torch.zeros(runtime.world_size, dtype=torch.int64)
        with all_ranks(runtime):
            lengths[runtime.rank] = len(uneven)
        shortest = int(runtime.reduce_sum(lengths).min())
        if isinstance(uneven, SamplerWrapper):
            uneven.truncate(shortest)
        else:
            uneven.num_samples = shortest
    return loader


def lost_batches(original: DataLoader[Any], rebuilt: DataLoader[Any], ranks: int) -> str:
    """Describe samples that are never trained on because `drop_last` drops an incomplete batch.

    Args:
        original: The original loader.
        rebuilt: The loader of the kept samples.
        ranks: Number of ranks among which Lightning distributes the samples.

    Returns:
        A message if an epoch has no batch left, or more than a tenth of the kept samples is dropped that the original
        loader would not drop; else an empty text.

    Example:
        >>> view = range(90)
        >>> lost_batches(DataLoader(range(100), 100, drop_last=True), DataLoader(view, 100, drop_last=True), 1)
        'the 90 samples that are kept do not fill a batch of 100, and `drop_last` drops the rest: 0 steps per epoch'
    """
    batches, before = _whole_batches(rebuilt, ranks), _whole_batches(original, ranks)
    if batches is None or before is None:
        return ""
    (steps, size, samples), (steps_before, _, samples_before) = batches, before
    each = " per rank" if ranks > 1 else ""
    if not steps and steps_before:
        return (
            f"the {samples:,} samples{each} that are kept do not fill a batch of {size:,}, and `drop_last` drops the "
            "rest: 0 steps per epoch"
        )
    dropped = samples - steps * size
    if dropped - (samples_before - steps_before * size) > samples / 10:
        return (
            f"of the {samples:,} samples{each} that are kept, `drop_last` drops {dropped:,} in each epoch, which do "
            f"not fill a batch of {size:,}"
        )
    return ""


def _whole_batches(loader: DataLoader[Any], ranks: int) -> tuple[int, int, int] | None:
    """Return the batches of an epoch of one rank, their size and the samples drawn, if `drop_last` drops any."""
    batches = loader.batch_sampler
    if type(batches) is not BatchSampler or not batches.drop_last:
        return None
    try:
        samples = len(batches.sampler)  # type: ignore[arg-type]
    except TypeError:
        return None
    if not isinstance(batches.sampler, DistributedSampler):
        samples = -(-samples // ranks)
    return samples // batches.batch_size, batches.batch_size, samples


def _is_uneven(sampler: Any) -> bool:
    """Return whether the epoch length depends on the samples drawn, which may differ between ranks.

    It does for wrapped samplers, including those over a subset, and for weights of zero without replacement.
    """
    if isinstance(sampler, SamplerWrapper):
        return sampler.has_length
    return type(sampler).__name__ == "WeightedRandomSampler" and not sampler.replacement


def replaced_loader(path: str, loader: Any) -> str:
    """Return the message for a training loader that does not read the kept samples."""
    where = f" {printable(path)}" if path else ""
    dataset = type(getattr(loader, "dataset", loader)).__name__
    sampler = type(getattr(loader, "sampler", None)).__name__
    return (
        f"Expected the training loader{where} to read the kept samples, but got one that reads {dataset} with "
        f"{sampler}.\nAnother callback or hook replaced the loader or its sampler after filtering. Place the "
        "Sanitizer after it, or wrap the data in a SanitizedDataModule."
    )


def reads_view(loader: Any, view: SanitizedDataset) -> bool:
    """Return whether a loader reads a view, or a view of that view, and its sampler draws positions in its data set."""
    dataset = getattr(loader, "dataset", None)
    if not _contains(dataset, view):
        return False
    sampler = loader.sampler
    batches = loader.batch_sampler
    if loader.batch_size is None and batches is not None:
        if isinstance(batches, RemappedBatchSampler):
            return batches.view is dataset
        sampler = getattr(batches, "sampler", None)
    return _draws_positions_in(dataset, sampler)


def _contains(dataset: Any, view: SanitizedDataset) -> bool:
    while dataset is not None:
        if dataset is view:
            return True
        dataset = dataset.__dict__.get("dataset") if hasattr(dataset, "__dict__") else None
    return False


def _draws_positions_in(dataset: Any, sampler: Any) -> bool:
    """Unwrap samplers, including Lightning's distributed one, to one that refers to its data set."""
    for _ in range(8):
        if sampler is None:
            return False
        for name in ("view", "data_source", "dataset"):
            if getattr(sampler, name, None) is dataset:
                return True
        inner = getattr(sampler, "_sampler", None) or getattr(sampler, "sampler", None)
        sampler = inner if inner is not None else getattr(sampler, "dataset", None)
    return False


def _constructor_arguments(loader: DataLoader[Any]) -> dict[str, Any]:
    """Return the arguments of a loader's constructor that are stored as attributes."""
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
    """Build a loader of the same class; return `None` if its constructor fails or changes the settings."""
    cls = type(loader)
    parameters = inspect.signature(cls.__init__).parameters
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        arguments = {name: value for name, value in arguments.items() if name in parameters}
    try:
        built = cls(**arguments, **replaced)
    except TypeError:
        return None
    wanted = {name: arguments.get(name, getattr(loader, name)) for name in _PRESERVED}
    wanted |= {"dataset": arguments.get("dataset"), **replaced}
    return built if all(getattr(built, name) is value for name, value in wanted.items()) else None


def _copied(loader: DataLoader[Any], dataset: Any, replaced: dict[str, Any]) -> DataLoader[Any]:
    """Copy a loader that cannot be rebuilt, without Lightning's record of its original arguments."""
    clone = copy.copy(loader)
    for name in [name for name in clone.__dict__ if name.startswith("__pl_")]:
        del clone.__dict__[name]
    if "batch_sampler" in replaced:
        replaced = {"sampler": SequentialSampler(dataset), **replaced}
    elif isinstance(loader.batch_sampler, BatchSampler):
        sampler = replaced.get("sampler", loader.sampler)
        batches = type(loader.batch_sampler)(sampler, loader.batch_size or 1, loader.drop_last)
        replaced = {"batch_sampler": batches, **replaced}
    clone.__dict__.update(dataset=dataset, _iterator=None, **replaced)
    return clone
