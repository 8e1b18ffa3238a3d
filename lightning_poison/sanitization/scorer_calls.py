"""Calls of scorers: what they return is checked in one place, and those of other packages are guarded.

A scorer of another package gets copies of inputs and labels, the global random states are seeded, and what it changes
of the process is undone. An error that it raises names the scorer and the method: a `ValueError` and the errors of
`lightning_poison.errors` keep their type, anything else becomes a `PluginError`. A result of the wrong type, dtype or
shape is a `PluginError`; a result that is not finite is a `ValueError`, since it depends on the data.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_poison.runtime import Runtime
from lightning_poison.sanitization.scorer_guard import (
    ScorerCall,
    copied_group,
    copies_for,
    group_fault,
    with_copied_samples,
)
from lightning_poison.scorers.inspection import is_own
from lightning_poison.scorers.protocol import FeatureSource, Scorer, SetScorer
from lightning_poison.statistics.subgroups import Subgroup

FittedT = TypeVar("FittedT", bound="Scorer | FeatureSource")
CopiedT = TypeVar("CopiedT", bound="Scorer | SetScorer | FeatureSource")


def call_deepcopy(scorer: CopiedT) -> CopiedT:
    """Return a deep copy of a scorer or feature source.

    Raises:
        PluginError: If it cannot be copied, such as with an open file or a lock in an attribute.
    """
    return ScorerCall(scorer, "__deepcopy__").run(lambda: copy.deepcopy(scorer))


def call_fit(
    scorer: FittedT, dataset: Any, *, runtime: Runtime | None = None, generator: torch.Generator | None = None
) -> FittedT:
    """Fit a scorer or a feature source in place, and return it.

    Args:
        scorer: Scorer or feature source.
        dataset: Map-style data set to fit on. A scorer of another package reads copies of its samples.
        runtime: See `Scorer.fit`.
        generator: See `Scorer.fit`. For a scorer of another package, its seed also seeds the global random states.

    Raises:
        PluginError: If `fit` does not return the scorer, or it is not fitted afterwards.

    Example:
        >>> class Forgetful(Scorer):
        ...     name, fitted_tensors = "forgetful", ("mean",)
        ...     def fit(self, trusted, *, runtime=None, generator=None):
        ...         self.mean = torch.zeros(2)
        ...     def score_batch(self, inputs, labels):
        ...         return (inputs - self.mean).norm(dim=1)
        >>> call_fit(Forgetful(), [(torch.zeros(2), 0)])
        Traceback (most recent call last):
        lightning_poison.errors.PluginError: Expected `fit` of the scorer `forgetful` to return the scorer itself, but
        got None.
        End the method with `return self`.
    """
    call = ScorerCall(scorer, "fit")
    data = dataset if is_own(scorer) else with_copied_samples(dataset)
    seed = generator.initial_seed() if generator is not None else 0
    returned = call.run(lambda: scorer.fit(data, runtime=runtime, generator=generator), seed)
    if returned is not scorer:
        raise call.violation("return the scorer itself", returned, "End the method with `return self`.")
    if not call.run(lambda: bool(scorer.is_fitted)):
        names = ", ".join(f"`{name}`" for name in getattr(scorer, "fitted_tensors", ()))
        hint = f"Set the tensors that `fitted_tensors` names: {names}." if names else "Correct `is_fitted`."
        raise call.violation("leave the scorer fitted", "is_fitted = False", hint)
    return scorer


def call_training_margins(scorer: Scorer | FeatureSource, length: int) -> Tensor | None:
    """Return the training margins of a fit, float64 `(N,)` on the CPU, or `None` if none are recorded.

    Args:
        scorer: Scorer or feature source after a fit.
        length: N, the number of samples that it was fitted on.

    Raises:
        PluginError: If they are neither `None` nor finite numbers `(N,)`.
    """
    call = ScorerCall(scorer, "training_margins")
    margins = call.run(lambda: getattr(scorer, "training_margins", None))
    if margins is None:
        return None
    if not isinstance(margins, Tensor) or margins.shape != (length,) or not bool(margins.isfinite().all()):
        raise call.violation(f"be finite numbers of shape ({length},), one for each sample of the fit", margins)
    return margins.detach().double().cpu()


def call_rehearse(
    scorer: Scorer | FeatureSource, dataset: Any, *, steps: int, runtime: Runtime | None = None
) -> int | None:
    """Run the first steps of a fit; return the number of steps of a whole fit, or `None` if it is unknown.

    Example:
        >>> from lightning_poison.scorers.pixel_counting import PixelCountingScorer
        >>> call_rehearse(PixelCountingScorer(), [], steps=1) is None
        True
    """
    call = ScorerCall(scorer, "rehearse")
    data = dataset if is_own(scorer) else with_copied_samples(dataset)
    count = call.run(lambda: scorer.rehearse(data, steps=steps, runtime=runtime))
    if count is not None and (type(count) is not int or count < 0):
        raise call.violation("return a number of steps or None", count)
    return count


def call_score_batch(scorer: Scorer, inputs: Tensor, labels: Tensor, *, indices: Tensor | None = None) -> Tensor:
    """Score samples under the labels that they carry.

    Args:
        scorer: Fitted scorer.
        inputs: Float `(B, ...)`.
        labels: int64 `(B,)`.
        indices: Positions of the samples in their data set, int64 `(B,)`, for messages. Default: those in the batch.

    Returns:
        float64 `(B,)`, on the device of `inputs`, without gradients.

    Raises:
        PluginError: If the result has another type, dtype or shape.
        ValueError: If a score is not finite.

    Example:
        >>> from lightning_poison.scorers.pixel_counting import PixelCountingScorer
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> images = TinyImages(12)
        >>> inputs, labels = torch.stack([image for image, _ in images]), images.targets
        >>> call_score_batch(PixelCountingScorer().fit(images), inputs, labels).shape
        torch.Size([12])
    """
    call, given = ScorerCall(scorer, "score_batch", indices), copies_for(scorer, inputs, labels)
    return call.vector(call.run(lambda: scorer.score_batch(*given)), inputs)


def call_score_labels(
    scorer: Scorer, inputs: Tensor, num_classes: int | None = None, *, indices: Tensor | None = None
) -> Tensor:
    """Score samples under each label.

    Args:
        scorer: Fitted scorer with `scores_labels`.
        inputs: Float `(B, ...)`.
        num_classes: Number of classes that the result must cover. Default: any number.
        indices: As for `call_score_batch`.

    Returns:
        float64 `(B, C)`, with C of at least `num_classes`, on the device of `inputs`, without gradients.

    Raises:
        PluginError: If the result has another type, dtype or shape.
        ValueError: If a score is not finite, or the scorer was fitted on fewer classes.
    """
    call, given = ScorerCall(scorer, "score_labels", indices), copies_for(scorer, inputs)
    return call.label_scores(call.run(lambda: scorer.score_labels(*given)), inputs, num_classes)


def call_features(source: FeatureSource, inputs: Tensor, *, indices: Tensor | None = None) -> Tensor:
    """Return the features of samples, floating point `(B, D)`; other arguments and errors as for `call_score_batch`."""
    call, given = ScorerCall(source, "features", indices), copies_for(source, inputs)
    return call.matrix(call.run(lambda: source.features(*given)), inputs)


def call_logits(
    source: FeatureSource, inputs: Tensor, *, shift: Tensor | None = None, indices: Tensor | None = None
) -> Tensor:
    """Return logits of samples, floating point `(B, C)`; other arguments and errors as for `call_score_batch`."""
    call, given = ScorerCall(source, "logits", indices), copies_for(source, inputs)
    return call.matrix(call.run(lambda: source.logits(*given, shift=shift)), inputs)


def call_check_set(scorer: SetScorer, labels: Tensor) -> None:
    """Raise if a set with these labels, int64 `(N,)`, cannot be scored; see `SetScorer.check_set`."""
    given = copies_for(scorer, labels)
    ScorerCall(scorer, "check_set").run(lambda: scorer.check_set(*given))


def call_score_features(scorer: SetScorer, features: Tensor, labels: Tensor) -> Tensor:
    """Score a set of samples by their features.

    Args:
        scorer: Set scorer.
        features: float32 `(N, D)`.
        labels: int64 `(N,)`, on any device.

    Returns:
        float64 `(N,)`, on the device of `features`, without gradients.

    Raises:
        PluginError: If the result has another type, dtype or shape.
        ValueError: If a score is not finite.

    Example:
        >>> class Norm(SetScorer):
        ...     name = "norm"
        ...     def score_features(self, features, labels):
        ...         return features.norm(dim=1)[:, None]
        >>> call_score_features(Norm(), torch.eye(2), torch.zeros(2).long())
        Traceback (most recent call last):
        lightning_poison.errors.PluginError: Expected `score_features` of the scorer `norm` to return numbers of shape
        (2,), one for each of 2 samples, but got a float32 tensor of shape (2, 1).
        Flatten it: `scores[:, 0]`.
    """
    call, given = ScorerCall(scorer, "score_features"), copies_for(scorer, features, labels.to(features.device))
    return call.vector(call.run(lambda: scorer.score_features(*given)), features)


def call_score_feature_labels(
    scorer: SetScorer,
    features: Tensor,
    labels: Tensor,
    num_classes: int | None = None,
    *,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Score a set of samples under each label, `(N, C)` of `dtype`; see `call_score_labels` for the rest."""
    call, given = ScorerCall(scorer, "score_feature_labels"), copies_for(scorer, features, labels.to(features.device))
    return call.label_scores(call.run(lambda: scorer.score_feature_labels(*given)), features, num_classes, dtype)


def call_find_groups(scorer: SetScorer, features: Tensor, labels: Tensor) -> list[Subgroup]:
    """Return the groups that a scorer finds in a set.

    Args:
        scorer: Set scorer with `finds_groups`.
        features: float32 `(N, D)`.
        labels: int64 `(N,)`.

    Raises:
        PluginError: If the result is not a sequence of groups, or a group has samples of another class or positions
            outside of the set.
    """
    call, given = ScorerCall(scorer, "find_groups"), copies_for(scorer, features, labels)
    groups = call.run(lambda: scorer.find_groups(*given))
    if not isinstance(groups, Sequence) or not all(isinstance(group, Subgroup) for group in groups):
        raise call.violation("return a sequence of `Subgroup`", groups)
    for number, group in enumerate(groups):
        if (fault := group_fault(group, labels)) is not None:
            raise call.violation("return groups of samples of one class", f"{fault} in group {number}")
    return [group if is_own(scorer) else copied_group(group) for group in groups]


def call_stands_apart(scorer: SetScorer, group: Subgroup) -> bool:
    """Return whether there is a gap between a group and the rest of its class; see `SetScorer.stands_apart`."""
    call, given = ScorerCall(scorer, "stands_apart"), group if is_own(scorer) else copied_group(group)
    return call.flag(call.run(lambda: scorer.stands_apart(given)))


def call_is_poison(scorer: SetScorer, *, transfer: float, resemblance: float) -> bool:
    """Return whether the effects of a separated group make it poison; see `SetScorer.is_poison`."""
    call = ScorerCall(scorer, "is_poison")
    return call.flag(call.run(lambda: scorer.is_poison(transfer=transfer, resemblance=resemblance)))


def call_state(scorer: Scorer | FeatureSource) -> dict[str, Tensor]:
    """Return the state of a fitted scorer or feature source: tensors by name.

    Raises:
        PluginError: If it is not a mapping of strings to tensors.

    Example:
        >>> from lightning_poison.scorers.pixel_counting import PixelCountingScorer
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> sorted(call_state(PixelCountingScorer().fit(TinyImages(12)))) != []
        True
    """
    call = ScorerCall(scorer, "state")
    state = call.run(lambda: dict(scorer.state()))
    if not all(type(name) is str and isinstance(value, Tensor) for name, value in state.items()):
        raise call.violation("return tensors by name", state)
    return state if is_own(scorer) else {name: value.detach().clone() for name, value in state.items()}


def call_load(scorer: FittedT, state: Mapping[str, Tensor]) -> FittedT:
    """Load a state into a scorer or feature source in place, and return it."""
    call = ScorerCall(scorer, "load")
    call.run(lambda: scorer.load(state))
    if not call.run(lambda: bool(scorer.is_fitted)):
        raise call.violation("leave the scorer fitted", "is_fitted = False")
    return scorer
