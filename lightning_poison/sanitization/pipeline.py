"""`sanitize`: score every sample, calibrate, decide. Works without a Trainer."""

from collections.abc import Mapping
from numbers import Number
from pathlib import Path
from typing import Any

import torch

from lightning_poison.checks import describe, expected, instance, local_path, printable, with_method
from lightning_poison.data.copies import Groups
from lightning_poison.data.sample_spec import SampleSpec, check_sample_spec
from lightning_poison.entry_points import call_plugin
from lightning_poison.errors import NothingKeptError
from lightning_poison.runtime import Runtime
from lightning_poison.sanitization.decide import decide
from lightning_poison.sanitization.from_probabilities import judge_probabilities
from lightning_poison.sanitization.limits import with_limits
from lightning_poison.sanitization.scorer_guard import check_declarations
from lightning_poison.sanitization.settings import DecisionSettings
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.scorers.inspection import AnyScorer, all_members_of
from lightning_poison.scorers.recommended import Preset, scorer_from
from lightning_poison.statistics.contamination import NATURAL_ERROR_RATE


def sanitize(
    dataset: Any = None,
    scorer: AnyScorer | Preset = "balanced",
    *,
    labels: Any = None,
    pred_probs: Any = None,
    trusted: Any = None,
    false_positive_rate: float = 0.01,
    sample: SampleSpec | None = None,
    folds: int = 3,
    natural_error_rate: float = NATURAL_ERROR_RATE,
    remove_without_evidence: bool = False,
    max_removed: float = 0.5,
    seed: int = 0,
    groups: Groups | None = None,
    runtime: Runtime | None = None,
    known: Verdict | str | Path | None = None,
    cache: str | Path | None = None,
) -> Verdict:
    """Score every sample of a data set and decide which to keep.

    With trusted data, an unfitted scorer is fitted on 70 % of them and calibrated on the rest. A fitted scorer is
    calibrated on all of them and must not have been fitted on any.

    Without trusted data, the scorer is cross-fitted over folds of the data set, and the threshold follows from the
    wrong-label null. A fitted scorer, fitted on other data, is used unchanged. A scorer that finds groups
    (`RobustFeatureScorer`) uses all of the data, and the threshold follows from the effects of the groups. Nothing is
    removed without evidence of poison.

    Args:
        dataset: Map-style data set of N samples, or a loader of one, of which the samples are judged that its sampler
            can draw. Or a pair of arrays `(X, y)`, or a table of numbers with one column named `label`, `target` or
            `y`. It is not changed.
        scorer: Scorer, combination or union of scorers; not a control. It is not changed. Or the name of a preset of
            `RecommendedScorer`: `"fast"`, `"balanced"` or `"thorough"`. Default: `"balanced"`.
        labels: Labels to judge by `pred_probs`, `(N,)`, without a data set and a scorer.
        pred_probs: Probability of each class for each sample, by a model that was not fitted on it, `(N, C)`, rows that
            sum to 1. They are judged by the same rule as the scores of a cross-fitted scorer. Of the other arguments,
            only settings of the decision can be passed with them.
        trusted: Known-clean samples, in any form of `dataset`. Optional.
        false_positive_rate: Accepted share of clean samples removed, in (0, 1). Default: 0.01.
        sample: Paths of input and label in a sample of `dataset` and `trusted`. Default: detected.
        folds: Number of folds for cross-fitting, at least 2. Default: 3.
        natural_error_rate: Share of wrong labels that does not count as evidence of poison, in [0, 1].
        remove_without_evidence: Whether to remove suspicious samples without trusted data and without evidence.
        max_removed: Largest share of the data set that may be removed, in (0, 1]. The limit for a class is this or
            one half, whichever is larger, and never the whole class; of a class of fewer than 20 samples that would
            lose more, all are kept. Default: 0.5.
        seed: The only source of randomness. The verdict does not depend on the number of workers or ranks.
        groups: Group of each sample of `dataset`, such as its patient, its video or the original of which it is an
            augmentation: integers or texts, or a function of the index of a sample. Without trusted data, no model
            scores a sample that was fitted on its group. Default: only copies, which are found by their inputs, are
            kept together.
        runtime: Where to compute: a `LocalRuntime` of `lightning_poison.runtime`, such as `LocalRuntime("cuda")`.
            Default: `LocalRuntime()`, the CPU. It shows progress; `LocalRuntime(quiet=True)` does not.
        known: Earlier verdict, or the path of its file. If it was made for this data set with these settings, it is
            returned and nothing is scored.
        cache: Folder for finished and half-finished work. An interrupted run with the same data and settings continues
            there, and a finished one is not repeated. Default: nothing is stored.

    Returns:
        The verdict. Train on `SanitizedDataset(dataset, verdict.keep)`.

    Samples that fit into 2 GiB of memory are read once. Of a larger data set that lists its labels (`targets`,
    `labels`) these are used; any other is read once more for its labels. If `dataset` is a loader with workers, samples
    are read in workers only. Classes with too few samples, and samples with the label −1, are kept and not judged.

    Every sample is hashed while it is read. `known` and the files in `cache` are used only if all hashes are the same.
    Without trusted data, each rank holds the scores of all samples under every label: `8 * N * C` bytes for C classes.

    Raises:
        UnsupportedDataError: If the data set has no length or can only be iterated over.
        UnreadableSampleError: If a sample cannot be read, is not finite, or differs from the others in shape.
        NothingKeptError: If more than `max_removed` would be removed.
        InconclusiveError: If the scorer is too inaccurate to judge labels without trusted data. Its `scores` are a
            ranking of the samples.
        DataChangedError: If ranks hold different data, or `known` was made for other data or settings.
        ValueError: If an argument is out of range, there are fewer than two classes, a class is missing from the
            trusted data, or a label is not an integer.
        TypeError: If `scorer` is not a scorer, or its settings are not JSON values.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> from lightning_poison.models.fitting import FitSettings
        >>> from lightning_poison.scorers.likelihood import LikelihoodScorer
        >>> generator = torch.Generator().manual_seed(0)
        >>> truth = torch.arange(300) % 3
        >>> points = torch.randn(300, 4, generator=generator) + 6 * torch.eye(4)[truth]
        >>> labels = torch.where(torch.arange(300) < 15, (truth + 1) % 3, truth)
        >>> quick = LikelihoodScorer(fit_settings=FitSettings(epochs=5, batch_size=32, min_steps=60))
        >>> verdict = sanitize(TensorDataset(points, labels), quick)
        >>> verdict.evidence.present, int((~verdict.keep)[:15].sum()) >= 12
        (True, True)
    """
    decision = DecisionSettings(
        false_positive_rate=false_positive_rate,
        folds=folds,
        natural_error_rate=natural_error_rate,
        remove_without_evidence=remove_without_evidence,
        max_removed=max_removed,
        seed=seed,
        groups=groups,
    )
    if labels is not None or pred_probs is not None:
        own = None if isinstance(scorer, str) and scorer == "balanced" else scorer
        fitted = None if folds == DecisionSettings.folds else folds
        unused = {"dataset": dataset, "scorer": own, "trusted": trusted, "sample": sample, "groups": groups}
        unused |= {"folds": fitted, "runtime": runtime, "known": known, "cache": cache}
        _check_alone(labels, pred_probs, unused)
        verdict = with_limits(judge_probabilities(labels, pred_probs, decision), decision.max_removed)
        check_removal(verdict, decision.max_removed)
        return verdict
    if dataset is None:
        raise TypeError(expected("dataset", "a data set, or `labels` with `pred_probs`", "neither"))
    chosen: AnyScorer = scorer_from(scorer)
    check_scorer_argument(chosen)
    check_sample_spec(sample)
    earlier = known_verdict(known)
    if cache is not None:
        local_path("cache", cache, hint="Pass a folder of this machine, or leave it out: nothing is stored then.")
        if Path(cache).is_file():
            hint = "Pass another folder, or leave it out: nothing is stored then."
            raise ValueError(expected("cache", "a folder", f"{printable(cache)}, which is a file", hint))
    if runtime is not None:
        hint = 'From `lightning_poison.runtime`: `runtime=LocalRuntime("cuda", num_workers=8)`.'
        with_method("runtime", runtime, "reduce_sum", what="a `LocalRuntime`", hint=hint)
    made = decide(
        dataset, chosen, settings=decision, trusted=trusted, sample=sample, runtime=runtime, known=earlier, cache=cache
    )
    assert isinstance(made, Verdict)  # noqa: S101 (a verdict was passed, so a verdict comes back)
    check_removal(made, decision.max_removed)
    return made


def known_verdict(known: Verdict | str | Path | None) -> Verdict | None:
    """Return an earlier verdict, read from its file if a path is given.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If it is neither.
        ValueError: If the file is no verdict.
    """
    if isinstance(known, str | Path):
        return Verdict.load(known)
    if known is not None:
        instance("known", known, Verdict, hint="Pass a verdict, or the path of `verdict.safetensors`.")
    return known


def _check_alone(labels: Any, pred_probs: Any, unused: Mapping[str, Any]) -> None:
    """Raise unless there are labels and probabilities, and nothing that they do not need."""
    given = {name: value for name, value in unused.items() if value is not None}
    if given:
        names = "`, `".join(given)
        came = ", ".join(describe(value) for value in given.values())
        way = "Probabilities are judged as they are: nothing is read, fitted or stored."
        raise TypeError(expected(names, "left out with `labels` and `pred_probs`", came, way))
    if labels is None or pred_probs is None:
        missing = "labels" if labels is None else "pred_probs"
        raise TypeError(expected(missing, "passed together with the other of `labels` and `pred_probs`", "none"))


def check_scorer_argument(scorer: Any) -> None:
    """Raise if `scorer` cannot be used for a decision; see `sanitize`."""
    if isinstance(scorer, type) or not isinstance(scorer, AnyScorer):
        came = f"the class {scorer.__name__}" if isinstance(scorer, type) else type(scorer).__name__
        way = "\n`get_scorer(name)` builds an installed one by its name."
        is_list = isinstance(scorer, list | tuple) and all(isinstance(each, Number) for each in scorer)
        if is_list or hasattr(scorer, "__array__"):
            way = "\nPass inputs and labels as a pair, then a scorer: `sanitize((X, y), LikelihoodScorer())`."
        raise TypeError(expected("scorer", "a scorer such as `LikelihoodScorer()`", came) + way)
    kind = type(scorer).__name__
    if not isinstance(call_plugin(lambda: getattr(scorer, "name", None), f"`name` of {kind}"), str):
        raise TypeError(expected("scorer", "a scorer with a `name`", f"a {kind} without one"))
    for member in all_members_of(scorer):
        check_declarations(member)
    if scorer.is_control:
        raise ValueError(
            f"Expected a defense as `scorer`, but {printable(scorer.name)} is a control, which may use the ground "
            "truth.\nUse controls in evaluations only."
        )


def check_removal(verdict: Verdict, max_removed: float) -> None:
    """Raise if a verdict removes too much. What the user removed is no suspicion, and limited only by the last sample.

    Raises:
        NothingKeptError: If it removes more than `max_removed`, or most of a class, or nothing is left. It carries the
            verdict.
    """
    judged = torch.ones_like(verdict.keep) if verdict.judged is None else verdict.judged
    out, labels = verdict.removed_by_rule[judged], verdict.labels[judged]
    removed = float(out.double().mean())
    way = "Check the scores in `verdict` of this error. If so many should be removed, raise `max_removed`."
    if verdict.calibration == "trusted":
        way = (
            "Compare the samples of `trusted` with those of the training data: if they are of another origin, "
            "transform or numbering, the decision means nothing. The scores are in `verdict` of this error."
        )
    if removed > max_removed or out.all():
        raise NothingKeptError(
            f"Expected to remove at most {100 * max_removed:g} % of the samples, but {100 * removed:.1f} % are "
            f"suspicious.\n{way}",
            verdict,
        )
    if not verdict.keep.any():
        raise NothingKeptError(
            "Expected to keep at least one sample, but those that the verdict keeps are removed by hand.\n"
            "Change the decision of some rows of the manifest to `kept-by-hand`, or delete rows.",
            verdict,
        )
    limit = max(max_removed, 0.5)
    counts = labels.bincount()
    removed_of = labels[out].bincount(minlength=len(counts)).tolist()
    for number, count in enumerate(counts.tolist()):
        lost = removed_of[number]
        if count and lost == count:
            raise NothingKeptError(
                f"Expected to keep some samples of each class, but all {count} of class {number} are "
                f"suspicious.\nRemove the class, or check its samples"
                + (" and those of `trusted`." if verdict.calibration == "trusted" else "."),
                verdict,
            )
        if lost > limit * count:
            raise NothingKeptError(
                f"Expected to remove at most {100 * limit:g} % of each class, but {100 * lost / count:.1f} % of class "
                f"{number} are suspicious{_because(verdict, number)}.\n{way}",
                verdict,
            )


def _because(verdict: Verdict, label: int) -> str:
    """Return why most of a class is suspicious, if that is known."""
    share = max((each.pattern for each in verdict.evidence.groups if each.label == label), default=0.0)
    return f", since they share a pattern that turns {100 * share:.0f} % of any other class into it" if share else ""
