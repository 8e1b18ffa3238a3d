"""All labels of a data set: from its own list if the samples agree with it, else sample by sample."""

import operator
from collections.abc import Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_poison.checks import describe, expected, printable
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.views import as_view
from lightning_poison.errors import UnreadableSampleError
from lightning_poison.randomness import seeded_rng

MAX_CLASSES = 10_000
"""Class indices from here on are rejected in a data set of fewer samples, as they are probably not classes."""

_GAP = 10
"""How far class indices may exceed twice the number of classes that occur, if the data set lists no classes."""

_PROBES = 8
"""Number of samples that are read to check a list of labels."""


def labels_of(dataset: Any, spec: SampleSpec | None = None) -> Tensor:
    """Return the labels of all samples.

    The data set's own `targets` or `labels` are used if they agree with a few samples; otherwise every sample is read.

    Args:
        dataset: Map-style data set.
        spec: Paths of input and label in a sample. Default: detected.

    Returns:
        Labels, int64 `(N,)`.

    Raises:
        ValueError: If the data set is empty, or a label is not an integer of at least 0.
        UnreadableSampleError: If a sample cannot be read.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> labels_of(TensorDataset(torch.zeros(3, 2), torch.tensor([2, 0, 1])))
        tensor([2, 0, 1])
    """
    if not len(dataset):
        raise ValueError("Expected a data set with at least one sample, but got an empty one.")
    spec = spec or spec_of(dataset)
    if (listed := listed_labels(dataset, spec)) is not None:
        return listed
    with seeded_rng(0):
        read = [as_label(spec.labels_in(read_sample(dataset, index)), index) for index in range(len(dataset))]
    return _not_negative(torch.tensor(read))


def listed_labels(dataset: Any, spec: SampleSpec) -> Tensor | None:
    """Return the labels that a data set lists, or `None` if it lists none that agree with its samples.

    Args:
        dataset: Map-style data set. A few samples are read.
        spec: Paths of input and label in a sample.

    Returns:
        Labels, int64 `(N,)`, or `None`.

    Raises:
        ValueError: If a label is not an integer of at least 0.
        UnreadableSampleError: If one of the samples cannot be read.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> pairs = [(torch.zeros(2), 0), (torch.ones(2), 1)]
        >>> listed_labels(TensorDataset(torch.eye(2), torch.tensor([0, 1])), SampleSpec())
        tensor([0, 1])
        >>> listed_labels(pairs, SampleSpec()) is None
        True
    """
    listed = _listed(dataset)
    with seeded_rng(0):
        if listed is None or len(listed) != len(dataset) or not _agrees(dataset, spec, listed):
            return None
    return _not_negative(listed)


def check_class_labels(labels: Tensor, data: Any) -> None:
    """Check that labels are plausible class indices of a data set.

    Args:
        labels: Labels of at least 0, int64 `(N,)`.
        data: The data set. If it lists its `classes`, they limit the labels.

    Raises:
        ValueError: If a label exceeds the listed classes, or exceeds by far those that occur, or there are fewer than
            two classes.

    Example:
        >>> check_class_labels(torch.tensor([0, 1, 255]), [])  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: Expected class indices without a large gap, ...
        Correct or remove the sample, number the classes from 0, or list them in the data set's `classes`.
    """
    _check_range(labels, getattr(data, "classes", None))
    if len(torch.unique(labels)) < 2:
        raise ValueError(expected("dataset", "data of at least two classes", f"class {int(labels[0])} alone"))


def spec_of(dataset: Any) -> SampleSpec:
    """Detect the paths of input and label in the samples of a data set; see `SampleSpec.detect`.

    The caller's random states are not affected by random transforms.

    Example:
        >>> spec_of([{"image": torch.zeros(1, 8, 8), "label": 3}])
        SampleSpec(inputs='image', labels='label')
    """
    with seeded_rng(0):
        return SampleSpec.detect(read_sample(dataset, 0))


def read_sample(dataset: Any, index: int) -> Any:
    """Read one sample.

    Raises:
        UnreadableSampleError: If the data set raises an error. The message names the sample's index.

    Example:
        >>> read_sample([(0.5, 1)], 3)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        lightning_poison.errors.UnreadableSampleError: Expected to read sample 3 of list, but it raised IndexError: ...
        Repair or remove the sample.
    """
    try:
        return dataset[index]
    except UnreadableSampleError:
        raise
    except Exception as error:
        raise UnreadableSampleError(
            f"Expected to read sample {index} of {type(dataset).__name__}, but it raised "
            f"{type(error).__name__}: {printable(error)}.\nRepair or remove the sample."
        ) from error


def as_label(value: Any, index: int) -> int:
    """Return the label of sample `index` as a Python integer.

    Raises:
        ValueError: If it is not an integer.

    Example:
        >>> as_label(torch.tensor(7), index=0)
        7
    """
    if not _is_whole(value):
        shown = describe(value) if isinstance(value, Tensor) else repr(value)[:80]
        raise ValueError(
            f"Expected an integer class index as the label of sample {index}, but got {shown}.\n"
            "For one-hot or named labels give the data set a `target_transform` that returns the index."
        )
    return int(value)


def _not_negative(labels: Tensor) -> Tensor:
    if int(labels.min()) < 0:
        index = int(labels.argmin())
        raise ValueError(
            expected("labels", "integers of at least 0", f"{int(labels[index])} at sample {index}")
            + "\nRemove unlabeled samples from the data set."
        )
    return labels


def _check_range(labels: Tensor, classes: Any) -> None:
    largest, place = int(labels.max()), int(labels.argmax())
    if largest >= max(MAX_CLASSES, len(labels)):
        raise ValueError(
            f"Expected class indices below {MAX_CLASSES:,}, but sample {place} has the label {largest:,}.\n"
            "Number the classes from 0."
        )
    listed = len(classes) if isinstance(classes, Sized) and not isinstance(classes, str) else 0
    if listed and largest >= listed:
        names = printable(", ".join(str(each) for each in list(classes)[:5]))
        more = ", …" if listed > 5 else ""
        raise ValueError(
            f"Expected labels below {listed}, the number of classes that the data set lists ({names}{more}), but "
            f"sample {place} has the label {largest}.\nCorrect or remove the sample, or list its class in `classes`."
        )
    present = len(torch.unique(labels))
    if not listed and largest > 2 * present + _GAP:
        raise ValueError(
            f"Expected class indices without a large gap, but sample {place} has the label {largest} and only "
            f"{present} classes occur.\nCorrect or remove the sample, number the classes from 0, or list them in the "
            "data set's `classes`."
        )


def _is_whole(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.is_floating_point() and value.dtype != torch.bool
    if isinstance(value, bool | np.bool_):
        return False
    try:
        operator.index(value)
    except TypeError:
        return False
    return True


def _listed(dataset: Any) -> Tensor | None:
    """Return the labels that a data set, or the data sets below a view, list."""
    if (view := as_view(dataset)) is not None:
        listed = [_listed(part) for part in view.parts]
        known = [
            each for each, part in zip(listed, view.parts, strict=True) if each is not None and len(each) == len(part)
        ]
        if len(known) == len(listed):
            try:
                return view.gather(known)
            except (IndexError, TypeError, ValueError, RuntimeError):  # it only looks like a view
                pass
    if isinstance(tensors := getattr(dataset, "tensors", None), tuple) and len(tensors) > 1:
        return _as_vector(tensors[1], len(dataset))
    for name in ("targets", "labels"):
        if (vector := _as_vector(getattr(dataset, name, None), len(dataset))) is not None:
            return vector
    return None


def _as_vector(values: Any, length: int) -> Tensor | None:
    if values is None or not (isinstance(values, Sequence | Tensor) or hasattr(values, "__array__")):
        return None
    try:
        vector = torch.as_tensor(values if isinstance(values, Tensor | list) else np.array(values))
    except (TypeError, ValueError, RuntimeError):
        return None
    whole = not vector.is_floating_point() and not vector.is_complex() and vector.dtype != torch.bool
    return vector.long() if whole and vector.shape == (length,) else None


def _agrees(dataset: Any, spec: SampleSpec, listed: Tensor) -> bool:
    probes = torch.linspace(0, len(listed) - 1, min(_PROBES, len(listed))).long().tolist()
    read = [as_label(spec.labels_in(read_sample(dataset, index)), index) for index in probes]
    return read == listed[probes].tolist()
