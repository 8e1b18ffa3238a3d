"""All labels of a data set: from its own list if the samples agree with it, else sample by sample."""

from collections.abc import Sequence, Sized
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.checks import expected, printable, safe_text
from lightning_poison.data.label_choice import choose_label
from lightning_poison.data.label_forms import class_index, class_indices, odd_label
from lightning_poison.data.sample_files import listed_file
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.views import as_view
from lightning_poison.errors import UnreadableSampleError, is_signal
from lightning_poison.randomness import seeded_rng

UNLABELED = -1
"""Label of a sample without one, as in semi-supervised data sets. It is not judged."""

_MOST_CLASSES = 2**53
"""Larger labels are looked at one by one, and refused there if they are too large."""

_SCAN_HINT = " `lightning-poison scan FOLDER` leaves out all files that cannot be read, and its report lists them."
"""How to continue without such files, and to find them all at once, if they are images."""

_IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

_PROBES = 8
"""Number of samples that are read to check a list of labels."""


class LabeledPairs(Dataset[tuple[Any, Any]]):
    """Base of data sets whose samples are `(input, label)` and whose `targets`, int64 `(N,)`, are known to be true.

    Nothing is read to find the labels.
    """

    targets: Tensor


def labels_of(dataset: Any, spec: SampleSpec | None = None, *, unlabeled: bool = False) -> Tensor:
    """Return the labels of all samples.

    The data set's own `targets` or `labels` are used if they agree with a few samples; otherwise every sample is read.

    Args:
        dataset: Map-style data set.
        spec: Paths of input and label in a sample. Default: detected.
        unlabeled: Whether samples may have the label -1, which stands for no label. Default: `False`.

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
    if isinstance(dataset, LabeledPairs):
        return dataset.targets
    if not len(dataset):
        raise ValueError("Expected a data set with at least one sample, but got an empty one.")
    spec = spec or spec_of(dataset)
    if (listed := listed_labels(dataset, spec, unlabeled=unlabeled)) is not None:
        return listed
    with seeded_rng(0):
        read = [as_label(spec.labels_in(read_sample(dataset, index)), index) for index in range(len(dataset))]
    return _checked(torch.tensor(read), unlabeled=unlabeled)


def listed_labels(dataset: Any, spec: SampleSpec, *, unlabeled: bool = False) -> Tensor | None:
    """Return the labels that a data set lists, or `None` if it lists none that agree with its samples.

    Args:
        dataset: Map-style data set. A few samples are read.
        spec: Paths of input and label in a sample.
        unlabeled: Whether samples may have the label -1, which stands for no label. Default: `False`.

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
    listed = claimed_labels(dataset)
    with seeded_rng(0):
        if listed is None or not _agrees(dataset, spec, listed):
            return None
    return _checked(listed, unlabeled=unlabeled)


def claimed_labels(dataset: Any) -> Tensor | None:
    """Return the labels that a data set lists, int64 `(N,)`, without a comparison with its samples; `None` if none.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> claimed_labels(TensorDataset(torch.eye(2), torch.tensor([0, 1])))
        tensor([0, 1])
    """
    listed = _listed(dataset)
    return listed if listed is not None and len(listed) == len(dataset) else None


def check_class_labels(labels: Tensor, data: Any) -> None:
    """Check that labels are among the classes that a data set lists, if it does.

    Args:
        labels: Labels, int64 `(N,)`.
        data: The data set, which may list its `classes`.

    Raises:
        ValueError: If a label exceeds the listed classes.
    """
    classes = _listed_classes(data)
    largest, place = int(labels.max()), int(labels.argmax())
    if 0 < len(classes) <= largest:
        names = printable(", ".join(safe_text(each) for each in classes[:5]))
        more = ", …" if len(classes) > 5 else ""
        raise ValueError(
            f"Expected labels below {len(classes)}, the number of classes that the data set lists ({names}{more}), but "
            f"sample {place} has the label {largest}.\nCorrect or remove the sample, or list its class in `classes`."
        )


def spec_of(dataset: Any, positions: Tensor | None = None) -> SampleSpec:
    """Detect the paths of input and label in the samples of a data set; see `SampleSpec.detect`.

    If several parts of a sample could be its label, the one is taken that the data set lists (`targets`, `labels`), or
    the only one that other samples show to be no index, path or weight.

    The caller's random states are not affected by random transforms.

    Args:
        dataset: Map-style data set.
        positions: Positions of the samples that may be read, int64 `(M,)`, at least one. Default: all.

    Raises:
        ValueError: If the paths are ambiguous.
        UnreadableSampleError: If a sample cannot be read.

    Example:
        >>> spec_of([{"image": torch.zeros(1, 8, 8), "label": 3}])
        SampleSpec(inputs='image', labels='label')
    """
    if isinstance(dataset, LabeledPairs):
        return SampleSpec()
    with seeded_rng(0):
        return spec_in(read_sample(dataset, 0 if positions is None else int(positions[0])), dataset, positions)


def spec_in(sample: Any, dataset: Any, positions: Tensor | None = None) -> SampleSpec:
    """Detect the paths of input and label in a sample of a data set; see `spec_of`.

    Other samples are read only if several parts could be the label.

    Args:
        sample: The sample.
        dataset: The data set.
        positions: Positions of the samples that may be read, int64 `(M,)`. Default: all.

    Example:
        >>> pairs = [(torch.zeros(2), number % 2, number) for number in range(4)]
        >>> spec_in(pairs[3], pairs)
        SampleSpec(inputs='0', labels='1')
    """
    if isinstance(dataset, LabeledPairs):
        return SampleSpec()
    read = partial(read_sample, dataset)
    return choose_label(sample, dataset, positions, listed=partial(claimed_labels, dataset), read=read)


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
    return read_samples(dataset, [index])[0]


def read_samples(dataset: Any, indices: Sequence[int]) -> list[Any]:
    """Read samples one by one; see `read_sample`."""
    samples: list[Any] = []
    try:
        for index in indices:
            samples.append(dataset[index])  # noqa: PERF401 (the number of those that were read names the next one)
    except UnreadableSampleError:
        raise
    except (Exception, SystemExit) as error:
        if is_signal(error):
            raise
        index = indices[len(samples)]
        file = printable(listed_file(dataset, index), limit=1000)
        hint = _SCAN_HINT if file.lower().endswith(_IMAGES) else ""
        raise UnreadableSampleError(
            f"Expected to read sample {index} of {type(dataset).__name__}, but it raised "
            f"{type(error).__name__}: {printable(error)}.\n"
            + (f"Repair or remove its file, {file}.{hint}" if file else "Repair or remove the sample.")
        ) from error
    return samples


def as_label(value: Any, index: int) -> int:
    """Return the class index that the label of a sample stands for.

    Integers, booleans, floats without a fractional part, one such value in an array of shape `()` or `(1,)`, and
    one-hot vectors stand for a class index. -1 stands for no label.

    Args:
        value: Label of the sample.
        index: Position of the sample, for error messages.

    Raises:
        ValueError: If it is of another form. The message says which, and how to convert it.

    Example:
        >>> as_label(torch.tensor(7), index=0), as_label(1.0, index=0), as_label([0, 0, 1], index=0)
        (7, 1, 2)
        >>> as_label(None, index=4)
        Traceback (most recent call last):
        ValueError: Expected a class index as the label of sample 4, but got None.
        Give samples without a label the label -1, or leave them out: `Subset(dataset, indices)`.
    """
    label = class_index(value)
    if label is None:
        what, way = odd_label(value)
        raise ValueError(f"Expected a class index as the label of sample {index}, but got {what}.\n{way}")
    if label < -1:
        raise ValueError(
            f"Expected a class index of at least 0 as the label of sample {index}, or -1 for no label, but got {label}."
            "\nNumber the classes from 0."
        )
    return label


def as_labels(values: Sequence[Any], positions: Sequence[int]) -> Tensor:
    """Return the class indices that the labels of some samples stand for, int64 `(B,)`; see `as_label`.

    Args:
        values: Labels of the samples.
        positions: Positions of the samples in the data set, for error messages.

    Raises:
        ValueError: If a label stands for no class index, or labels differ in length, as lists of several labels do:
            `[0, 1]` would be read as a one-hot vector.

    Example:
        >>> as_labels([3.0, torch.tensor([1]), True], [7, 8, 9])
        tensor([3, 1, 1])
    """
    if len(values) == len(positions) and (plain := _plain_indices(values)) is not None:
        return plain
    labels = [as_label(value, index) for value, index in zip(values, positions, strict=True)]
    labeled = [place for place, label in enumerate(labels) if label != UNLABELED]
    lengths = {place: _length_of(values[place]) for place in labeled}
    for place, length in lengths.items():
        if length != lengths[labeled[0]]:
            raise ValueError(
                f"Expected labels of one form, but that of sample {positions[place]} is {_form(length)} and that of "
                f"sample {positions[labeled[0]]} is {_form(lengths[labeled[0]])}.\nGive each sample its class index."
            )
    return torch.tensor(labels)


def _plain_indices(values: Sequence[Any]) -> Tensor | None:
    """Return labels as one tensor if they are what most data sets return, integers or tensors of one: quickly."""
    kinds = set(map(type, values))
    try:
        found = torch.tensor(values) if kinds == {int} else torch.stack(list(values)) if kinds == {Tensor} else None
    except (RuntimeError, OverflowError, ValueError):  # labels of several shapes, or too large
        return None
    if found is None or found.ndim != 1 or found.dtype != torch.int64 or found.device.type != "cpu":
        return None
    lowest, highest = found.aminmax() if found.layout == torch.strided else (UNLABELED - 1, 0)
    if int(lowest) < UNLABELED or int(highest) >= _MOST_CLASSES:
        return None  # the other way names the sample
    return found


def _length_of(value: Any) -> int:
    """Return the length of a vector; 1 for a number."""
    return 1 if type(value) is int or not getattr(value, "ndim", 1) or not isinstance(value, Sized) else len(value)


def _form(length: int) -> str:
    return "a number" if length == 1 else f"a vector of length {length}"


def _checked(labels: Tensor, *, unlabeled: bool) -> Tensor:
    if int(labels.min()) < (UNLABELED if unlabeled else 0):
        index = int(labels.argmin())
        raise ValueError(
            expected("labels", "integers of at least 0", f"{int(labels[index])} at sample {index}")
            + "\nRemove unlabeled samples from the data set."
        )
    return labels


def _listed_classes(data: Any) -> list[Any]:
    """Return the `classes` of a data set, or an empty list if it lists none."""
    classes = _attribute(data, "classes")
    if not isinstance(classes, Sized) or isinstance(classes, str | bytes):
        return []
    try:
        return [*classes]  # type: ignore[misc]
    except (Exception, SystemExit) as error:  # an object of unknown kind
        if is_signal(error):
            raise
        return []


def _attribute(dataset: Any, name: str) -> Any:
    """Return an attribute of a data set, or `None` if it has none or its property raises an error."""
    try:
        return getattr(dataset, name, None)
    except (Exception, SystemExit) as error:  # the attribute is optional, and its code is the user's
        if is_signal(error):
            raise
        return None


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
    if isinstance(tensors := _attribute(dataset, "tensors"), tuple) and len(tensors) > 1:
        return class_indices(tensors[1], len(dataset))
    for name in ("targets", "labels"):
        if (vector := class_indices(_attribute(dataset, name), len(dataset))) is not None:
            return vector
    return None


def _agrees(dataset: Any, spec: SampleSpec, listed: Tensor) -> bool:
    probes = torch.linspace(0, len(listed) - 1, min(_PROBES, len(listed))).long().tolist()
    read = [as_label(spec.labels_in(read_sample(dataset, index)), index) for index in probes]
    return read == listed[probes].tolist()
