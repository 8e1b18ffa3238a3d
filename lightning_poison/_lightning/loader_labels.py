"""Which of several training loaders have labels: in semi-supervised training, some have none."""

import re
from collections.abc import Iterator, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_poison.checks import printable
from lightning_poison.data.collated_samples import why_not_collated
from lightning_poison.data.label_forms import class_index
from lightning_poison.data.labels import UNLABELED, claimed_labels, read_sample, spec_in, spec_of
from lightning_poison.data.map_style_data import drawn_positions
from lightning_poison.data.reading import ReadSettings, run_in_worker
from lightning_poison.data.sample_parts import leaves_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.source import Source, collated_source, source_for
from lightning_poison.data.source_labels import source_labels
from lightning_poison.errors import UnreadableSampleError
from lightning_poison.randomness import seeded_rng

_PROBES = 1_000
"""Number of samples without a label after which a data set counts as unlabeled, or with different labels as indexed."""

_PROBES_AGAIN = 64
"""The same for a data set that had no labels before."""

_FEWEST_INDEXED = 16
"""Smallest number of samples whose labels count as indices if no two are the same."""


def unlabeled_loaders(
    loaders: Mapping[str, DataLoader[Any]],
    sample: SampleSpec | None,
    *,
    known: Mapping[str, Any],
    before: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, str]:
    """Return which of several training loaders have no labels, by path, and how this shows.

    Samples are read in a worker process if the loader has workers, and only those that its sampler can draw.

    Args:
        loaders: The loaders by path.
        sample: Paths of input and label in a sample. Default: detected for each loader.
        known: Data sets that have labels, by path of their loader; they are not read again.
        before: Data sets that had none at an earlier request. Fewer of their samples are read. Default: none.

    Raises:
        ValueError: If all samples of a loader have the same label, or each has another one, as if it were their index,
            or it is unclear what their label is.
        UnreadableSampleError: If a sample cannot be read.
    """
    unlabeled: dict[str, str] = {}
    for path, loader in loaders.items():
        if known.get(path) is loader.dataset or not len(loader.dataset):  # type: ignore[arg-type]
            continue
        settings = ReadSettings.of(loader)
        find = partial(
            find_labels,
            sample=sample,
            positions=drawn_positions(loader),
            settings=settings,
            probes=_PROBES_AGAIN if before.get(path) is loader.dataset else _PROBES,
        )
        found = run_in_worker(find, loader.dataset, settings)
        if found.kind == "none":
            unlabeled[path] = found.what
        elif found.kind != "several":
            others = [_key(each) for each in loaders if each != path and each not in unlabeled]
            raise ValueError(
                f"Expected the training loader {printable(path)} to have labels of several classes, or none, but "
                f"{found.what}.\nIf it is not to be judged, name the loaders that are: `loaders={others}`."
            )
    return unlabeled


def drawn_labels(
    dataset: Any, *, sample: SampleSpec | None, positions: Tensor | None, settings: ReadSettings
) -> Tensor:
    """Return the labels of the samples that a loader can draw, int64 `(M,)`, read in this process.

    Args:
        dataset: Map-style data set of at least one sample.
        sample: Paths of input and label in a sample. `None`: detected.
        positions: Positions of the samples, int64 `(M,)` ascending. `None` for all.
        settings: Settings of the loader, of which `collate_fn` counts.

    Raises:
        UnreadableSampleError: If a sample cannot be read.
        ValueError: If input or label cannot be found, or a label is not an integer of at least -1.
    """
    try:
        source = source_for(dataset, sample=sample, positions=positions, settings=settings)
    except UnreadableSampleError:
        if settings.collate_fn is None:
            raise
        # the samples are no tensors, and `collate_fn` makes soft labels of theirs, as mixup does
        source = Source(dataset, sample or spec_of(dataset, positions), settings)
    return source_labels(source, positions)


def check_same_labels(
    view: Any, dataset: Any, positions: Tensor | None, *, sample: SampleSpec | None, reading: ReadSettings
) -> None:
    """Check that a view of a data set, passed as `score_dataset`, has the same samples in the same order.

    Args:
        view: The view.
        dataset: The training set.
        positions: Positions of the samples that a sampler can draw, int64 `(M,)`. `None`: all.
        sample: Paths of input and label in a sample. `None`: detected.
        reading: How both are read.

    Raises:
        ValueError: If their lengths or labels differ.
    """
    same = len(view) == len(dataset)
    if same:
        find = partial(drawn_labels, sample=sample, positions=positions, settings=reading)
        same = torch.equal(run_in_worker(find, view, reading), run_in_worker(find, dataset, reading))
    if not same:
        raise ValueError(
            f"Expected `score_dataset` to contain the {len(dataset):,} samples of the training set in the same "
            f"order, but got {len(view):,} samples or other labels.\n"
            "Build it like the training set, with another transform. If that is a `Subset`, as after `random_split`, "
            "pass the whole data set, or `Subset(other, subset.indices)`."
        )


def _key(path: str) -> str:
    """Return the key or position of a loader that is not nested, else its path."""
    steps = re.fullmatch(r"\['([^']*)'\]|\[(\d+)\]", path)
    return path if steps is None else steps[1] or steps[2]


class FoundLabels(NamedTuple):
    """What the labels of a data set are.

    Args:
        kind: `"several"` classes, one class in all samples, no labels, or samples of unclear structure.
        what: Description for messages; empty for several classes.
    """

    kind: Literal["several", "one", "none", "unclear"]
    what: str = ""


def find_labels(
    dataset: Any,
    *,
    sample: SampleSpec | None,
    positions: Tensor | None = None,
    settings: ReadSettings = ReadSettings(),  # noqa: B008 (frozen)
    probes: int = _PROBES,
) -> FoundLabels:
    """Read samples in random order until it is clear whether they have labels.

    A sample has no label if it consists of inputs alone, or its label is -1 or `None`, or it is `None` itself. Samples
    are read until two have the same label and two have different ones: a few, if there are few classes. No more than
    `probes` samples are read if none has a label, or no two have the same, and all if every label is the same class.
    If the data set lists its labels, samples that have one come first.

    Args:
        dataset: Map-style data set of at least one sample.
        sample: Paths of input and label in a sample. Default: detected in the first sample.
        positions: Positions of the samples to consider, int64 `(M,)` ascending. Default: all.
        settings: Settings, of which `collate_fn` counts.
        probes: Largest number of samples to read without a label. Default: 1,000.

    Raises:
        UnreadableSampleError: If a sample cannot be read.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> images = torch.zeros(3, 1, 8, 8)
        >>> find_labels(TensorDataset(images, torch.tensor([0, 1, 1])), sample=None).kind
        'several'
        >>> find_labels(TensorDataset(images), sample=None).what
        'its samples consist of inputs alone'
        >>> find_labels(TensorDataset(images, torch.tensor([-1, -1, -1])), sample=None).what
        'its samples have no labels, or the label -1'
    """
    order = _order(dataset, positions)
    classes: set[int] = set()
    lacks_label = is_repeated = False
    with seeded_rng(0):
        for count, label in enumerate(_labels(dataset, order, sample, positions, settings), start=1):
            if isinstance(label, FoundLabels):
                return label
            lacks_label |= label == UNLABELED
            is_repeated |= label in classes
            classes |= {label} - {UNLABELED}
            if len(classes) + lacks_label > 1 and (is_repeated or lacks_label):
                return FoundLabels("several")
            if count >= probes and not is_repeated:
                break
    if not classes:
        return FoundLabels("none", "its samples have no labels, or the label -1")
    if not is_repeated and len(classes) >= _FEWEST_INDEXED:
        return FoundLabels("unclear", f"no two of {len(classes):,} samples have the same label, as if it were an index")
    if len(classes) > 1:
        return FoundLabels("several")
    return FoundLabels("one", f"all of its {len(order):,} samples have the label {next(iter(classes))}")


def _order(dataset: Any, positions: Tensor | None) -> list[int]:
    """Return positions in random order, those that have a label according to the list of the data set first."""
    count = len(dataset) if positions is None else len(positions)
    order = torch.from_numpy(np.random.default_rng(0).permutation(count))
    order = order if positions is None else positions[order]
    listed = claimed_labels(dataset)
    if listed is not None:
        lacks_label = listed[order] < 0
        order = torch.cat([order[~lacks_label], order[lacks_label]])
    found: list[int] = order.tolist()
    return found


def _labels(
    dataset: Any, order: list[int], sample: SampleSpec | None, positions: Tensor | None, settings: ReadSettings
) -> Iterator[int | FoundLabels]:
    """Yield the labels of samples, or what they are as soon as one sample shows it."""
    source: Source | None = None
    for index in order:
        read = read_sample(dataset, index)
        if read is None:
            yield UNLABELED
            continue
        if source is None:
            if sample is None and _are_inputs_alone(read):
                yield FoundLabels("none", "its samples consist of inputs alone")
            try:
                source = _source_of(dataset, read, index, sample, positions, settings)
            except ValueError as error:
                yield FoundLabels("unclear", f"it is unclear which part is the label: {error}")
                return
        label = _label(read, index, source)
        yield FoundLabels("several") if label is None else label


def _source_of(
    dataset: Any, read: Any, index: int, sample: SampleSpec | None, positions: Tensor | None, settings: ReadSettings
) -> Source:
    """Return a source that reads labels, through `collate_fn` if a sample alone has none."""
    try:
        spec = sample or spec_in(read, dataset, positions)
        spec.labels_in(read)
        return Source(dataset, spec)
    except ValueError as error:
        try:
            return collated_source(dataset, read, index, sample, positions, settings)
        except (ValueError, UnreadableSampleError) as failure:
            if sample is not None:
                return Source(dataset, sample)
            if settings.collate_fn is not None:
                error.args = (f"{error}{why_not_collated(error, failure)}",)
        raise


def _are_inputs_alone(read: Any) -> bool:
    """Whether a sample is one input, or several of one shape, such as two views of an image."""
    leaves = [leaf.value for leaf in leaves_of(read)] or [read]
    if any(isinstance(leaf, Image.Image) for leaf in leaves):
        return all(isinstance(leaf, Image.Image) for leaf in leaves)
    shapes = [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor | np.ndarray)]
    is_one_hot = len(leaves) > 1 and class_index(leaves[-1]) is not None
    return len(shapes) == len(leaves) and len(set(shapes)) == 1 and shapes[0] != () and not is_one_hot


def _label(read: Any, index: int, source: Source) -> int | None:
    """Return the class index of a sample, -1 for no label, or `None` for a label of another form."""
    try:
        label = source.parts([read], [index])[1][0]
    except (ValueError, UnreadableSampleError):
        return UNLABELED  # the part that contains the label is missing
    return UNLABELED if label is None else class_index(label)
