"""A guarded call of a scorer's method: it runs on copies, its errors name the method, and its result is checked."""

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from lightning_poison.checks import describe, expected, printable, type_name
from lightning_poison.data.blocks import MemoryDataset, SelectedDataset
from lightning_poison.entry_points import call_plugin
from lightning_poison.errors import PluginError
from lightning_poison.randomness import seeded_rng
from lightning_poison.scorers.inspection import is_own, settings_in
from lightning_poison.scorers.protocol import Scorer, SetScorer
from lightning_poison.statistics.row_blocks import all_finite
from lightning_poison.statistics.subgroups import Subgroup

ResultT = TypeVar("ResultT")


@dataclasses.dataclass(frozen=True)
class ScorerCall:
    """A call of a method of a scorer or feature source.

    Args:
        scorer: Scorer or feature source.
        method: Name of the method, for messages.
        indices: Positions of the samples in their data set, int64 `(B,)`, for messages. Default: those in the batch.

    Example:
        >>> from lightning_poison.scorers.pixel_counting import PixelCountingScorer
        >>> call = ScorerCall(PixelCountingScorer(), "score_batch")
        >>> call.vector(torch.tensor([1, 2]), torch.zeros(2, 1, 4, 4))
        tensor([1., 2.], dtype=torch.float64)
    """

    scorer: Any
    method: str
    indices: Tensor | None = None

    @property
    def what(self) -> str:
        """The method for messages. The scorer's name may be a property of another package."""
        kind = "scorer" if isinstance(self.scorer, Scorer | SetScorer) else "feature model"
        fallback = type_name(self.scorer)
        name = call_plugin(lambda: printable(getattr(self.scorer, "name", fallback)), f"`name` of {fallback}")
        return f"`{self.method}` of the {kind} `{name}`"

    def run(self, call: Callable[[], ResultT], seed: int = 0) -> ResultT:
        """Run a call; for a scorer of another package guarded, and with seeded global random states."""
        if is_own(self.scorer):
            return call()

        def seeded() -> ResultT:
            with seeded_rng(seed):
                return call()

        return call_plugin(seeded, self.what)

    def violation(self, rule: str, value: Any, hint: str = "") -> PluginError:
        """Return the error for a result that violates a rule."""
        came = value if type(value) is str else call_plugin(lambda: _describe(value), self.what)
        return PluginError(f"Expected {self.what} to {rule}, but got {printable(came)}." + (hint and f"\n{hint}"))

    def vector(self, result: Any, inputs: Tensor) -> Tensor:
        """Return a result as float64 `(B,)`."""
        scores, count = self._tensor(result, inputs.device, torch.float64), len(inputs)
        if scores.shape != (count,):
            hint = "Flatten it: `scores[:, 0]`." if scores.shape == (count, 1) else ""
            raise self.violation(f"return numbers of shape ({count},), one for each of {count} samples", result, hint)
        return self._finite(scores)

    def matrix(self, result: Any, inputs: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return a result as floating point `(B, C)`."""
        values, count = self._tensor(result, inputs.device, dtype), len(inputs)
        if values.ndim != 2 or len(values) != count or not values.shape[1]:
            raise self.violation(f"return a matrix with one row for each of {count} samples, ({count}, …)", result)
        return self._finite(values)

    def label_scores(
        self, result: Any, inputs: Tensor, num_classes: int | None, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """Return a result as `(B, C)` that covers the classes."""
        scores = self.matrix(result, inputs, dtype)
        if num_classes is not None and scores.shape[1] < num_classes:
            known = f"labels below {scores.shape[1]}, the number of classes of the scorer"
            way = f"Fit it on all {num_classes} classes, and return a column for each."
            hint = f"{self.what} has {scores.shape[1]} columns. {way}"
            raise ValueError(expected("dataset", known, num_classes - 1, hint))
        return scores

    def flag(self, result: Any) -> bool:
        """Return a result as a bool."""
        if isinstance(result, Tensor) and result.dtype == torch.bool and result.ndim == 0:
            return bool(result)
        if type(result) not in (bool, np.bool_):
            raise self.violation("return True or False", result)
        return bool(result)

    def _tensor(self, result: Any, device: torch.device, dtype: torch.dtype | None) -> Tensor:
        """Return a result as a tensor of floating-point numbers; NumPy arrays and integers are converted."""
        if is_own(self.scorer):
            return self._converted(result, device, dtype)
        return call_plugin(lambda: self._converted(result, device, dtype).as_subclass(Tensor).clone(), self.what)

    def _converted(self, result: Any, device: torch.device, dtype: torch.dtype | None) -> Tensor:
        tensor = result
        if isinstance(result, np.ndarray) and result.dtype.kind in "fiu":
            tensor = torch.from_numpy(np.array(result, dtype=result.dtype.newbyteorder("=")))
        if not isinstance(tensor, Tensor):
            raise self.violation("return a tensor", result, "Return a float32 tensor.")
        is_plain = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
        if not is_plain or tensor.dtype == torch.bool or tensor.is_complex():
            came = result if is_plain else f"{describe(tensor)} ({tensor.device}, {tensor.layout})"
            raise self.violation("return a tensor of real numbers", came, "Return a float32 tensor.")
        return tensor.detach().to(device, dtype or (tensor.dtype if tensor.is_floating_point() else torch.float32))

    def _finite(self, values: Tensor) -> Tensor:
        if not all_finite(values):
            finite = torch.isfinite(values)
            place = int((~finite.reshape(len(values), -1)).any(1).nonzero()[0])
            index = place if self.indices is None else int(self.indices[place])
            raise ValueError(
                f"Expected {self.what} to return finite numbers, but got NaN or infinite values at sample {index}.\n"
                "The scorer does not fit this data. Check its features."
            )
        return values


class _CopiedMemory(MemoryDataset):
    """A `MemoryDataset` whose samples are copies, so that a reader cannot change them."""

    def __init__(self, original: MemoryDataset) -> None:
        super().__init__(original.stored, original.targets.clone(), original.rows)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return _copy(super().__getitem__(index))  # type: ignore[no-any-return]


class _CopiedSamples(SelectedDataset):
    """A `SelectedDataset` whose samples are copies."""

    def __init__(self, original: SelectedDataset) -> None:
        super().__init__(original.source, original.indices, original.targets.clone(), original.carried)

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        return _copy(super().__getitem__(index))  # type: ignore[no-any-return]


class _CopiedItems(Subset[Any]):
    """Any other data set whose samples are copies."""

    def __getitem__(self, index: Any) -> Any:
        return _copy(self.dataset[self.indices[index]])

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices]


def check_declarations(scorer: Any) -> None:
    """Raise if a scorer of another package cannot say what it is: its name, its settings, whether it is fitted.

    Raises:
        PluginError: If a property or `settings` raises, or `settings` returns no dict.

    Example:
        >>> class Silent(Scorer):
        ...     name, fitted_tensors, __module__ = "silent", (), "mine"
        ...     def fit(self, trusted, *, runtime=None, generator=None):
        ...         return self
        ...     def score_batch(self, inputs, labels):
        ...         return labels.double()
        ...     def settings(self):
        ...         return None
        >>> check_declarations(Silent())
        Traceback (most recent call last):
        lightning_poison.errors.PluginError: Expected `settings` of the scorer `silent` to return a dict of JSON
        values, but got None.
    """
    if is_own(scorer):
        return
    for flag in ("is_fitted", "is_control", "scores_labels", "finds_groups"):
        ScorerCall(scorer, flag).run(lambda flag=flag: bool(getattr(scorer, flag, False)))  # type: ignore[misc]
    settings_in(scorer)
    source = ScorerCall(scorer, "feature_model").run(lambda: scorer.feature_model)
    if source is not None and not is_own(source):
        settings_in(source)


def with_copied_samples(dataset: Any) -> Any:
    """Return a data set that reads copies of the samples.

    Example:
        >>> rows = [(torch.zeros(2), 0)]
        >>> _ = with_copied_samples(rows)[0][0].add_(1)
        >>> rows
        [(tensor([0., 0.]), 0)]
    """
    if type(dataset) is MemoryDataset:
        return _CopiedMemory(dataset)
    if type(dataset) is SelectedDataset:
        return _CopiedSamples(dataset)
    return _CopiedItems(dataset, range(len(dataset)))


def _copy(value: Any) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        return value.clone() if isinstance(value, Tensor) else value.copy()
    if type(value) is dict:
        return {name: _copy(each) for name, each in value.items()}
    return type(value)(map(_copy, value)) if type(value) in (list, tuple) else value


def copies_for(scorer: object, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Return copies of tensors for a scorer of another package, and the tensors themselves for one of this package."""
    return tensors if is_own(scorer) else tuple(tensor.clone() for tensor in tensors)


def copied_group(group: Subgroup) -> Subgroup:
    """Return a group with tensors of its own."""
    return dataclasses.replace(group, positions=group.positions.clone(), log_odds=group.log_odds.clone())


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"a {value.dtype} array of shape {value.shape}"
    return f"a {type_name(value)} of length {len(value)}" if type(value) in (list, tuple) else describe(value)


def group_fault(group: Subgroup, labels: Tensor) -> str | None:
    """Return what is wrong with a group in a set with these labels, or `None`."""
    places, odds = group.positions, group.log_odds
    if not isinstance(places, Tensor) or places.dtype != torch.int64 or places.ndim != 1 or not len(places):
        return f"`positions` of {describe(places)}"
    if not isinstance(odds, Tensor) or not odds.is_floating_point() or odds.shape != places.shape:
        return f"`log_odds` of {describe(odds)} for {len(places)} positions"
    if int(places.min()) < 0 or int(places.max()) >= len(labels) or len(set(places.tolist())) < len(places):
        return f"positions that repeat or are outside of the {len(labels)} samples"
    if not (labels[places.to(labels.device)] == group.label).all():
        return "samples of several classes"
    separation = group.separation
    is_number = isinstance(separation, int | float) and separation == separation
    return None if is_number and not torch.isnan(odds).any() else "log-odds or a separation of NaN"
