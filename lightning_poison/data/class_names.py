"""Names of the classes that a data set lists."""

from collections.abc import Mapping, Sequence
from typing import Any

from lightning_poison.data.sample_parts import LABEL_NAMES
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.views import as_view

_MOST = 1_000_000
"""Number of names above which an attribute is something else."""


def class_names_of(dataset: Any, *, sample: SampleSpec | None = None) -> tuple[str, ...]:
    """Return the names of the classes of a data set, by their number.

    They are read from `classes`, as the data sets of torchvision have it, or from the `ClassLabel` of the label in a
    data set of Hugging Face, also through `Subset` and `ConcatDataset`. They are not used if the labels may be other
    numbers: with a `target_transform`, or if `sample` names another part than the usual one, or a function.

    Args:
        dataset: Map-style data set.
        sample: Paths of input and label in a sample. Default: detected.

    Returns:
        The names, untrusted, or `()` if there are none.

    Example:
        >>> from torch.utils.data import Subset
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> dataset = TinyImages(6)
        >>> dataset.classes = ["cat", "dog", "frog"]
        >>> class_names_of(Subset(dataset, [0, 3]))
        ('cat', 'dog', 'frog')
        >>> class_names_of(dataset, sample=SampleSpec("0", lambda sample: sample[1] % 2))
        ()
    """
    path = None if sample is None else sample.labels
    if callable(path):
        return ()
    view = as_view(dataset)
    if view is None:
        return _listed(dataset, None if path is None else str(path))
    found = {class_names_of(part, sample=sample) for part in view.parts}
    return found.pop() if len(found) == 1 else ()


def _listed(dataset: Any, path: str | None) -> tuple[str, ...]:
    """Return the names that a data set lists for the part of a sample at a path; `None`: where labels are detected."""
    try:
        if getattr(dataset, "target_transform", None) is not None:
            return ()
        is_usual = path is None or path == "1" or path.lower() in LABEL_NAMES
        names = _names(getattr(dataset, "classes", None)) if is_usual else ()
        return names or _of_features(getattr(dataset, "features", None), path)
    except Exception:  # noqa: BLE001 (attributes of a data set may raise anything, and names can be missing)
        return ()


def _of_features(features: Any, path: str | None) -> tuple[str, ...]:
    """Return the names of the class label among the features of a data set of Hugging Face."""
    if not isinstance(features, Mapping):
        return ()
    if path is None:
        keys = {str(key).lower(): key for key in features}
        path = next((keys[name] for name in LABEL_NAMES if name in keys), None)
    return _names(getattr(features.get(path), "names", None))


def _names(listed: Any) -> tuple[str, ...]:
    """Return a list of texts. Of several names for a class, as in ImageNet, the first is returned."""
    if not isinstance(listed, Sequence) or isinstance(listed, str | bytes) or len(listed) > _MOST:
        return ()
    names = [each[0] if isinstance(each, tuple) and each else each for each in listed]
    return tuple(names) if all(isinstance(each, str) for each in names) else ()
