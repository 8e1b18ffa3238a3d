"""Conformance suite for scorers, to be called in the tests of a plug-in."""

import copy
import inspect
import json
import random
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_poison.attacks.snapshot import first_change, snapshot_dataset
from lightning_poison.checks import describe, describe_error, printable, type_name
from lightning_poison.data.labels import labels_of, read_sample
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.entry_points import call_plugin
from lightning_poison.errors import NotFittedError, PluginError
from lightning_poison.randomness import seeded_rng
from lightning_poison.runtime import LocalRuntime
from lightning_poison.scorers.combined import CombinedScorer
from lightning_poison.scorers.inspection import AnyScorer
from lightning_poison.scorers.protocol import Scorer, SetScorer
from lightning_poison.testing.tiny_images import TinyImages

MIN_AUROC = 0.8
"""Minimum area under the ROC curve on wrong labels, if `separates` is set."""

_OTHER_SEED = 1
"""Seed of the global random states at a second call. Each call restores them, so it would draw the same numbers."""

ResultT = TypeVar("ResultT")

_SIGNATURES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "fit": (("trusted",), ("runtime", "generator")),
    "rehearse": (("trusted",), ("steps", "runtime")),
    "score_batch": (("inputs", "labels"), ()),
    "score_labels": (("inputs",), ()),
    "check_set": (("labels",), ()),
    "score_features": (("features", "labels"), ()),
    "score_feature_labels": (("features", "labels"), ()),
}
"""Positional and keyword arguments with which `sanitize` calls each method."""


def check_scorer(
    scorer: AnyScorer | Callable[[], AnyScorer],
    trusted: "Dataset[Any] | None" = None,
    *,
    seed: int = 0,
    separates: bool = False,
) -> None:
    """Check that a scorer complies with the contract.

    Checks of a `Scorer`:

    - Methods take the arguments with which `sanitize` calls them.
    - A copy of an unfitted scorer is unfitted, and its scoring methods raise `NotFittedError`.
    - `fit` returns the scorer, and changes neither the data nor the global random states.
    - The same generator gives the same scores.
    - Scores are float32, finite, one per sample, and the same in any batch. Inputs and labels do not change.
    - `score_labels`, if declared, agrees with `score_batch`.
    - `load` returns the scorer, and a copy that loads the state gives the same scores.
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
        PluginError: If a rule is violated. The message names the scorer, the rule and the value. Also if a method
            raises an error, chained to it; the message names the method.

    Example:
        >>> class Brightness(SetScorer):
        ...     name = "brightness"
        ...     def score_features(self, features, labels):
        ...         return features.sum(1)
        >>> check_scorer(Brightness)
    """
    built: Any = scorer if isinstance(scorer, AnyScorer) else _built(scorer)
    if isinstance(built, CombinedScorer):
        for member in built.members.values():
            check_scorer(member, trusted, seed=seed, separates=separates)
        return
    _check_identity(built)
    _check_signatures(built)
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


def _built(factory: Any) -> Any:
    what = f"the factory `{printable(getattr(factory, '__name__', type_name(factory)))}`"
    if not callable(factory):
        raise PluginError(f"Expected a scorer or a factory that builds one, but got {printable(describe(factory))}.")
    return _named(what, lambda: factory())


def _named(what: str, call: Callable[[], ResultT]) -> ResultT:
    """Run code of a scorer; every error is a `PluginError` that names what failed, except for `NotFittedError`."""

    def run() -> ResultT:
        try:
            return call()
        except (PluginError, NotFittedError):
            raise
        except Exception as error:
            raise PluginError(f"Expected {what} to succeed, but it raised {describe_error(error)}.") from error

    return call_plugin(run, what, passed=())


def _run(scorer: Any, method: str, call: Callable[[], ResultT]) -> ResultT:
    """Run a method of a scorer that can run."""
    try:
        return _named(f"`{method}` of the scorer `{_name(scorer)}`", call)
    except NotFittedError as error:
        rule = f"have a method `{method}` that runs after a fit"
        raise _violation(scorer, rule, "a NotFittedError", "Correct `fitted_tensors` or `is_fitted`.") from error


def _copied(scorer: Any) -> Any:
    return _run(scorer, "__deepcopy__", lambda: copy.deepcopy(scorer))


def _check_identity(scorer: Any) -> None:
    if not isinstance(scorer, AnyScorer):
        raise _violation(scorer, "be derived from `Scorer` or `SetScorer`", describe(scorer))
    for attribute, kind, words in (("name", str, "a string"), ("is_control", bool, "True or False")):
        value = _named(f"`{attribute}` of `{type_name(scorer)}`", lambda: getattr(scorer, attribute, None))  # noqa: B023
        if not isinstance(value, kind):
            raise _violation(scorer, f"have a `{attribute}` that is {words}", describe(value))


def _check_signatures(scorer: Scorer | SetScorer) -> None:
    """Check that methods accept the arguments with which `sanitize` calls them."""
    for method, (positional, keywords) in _SIGNATURES.items():
        bound = getattr(scorer, method, None)
        if bound is None:
            continue
        signature = _run(scorer, method, lambda: inspect.signature(bound))  # noqa: B023
        try:
            signature.bind(*positional, **dict.fromkeys(keywords))
        except TypeError as error:
            stated = ", ".join([*positional, *(["*"] if keywords else []), *(f"{name}=None" for name in keywords)])
            came = f"{method}{printable(signature)}: {printable(error)}"
            raise _violation(scorer, f"define `{method}(self, {stated})`", came) from error


def _check_settings(scorer: Scorer | SetScorer) -> None:
    settings = _run(scorer, "settings", lambda: dict(scorer.settings()))
    try:
        json.dumps(settings, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise _violation(scorer, "have settings of JSON values", describe_error(error)) from error


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
        raise _violation(scorer, "leave the data unchanged", f"a change of {changed}", "Work on a copy (`clone`).")
    first, second = (_scores(each, inputs, labels) for each in fitted)
    if not torch.equal(first, second):
        came = f"scores that differ by up to {float((first - second).abs().max()):.3g}"
        hint = "Pass `generator=` wherever random numbers are drawn."
        raise _violation(scorer, "give the same scores after fits with the same generator", came, hint)
    return fitted[0]


def _fit_copy(scorer: Scorer, data: Any, inputs: Tensor, labels: Tensor, generator: torch.Generator) -> Scorer:
    one: Scorer = _copied(scorer)
    if not _is_fitted(one):
        _check_unfitted(one, "score_batch", lambda: one.score_batch(inputs.clone(), labels.clone()))
        if one.scores_labels:
            _check_unfitted(one, "score_labels", lambda: one.score_labels(inputs.clone()))

    def fit() -> tuple[object, bool]:
        state = _global_state()
        returned = one.fit(data, runtime=LocalRuntime(), generator=generator)
        return returned, _global_state() != state

    returned, is_changed = _run(scorer, "fit", fit)
    if returned is not one:
        came = "another object" if isinstance(returned, Scorer) else describe(returned)
        raise _violation(scorer, "return itself from `fit`", came, "End the method with `return self`.")
    if is_changed:
        hint = "Pass `generator=` wherever random numbers are drawn, also to data loaders."
        raise _violation(scorer, "leave the global random states unchanged", "a change by `fit`", hint)
    if not _is_fitted(one):
        names = ", ".join(f"`{name}`" for name in getattr(one, "fitted_tensors", ()))
        hint = f"Set the tensors that `fitted_tensors` names: {names}." if names else "Correct `is_fitted`."
        raise _violation(scorer, "be fitted after `fit`", "is_fitted = False", hint)
    return one


def _is_fitted(scorer: Any) -> bool:
    return _run(scorer, "is_fitted", lambda: bool(scorer.is_fitted))


def _check_unfitted(scorer: Scorer, method: str, call: Callable[[], Any]) -> None:
    hint = f"Begin `{method}`, or the method that it calls, with `self.check_fitted()`."
    rule = f"raise NotFittedError in `{method}` before a fit"
    try:
        _named(f"`{method}`", call)
    except NotFittedError:
        return
    except PluginError as error:
        raise _violation(scorer, rule, describe_error(error.__cause__ or error), hint) from error
    raise _violation(scorer, rule, "scores", hint)


def _global_state() -> tuple[object, ...]:
    numpy = np.random.get_state(legacy=False)  # noqa: NPY002 (compared, never drawn from)
    return random.getstate(), repr(numpy), torch.get_rng_state().numpy().tobytes()


def _scores(scorer: Scorer, inputs: Tensor, labels: Tensor) -> Tensor:
    """Return the scores of a batch after checking them."""
    given = inputs.clone(), labels.clone()
    scores = _run(scorer, "score_batch", lambda: scorer.score_batch(*given))
    _check_vector(scorer, "score_batch", scores, len(labels))
    if not torch.equal(given[0], inputs) or not torch.equal(given[1], labels):
        rule = "leave inputs and labels unchanged in `score_batch`"
        raise _violation(scorer, rule, "a change", "Work on a copy (`clone`).")
    return scores.detach()


def _check_scores(scorer: Scorer, inputs: Tensor, labels: Tensor) -> None:
    scores = _scores(scorer, inputs, labels)
    with seeded_rng(_OTHER_SEED):
        again = _scores(scorer, inputs, labels)
    if not torch.equal(scores, again):
        hint = "Put networks into evaluation mode."
        raise _violation(scorer, "give the same scores for the same batch", "other scores the second time", hint)
    parts = torch.cat([_scores(scorer, inputs[part], labels[part]) for part in (slice(7), slice(7, None))])
    if not torch.allclose(parts, scores, rtol=1e-3, atol=1e-3):
        came = f"scores that differ by up to {float((parts - scores).abs().max()):.3g}"
        raise _violation(scorer, "give a sample the same score in any batch", came)
    if scorer.scores_labels:
        of_labels = _run(scorer, "score_labels", lambda: scorer.score_labels(inputs.clone()))
        _check_agrees(scorer, "score_labels", of_labels, "score_batch", labels, scores)


def _check_state(scorer: Scorer, fitted: Scorer, inputs: Tensor, labels: Tensor) -> None:
    state = _run(scorer, "state", fitted.state)
    if not isinstance(state, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise _violation(scorer, "have a state of tensors by name", describe(state))
    copied = _copied(scorer)
    loaded = _run(scorer, "load", lambda: copied.load({name: value.clone() for name, value in state.items()}))
    if loaded is not copied:
        raise _violation(scorer, "return itself from `load`", describe(loaded), "End the method with `return self`.")
    if not _is_fitted(loaded):
        raise _violation(scorer, "be fitted after `load(state())`", "is_fitted = False")
    if not torch.equal(_scores(loaded, inputs, labels), _scores(fitted, inputs, labels)):
        raise _violation(scorer, "give the same scores after `load(state())`", "other scores")


def _check_separates(scorer: Scorer, inputs: Tensor, labels: Tensor) -> None:
    clean = _scores(scorer, inputs, labels)
    wrong = _scores(scorer, inputs, (labels + 1) % (int(labels.max()) + 1))
    auroc = float((wrong[:, None] > clean).float().mean())
    if auroc < MIN_AUROC:
        rule = f"score wrong labels higher, at an area under the ROC curve of at least {MIN_AUROC}"
        raise _violation(scorer, rule, f"{auroc:.3f}", "Larger scores are more suspicious.")


def _check_set_scores(scorer: SetScorer, features: Tensor, labels: Tensor) -> None:
    given = features.clone(), labels.clone()
    _run(scorer, "check_set", lambda: scorer.check_set(given[1]))
    scores = _run(scorer, "score_features", lambda: scorer.score_features(*given))
    _check_vector(scorer, "score_features", scores, len(labels))
    if not torch.equal(features, given[0]) or not torch.equal(labels, given[1]):
        raise _violation(scorer, "leave features and labels unchanged", "a change", "Work on a copy (`clone`).")
    if scorer.scores_labels:
        of_labels = _run(scorer, "score_feature_labels", lambda: scorer.score_feature_labels(*given))
        _check_agrees(scorer, "score_feature_labels", of_labels, "score_features", labels, scores)
    with seeded_rng(_OTHER_SEED):
        again = _run(scorer, "score_features", lambda: scorer.score_features(*given))
    _check_vector(scorer, "score_features", again, len(labels))
    if not torch.equal(scores, again):
        raise _violation(scorer, "give the same scores for the same features", "other scores the second time")


def _check_agrees(
    scorer: Scorer | SetScorer, method: str, of_labels: Any, other: str, labels: Tensor, scores: Tensor
) -> None:
    """Check the shape of label scores, and that each sample's own column has the scores of the other method."""
    shape = "(B, C)" if other == "score_batch" else "(N, C)"
    classes = int(labels.max()) + 1
    is_matrix = isinstance(of_labels, Tensor) and of_labels.dtype == torch.float32 and of_labels.ndim == 2
    if not is_matrix or len(of_labels) != len(labels) or of_labels.shape[1] < classes:
        rule = f"return float32 scores ({len(labels)}, C) from `{method}`, with C of at least {classes}"
        raise _violation(scorer, rule, describe(of_labels))
    if not torch.isfinite(of_labels).all():
        raise _violation(scorer, f"return finite scores from `{method}`", "NaN or infinite values")
    own = of_labels.gather(1, labels[:, None])[:, 0]
    if not torch.allclose(own, scores, rtol=1e-3, atol=1e-3):
        came = f"scores that differ by up to {float((own - scores).abs().max()):.3g}"
        raise _violation(scorer, f"agree with `{other}` in `{method}` {shape}", came)


def _check_vector(scorer: Scorer | SetScorer, method: str, scores: Any, count: int) -> None:
    if not isinstance(scores, Tensor) or scores.shape != (count,) or scores.dtype != torch.float32:
        raise _violation(scorer, f"return float32 scores ({count},) from `{method}`", describe(scores))
    if not torch.isfinite(scores).all():
        raise _violation(scorer, f"return finite scores from `{method}`", "NaN or infinite values")


def _name(scorer: Any) -> str:
    fallback = type_name(scorer)
    return call_plugin(lambda: printable(getattr(scorer, "name", fallback)), f"`name` of `{fallback}`")


def _violation(scorer: Any, rule: str, value: object, hint: str = "") -> PluginError:
    message = f"Expected the scorer `{_name(scorer)}` to {rule}, but got {printable(value, limit=500)}."
    return PluginError(message + (f"\n{hint}" if hint else ""))
