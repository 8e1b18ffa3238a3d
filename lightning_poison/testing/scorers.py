"""The conformance suite of scorers."""

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
from lightning_poison.scorers.protocol import FeatureScorer, LabelFeatureScorer, LabelScorer, Scorer
from lightning_poison.testing.tiny_images import TinyImages

MIN_AUROC = 0.8
"""What a scorer must reach on plainly wrong labels where `separates` is asked for."""


def check_scorer(
    scorer: Scorer | FeatureScorer | Callable[[], Scorer | FeatureScorer],
    trusted: "Dataset[Any] | None" = None,
    *,
    seed: int = 0,
    separates: bool = False,
) -> None:
    """Check that a scorer keeps the contract.

    A scorer of single samples: a copy of an unfitted one is unfitted and refuses to score; `fit` returns itself and
    leaves the data and the global random states alone; the same generator gives the same scores; scores are float32,
    finite, one a sample, the same in any batch; what `state` returns, loaded into a copy, gives the same scores;
    settings are what JSON can hold; `score_labels`, where there is one, agrees with `score_batch`.
    A scorer of feature sets: its scores are float32, finite, one a sample, and the same when it is asked again;
    features and labels stay as they are; settings are what JSON can hold; `score_feature_labels`, where there is one,
    agrees.

    Args:
        scorer: a scorer, or what builds one with its default settings. It is not changed: copies of it are fitted.
        trusted: what it is fitted on; small images that are made here where it is `None`.
        seed: seeds the generator.
        separates: also check that samples with wrong labels score higher, at an area under the curve of 0.8 at least.

    Raises:
        PluginError: where a rule is broken; it names the scorer, the rule and the value.

    Example:
        >>> class Brightness:
        ...     name, is_control = "brightness", False
        ...     def score_features(self, features, labels):
        ...         return features.sum(1)
        >>> check_scorer(Brightness)
    """
    built: Any = scorer() if isinstance(scorer, type) or not hasattr(scorer, "is_control") else scorer
    _check_identity(built)
    data = trusted if trusted is not None else TinyImages()
    inputs, labels = _batch(data)
    if hasattr(built, "score_features"):
        _check_features(built, inputs.flatten(1), labels)
    if isinstance(built, Scorer):
        fitted = _check_fit(built, data, inputs, labels, seed)
        _check_scores(fitted, inputs, labels)
        _check_state(built, fitted, inputs, labels)
        if separates:
            _check_separates(fitted, inputs, labels)


def _check_identity(scorer: Any) -> None:
    for attribute, kind, words in (("name", str, "a string"), ("is_control", bool, "True or False")):
        if not isinstance(value := getattr(scorer, attribute, None), kind):
            raise _broken(scorer, f"have a `{attribute}` that is {words}", describe(value))
    if not isinstance(scorer, Scorer | FeatureScorer):
        needed = ("is_fitted", "fit", "score_batch", "settings", "state", "load")
        missing = ", ".join(name for name in needed if not hasattr(scorer, name))
        raise _broken(scorer, "offer `score_features`, or all that a Scorer has", f"one without {missing}")


def _batch(data: Any) -> tuple[Tensor, Tensor]:
    count = min(len(data), 60)
    spec = SampleSpec.detect(read_sample(data, 0))
    inputs = torch.stack([torch.as_tensor(spec.inputs_in(read_sample(data, index))) for index in range(count)])
    return inputs.float(), labels_of(data)[:count]


def _check_fit(scorer: Scorer, data: Any, inputs: Tensor, labels: Tensor, seed: int) -> Scorer:
    """Fit two copies under other global random states, and return the first."""
    _check_settings(scorer)
    before = snapshot_dataset(data)
    fitted = []
    for turn in (0, 1):
        with seeded_rng(seed, turn):
            fitted.append(_fit_copy(scorer, data, inputs, labels, torch.Generator().manual_seed(seed)))
    if (changed := first_change(before, snapshot_dataset(data))) is not None:
        raise _broken(scorer, "leave the data as it found them", f"another {changed}")
    scores = [each.score_batch(inputs, labels) for each in fitted]
    if not torch.equal(scores[0], scores[1]):
        raise _broken(
            scorer,
            "score alike after fits with the same generator",
            f"scores up to {float((scores[0] - scores[1]).abs().max()):.3g} apart",
            "Pass `generator=` wherever random numbers are drawn.",
        )
    return fitted[0]


def _check_settings(scorer: Any) -> None:
    try:
        json.dumps(dict(getattr(scorer, "settings", dict)()), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise _broken(scorer, "have settings that JSON can hold", error) from error


def _fit_copy(scorer: Scorer, data: Any, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Scorer:
    one = copy.deepcopy(scorer)
    if not one.is_fitted:
        try:
            one.score_batch(inputs, labels)
        except NotFittedError:
            pass
        else:
            raise _broken(scorer, "raise NotFittedError before it is fitted", "scores")
    state = _global_state()
    if one.fit(data, generator=generator) is not one:
        raise _broken(scorer, "return itself from `fit`", "something else")
    if _global_state() != state:
        hint = "Pass `generator=` wherever random numbers are drawn, to data loaders too."
        raise _broken(scorer, "leave the global random states alone", "others after `fit`", hint)
    if not one.is_fitted:
        raise _broken(scorer, "be fitted after `fit`", "is_fitted = False")
    return one


def _global_state() -> tuple[object, ...]:
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002 (looked at, never drawn from)
    return random.getstate(), repr(numpy), torch.get_rng_state().numpy().tobytes()


def _check_scores(scorer: Scorer, inputs: Tensor, labels: Tensor) -> None:
    scores = scorer.score_batch(inputs, labels)
    _check_vector(scorer, scores, len(labels))
    if not torch.equal(scores, scorer.score_batch(inputs, labels)):
        raise _broken(scorer, "score the same batch alike", "other scores the second time", "Is it in `eval` mode?")
    parts = torch.cat([scorer.score_batch(inputs[part], labels[part]) for part in (slice(7), slice(7, None))])
    if not torch.allclose(parts, scores, rtol=1e-3, atol=1e-3):
        apart = float((parts - scores).abs().max())
        raise _broken(scorer, "score a sample alike in any batch", f"scores up to {apart:.3g} apart")
    if isinstance(scorer, LabelScorer):
        each = scorer.score_labels(inputs)
        if each.ndim != 2 or not torch.allclose(each.gather(1, labels[:, None])[:, 0], scores, rtol=1e-3, atol=1e-3):
            raise _broken(scorer, "agree with `score_batch` in `score_labels` (B, C)", describe(each))


def _check_state(scorer: Scorer, fitted: Scorer, inputs: Tensor, labels: Tensor) -> None:
    state = fitted.state()
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()):
        raise _broken(scorer, "have a state of tensors by name", describe(state))
    loaded = copy.deepcopy(scorer).load({name: value.clone() for name, value in state.items()})
    if not loaded.is_fitted or not torch.equal(loaded.score_batch(inputs, labels), fitted.score_batch(inputs, labels)):
        raise _broken(scorer, "score alike after `load(state())`", "other scores")


def _check_separates(scorer: Scorer, inputs: Tensor, labels: Tensor) -> None:
    clean = scorer.score_batch(inputs, labels)
    wrong = scorer.score_batch(inputs, (labels + 1) % (int(labels.max()) + 1))
    auroc = float((wrong[:, None] > clean).float().mean())
    if auroc < MIN_AUROC:
        rule = f"score wrong labels higher, at an area under the curve of {MIN_AUROC} at least"
        raise _broken(scorer, rule, f"{auroc:.3f}", "Larger scores are more suspicious.")


def _check_features(scorer: Any, features: Tensor, labels: Tensor) -> None:
    given = features.clone(), labels.clone()
    scores = scorer.score_features(features, labels)
    _check_vector(scorer, scores, len(labels))
    if not torch.equal(features, given[0]) or not torch.equal(labels, given[1]):
        raise _broken(scorer, "leave features and labels as it found them", "others")
    _check_settings(scorer)
    if isinstance(scorer, LabelFeatureScorer):
        each = scorer.score_feature_labels(features, labels)
        if each.ndim != 2 or not torch.allclose(each.gather(1, labels[:, None])[:, 0], scores, rtol=1e-3, atol=1e-3):
            raise _broken(scorer, "agree with `score_features` in `score_feature_labels` (N, C)", describe(each))
    if not torch.equal(scores, scorer.score_features(features, labels)):
        raise _broken(scorer, "score the same features alike", "other scores the second time")


def _check_vector(scorer: Any, scores: Any, count: int) -> None:
    if not isinstance(scores, Tensor) or scores.shape != (count,) or scores.dtype != torch.float32:
        raise _broken(scorer, f"return float32 scores ({count},)", describe(scores))
    if not torch.isfinite(scores).all():
        raise _broken(scorer, "return finite scores", "NaN or infinite values")


def _broken(scorer: Any, rule: str, value: object, hint: str = "") -> PluginError:
    name = printable(getattr(scorer, "name", type(scorer).__name__))
    message = f"Expected the scorer `{name}` to {rule}, but got {printable(value)}."
    return PluginError(message + (f"\n{hint}" if hint else ""))
