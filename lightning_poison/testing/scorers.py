"""Conformance suite for scorers, to be called in the tests of a plug-in."""

import copy
import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.attacks.snapshot import first_change, snapshot_dataset
from lightning_poison.checks import describe, printable
from lightning_poison.data.labels import labels_of, read_sample
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.errors import NotFittedError, PluginError
from lightning_poison.randomness import seeded_rng
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.inspection import AnyScorer
from lightning_poison.scorers.protocol import Scorer, SetScorer
from lightning_poison.testing.tiny_images import TinyImages

MIN_AUROC = 0.8
"""Minimum area under the ROC curve on wrong labels, if `separates` is set."""


def check_scorer(
    scorer: AnyScorer | Callable[[], AnyScorer],
    trusted: "Dataset[Any] | None" = None,
    *,
    seed: int = 0,
    separates: bool = False,
) -> None:
    """Check that a scorer complies with the contract.

    Checks of a `Scorer`:

    - A copy of an unfitted scorer is unfitted and raises `NotFittedError`.
    - `fit` returns the scorer, and changes neither the data nor the global random states.
    - The same generator gives the same scores.
    - Scores are float32, finite, one per sample, and the same in any batch.
    - `score_labels`, if declared, agrees with `score_batch`.
    - A copy that loads the state gives the same scores.
    - The settings are JSON values.

    Checks of a `SetScorer`:

    - Scores are float32, finite, one per sample, and the same in a second call.
    - Features and labels do not change.
    - `score_feature_labels`, if declared, agrees with `score_features`.
    - The settings are JSON values.

    Of a combination, each member is checked.

    Args:
        scorer: Scorer, or a factory that builds one with its default settings. It does not change: copies are fitted.
        trusted: Samples to fit on. Default: small images.
        seed: Seed of the generator. Default: 0.
        separates: Whether to check that a `Scorer` scores wrong labels higher, at an area under the ROC curve of at
            least .8. Default: `False`.

    Raises:
        PluginError: If a rule is violated. The message names the scorer, the rule and the value.

    Example:
        >>> class Brightness(SetScorer):
        ...     name = "brightness"
        ...     def score_features(self, features, labels):
        ...         return features.sum(1)
        >>> check_scorer(Brightness)
    """
    built: Any = scorer if isinstance(scorer, AnyScorer) else scorer()
    if isinstance(built, CombinedScorer):
        for member in built.members.values():
            check_scorer(member, trusted, seed=seed, separates=separates)
        return
    _check_identity(built)
    _check_settings(built)
    data = trusted if trusted is not None else TinyImages()
    inputs, labels = _batch(data)
    if isinstance(built, SetScorer):
        _check_set_scores(built, inputs.flatten(1), labels)
        return
    fitted = _check_fit(built, data, inputs, labels, seed)
    _check_scores(fitted, inputs, labels)
    _check_state(built, fitted, inputs, labels)
    if separates:
        _check_separates(fitted, inputs, labels)


def _check_identity(scorer: Any) -> None:
    if not isinstance(scorer, AnyScorer):
        raise _violation(scorer, "be derived from `Scorer` or `SetScorer`", describe(scorer))
    for attribute, kind, words in (("name", str, "a string"), ("is_control", bool, "True or False")):
        if not isinstance(value := getattr(scorer, attribute, None), kind):
            raise _violation(scorer, f"have a `{attribute}` that is {words}", describe(value))


def _check_settings(scorer: Scorer | SetScorer) -> None:
    try:
        json.dumps(dict(scorer.settings()), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _violation(scorer, "have settings of JSON values", error) from error


def _batch(data: Any) -> tuple[Tensor, Tensor]:
    count = min(len(data), 60)
    spec = SampleSpec.detect(read_sample(data, 0))
    inputs = torch.stack([torch.as_tensor(spec.inputs_in(read_sample(data, index))) for index in range(count)])
    return inputs.float(), labels_of(data)[:count]


def _check_fit(scorer: Scorer, data: Any, inputs: Tensor, labels: Tensor, seed: int) -> Scorer:
    """Fit two copies under different global random states, and return the first."""
    before = snapshot_dataset(data)
    fitted = []
    for turn in (0, 1):
        with seeded_rng(seed, turn):
            fitted.append(_fit_copy(scorer, data, inputs, labels, torch.Generator().manual_seed(seed)))
    if (changed := first_change(before, snapshot_dataset(data))) is not None:
        raise _violation(scorer, "leave the data unchanged", f"a change of {changed}")
    first, second = (each.score_batch(inputs, labels) for each in fitted)
    if not torch.equal(first, second):
        came = f"scores that differ by up to {float((first - second).abs().max()):.3g}"
        hint = "Pass `generator=` wherever random numbers are drawn."
        raise _violation(scorer, "give the same scores after fits with the same generator", came, hint)
    return fitted[0]


def _fit_copy(scorer: Scorer, data: Any, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Scorer:
    one = copy.deepcopy(scorer)
    if not one.is_fitted:
        try:
            one.score_batch(inputs, labels)
        except NotFittedError:
            pass
        else:
            hint = "Call `self.check_fitted()` first."
            raise _violation(scorer, "raise NotFittedError before a fit", "scores", hint)
    state = _global_state()
    if one.fit(data, generator=generator) is not one:
        raise _violation(scorer, "return itself from `fit`", "another object")
    if _global_state() != state:
        hint = "Pass `generator=` wherever random numbers are drawn, also to data loaders."
        raise _violation(scorer, "leave the global random states unchanged", "a change by `fit`", hint)
    if not one.is_fitted:
        raise _violation(scorer, "be fitted after `fit`", "is_fitted = False")
    return one


def _global_state() -> tuple[object, ...]:
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002 (compared, never drawn from)
    return random.getstate(), repr(numpy), torch.get_rng_state().numpy().tobytes()


def _check_scores(scorer: Scorer, inputs: Tensor, labels: Tensor) -> None:
    scores = scorer.score_batch(inputs, labels)
    _check_vector(scorer, scores, len(labels))
    if not torch.equal(scores, scorer.score_batch(inputs, labels)):
        hint = "Put networks into evaluation mode."
        raise _violation(scorer, "give the same scores for the same batch", "other scores the second time", hint)
    parts = torch.cat([scorer.score_batch(inputs[part], labels[part]) for part in (slice(7), slice(7, None))])
    if not torch.allclose(parts, scores, rtol=1e-3, atol=1e-3):
        came = f"scores that differ by up to {float((parts - scores).abs().max()):.3g}"
        raise _violation(scorer, "give a sample the same score in any batch", came)
    if scorer.scores_labels:
        of_labels = scorer.score_labels(inputs)
        if not _agrees(of_labels, labels, scores):
            raise _violation(scorer, "agree with `score_batch` in `score_labels` (B, C)", describe(of_labels))


def _check_state(scorer: Scorer, fitted: Scorer, inputs: Tensor, labels: Tensor) -> None:
    state = fitted.state()
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise _violation(scorer, "have a state of tensors by name", describe(state))
    loaded = copy.deepcopy(scorer).load({name: value.clone() for name, value in state.items()})
    if not loaded.is_fitted or not torch.equal(loaded.score_batch(inputs, labels), fitted.score_batch(inputs, labels)):
        raise _violation(scorer, "give the same scores after `load(state())`", "other scores")


def _check_separates(scorer: Scorer, inputs: Tensor, labels: Tensor) -> None:
    clean = scorer.score_batch(inputs, labels)
    wrong = scorer.score_batch(inputs, (labels + 1) % (int(labels.max()) + 1))
    auroc = float((wrong[:, None] > clean).float().mean())
    if auroc < MIN_AUROC:
        rule = f"score wrong labels higher, at an area under the ROC curve of at least {MIN_AUROC}"
        raise _violation(scorer, rule, f"{auroc:.3f}", "Larger scores are more suspicious.")


def _check_set_scores(scorer: SetScorer, features: Tensor, labels: Tensor) -> None:
    before = features.clone(), labels.clone()
    scores = scorer.score_features(features, labels)
    _check_vector(scorer, scores, len(labels))
    if not torch.equal(features, before[0]) or not torch.equal(labels, before[1]):
        raise _violation(scorer, "leave features and labels unchanged", "a change")
    if scorer.scores_labels:
        of_labels = scorer.score_feature_labels(features, labels)
        if not _agrees(of_labels, labels, scores):
            raise _violation(
                scorer, "agree with `score_features` in `score_feature_labels` (N, C)", describe(of_labels)
            )
    if not torch.equal(scores, scorer.score_features(features, labels)):
        raise _violation(scorer, "give the same scores for the same features", "other scores the second time")


def _agrees(of_labels: Tensor, labels: Tensor, scores: Tensor) -> bool:
    if of_labels.ndim != 2:
        return False
    return torch.allclose(of_labels.gather(1, labels[:, None])[:, 0], scores, rtol=1e-3, atol=1e-3)


def _check_vector(scorer: Scorer | SetScorer, scores: Any, count: int) -> None:
    if not isinstance(scores, Tensor) or scores.shape != (count,) or scores.dtype != torch.float32:
        raise _violation(scorer, f"return float32 scores ({count},)", describe(scores))
    if not torch.isfinite(scores).all():
        raise _violation(scorer, "return finite scores", "NaN or infinite values")


def _violation(scorer: Any, rule: str, value: object, hint: str = "") -> PluginError:
    name = printable(getattr(scorer, "name", type(scorer).__name__))
    message = f"Expected the scorer `{name}` to {rule}, but got {printable(value)}."
    return PluginError(message + (f"\n{hint}" if hint else ""))
