"""Which of several parts of the samples is the label, as other samples of the data set show."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from lightning_poison.data.label_forms import class_index
from lightning_poison.data.sample_parts import (
    AmbiguousLabelError,
    ambiguous_label,
    is_label_place,
    leaves_of,
    looks_like_path,
)
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.views import SampleView, as_view

_PROBES = 8
"""Number of samples whose numbers are compared."""

_TEXT_PROBES = 64
"""Number of samples whose texts are compared: of 300 equally frequent classes, at least two are then the same."""

_LARGE = 10_000
"""Number of elements from which an array is no label, and is not kept."""

_MISSING = object()
"""Value of a part that a sample lacks."""


def choose_label(
    sample: Any,
    dataset: Any,
    positions: Tensor | None,
    *,
    listed: Callable[[], Tensor | None],
    read: Callable[[int], Any],
) -> SampleSpec:
    """Detect the paths of input and label in a sample, with a look at other samples where it does not suffice.

    Of several parts that could be the label, the one is taken that the data set lists, or the only one left without

    - indices: integers that grow as the positions of the samples do, in the data set or in one that it is a view of
    - texts that all differ, as paths and ids do, and parts that are always the same text or always `None`
    - floats that have a fractional part in some sample, unless they follow the input

    - parts that some samples lack

    A text beside the only integer of a sample is a path or an id. If texts repeat, they could be the label too.

    Args:
        sample: The sample.
        dataset: The data set.
        positions: Positions of the samples that may be read, int64 `(M,)`. `None`: all.
        listed: Returns the labels that the data set lists, int64 `(N,)`, or `None` if it lists none.
        read: Reads the sample at a position.

    Raises:
        AmbiguousLabelError: If several parts could still be the label.
        ValueError: If input or label cannot be found.

    Example:
        >>> import torch
        >>> kinds = ["cat", "dog"] * 8
        >>> rows = [(torch.zeros(2), kind, number) for number, kind in enumerate(kinds)]
        >>> choose_label(rows[0], rows, None, listed=lambda: None, read=rows.__getitem__)
        SampleSpec(inputs='0', labels='1')
    """
    others, listed = _OtherSamples(dataset, positions, read), functools.cache(listed)
    try:
        spec = SampleSpec.detect(sample)
    except AmbiguousLabelError as error:
        found = _agreeing(error, others, listed) or _only_label(error, others)
        if found is None:
            raise
        spec = SampleSpec(error.inputs, found)
    _check_texts(sample, spec, others, listed)
    return spec


class _OtherSamples:
    """Samples of a data set that are read once, when they are needed.

    Args:
        dataset: The data set.
        allowed: Positions of the samples that may be read. `None`: all.
        read: Reads the sample at a position.
    """

    def __init__(self, dataset: Any, allowed: Tensor | None, read: Callable[[int], Any]) -> None:
        self.dataset = dataset
        self._length = len(dataset) if allowed is None else len(allowed)
        self._allowed, self._read_one = allowed, read
        self._known: dict[int, dict[str, Any] | None] = {}

    def probed(self) -> dict[int, dict[str, Any]]:
        """Return the small parts of a few samples, by position and path, evenly spaced."""
        return self._read(sorted({number * (self._length - 1) // (_PROBES - 1) for number in range(_PROBES)}))

    def drawn(self) -> dict[int, dict[str, Any]]:
        """Return the small parts of more samples, drawn at random: data sets are often sorted by class."""
        return self._read(np.random.default_rng(0).permutation(self._length)[:_TEXT_PROBES].tolist())

    def _read(self, places: list[int]) -> dict[int, dict[str, Any]]:
        positions = places if self._allowed is None else self._allowed[places].tolist()
        for position in positions:
            if position not in self._known:
                sample = self._read_one(position)
                self._known[position] = None if sample is None else _small_parts(sample)
        found = {position: self._known[position] for position in positions}
        return {position: parts for position, parts in found.items() if parts is not None}


def _small_parts(sample: Any) -> dict[str, Any]:
    """Return the parts of a sample by their paths, without images and large arrays, to keep those of many samples."""
    return {leaf.path: leaf.value for leaf in leaves_of(sample) if not _is_large(leaf.value)}


def _is_large(value: Any) -> bool:
    shape = getattr(value, "shape", ())
    return isinstance(value, Image.Image) or (isinstance(shape, tuple) and math.prod(shape) >= _LARGE)


def _agreeing(error: AmbiguousLabelError, others: _OtherSamples, listed: Callable[[], Tensor | None]) -> str | None:
    """Return the only candidate that is the listed label in a few samples."""
    labels, samples = listed(), others.probed()
    if labels is None or not samples:
        return None
    wanted = labels[list(samples)].tolist()
    found = [path for path in error.candidates if _indices(_values(path, samples)) == wanted]
    return found[0] if len(found) == 1 else None


def _only_label(error: AmbiguousLabelError, others: _OtherSamples) -> str | None:
    """Return the only candidate that other samples show to be no index, path or weight."""
    samples = others.probed()
    if len(samples) <= 2:
        return None
    found = []
    for path in error.candidates:
        values = _values(path, samples)
        if any(value is _MISSING for value in values):
            is_label = False
        elif any(isinstance(value, str | bytes) for value in values):
            is_label = _repeats(path, others)
        elif all(value is None for value in values):
            is_label = False
        else:
            follows = path == "1" and error.inputs.split(".")[0] == "0"
            is_label = follows or not any(_is_fractional(value) for value in values)
            is_label &= not _is_index(_indices(values), list(samples), others.dataset)
        if is_label:
            found.append(path)
    return found[0] if len(found) == 1 else None


def _repeats(path: str, others: _OtherSamples) -> bool:
    """Whether the texts of a part are several, of which some are the same. More samples are read only if need be."""
    for read in (others.probed, others.drawn):
        values = _values(path, read())
        if any(value is _MISSING for value in values):
            return False
        if 1 < _number_of_texts(values) < len(values):
            return True
    return False


def _check_texts(sample: Any, spec: SampleSpec, others: _OtherSamples, listed: Callable[[], Tensor | None]) -> None:
    """Raise if the label was found as the only number, and texts of the samples could be the label as well."""
    leaves = list(leaves_of(sample))
    chosen = next((leaf for leaf in leaves if leaf.path == spec.labels), None)
    texts = [leaf for leaf in leaves if isinstance(leaf.value, str | bytes) and leaf.path != spec.labels]
    texts = [leaf for leaf in texts if not looks_like_path(leaf.value)]
    is_after_input = isinstance(sample, list | tuple) and str(spec.inputs).split(".")[0] == "0"
    if is_after_input:
        texts = [leaf for leaf in texts if leaf.path != "1"]  # it was a candidate before
    if chosen is None or not texts or is_label_place(chosen):
        return
    labels, samples = listed(), others.probed()
    if labels is not None and _indices(_values(chosen.path, samples)) == labels[list(samples)].tolist():
        return
    if rivals := [leaf for leaf in texts if _repeats(leaf.path, others)]:
        raise ambiguous_label(sample, str(spec.inputs), [chosen, *rivals])


def _values(path: str, samples: dict[int, dict[str, Any]]) -> list[Any]:
    return [parts.get(path, _MISSING) for parts in samples.values()]


def _indices(values: list[Any]) -> list[int | None]:
    return [None if value is _MISSING else class_index(value) for value in values]


def _number_of_texts(values: list[Any]) -> int:
    """Return the number of different texts. Other values, such as a missing one, count as one text each."""
    return len({value if isinstance(value, str | bytes) else repr(type(value)) for value in values})


def _is_fractional(value: Any) -> bool:
    """Whether a value is a finite number with a fractional part."""
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False
    return bool(np.isfinite(number)) and number != np.floor(number)


def _is_index(values: list[int | None], positions: list[int], dataset: Any) -> bool:
    """Whether values grow as the positions of their samples do: in the data set, or in one that it is a view of."""
    if values[0] is None:
        return False
    places: list[tuple[Any, int]] = [(dataset, position) for position in positions]
    while places:
        first = places[0][1]
        if values == [place - first + values[0] for _, place in places]:
            return True
        places = _one_step_down(places)
    return False


def _one_step_down(places: list[tuple[Any, int]]) -> list[tuple[Any, int]]:
    """Return where samples are in the data sets below; an empty list if one of them is in no view."""
    found = []
    for dataset, place in places:
        if (view := as_view(dataset)) is not None:
            try:
                found.append(view.locate(place))
            except (IndexError, TypeError, ValueError):  # it only looks like a view
                return []
        elif isinstance(dataset, SampleView):  # a view with all samples in their order
            found.append((dataset.dataset, place))
        else:
            return []
    return found
