"""`Copies`: which samples of a data set are copies of each other, or belong to one group."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from lightning_poison.checks import describe, describe_error, expected
from lightning_poison.errors import is_signal

Groups = Sequence[int | str | None] | Callable[[int], Any]
"""Group of each sample, or a function that maps the index of a sample to it. `None` is a group of its own."""


def check_groups(groups: Any) -> None:
    """Raise if groups are neither a sequence nor a function.

    Raises:
        TypeError: If they are neither.

    Example:
        >>> check_groups(["a", "b"])
        >>> check_groups("patient")
        Traceback (most recent call last):
        TypeError: Expected `groups` to be a list or a function, but got 'patient'.
        Write `groups=[...]` with the group of each sample, or a function that maps the index of a sample to it.
    """
    is_list = isinstance(groups, Sequence) and not isinstance(groups, str | bytes)
    is_array = isinstance(groups, Tensor | np.ndarray) and groups.ndim == 1
    if groups is not None and not callable(groups) and not is_list and not is_array:
        hint = (
            "Write `groups=[...]` with the group of each sample, or a function that maps the index of a sample to it."
        )
        raise TypeError(expected("groups", "a list or a function", describe(groups), hint))


@dataclass(frozen=True, eq=False)
class Copies:
    """Samples that are judged as one, and samples that must not be in different folds.

    Args:
        first: Position of the first sample with the same input and the same label, int64 `(N,)`.
        group: Position of the first sample of the same group, int64 `(N,)`. Copies are in one group, whatever their
            labels.

    Example:
        >>> copies = Copies(torch.tensor([0, 0, 2]), torch.tensor([0, 0, 0]))
        >>> copies.distinct, copies.select(torch.tensor([1, 2])).group
        (tensor([0, 2]), tensor([0, 0]))
    """

    first: Tensor
    group: Tensor

    @classmethod
    def none(cls, length: int) -> Self:
        """Return the copies of N samples that are all different."""
        return cls(torch.arange(length), torch.arange(length))

    @property
    def distinct(self) -> Tensor:
        """Positions of the first sample of each set of copies, int64, ascending."""
        return (self.first == torch.arange(len(self.first))).nonzero().flatten()

    @property
    def place_in_distinct(self) -> Tensor:
        """Position in `distinct` of the sample that each sample is a copy of, int64 `(N,)`."""
        return torch.searchsorted(self.distinct, self.first)

    @property
    def has_groups(self) -> bool:
        """Whether there is a group of several samples."""
        return not torch.equal(self.group, torch.arange(len(self.group)))

    def select(self, places: Tensor) -> "Copies":
        """Return the copies among the samples at `places`, int64 `(M,)`."""
        return Copies(first_places(self.first[places]), first_places(self.group[places]))


def first_places(values: Tensor) -> Tensor:
    """Return the position of the first element of the same value, int64 `(N,)`.

    Args:
        values: `(N,)` or `(N, K)`, without NaN; rows are compared as a whole.

    Example:
        >>> first_places(torch.tensor([7, 3, 7, 3, 5]))
        tensor([0, 1, 0, 1, 4])
    """
    if not len(values):
        return torch.zeros(0, dtype=torch.int64, device=values.device)
    inverse: Tensor | None = None
    for column in values.reshape(len(values), -1).unbind(1):  # `torch.unique(values, dim=0)` makes a tensor of each row
        number = torch.unique(column, return_inverse=True)[1]
        if inverse is not None:
            number = torch.unique(inverse * (number.max() + 1) + number, return_inverse=True)[1]
        inverse = number
    assert inverse is not None  # noqa: S101 (there is a column)
    places = torch.arange(len(values), device=values.device)
    first = torch.full_like(places, len(values)).scatter_reduce(0, inverse, places, "amin")
    return first[inverse]


def connected(group: Tensor, pairs: Tensor) -> Tensor:
    """Merge groups that are connected by pairs of samples.

    Args:
        group: Position of the first sample of each sample's group, int64 `(N,)`.
        pairs: Positions of two samples that belong together, int64 `(P, 2)`.

    Returns:
        Position of the first sample of each sample's merged group, int64 `(N,)`.

    Example:
        >>> connected(torch.tensor([0, 1, 1, 3]), torch.tensor([[2, 3]]))
        tensor([0, 1, 1, 1])
    """
    merged = group
    while True:
        lowest = merged[pairs].amin(1) if len(pairs) else merged[:0]
        roots = merged.clone()
        for side in (0, 1):
            roots = roots.scatter_reduce(0, merged[pairs[:, side]], lowest, "amin")
        updated = roots[merged]
        if torch.equal(updated, merged):
            return first_places(merged)
        merged = updated


def group_numbers(groups: Groups | None, length: int) -> Tensor | None:
    """Return the position of the first sample of each sample's group, int64 `(N,)`; `None` without groups.

    Args:
        groups: Group of each sample: integers or texts, or a function of the index of a sample. `None` stands for a
            group of its own.
        length: Number of samples N.

    Raises:
        TypeError: If a group is of another type.
        ValueError: If there is not one group for each sample, or the function raises an error.

    Example:
        >>> group_numbers(["anna", None, "anna", None], 4)
        tensor([0, 1, 0, 3])
        >>> group_numbers(lambda index: index // 2, 4)
        tensor([0, 0, 2, 2])
    """
    if groups is None:
        return None
    if callable(groups):
        given = [_group_of(groups, index) for index in range(length)]
    else:
        given = groups.tolist() if hasattr(groups, "tolist") else list(groups)
    if len(given) != length:
        hint = "`groups[i]` is the group of sample i of the whole training set."
        raise ValueError(expected("groups", f"one group for each of {length:,} samples", f"{len(given):,}", hint))
    first: dict[Any, int] = {}
    for index, group in enumerate(given):
        if isinstance(group, np.generic | Tensor) and group.ndim == 0:
            group = group.item()
        if group is not None and not isinstance(group, int | str):
            hint = "Use the number or name of the patient, video or original, or None for a sample on its own."
            raise TypeError(expected(f"groups[{index}]", "an integer, a text or None", describe(group), hint))
        given[index] = index if group is None else first.setdefault(group, index)
    return torch.tensor(given, dtype=torch.int64)


def _group_of(groups: Callable[[int], Any], index: int) -> Any:
    try:
        return groups(index)
    except (Exception, SystemExit) as error:
        if is_signal(error):
            raise
        raise ValueError(
            f"Expected `groups` to return the group of sample {index}, but it raised {describe_error(error)}.\n"
            "Write a function that maps the index of any sample of the training set to an integer, a text or None."
        ) from error
