"""`decide`: read and check the data, look for an earlier decision about them, or score, calibrate and decide."""

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_poison.checks import printable
from lightning_poison.data.copies import group_numbers
from lightning_poison.data.fingerprints import check_json, fingerprint
from lightning_poison.data.handles import handles_dropped
from lightning_poison.data.labeled_data import LabeledData, digest_all, memory_limit, read_labeled
from lightning_poison.data.labels import UNLABELED, check_class_labels
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.data.source import Readable, read_opened, readable
from lightning_poison.errors import DataChangedError, InconclusiveError, UnreadableSampleError
from lightning_poison.randomness import isolated_rng
from lightning_poison.runtime import LocalRuntime, Runtime, all_ranks
from lightning_poison.sanitization.by_groups import judge_by_groups
from lightning_poison.sanitization.by_union import judge_by_union
from lightning_poison.sanitization.cache_folder import VERDICT
from lightning_poison.sanitization.copies import copy_notes, digest_of_groups, with_copies
from lightning_poison.sanitization.job import Job, Outcome
from lightning_poison.sanitization.judged_part import JudgedPart, augmentation_notes, detection_notes, judged_part
from lightning_poison.sanitization.limits import with_limits
from lightning_poison.sanitization.settings import DecisionSettings
from lightning_poison.sanitization.stored_decision import StoredDecision, marks_of
from lightning_poison.sanitization.units import FileUnits, decision_key, open_units
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.sanitization.with_trusted import check_trusted, judge_with_trusted
from lightning_poison.sanitization.without_trusted import judge_without_trusted
from lightning_poison.scorers.inspection import AnyScorer, settings_of, weights_of
from lightning_poison.scorers.protocol import SetScorer
from lightning_poison.scorers.recommended import RecommendedScorer
from lightning_poison.scorers.union import UnionScorer

_NO_REPEAT = (
    "The inputs differ whenever they are read: transforms draw from a generator of their own. A stored decision about "
    "these samples is checked by labels and number alone; exchanged inputs are not noticed."
)

_REPEAT_HINT = (
    "To have every sample checked, and scored without augmentation, pass the same samples under an evaluation "
    "transform: `score_dataset=` of the sanitizer, or `dataset` of `sanitize`."
)


def decide(
    dataset: Any,
    scorer: AnyScorer,
    *,
    settings: DecisionSettings,
    trusted: Any = None,
    sample: SampleSpec | None = None,
    runtime: Runtime | None = None,
    known: Verdict | StoredDecision | None = None,
    candidates: Sequence[Verdict] = (),
    cache: str | Path | None = None,
) -> Verdict | StoredDecision:
    """Make a decision, however much it removes. Arguments and errors are those of `sanitize`, except for these.

    Args:
        dataset: Also a `Readable`.
        scorer: See `sanitize`.
        settings: Settings of the decision.
        trusted: See `sanitize`.
        sample: See `sanitize`.
        runtime: See `sanitize`.
        known: Also a stored decision. If it was made for this data set with these settings, it is returned.
        candidates: Verdicts, one of which is returned if it was made for this data set with these settings by this
            version of the package.
        cache: See `sanitize`.
    """
    runtime = runtime or LocalRuntime()
    with all_ranks(runtime):
        judged = readable(dataset, "dataset")
        known_clean = readable(trusted, "trusted") if trusted is not None else None
        described = {"scorer": settings_of(scorer), **settings.fingerprinted(), "trusted": None}
        groups = group_numbers(settings.groups, len(judged.dataset))
        if groups is not None:
            described["groups"] = digest_of_groups(groups)
        check_json(described, "settings")
    _check_same_settings(described, runtime)
    with isolated_rng(settings.seed, runtime.device), ExitStack() as stack:
        for each in (judged, known_clean):
            if each is not None and not each.settings.num_workers:
                stack.enter_context(handles_dropped(each.dataset))
        reference = None
        if known_clean is not None:
            reference = _read(known_clean, sample, settings.seed, runtime, "trusted data")
            digest_all(reference, runtime)
            described["trusted"] = _fingerprint(known_clean.dataset, reference, {})
        described["fitted"] = weights_of(scorer)
        data = _read(judged, sample, settings.seed, runtime, "training data")
        advice = detection_notes(data) + (augmentation_notes(judged.dataset) if data.is_random else ())
        with all_ranks(runtime):
            if isinstance(scorer, RecommendedScorer):
                first, dtype = data.first_inputs(), data.source.dtype
                scorer = scorer.reading(judged.dataset, first)
                advice, scorer = (*advice, *scorer.notes_for(first, dtype)), scorer.for_inputs(first, data.labels)
                described["recommended"] = settings_of(scorer)
            check_class_labels(data.labels, judged.dataset)
        if reference is None:
            data = with_copies(data, groups, runtime, cache=cache)
        with all_ranks(runtime):
            length = len(judged.dataset)
            part = judged_part(data, scorer, folds=settings.folds, trusted=reference, length=length)
            unchecked = () if data.repeats else (_NO_REPEAT,)
            part = replace(part, notes=part.notes + copy_notes(part.data) + advice + unchecked)
            if part.trusted is not None:
                check_trusted(part.data, part.trusted)
        return _DecisionRun(judged.dataset, data, part, described, scorer, settings, runtime).make(
            known, candidates, cache
        )


def _read(readable: Readable, sample: SampleSpec | None, seed: int, runtime: Runtime, name: str) -> LabeledData:
    settings = readable.settings
    if not settings.num_workers and runtime.num_workers:
        settings = replace(settings, num_workers=runtime.num_workers)
    limit = memory_limit(runtime)
    with all_ranks(runtime), _named_part(name):
        positions = readable.positions
        read = partial(read_labeled, positions=positions, runtime=runtime, name=name, limit=limit)
        data = read_opened(read, readable.dataset, sample=sample, positions=positions, settings=settings, seed=seed)
    is_random = not runtime.all_true(not data.is_random)
    return replace(data, repeats=runtime.all_true(data.repeats), is_random=is_random)


@contextmanager
def _named_part(name: str) -> Iterator[None]:
    """Say in the message of an error that it is about the trusted data; other data are those that are judged."""
    try:
        yield
    except (UnreadableSampleError, TypeError, ValueError) as error:
        if name == "trusted data" and len(error.args) == 1:
            error.args = (f"In `trusted`: {error}",)
        raise


def _fingerprint(dataset: Any, data: LabeledData, settings: Mapping[str, Any]) -> str:
    """Return the fingerprint of data, of which all samples have been read, and of settings."""
    return fingerprint(dataset, data.labels, settings, digests=data.sample_digests if data.repeats else None)


def _check_same_settings(described: Mapping[str, Any], runtime: Runtime) -> None:
    own = json.dumps(described, sort_keys=True)
    first = runtime.broadcast(own)
    if runtime.all_true(own == first):
        return
    expected_here = json.loads(first)
    changed = [f"`{name}={value!r}`" for name, value in described.items() if value != expected_here.get(name)]
    there = [f"`{name}={expected_here[name]!r}`" for name in described if described[name] != expected_here.get(name)]
    raise ValueError(
        f"Expected the same settings on every rank, but rank 0 has {printable(', '.join(there) or 'others')} and this "
        f"one, rank {runtime.rank}, {printable(', '.join(changed) or 'the same as rank 0')}.\n"
        "Build the sanitizer from the same values on every rank. If `pretrained` differs, install "
        "`lightning-poison[pretrained]` on all machines or on none."
    )


@dataclass(frozen=True)
class _DecisionRun:
    """A decision about data that are read."""

    dataset: Any
    data: LabeledData
    part: JudgedPart
    described: Mapping[str, Any]
    scorer: AnyScorer
    settings: DecisionSettings
    runtime: Runtime

    def make(
        self, known: Verdict | StoredDecision | None, candidates: Sequence[Verdict], cache: str | Path | None
    ) -> Verdict | StoredDecision:
        """Return the known decision if it fits, or a candidate or a stored verdict that fits, or score."""
        read = _fingerprint(self.dataset, self.data, self.described)
        if not self.runtime.all_true(self.runtime.broadcast(read) == read):
            raise DataChangedError(
                "Expected the same data set on every rank, but ranks hold other samples or labels.\n"
                "Give every rank the whole data set in the same order; the Trainer's sampler distributes it. Pass "
                "`generator=torch.Generator().manual_seed(0)` to `random_split`, and seed whatever else draws samples."
            )
        if not self.data.repeats and self.runtime.rank == 0:
            warnings.warn(f"{_NO_REPEAT} {_REPEAT_HINT}", stacklevel=3)
        if self.part.trusted is not None:  # whether samples have been read depends on the free memory
            read = fingerprint(self.dataset, self.data.labels, self.described)
        key = decision_key(self.scorer, self.described, read, self.runtime)
        units = self._open(cache, key)
        if known is not None:
            self._confirm(known)
            return self._full(known, units) if isinstance(known, StoredDecision) else known
        found = [*candidates, *_stored_verdict(units)]
        if not self.runtime.all_true(not found):
            digest_all(self.data, self.runtime)
            current = _fingerprint(self.dataset, self.data, self.described)
            own = next((each for each in found if each.made_with == key and each.fingerprint == current), None)
            made = self.runtime.broadcast(own)
            if made is not None:
                if units is not None and own is not None and not any(own is each for each in candidates):
                    units.announce_reuse(self.runtime)
                return with_limits(made, self.settings.max_removed)
        before = self.runtime.units
        try:
            self.runtime.units = units if units is not None else before
            verdict = self._verdict(self._outcome(), key)
        finally:
            self.runtime.units = before
        if units is not None:
            units.save(VERDICT, verdict.tensors(), verdict.meta())
            units.keep_only(VERDICT)
        return with_limits(verdict, self.settings.max_removed)

    def _open(self, cache: str | Path | None, key: str) -> FileUnits | None:
        """Open the units of this decision, and remove any that were computed from other samples."""
        if cache is None:
            return None
        units = open_units(cache, key, self.data.source.digests, self.runtime.rank)
        if not self.runtime.all_true(units.is_empty):
            digest_all(self.data, self.runtime)
        with all_ranks(self.runtime):
            if not units.samples_match():
                units.clear()
        return units

    def _full(self, stored: StoredDecision, units: FileUnits | None) -> Verdict | StoredDecision:
        """Return the verdict of a stored decision if it is in the units, with its edits by hand; or the decision."""
        for found in _stored_verdict(units):
            verdict = with_limits(found, self.settings.max_removed)
            if verdict.fingerprint == stored.fingerprint and (edited := stored.decided_by_hand(verdict)) is not None:
                return edited
        return stored

    def _confirm(self, known: Verdict | StoredDecision) -> None:
        digest_all(self.data, self.runtime)
        if not self.runtime.all_true(known.fingerprint == _fingerprint(self.dataset, self.data, self.described)):
            raise DataChangedError(_changed(known, self.described, self.data))

    def _outcome(self) -> Outcome:
        job = Job(self.part.data, self.scorer, self.runtime, self.settings)
        try:
            if isinstance(self.scorer, UnionScorer):
                return judge_by_union(job, self.scorer, self.part.trusted, judge)
            return judge(job, self.part.trusted)
        except InconclusiveError as error:
            if error.scores is not None:
                error.scores = _Spread(self.part.data.positions, len(self.dataset))(error.scores, 0)
            raise

    def _verdict(self, outcome: Outcome, key: str) -> Verdict:
        """Return the verdict on the whole data set, with the classes numbered as the data set numbers them."""
        digest_all(self.data, self.runtime)
        decision, classes = outcome.decision, self.part.classes
        suggested = outcome.suggested_labels
        suggested = torch.where(suggested >= 0, classes[suggested.clamp_min(0)], suggested)
        thresholds = torch.full((int(classes[-1]) + 1,), torch.inf, dtype=torch.float64)
        thresholds[classes[: len(decision.thresholds)]] = decision.thresholds
        spread = _Spread(self.part.data.positions, len(self.dataset))
        labels = torch.full((len(self.dataset),), UNLABELED)
        labels[self.data.positions] = self.data.labels
        digests = torch.zeros(len(self.dataset), dtype=torch.int64)
        digests[self.data.positions] = self.data.sample_digests
        posterior = decision.posterior
        judged = torch.ones_like(decision.keep) if outcome.judged is None else outcome.judged
        return Verdict(
            scores=spread(outcome.scores, 0),
            p_values=spread(decision.p_values, 1),
            keep=spread(decision.keep, True),
            labels=labels,
            suggested_labels=spread(suggested, UNLABELED),
            thresholds=thresholds,
            evidence=self.part.renumbered(decision.evidence),
            calibration=outcome.calibration,
            false_positive_rate=self.settings.false_positive_rate,
            scorer=str(self.described["scorer"]["name"]),
            fingerprint=_fingerprint(self.dataset, self.data, self.described),
            settings=dict(self.described),
            posterior=None if posterior is None else spread(posterior, 0),
            posterior_threshold=decision.posterior_threshold,
            votes={name: spread(vote, 1) for name, vote in outcome.votes.items()},
            judged=None if bool(judged.all()) and len(judged) == len(self.dataset) else spread(judged, False),
            sample_digests=digests if self.data.repeats else None,
            notes=self.part.notes + outcome.notes,
            made_with=key,
            groups=None if outcome.groups is None else spread(outcome.groups, -1),
            findings=outcome.findings,
            found_by=None if outcome.found_by is None else spread(outcome.found_by, -1),
        )


def judge(job: Job, trusted: LabeledData | None) -> Outcome:
    """Make the decision of a single scorer or a combination: with trusted data, by groups, or by wrong labels."""
    if trusted is not None:
        return judge_with_trusted(job, trusted)
    if isinstance(job.scorer, SetScorer) and job.scorer.finds_groups:
        return judge_by_groups(job, job.scorer)
    return judge_without_trusted(job)


@dataclass(frozen=True)
class _Spread:
    """Spreads values of the judged samples over the whole data set."""

    positions: Tensor
    length: int

    def __call__(self, values: Tensor, default: float) -> Tensor:
        if len(values) == self.length:
            return values
        spread = torch.full((self.length,), default, dtype=values.dtype)
        spread[self.positions] = values
        return spread


def _stored_verdict(units: FileUnits | None) -> list[Verdict]:
    stored = units.load(VERDICT) if units is not None else None
    if stored is None:
        return []
    try:
        return [Verdict.from_saved(stored[1], stored[0])]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []


def _changed(known: Verdict | StoredDecision, described: Mapping[str, Any], data: LabeledData) -> str:
    """Return the message for a stored decision that was made for other settings, samples or labels."""
    now, then = (json.loads(json.dumps(dict(each))) for each in (described, known.settings))
    changed = [name for name in {**then, **now} if now.get(name) != then.get(name)]
    if changed:
        parts = "; ".join(f"{name} {then.get(name)!r}, but got {now.get(name)!r}" for name in changed)
        what = f"the settings {printable(parts, limit=400)}"
    else:
        what = _changed_samples(known, data)
    return (
        f"Expected the data and settings of the stored decision about {len(known):,} samples, but it was made for "
        f"{what}.\nRestore them. To judge the data anew, leave out `known` (in YAML: `known: null`), or, if a "
        "checkpoint contains the decision, give the sanitizer another `name` (in YAML: `name: anew`)."
    )


def _changed_samples(known: Verdict | StoredDecision, data: LabeledData) -> str:
    length = len(data.source.dataset)
    if len(known) != length:
        return f"{len(known):,} samples, and there are {length:,}"
    others = _other_positions(known, data)
    if others is not None:
        return others
    if isinstance(known, Verdict):
        then = known.labels[data.positions]
        changed = (then != data.labels).nonzero().flatten()
        if len(changed):
            place = int(changed[0])
            return (
                f"other labels: {len(changed):,} differ, the first at sample {int(data.positions[place])}, which had "
                f"{int(then[place])} and now has {int(data.labels[place])}"
            )
        marks = None if known.sample_digests is None else marks_of(known.sample_digests)
    else:
        marks = known.marks
    if marks is None or not data.repeats:
        return "other samples, labels or transforms, or transforms that draw from a generator of their own"
    differing = data.positions[marks[data.positions] != marks_of(data.sample_digests)]
    if not len(differing):
        return "other samples, labels or transforms"
    return (
        f"other inputs: {len(differing):,} of {len(data):,} samples differ, the first at sample {int(differing[0])}, "
        "unless transforms draw from a generator of their own"
    )


def _other_positions(known: Verdict | StoredDecision, data: LabeledData) -> str | None:
    """Say if the sampler drew other samples than it draws now; samples that were never read have no label or digest."""
    is_read = torch.zeros(len(known), dtype=torch.bool)
    is_read[data.positions] = True
    marks = known.sample_digests if isinstance(known, Verdict) else known.marks
    if marks is not None:
        was_read = marks != 0
    elif isinstance(known, Verdict):
        was_read = known.labels != UNLABELED
        is_read[data.positions] = data.labels != UNLABELED
    else:
        return None
    added, missing = is_read & ~was_read, was_read & ~is_read
    if not bool(missing.any()) and 1000 * int(added.sum()) <= len(known):  # a few marks are 0 by chance
        return None
    parts = [
        f"{int(each.sum()):,} {what}, the first of them sample {int(each.nonzero()[0])}"
        for each, what in ((missing, "are no longer drawn"), (added, "were not drawn then"))
        if bool(each.any())
    ]
    return f"other positions of the sampler: {'; '.join(parts)}"
