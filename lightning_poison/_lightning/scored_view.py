"""What is scored in place of a training set: `score_dataset`, reduced to the samples of the training set."""

from contextlib import suppress
from typing import Any

from torch.utils.data import DataLoader, Subset

from lightning_poison.checks import expected
from lightning_poison.data.class_names import class_names_of
from lightning_poison.data.sample_spec import SampleSpec


def scored_view(view: Any, dataset: Any) -> Any:
    """Return what is scored in place of a training set.

    Args:
        view: `score_dataset`: the samples of the training set, or of the data set that it is a `Subset` of, as after
            `random_split`. Of the latter, the same samples are taken. Of a loader, its data set. `None`: the training
            set.
        dataset: The training set.

    Returns:
        A data set of the length of the training set. The view itself if it has another length than both.

    Raises:
        ValueError: If the training set is a `Subset` of all samples in another order, so that the order of a view that
            is no `Subset` is not known.

    Example:
        >>> whole, plain = ["a+", "b+", "c+"], ["a", "b", "c"]
        >>> list(scored_view(plain, Subset(whole, [2, 0])))
        ['c', 'a']
    """
    if view is None:
        return dataset
    if isinstance(view, DataLoader):
        view = view.dataset
    if type(dataset) is Subset and not _same_length(view, dataset):
        whole = scored_view(view, dataset.dataset)
        return Subset(whole, dataset.indices) if _same_length(whole, dataset.dataset) else view
    if type(dataset) is Subset and type(view) is not Subset and _is_reordered(dataset):
        what = f"a `Subset`, since the training set is one of all {len(dataset):,} samples in another order"
        way = "Write `Subset(other, subset.indices)`, or `Subset(other, range(len(other)))` if `other` has that order."
        raise ValueError(expected("score_dataset", what, type(view).__name__, way))
    return view


def known_class_names(view: Any, dataset: Any, sample: SampleSpec | None) -> tuple[str, ...]:
    """Return the names of the classes that a training set lists, or else `score_dataset`; see `class_names_of`."""
    return class_names_of(dataset, sample=sample) or class_names_of(view, sample=sample)


def _is_reordered(subset: Subset[Any]) -> bool:
    """Whether a subset has as many samples as the whole, in another order or some of them repeatedly."""
    return _same_length(subset, subset.dataset) and list(subset.indices) != list(range(len(subset)))


def _same_length(one: Any, other: Any) -> bool:
    with suppress(Exception):  # a data set without a length is named later
        return len(one) == len(other)
    return False
