"""`Source`: a data set as the user passed it, and how its samples are read."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_poison.checks import describe_error
from lightning_poison.data.batched_reads import check_batched_reads
from lightning_poison.data.collated_samples import batch_of_one, spec_of_batch, why_not_collated
from lightning_poison.data.inputs import dtype_of, stack_inputs
from lightning_poison.data.labels import UNLABELED, as_label, claimed_labels, read_sample, spec_in
from lightning_poison.data.map_style_data import check_length, drawn_positions, map_style
from lightning_poison.data.packed_inputs import InputLayout
from lightning_poison.data.reading import ReadSettings, ResultT, run_in_worker
from lightning_poison.data.sample_digests import SampleDigests
from lightning_poison.data.sample_parts import NO_SAMPLE
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.errors import UnreadableSampleError
from lightning_poison.randomness import seeded_rng

_TRIED = 1_000
"""Number of samples, in random order, among which one is sought that is not `None`."""


@dataclass(frozen=True)
class Source:
    """A map-style data set of N samples, and how they are read.

    Args:
        dataset: Map-style data set.
        sample: Paths of input and label in a sample, or in a batch of one if `collated`.
        settings: Workers and their settings.
        collated: Whether a sample must pass through the loader's `collate_fn`, in a batch of one.
        shape: Shape of one input.
        dtype: Data type of one input, as the data set returns it.
        layout: Layout of one sample with several inputs; `None` for one input.
        listed: Labels that the data set lists, int64 `(N,)`; `None` if it lists none.
        seed: Seed of the reads whose digests are recorded, if samples are drawn at random.
        digests: Digests of the samples read so far.
        detected: Whether `sample` was detected, not named by the user.
    """

    dataset: Any
    sample: SampleSpec
    settings: ReadSettings = field(default_factory=ReadSettings)
    collated: bool = False
    shape: tuple[int, ...] = ()
    dtype: str | None = None
    layout: InputLayout | None = None
    listed: Tensor | None = None
    seed: int = 0
    digests: SampleDigests = field(default_factory=lambda: SampleDigests(0))
    detected: bool = False

    def parts(self, samples: list[Any], positions: Sequence[int]) -> tuple[list[Any], list[Any]]:
        """Return the inputs and the labels of samples.

        A sample that is `None`, which the `collate_fn` of a loader may leave out of its batches, has the input `None`
        and no label.
        """
        collate = self.settings.collate_fn
        if collate is None:
            return self.sample.split(samples, positions)
        present = [place for place, each in enumerate(samples) if each is not None]
        inputs, labels = [None] * len(samples), [UNLABELED] * len(samples)
        if self.collated:
            batches = [collate([samples[place]]) for place in present]
            found = (
                [self.sample.inputs_in(each)[0] for each in batches],
                [self.sample.labels_in(each)[0] for each in batches],
            )
        else:
            found = self.sample.split([samples[place] for place in present], [positions[place] for place in present])
        for place, own_input, own_label in zip(present, *found, strict=True):
            inputs[place], labels[place] = own_input, own_label
        return inputs, labels


@dataclass(frozen=True)
class Readable:
    """A map-style data set, the positions of the samples that count, and how they are read.

    Args:
        dataset: Map-style data set of N samples.
        positions: Positions of the samples that a loader can draw, int64 ascending. Default: all.
        settings: Workers and their settings.
    """

    dataset: Any
    positions: Tensor | None = None
    settings: ReadSettings = field(default_factory=ReadSettings)


def readable(data: Any, name: str) -> Readable:
    """Return an argument that is a data set, or a loader of one, as a `Readable`.

    Args:
        data: Map-style data set, a loader of one, or a `Readable`.
        name: Name of the argument, for errors.

    Raises:
        UnsupportedDataError: See `map_style`.

    Example:
        >>> from torch.utils.data import DataLoader, SubsetRandomSampler
        >>> loader = DataLoader(list(range(10)), sampler=SubsetRandomSampler([7, 2]), num_workers=2)
        >>> found = readable(loader, "trusted")
        >>> found.positions, found.settings.num_workers
        (tensor([2, 7]), 2)
    """
    if isinstance(data, Readable):
        check_length(data.dataset, f"`{name}`")
        return data
    dataset = map_style(data, name)
    if not isinstance(data, DataLoader):
        return Readable(dataset)
    return Readable(data.dataset, drawn_positions(data), ReadSettings.of(data))


def open_source(
    dataset: Any,
    *,
    sample: SampleSpec | None,
    positions: Tensor | None = None,
    settings: ReadSettings = ReadSettings(),  # noqa: B008 (frozen)
    seed: int = 0,
) -> Source:
    """Inspect a data set, in a worker process if it has workers: find input and label, and test how it is read.

    Args:
        dataset: Map-style data set of at least one sample.
        sample: Paths of input and label in a sample. Default: detected.
        positions: Positions of the samples that may be read, int64 `(M,)`, at least one. Default: all.
        settings: Workers and their settings.
        seed: Seed of random transforms.

    Raises:
        UnreadableSampleError: If one of the samples cannot be read.
        ValueError: If input or label cannot be found, or `__getitems__` returns other samples than `__getitem__`.

    Example:
        >>> open_source([{"image": torch.zeros(1, 8, 8), "label": 3}], sample=None).sample
        SampleSpec(inputs='image', labels='label')
    """
    inspect = partial(_inspect, sample=sample, positions=positions, settings=settings, seed=seed)
    return _opened(inspect, dataset, settings, seed)


def _opened(inspect: "partial[_Inspection]", dataset: Any, settings: ReadSettings, seed: int) -> Source:
    found = run_in_worker(inspect, dataset, settings)
    detected = found.sample is not None
    sample = found.sample if detected else inspect.keywords["sample"]
    parts = {**found._asdict(), "sample": sample, "digests": SampleDigests(len(dataset))}
    return Source(dataset, settings=settings, seed=seed, detected=detected, **parts)


class _Inspection(NamedTuple):
    """What is sent back from a worker. A `SampleSpec` of the user is not, since a lambda in it cannot be pickled."""

    sample: SampleSpec | None
    collated: bool
    shape: tuple[int, ...]
    dtype: str
    layout: InputLayout | None
    listed: Tensor | None


def read_opened(
    read: Callable[[Source], ResultT],
    dataset: Any,
    *,
    sample: SampleSpec | None,
    positions: Tensor | None = None,
    settings: ReadSettings = ReadSettings(),  # noqa: B008 (frozen)
    seed: int = 0,
) -> ResultT:
    """Read from an opened source: from samples as they are, or, if they differ in form, as `collate_fn` returns them.

    A `collate_fn` that pads rows of different lengths to a fixed length is thus found even if the first sample could be
    read without it.

    Args:
        read: Reads samples of a source.
        dataset: See `open_source`.
        sample: See `open_source`.
        positions: See `open_source`.
        settings: See `open_source`.
        seed: See `open_source`.

    Raises:
        UnreadableSampleError: See `open_source`, or of `read` from samples as they are.
        ValueError: As above.

    Example:
        >>> pad = lambda rows: (torch.tensor([x + [0.0] * (3 - len(x)) for x, _ in rows]), torch.tensor([1]))
        >>> shape = lambda source: stack_inputs(source.parts(source.dataset, [0, 1])[0], [0, 1]).shape
        >>> rows = [([1.0, 2.0], 1), ([3.0], 1)]
        >>> read_opened(shape, rows, sample=None, settings=ReadSettings(collate_fn=pad))
        torch.Size([2, 3])
    """
    source = open_source(dataset, sample=sample, positions=positions, settings=settings, seed=seed)
    try:
        return read(source)
    except (UnreadableSampleError, ValueError) as error:
        if source.collated or settings.collate_fn is None:
            raise
        try:
            inspect = partial(
                _inspect, sample=sample, positions=positions, settings=settings, seed=seed, must_collate=True
            )
            return read(_opened(inspect, dataset, settings, seed))
        except (UnreadableSampleError, ValueError):
            raise error from None


def source_for(
    dataset: Any,
    *,
    sample: SampleSpec | None,
    positions: Tensor | None = None,
    settings: ReadSettings = ReadSettings(),  # noqa: B008 (frozen)
) -> Source:
    """Return a source whose samples are read one by one in this process, and not inspected.

    No sample is read if `sample` is given and there is no `collate_fn`.

    Args:
        dataset: Map-style data set of at least one sample.
        sample: Paths of input and label in a sample. Default: detected.
        positions: Positions of the samples that may be read, int64 `(M,)`, at least one. Default: all.
        settings: Settings, of which `collate_fn` counts.

    Raises:
        UnreadableSampleError: If one of the samples cannot be read.
        ValueError: If input or label cannot be found.

    Example:
        >>> pairs = [None, {"image": torch.zeros(1, 8, 8), "label": 3}]
        >>> source_for(pairs, sample=None, positions=torch.tensor([1])).sample
        SampleSpec(inputs='image', labels='label')
    """
    if sample is not None and settings.collate_fn is None:
        return Source(dataset, sample, settings)
    with seeded_rng(0):
        index, first = _first_sample(dataset, settings, positions)
        _check_present(first, index, sample)
        if settings.collate_fn is None:
            return Source(dataset, spec_in(first, dataset, positions), settings)
        return _source_of(dataset, first, index, sample, positions, settings, seed=0)


def _inspect(
    dataset: Any,
    *,
    sample: SampleSpec | None,
    positions: Tensor | None,
    settings: ReadSettings,
    seed: int,
    must_collate: bool = False,
) -> _Inspection:
    with seeded_rng(seed, 0):
        index, first = _first_sample(dataset, settings, positions)
        _check_present(first, index, sample)
        find = partial(collated_source, seed=seed) if must_collate else partial(_source_of, seed=seed)
        source = find(dataset, first, index, sample, positions, settings)
        shape = tuple(_input_of(source, first, index).shape[1:])
        if not source.collated:
            check_batched_reads(
                dataset, partial(_label_of, source), partial(_input_of, source), seed=seed, allowed=positions
            )
        own = source.parts([first], [index])[0][0]
        layout = InputLayout.of(own) if isinstance(own, Mapping | list | tuple) else None
    detected = source.sample if sample is None else None
    return _Inspection(detected, source.collated, shape, dtype_of(own), layout, claimed_labels(dataset))


def _first_sample(dataset: Any, settings: ReadSettings, positions: Tensor | None) -> tuple[int, Any]:
    """Return the position of a sample, and the sample: the first, or, with a `collate_fn`, one that is not `None`."""
    length = len(dataset) if positions is None else len(positions)
    start = 0 if positions is None else int(positions[0])
    first = read_sample(dataset, start)
    if first is not None or settings.collate_fn is None:
        return start, first
    for place in np.random.default_rng(0).permutation(length)[:_TRIED].tolist():
        index = place if positions is None else int(positions[place])
        if (sample := read_sample(dataset, index)) is not None:
            return index, sample
    return start, None


def _check_present(first: Any, index: int, sample: SampleSpec | None) -> None:
    if first is None and sample is None:
        raise UnreadableSampleError(f"Expected sample {index} with an input and a label, but got None.\n{NO_SAMPLE}")


def _source_of(
    dataset: Any,
    first: Any,
    index: int,
    sample: SampleSpec | None,
    positions: Tensor | None,
    settings: ReadSettings,
    *,
    seed: int,
) -> Source:
    """Return a source that reads the first sample, through `collate_fn` if it cannot be read without."""
    try:
        source = Source(dataset, sample or spec_in(first, dataset, positions), settings, seed=seed)
        _input_of(source, first, index)
        return source
    except (ValueError, UnreadableSampleError) as error:
        if settings.collate_fn is None:
            raise
        try:
            return collated_source(dataset, first, index, sample, positions, settings, seed=seed)
        except (ValueError, UnreadableSampleError) as failure:
            error.args = (f"{error}{why_not_collated(error, failure)}",)
        raise


def collated_source(
    dataset: Any,
    read: Any,
    index: int,
    sample: SampleSpec | None,
    positions: Tensor | None,
    settings: ReadSettings,
    *,
    seed: int = 0,
) -> Source:
    """Return a source that reads samples through `collate_fn`.

    Args:
        dataset: Map-style data set.
        read: One of its samples as it was read, not `None`.
        index: Position of this sample.
        sample: Paths of input and label in a batch of one. `None`: detected.
        positions: Positions of the samples that may be read, int64 `(M,)`. `None`: all.
        settings: Workers and their settings, with a `collate_fn`.
        seed: Seed of random transforms. Default: 0.

    Raises:
        ValueError: If this sample cannot be read so either.
        UnreadableSampleError: As above.
    """
    batch = batch_of_one(settings.collate_fn, read)
    spec = sample or spec_of_batch(batch, read, partial(spec_in, read, dataset, positions))
    source = Source(dataset, spec, settings, True, seed=seed)
    try:
        _input_of(source, read, index)
    except (ValueError, UnreadableSampleError):
        raise
    except Exception as error:
        raise ValueError(f"its batch cannot be read: {describe_error(error)}") from error
    return source


def _input_of(source: Source, sample: Any, index: int) -> torch.Tensor:
    inputs, labels = source.parts([sample], [index])
    as_label(labels[0], index)
    return stack_inputs(inputs, [index])


def _label_of(source: Source, sample: Any, index: int) -> int:
    return as_label(source.parts([sample], [index])[1][0], index)
