"""Which of several training loaders have labels: in semi-supervised training, some have none."""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_poison.checks import printable
from lightning_poison.data.label_forms import class_index
from lightning_poison.data.labels import read_sample, spec_of
from lightning_poison.data.map_style_data import drawn_positions
from lightning_poison.data.reading import ReadSettings, run_in_worker
from lightning_poison.data.sample_parts import AmbiguousLabelError, leaves_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.randomness import seeded_rng

_PROBES = 1_000
"""Number of samples without a label after which a data set counts as unlabeled."""


def unlabeled_loaders(
    loaders: Mapping[str, DataLoader[Any]], sample: SampleSpec | None, *, known: Mapping[str, Any]
) -> dict[str, str]:
    """Return which of several training loaders have no labels, by path, and how this shows.

    Samples are read in a worker process if the loader has workers, and only those that its sampler can draw.

    Args:
        loaders: The loaders by path.
        sample: Paths of input and label in a sample. Default: detected for each loader.
        known: Data sets of which it is known, by path of their loader; they are not read again.

    Raises:
        ValueError: If all samples of a loader have the same label, or it is unclear what their label is.
        UnreadableSampleError: If a sample cannot be read.
    """
    unlabeled: dict[str, str] = {}
    for path, loader in loaders.items():
        if known.get(path) is loader.dataset or not len(loader.dataset):  # type: ignore[arg-type]
            continue
        drawn = drawn_positions(loader)
        find = partial(find_labels, sample=sample, positions=None if drawn is None else drawn.tolist())
        found = run_in_worker(find, loader.dataset, ReadSettings.of(loader))
        if found.kind == "none":
            unlabeled[path] = found.what
        elif found.kind != "several":
            others = [_key(each) for each in loaders if each != path and each not in unlabeled]
            raise ValueError(
                f"Expected the training loader {printable(path)} to have labels of several classes, or none, but "
                f"{found.what}.\nIf it is not to be judged, name the loaders that are: `loaders={others}`."
            )
    return unlabeled


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


def find_labels(dataset: Any, *, sample: SampleSpec | None, positions: Sequence[int] | None = None) -> FoundLabels:
    """Read samples in random order until it is clear whether they have labels.

    A sample has no label if it consists of inputs alone, or its label is -1 or `None`. Usually two or three samples
    are read, but no more than 1,000 without a label, and all if every label is the same class.

    Args:
        dataset: Map-style data set of at least one sample.
        sample: Paths of input and label in a sample. Default: detected in the first sample.
        positions: Samples to consider. Default: all.

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
    order = np.random.default_rng(0).permutation(len(dataset) if positions is None else len(positions)).tolist()
    order = order if positions is None else [positions[each] for each in order]
    seen: set[int] = set()
    with seeded_rng(0):
        for count, index in enumerate(order, start=1):
            read = read_sample(dataset, index)
            if sample is None:
                if _are_inputs_alone(read):
                    return FoundLabels("none", "its samples consist of inputs alone")
                try:
                    sample = _detected(dataset, read)
                except ValueError as error:
                    return FoundLabels("unclear", f"it is unclear which part is the label: {error}")
            label = _label(read, sample)
            if label is not None:
                seen.add(label)
            if label is None or len(seen) > 1:
                return FoundLabels("several")
            if seen == {-1} and count == _PROBES:
                break
    if seen == {-1}:
        return FoundLabels("none", "its samples have no labels, or the label -1")
    return FoundLabels("one", f"all of its {len(order):,} samples have the label {next(iter(seen), None)}")


def _detected(dataset: Any, read: Any) -> SampleSpec:
    """Return the paths in one sample, or those that other samples make unambiguous."""
    try:
        return SampleSpec.detect(read)
    except AmbiguousLabelError:
        return spec_of(dataset)


def _are_inputs_alone(read: Any) -> bool:
    """Whether a sample is one input, or several of one shape, such as two views of an image."""
    leaves = [leaf.value for leaf in leaves_of(read)] or [read]
    if any(isinstance(leaf, Image.Image) for leaf in leaves):
        return all(isinstance(leaf, Image.Image) for leaf in leaves)
    shapes = [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor | np.ndarray)]
    is_one_hot = len(leaves) > 1 and class_index(leaves[-1]) is not None
    return len(shapes) == len(leaves) and len(set(shapes)) == 1 and shapes[0] != () and not is_one_hot


def _label(read: Any, sample: SampleSpec) -> int | None:
    """Return the class index of a sample, -1 for no label, or `None` for a label of another form."""
    try:
        label = sample.labels_in(read)
    except ValueError:
        return -1  # the part that contains the label is missing
    return -1 if label is None else class_index(label)
