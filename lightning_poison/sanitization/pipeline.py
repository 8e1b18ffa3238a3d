"""`sanitize`: score every sample, calibrate, decide. Works without a Trainer."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_poison.checks import expected, printable
from lightning_poison.data.fingerprints import fingerprint
from lightning_poison.data.labeled_data import LabeledData, with_labels
from lightning_poison.data.labels import check_class_labels, spec_of
from lightning_poison.data.map_style_data import map_style
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.errors import DataChangedError, NothingKeptError
from lightning_poison.randomness import isolated_rng
from lightning_poison.runtime import LocalRuntime, Runtime, all_ranks
from lightning_poison.sanitization.by_groups import judge_by_groups
from lightning_poison.sanitization.job import Job, Outcome
from lightning_poison.sanitization.settings import DecisionSettings
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.sanitization.with_trusted import judge_with_trusted
from lightning_poison.sanitization.without_trusted import judge_without_trusted
from lightning_poison.scorers.inspection import AnyScorer, settings_of, weights_of
from lightning_poison.scorers.protocol import SetScorer
from lightning_poison.statistics.contamination import NATURAL_ERROR_RATE


def sanitize(
    dataset: Any,
    scorer: AnyScorer,
    *,
    trusted: Any = None,
    false_positive_rate: float = 0.01,
    sample: SampleSpec | None = None,
    folds: int = 3,
    natural_error_rate: float = NATURAL_ERROR_RATE,
    remove_without_evidence: bool = False,
    max_removed: float = 0.5,
    seed: int = 0,
    runtime: Runtime | None = None,
    known: Verdict | None = None,
) -> Verdict:
    """Score every sample of a data set and decide which to keep.

    With trusted data, an unfitted scorer is fitted on 70 % of them and calibrated on the rest. A fitted scorer is
    calibrated on all of them and must not have been fitted on any.

    Without trusted data, the scorer is cross-fitted over folds of the data set, and the threshold follows from the
    wrong-label null. A fitted scorer, fitted on other data, is used unchanged. A scorer that finds groups
    (`RobustFeatureScorer`) uses all of the data, and the threshold follows from the effects of the groups. Nothing is
    removed without evidence of poison.

    Args:
        dataset: Map-style data set of N samples. It is not changed.
        scorer: Scorer, or a combination of scorers; not a control. It is not changed.
        trusted: Known-clean samples: a map-style data set, or a loader of one. Optional.
        false_positive_rate: Accepted share of clean samples removed, in (0, 1). Default: 0.01.
        sample: Paths of input and label in a sample of `dataset` and `trusted`. Default: detected.
        folds: Number of folds for cross-fitting, at least 2. Default: 3.
        natural_error_rate: Share of wrong labels that does not count as evidence of poison, in [0, 1].
        remove_without_evidence: Whether to remove suspicious samples without trusted data and without evidence.
        max_removed: Largest share of the data set that may be removed, in (0, 1]. The limit for a class is this or
            one half, whichever is larger, and never the whole class. Default: 0.5.
        seed: The only source of randomness. The verdict does not depend on the number of workers or ranks.
        runtime: Where to compute. Default: `LocalRuntime()`, the CPU.
        known: Earlier verdict. If it was made for this data set with these settings, it is returned and nothing is
            scored.

    Returns:
        The verdict. Train on `SanitizedDataset(dataset, verdict.keep)`.

    A data set that lists its labels (`targets`, `labels`) is read once, and so is one whose samples fit into 2 GiB of
    memory; any other is read a second time for its labels. Without trusted data, each rank holds the scores of all
    samples under every label: `8 * N * C` bytes for C classes.

    Raises:
        UnsupportedDataError: If the data set has no length or can only be iterated over.
        UnreadableSampleError: If a sample cannot be read, is not finite, or differs from the others in shape.
        NothingKeptError: If more than `max_removed` would be removed.
        InconclusiveError: If the scorer is too inaccurate to judge labels without trusted data.
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
    )
    check_scorer_argument(scorer)
    runtime = runtime or LocalRuntime()
    trusted = map_style(trusted, "trusted") if trusted is not None else None
    dataset = map_style(dataset, "dataset")

    settings = {"scorer": settings_of(scorer), **decision.fingerprinted(), "trusted": None}
    with isolated_rng(seed, runtime.device):
        reference = None
        if trusted is not None:
            with all_ranks(runtime):
                trusted_spec = sample or spec_of(trusted)
                reference = with_labels(trusted, trusted_spec, runtime=runtime, seed=seed, name="trusted data")
                settings["trusted"] = fingerprint(trusted, reference.labels, {}, sample=trusted_spec)
        settings["fitted"] = weights_of(scorer)
        with all_ranks(runtime):
            spec = sample or spec_of(dataset)
            data = with_labels(dataset, spec, runtime=runtime, seed=seed, name="training data")
            check_class_labels(data.labels, dataset)
        digest = decision_fingerprint(dataset, settings, labels=data.labels, sample=spec, runtime=runtime)
        if known is not None:
            return _confirmed(known, digest, settings)
        job = Job(data, scorer, runtime, decision)
        outcome = _judge(job, reference)
    _check_removal(outcome.decision.keep, data.labels, max_removed)
    return Verdict(
        scores=outcome.scores,
        labels=data.labels,
        suggested_labels=outcome.suggested_labels,
        calibration=outcome.calibration,
        false_positive_rate=false_positive_rate,
        scorer=scorer.name,
        settings=settings,
        fingerprint=digest,
        votes=outcome.votes,
        **vars(outcome.decision),
    )


def _judge(job: Job, trusted: LabeledData | None) -> Outcome:
    if trusted is not None:
        return judge_with_trusted(job, trusted)
    if isinstance(job.scorer, SetScorer) and job.scorer.finds_groups:
        return judge_by_groups(job, job.scorer)
    return judge_without_trusted(job)


def decision_fingerprint(
    dataset: Any, settings: Mapping[str, Any], *, labels: Tensor, sample: SampleSpec, runtime: Runtime
) -> str:
    """Return the fingerprint of a decision, the same on all ranks.

    Raises:
        DataChangedError: If ranks hold different data.
    """
    with all_ranks(runtime):
        own = fingerprint(dataset, labels, settings, sample=sample)
    if not runtime.all_true(runtime.broadcast(own) == own):
        raise DataChangedError(
            "Expected the same data set on every rank, but ranks hold different ones.\n"
            "Give every rank the whole data set; the Trainer's sampler distributes it."
        )
    return own


def check_scorer_argument(scorer: Any) -> None:
    """Raise if `scorer` cannot be used for a decision; see `sanitize`."""
    if isinstance(scorer, type) or not isinstance(scorer, AnyScorer):
        came = f"the class {scorer.__name__}" if isinstance(scorer, type) else type(scorer).__name__
        way = "\n`get_scorer(name)` builds an installed one by its name."
        raise TypeError(expected("scorer", "a scorer such as `LikelihoodScorer()`", came) + way)
    if not isinstance(getattr(scorer, "name", None), str):
        raise TypeError(expected("scorer", "a scorer with a `name`", f"a {type(scorer).__name__} without one"))
    if scorer.is_control:
        raise ValueError(
            f"Expected a defense as `scorer`, but {printable(scorer.name)} is a control, which may use the ground "
            "truth.\nUse controls in evaluations only."
        )


def _confirmed(known: Verdict, digest: str, settings: Mapping[str, Any]) -> Verdict:
    if known.fingerprint == digest:
        return known
    now, then = (json.loads(json.dumps(dict(each))) for each in (settings, known.settings))
    changed = "; ".join(
        f"{name} {then.get(name)!r}, but got {now[name]!r}" for name in now if now[name] != then.get(name)
    )
    what = f"the settings {printable(changed, limit=400)}" if changed else "other samples, labels or transforms"
    raise DataChangedError(
        f"Expected the data and settings of the stored decision about {len(known):,} samples, but it was made for "
        f"{what}.\nRestore them, or use a new sanitizer without the stored decision."
    )


def _check_removal(keep: Tensor, labels: Tensor, max_removed: float) -> None:
    removed = 1 - float(keep.double().mean())
    way = "Check the scores first. If so many should be removed, raise `max_removed`."
    if removed > max_removed or not keep.any():
        raise NothingKeptError(
            f"Expected to remove at most {100 * max_removed:g} % of the samples, but {100 * removed:.1f} % are "
            f"suspicious.\n{way}"
        )
    limit = max(max_removed, 0.5)
    for number in torch.unique(labels).tolist():
        kept = float(keep[labels == number].double().mean())
        if not kept:
            raise NothingKeptError(
                f"Expected to keep some samples of each class, but all {int((labels == number).sum())} of class "
                f"{number} are suspicious.\nRemove the class, or check its samples."
            )
        if 1 - kept > limit:
            raise NothingKeptError(
                f"Expected to remove at most {100 * limit:g} % of each class, but {100 * (1 - kept):.1f} % of class "
                f"{number} are suspicious.\n{way}"
            )
