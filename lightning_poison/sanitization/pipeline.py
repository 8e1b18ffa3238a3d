"""`sanitize`: score every sample, calibrate, decide. No Trainer in sight, usable without one."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_poison.checks import expected, fraction, positive_int, printable, share
from lightning_poison.data.fingerprints import fingerprint
from lightning_poison.data.in_memory import Held, take
from lightning_poison.data.labels import check_labels, spec_of
from lightning_poison.data.map_style_data import map_style
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.errors import DataChangedError, NothingKeptError
from lightning_poison.randomness import isolated_rng
from lightning_poison.runtime import LocalRuntime, Runtime, agreed
from lightning_poison.sanitization.by_groups import judge_by_groups
from lightning_poison.sanitization.job import Job
from lightning_poison.sanitization.verdict import Calibration, Verdict
from lightning_poison.sanitization.with_trusted import judge_by_trusted
from lightning_poison.sanitization.without_trusted import judge_untrusted
from lightning_poison.scorers.inspection import AnyScorer, settings_of, weights_of
from lightning_poison.scorers.protocol import FeatureScorer, GroupScorer, Scorer
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
    """Judge every sample of a data set.

    With trusted data, an unfitted scorer is fitted on 70 % of them and calibrated on the rest; one that is fitted
    already is calibrated on all of them, which it must not have seen. Without, the scorer is cross-fitted over folds of
    the data set itself (one that is fitted already, on other data, scores it as it is), and the cut follows from the
    wrong-label null; one that finds groups (`RobustFeatureScorer`) looks at all of the data, and the cut follows from
    what the groups do. Then nothing is removed where there is no evidence of poison.

    Args:
        dataset: a map-style data set of N samples, left as it is.
        scorer: how suspicious a sample is; not a control. It stays unfitted where it is cross-fitted.
        trusted: a map-style data set, or a loader of one, whose samples are believed; `None` where nothing is.
        false_positive_rate: the share of clean samples that may be lost, in (0, 1).
        sample: where input and label stand in a sample, a trusted one too; found by itself where it is `None`.
        folds: how many folds to cross-fit over, at least 2.
        natural_error_rate: the share of wrong labels that counts as no evidence, in [0, 1].
        remove_without_evidence: remove what looks wrong also where there is no evidence of poison.
        max_removed: the share of the data set, in (0, 1], above which it is an error to remove; for a class in it,
            this or one half, whichever is larger, and never the whole class.
        seed: the only source of randomness; the same seed gives the same verdict at any number of workers and ranks.
        runtime: where to compute; this machine's CPU where it is `None`.
        known: an earlier verdict; it is returned as it is, and nothing is scored, where it was made about these data
            under these settings.

    Returns:
        The verdict; `SanitizedDataset(dataset, verdict.keep)` is what to train on.

    A data set that lists its labels (`targets`, `labels`) is read once; one that does not is read once too where its
    samples fit into 2 GiB of memory, else once more for the labels. Without trusted data each rank holds the scores of
    all samples under every label: `8 * N * C` bytes for C classes.

    Raises:
        UnsupportedDataError: where the data set has no length or is read by iteration only.
        UnreadableSampleError: where a sample cannot be read, is not finite, or has another shape than the others.
        NothingKeptError: where more than `max_removed` would be removed.
        InconclusiveError: where nothing is trusted and the scorer reads the samples too badly to judge their labels.
        DataChangedError: where ranks hold different data, or `known` was made about other data or settings.
        ValueError: where an argument is out of range, there are fewer than two classes, a class is absent from the
            trusted data, or a label is no integer.
        TypeError: where `scorer` is none, or JSON cannot hold its settings.

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
    check_arguments(scorer, false_positive_rate, natural_error_rate, max_removed, seed, folds)
    runtime = runtime or LocalRuntime()
    trusted = map_style(trusted, "trusted") if trusted is not None else None
    data = map_style(dataset, "dataset")

    settings: dict[str, Any] = {
        "scorer": settings_of(scorer),
        "false_positive_rate": false_positive_rate,
        "natural_error_rate": natural_error_rate,
        "remove_without_evidence": remove_without_evidence,
        "folds": folds,
        "seed": seed,
    }
    with isolated_rng(seed, runtime.device):
        believed, settings["trusted"] = None, None
        if trusted is not None:
            believed, settings["trusted"] = agreed(runtime, lambda: _believed(trusted, sample, runtime, seed))
        settings["fitted"] = weights_of(scorer)
        held, spec = agreed(runtime, lambda: _taken(data, sample, runtime, seed))
        labels = held.labels
        digest = decision_fingerprint(data, settings, labels=labels, sample=spec, runtime=runtime)
        if known is not None:
            return _still_good(known, digest, settings)
        job = Job(held.dataset, labels, scorer, held.sample, runtime, seed, false_positive_rate, natural_error_rate)
        if believed is not None:
            judged = judge_by_trusted(job, believed)
        elif isinstance(scorer, GroupScorer):
            judged = judge_by_groups(job, scorer, remove_without_evidence=remove_without_evidence)
        else:
            judged = judge_untrusted(job, folds=folds, remove_without_evidence=remove_without_evidence)
    _check_removal(judged.decision.keep, labels, max_removed)
    return Verdict(
        scores=judged.scores,
        labels=labels,
        suggested_labels=judged.suggested_labels,
        calibration=_calibration(scorer, trusted),
        false_positive_rate=false_positive_rate,
        scorer=scorer.name,
        settings=settings,
        fingerprint=digest,
        votes=judged.votes,
        **vars(judged.decision),
    )


def decision_fingerprint(
    dataset: Any, settings: Mapping[str, Any], *, labels: Tensor, sample: SampleSpec, runtime: Runtime
) -> str:
    """Return the fingerprint of a decision, agreed on by all ranks.

    Raises:
        DataChangedError: where ranks hold different data.
    """
    own = agreed(runtime, lambda: fingerprint(dataset, labels, settings, sample=sample))
    if not runtime.all_true(runtime.broadcast(own) == own):
        raise DataChangedError(
            "Expected the same data set on every rank, but the ranks hold different ones.\n"
            "Give every rank the whole data set and let the Trainer's sampler share it out."
        )
    return own


def _calibration(scorer: AnyScorer, trusted: Any) -> Calibration:
    if trusted is not None:
        return "trusted"
    return "group tests" if isinstance(scorer, GroupScorer) else "wrong-label null"


def _still_good(known: Verdict, digest: str, settings: Mapping[str, Any]) -> Verdict:
    if known.fingerprint == digest:
        return known
    now, then = (json.loads(json.dumps(dict(each))) for each in (settings, known.settings))
    differing = [name for name in now if now[name] != then.get(name)]
    changed = "; ".join(f"{name} {then.get(name)!r}, but got {now[name]!r}" for name in differing)
    what = f"the settings {printable(changed, limit=400)}" if differing else "other samples, labels or transforms"
    raise DataChangedError(
        f"Expected the data and settings that the stored decision about {len(known):,} samples was made for: it was "
        f"made for {what}.\nRestore them, or use a new sanitizer without the stored decision, which judges anew."
    )


def _taken(data: Any, sample: SampleSpec | None, runtime: Runtime, seed: int) -> tuple[Held, SampleSpec]:
    """Return the data set as it is judged, and where input and label stand in a sample of it as it came."""
    spec = sample or spec_of(data)
    held = take(data, spec, runtime=runtime, seed=seed, name="training data")
    check_labels(held.labels, data)
    return held, spec


def _believed(trusted: Any, sample: SampleSpec | None, runtime: Runtime, seed: int) -> tuple[Held, str]:
    """Return the trusted data, and a digest, so that a decision is not used again where they were exchanged."""
    spec = sample or spec_of(trusted)
    held = take(trusted, spec, runtime=runtime, seed=seed, name="trusted data")
    return held, fingerprint(trusted, held.labels, {}, sample=spec)


def check_arguments(
    scorer: AnyScorer, false_positive_rate: float, natural_error_rate: float, max_removed: float, seed: int, folds: int
) -> None:
    """Check what can be checked before there are data; see `sanitize` for what it raises."""
    if isinstance(scorer, type) or not isinstance(scorer, Scorer | FeatureScorer):
        came = f"the class {scorer.__name__}" if isinstance(scorer, type) else type(scorer).__name__
        way = "\n`get_scorer(name)` builds an installed one by its name."
        raise TypeError(expected("scorer", "a scorer such as `LikelihoodScorer()`", came) + way)
    if scorer.is_control:
        raise ValueError(
            f"Expected a defense as `scorer`, but {printable(scorer.name)} is a control: it may know the truth.\n"
            "Controls belong into an evaluation, never between strangers' data and a training."
        )
    fraction("false_positive_rate", false_positive_rate, hint="For 1 % write `false_positive_rate=0.01`.")
    share("natural_error_rate", natural_error_rate)
    if max_removed != 1:
        fraction("max_removed", max_removed, hint="Use 1 for no limit.")
    positive_int("seed", seed, minimum=0)
    positive_int("folds", folds, minimum=2)


def _check_removal(keep: Tensor, labels: Tensor, max_removed: float) -> None:
    removed = 1 - float(keep.double().mean())
    way = "Look at the scores first; if it is right to remove so many, raise `max_removed`."
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
                f"{number} are suspicious.\nLeave the class out, or look whether there is such a class at all."
            )
        if 1 - kept > limit:
            raise NothingKeptError(
                f"Expected to remove at most {100 * limit:g} % of each class, but {100 * (1 - kept):.1f} % of class "
                f"{number} are suspicious.\n{way}"
            )
