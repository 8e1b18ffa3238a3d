"""`Verdict`: scores, evidence and the decision about every sample of a data set."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, get_args

import numpy as np
import torch
from torch import Tensor

from lightning_poison.checks import describe, every, expected, fraction, from_json, instance, one_of, printable, share
from lightning_poison.sanitization.coverage import DECIDED_BY, POWER_UNKNOWN, Calibration, easily_missed, not_looked_for
from lightning_poison.sanitization.evidence import Conclusion, Evidence, headline_of
from lightning_poison.sanitization.finding import Finding
from lightning_poison.sanitization.sample_vector import sample_vector
from lightning_poison.serialization import read_object, write_tensors


@dataclass(frozen=True, eq=False, repr=False)
class Verdict:
    """Scores, p-values and the decision for every sample of a data set of N samples and C classes.

    Args:
        scores: Suspicion scores, finite float64 `(N,)`, larger is more suspicious.
        p_values: Share of clean samples of the same label with a score as high, float64 `(N,)` in (0, 1].
        keep: Boolean mask `(N,)`; `True` stays. Only samples with a score above the threshold of their class, or a
            posterior of at least its threshold, may be removed, and any by hand. Others with such values may stay:
            those kept by hand, or all if there is no evidence.
        labels: Labels of the samples, int64 `(N,)`; −1 without a label.
        suggested_labels: Label under which a sample is least suspicious, int64 `(N,)`; −1 if unknown.
        thresholds: Decision threshold of each class, float64 `(C,)`; infinite if the decision is by the posterior.
        evidence: Whether there is poison, and how much.
        calibration: What the thresholds are calibrated on.
        false_positive_rate: Accepted share of clean samples removed, in (0, 1).
        scorer: Name of the scorer.
        settings: Settings of the decision, as JSON values.
        fingerprint: Fingerprint of the data set and the settings.
        posterior: Probability that a sample is poison, float64 `(N,)` in [0, 1]; `None` with trusted data.
        posterior_threshold: Decision threshold of the posterior, in [0, 1]; `None` with trusted data.
        votes: p-values in (0, 1], float64 `(N,)`, by the name of each member of a combination. If the p-values of
            several members underflow, the first of them counts as the smallest.
        judged: Boolean mask `(N,)` of the samples that are judged; `None` for all. The others are kept: their score is
            0, their p-value 1, and their label and suggested label −1 if unknown. Samples of a small class that is kept
            since most of it would be removed have a score and a p-value.
        sample_digests: Digests of the inputs, int64 `(N,)`, 0 for samples that were not read. `None` if the inputs
            differ whenever they are read.
        notes: Sentences about what is not judged, and why.
        made_with: Identifies the versions and the device; see `decision_key`.
        groups: Number of the group in `evidence.groups` of which a removed sample is a member, int64 `(N,)`; −1 for
            none. `None` if no groups were looked for.
        findings: What each member of a union found.
        found_by: Number of the finding to which a removed sample is due, int64 `(N,)`; −1 if no member removed it.
            `None` without findings.
        removed_by_hand: Boolean mask `(N,)` of the samples that only the user removed; `None` for none.
        kept_by_hand: Boolean mask `(N,)` of the samples that the user decided to keep; `None` for none.

    Raises:
        TypeError: If a value is of another type.
        ValueError: If a value is out of its range, a tensor has another data type or length, or `keep` contradicts the
            thresholds.

    Example:
        >>> scores, p_values = torch.tensor([0.2, 9.1, 0.4]).double(), torch.tensor([0.8, 0.001, 0.6]).double()
        >>> labels, suggested, thresholds = torch.arange(3), torch.tensor([0, 2, 2]), torch.full((3,), 4.0).double()
        >>> evidence = Evidence(True, 1 / 3, 0.05, 0.8, 0.95, 0.003, kind="unlike trusted data")
        >>> verdict = Verdict(
        ...     scores, p_values, scores <= 4, labels, suggested, thresholds, evidence, calibration="trusted",
        ...     false_positive_rate=0.01, scorer="likelihood", fingerprint="5f0c",
        ... )
        >>> verdict.removed, len(verdict.with_kept(torch.tensor([1])).removed)
        (tensor([1]), 0)
        >>> verdict
        <Verdict: 3 samples scored by likelihood; 1 removed (33.33 %); evidence of poison>
        >>> print(verdict)
        3 samples scored by likelihood; 1 removed (33.33 %)
        evidence of poison: at least an estimated 33.33 % of the samples are unlike the trusted data (5.00 to 80.00 %,
        95 % interval; natural error rate 0.30 %)
        decided by comparison with trusted samples that were scored in the same way; stated false-positive rate 1 %
        how much of the poison would be found was not measured
        not looked for: poison of any kind that scores like the trusted samples of its class
    """

    scores: Tensor
    p_values: Tensor
    keep: Tensor
    labels: Tensor
    suggested_labels: Tensor
    thresholds: Tensor
    evidence: Evidence
    calibration: Calibration
    false_positive_rate: float
    scorer: str
    fingerprint: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    posterior: Tensor | None = None
    posterior_threshold: float | None = None
    votes: Mapping[str, Tensor] = field(default_factory=dict)
    judged: Tensor | None = None
    sample_digests: Tensor | None = None
    notes: tuple[str, ...] = ()
    made_with: str = ""
    groups: Tensor | None = None
    findings: tuple[Finding, ...] = ()
    found_by: Tensor | None = None
    removed_by_hand: Tensor | None = None
    kept_by_hand: Tensor | None = None

    def __post_init__(self) -> None:
        self._check_samples()
        self._check_values()
        self._check_decision()

    def _check_samples(self) -> None:
        every("scores", self.scores, sample_vector("scores", self.scores).isfinite(), "finite")
        shape = self.scores.shape
        votes = [(f"votes.{name}", p) for name, p in instance("votes", self.votes, Mapping).items()]
        for name, p_values in [("p_values", self.p_values), *votes]:
            every(name, sample_vector(name, p_values, shape=shape), (p_values > 0) & (p_values <= 1), "in (0, 1]")
        sample_vector("keep", self.keep, torch.bool, shape=shape)
        for name in ("labels", "suggested_labels"):
            labels = sample_vector(name, getattr(self, name), torch.int64, shape=shape)
            every(name, labels, labels >= -1, "at least -1")
        thresholds = sample_vector("thresholds", self.thresholds)
        every("thresholds", thresholds, ~(thresholds.isnan() | thresholds.isneginf()), "finite or infinity")
        for name, others, what in (("removed_by_hand", self.keep, "kept"), ("kept_by_hand", ~self.keep, "removed")):
            if getattr(self, name) is not None:
                by_hand = sample_vector(name, getattr(self, name), torch.bool, shape=shape)
                every(name, by_hand, ~(by_hand & others), f"False for a sample that is {what}")
        if self.judged is not None:
            judged = sample_vector("judged", self.judged, torch.bool, shape=shape)
            every("keep", self.keep, ~self.removed_by_rule | judged, "True for a sample that is not judged")
        if self.sample_digests is not None:
            sample_vector("sample_digests", self.sample_digests, torch.int64, shape=shape)
        if self.posterior is not None:
            posterior = sample_vector("posterior", self.posterior, shape=shape)
            every("posterior", posterior, (posterior >= 0) & (posterior <= 1), "in [0, 1]")

    def _check_values(self) -> None:
        instance("evidence", self.evidence, Evidence)
        one_of("calibration", self.calibration, get_args(Calibration))
        object.__setattr__(self, "false_positive_rate", fraction("false_positive_rate", self.false_positive_rate))
        for name in ("scorer", "fingerprint", "made_with"):
            instance(name, getattr(self, name), str)
        if not isinstance(self.notes, list | tuple) or not all(isinstance(note, str) for note in self.notes):
            raise TypeError(expected("notes", "strings", describe(self.notes)))
        object.__setattr__(self, "notes", tuple(self.notes))
        instance("settings", self.settings, Mapping)
        for number, finding in enumerate(instance("findings", self.findings, tuple)):
            instance(f"findings[{number}]", finding, Finding)
        if (self.posterior is None) != (self.posterior_threshold is None):
            what = "`None`, as `posterior`" if self.posterior is None else "a number, since there is a `posterior`"
            raise ValueError(expected("posterior_threshold", what, describe(self.posterior_threshold)))
        if self.posterior_threshold is not None:
            object.__setattr__(self, "posterior_threshold", share("posterior_threshold", self.posterior_threshold))

    def _check_decision(self) -> None:
        for name, count in (("groups", len(self.evidence.groups)), ("found_by", len(self.findings))):
            numbers = getattr(self, name)
            if numbers is not None:
                numbers = sample_vector(name, numbers, torch.int64, shape=self.scores.shape)
                every(name, numbers, (numbers >= -1) & (numbers < count), f"from -1 to {count - 1}")
        judged = self.labels if self.judged is None else self.labels[self.judged]
        largest = int(judged.max()) if len(judged) else -1
        if largest >= len(self.thresholds):
            what = f"one for each class up to {largest}, the largest label"
            raise ValueError(expected("thresholds", what, describe(self.thresholds)))
        suspicious, rule = self._suspicious()
        every("keep", self.keep, ~self.removed_by_rule | suspicious, f"True for a sample with {rule}")

    def _suspicious(self) -> tuple[Tensor, str]:
        if self.posterior is not None and self.posterior_threshold is not None:
            return self.posterior >= self.posterior_threshold, "a posterior below `posterior_threshold`"
        own = self.thresholds[self.labels.clamp(0, max(0, len(self.thresholds) - 1))]
        return (self.scores > own) & (self.labels >= 0), "no score above the threshold of its class"

    @property
    def removed_by_rule(self) -> Tensor:
        """Boolean mask `(N,)` of the samples that are removed, without those that only the user removed."""
        return ~self.keep if self.removed_by_hand is None else ~self.keep & ~self.removed_by_hand

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def removed(self) -> Tensor:
        """Positions of the removed samples, int64, most suspicious first."""
        return self.ranked((~self.keep).nonzero().flatten())

    @property
    def ranking(self) -> Tensor:
        """Positions of all samples, int64 `(N,)`, most suspicious first; equal posteriors by their p-values."""
        return self.ranked(torch.arange(len(self)))

    def ranked(self, indices: Tensor) -> Tensor:
        """Return positions, int64 `(M,)` and ascending, in the order of `ranking`."""
        keys = self.p_values[indices].numpy(), -self.suspicion[indices].numpy()
        return indices[torch.from_numpy(np.lexsort(keys))]

    @property
    def removed_by_scorer(self) -> dict[str, int]:
        """Number of removed samples by scorer, most first; without those that only the user removed.

        For a union, the member that removed them; for a combination, the member with the smallest p-value.
        """
        out = self.removed_by_rule
        if self.found_by is not None and self.findings:
            numbers, names = self.found_by[(self.found_by >= 0) & out], [each.scorer for each in self.findings]
        elif self.votes:
            numbers, names = torch.stack(list(self.votes.values()))[:, out].argmin(0), list(self.votes)
        else:
            return {self.scorer: count} if (count := int(out.sum())) else {}
        named = zip(names, torch.bincount(numbers, minlength=len(names)).tolist(), strict=True)
        return dict(sorted(((name, count) for name, count in named if count), key=lambda pair: -pair[1]))

    @property
    def suspicion(self) -> Tensor:
        """What samples are ranked by, float64 `(N,)`: the posterior, or 1 − p-value without one."""
        return self.posterior if self.posterior is not None else 1 - self.p_values

    def with_kept(self, indices: Tensor) -> Self:
        """Return a copy of the verdict that keeps the samples at `indices` too, marked as kept by hand."""
        keep, kept = self.keep.clone(), _copied(self.kept_by_hand, self.keep)
        keep[indices] = kept[indices] = True
        removed = _copied(self.removed_by_hand, self.keep) & ~keep
        return replace(self, keep=keep, kept_by_hand=_or_none(kept), removed_by_hand=_or_none(removed))

    def with_removed(self, indices: Tensor) -> Self:
        """Return a copy without the samples at `indices`; those are marked that the rule alone would not remove."""
        keep, kept = self.keep.clone(), _copied(self.kept_by_hand, self.keep)
        keep[indices] = False
        by_rule = kept & self._suspicious()[0] & (True if self.judged is None else self.judged)
        if self.found_by is not None:
            by_rule &= self.found_by >= 0
        removed = ~self.removed_by_rule & ~keep & ~by_rule
        return replace(self, keep=keep, kept_by_hand=_or_none(kept & keep), removed_by_hand=_or_none(removed))

    def agrees_with(self, other: "Verdict") -> bool:
        """Whether another verdict has the same data and settings and keeps the same samples."""
        return self.fingerprint == other.fingerprint and torch.equal(self.keep, other.keep)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.summary().splitlines()[0]}; {self.headline}>"

    def __str__(self) -> str:
        return self.summary()

    def summary(self, *, class_names: Sequence[str] | None = None, rows: int = 5, flag_only: bool = False) -> str:
        """Return a summary of a few lines.

        Args:
            class_names: Names of the classes. Default: their numbers.
            rows: Largest number of pairs of classes, and of groups, to list. Default: 5.
            flag_only: Whether suspicious samples are flagged and not removed. Default: `False`.
        """
        out = int((~self.keep).sum())
        count = len(self) if self.judged is None else int(self.judged.sum())
        lines = [
            f"{count:,} samples scored by {printable(', '.join(self.scorers))}; {out:,} "
            f"{'flagged, not removed' if flag_only else 'removed'} ({100 * out / max(1, count):.2f} %)",
            self.statement,
            f"decided by {DECIDED_BY[self.calibration]}; stated false-positive rate "
            f"{100 * self.false_positive_rate:g} %",
        ]
        for each in self.findings:
            lines += each.lines(class_names, rows)
        if not self.findings:
            if self.votes and (counts := self.removed_by_scorer):
                listed = ", ".join(f"{printable(name)} {count:,}" for name, count in counts.items())
                lines.append(f"smallest p-value by {listed}")
            lines += self.evidence.details(class_names, rows)
        if self.removed_by_hand is not None:
            still = ", still trained on" if flag_only else ""
            lines.append(f"removed by hand{still}: {int(self.removed_by_hand.sum()):,}")
        if self.kept_by_hand is not None:
            lines.append(f"kept by hand: {int(self.kept_by_hand.sum()):,}")
        if self.evidence.power is None:
            lines.append(POWER_UNKNOWN)
        if missing := self.not_looked_for():
            lines.append(f"not looked for: {missing}")
        if missed := self.easily_missed():
            lines.append(f"easily missed: {missed}")
        lines += [printable(note, limit=400) for note in self.notes]
        return "\n".join(lines)

    @property
    def conclusion(self) -> Conclusion:
        """What may be concluded: that of the evidence. Without any, it is uncertain if a member of a union is."""
        own = self.evidence.conclusion
        members = [each.evidence.conclusion for each in self.findings if each.evidence is not None]
        return "uncertain" if own != "evidence" and "uncertain" in members else own

    @property
    def headline(self) -> str:
        """The conclusion in words, as terminal, report and log begin with it."""
        return headline_of(self.conclusion, self.evidence.kind)

    @property
    def statement(self) -> str:
        """The headline with how much is estimated."""
        return f"{self.headline}: {self.evidence.estimate}"

    @property
    def scorers(self) -> tuple[str, ...]:
        """Names of the scorers that decide: the members of a union, or the only one, also if it was recommended."""
        if self.findings:
            return tuple(each.scorer for each in self.findings)
        chosen = self.settings.get("recommended")
        name = chosen.get("name") if isinstance(chosen, Mapping) else None
        return (name if isinstance(name, str) else self.scorer,)

    def not_looked_for(self) -> str:
        """Return the kinds of poison that no scorer looked for, with commas between them."""
        return not_looked_for(self._kinds())

    def easily_missed(self) -> str:
        """Return which poison the scorers that looked for backdoors are known to miss, or an empty text."""
        return easily_missed(self._kinds())

    def _kinds(self) -> set[str]:
        found = [each.evidence for each in self.findings if each.evidence] or [self.evidence]
        return {each.kind for each in found}

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, for `from_saved`."""
        found = {name: getattr(self, name) for name in _TENSORS if getattr(self, name) is not None}
        return found | {_VOTE + name: vote for name, vote in self.votes.items()}

    def meta(self) -> dict[str, Any]:
        """Return everything but the tensors as JSON values, for `from_saved`."""
        return {
            **{name: getattr(self, name) for name in _VALUES},
            "settings": dict(self.settings),
            "notes": list(self.notes),
            "evidence": self.evidence.meta(),
            "findings": [each.meta() for each in self.findings],
            "votes": list(self.votes),
        }

    @classmethod
    def from_saved(cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Build a verdict from what `meta` and `tensors` returned.

        Raises:
            TypeError: If a value is of another type.
            ValueError: If a value is missing, unknown, or invalid; see the class.
        """
        parts: dict[str, Any] = dict(instance("meta", meta, Mapping))
        parts["evidence"] = Evidence.from_meta(parts.get("evidence"))  # type: ignore[arg-type]  # checked there
        parts["findings"] = tuple(map(Finding.from_meta, instance("findings", parts.get("findings", []), list)))
        found = instance("tensors", tensors, Mapping)
        votes = {name.removeprefix(_VOTE): vote for name, vote in found.items() if name.startswith(_VOTE)}
        order = instance("votes", parts.get("votes", sorted(votes)), list)
        if sorted(votes) != sorted(map(str, order)):
            raise ValueError(expected("votes", f"the names {', '.join(map(printable, sorted(votes)))}", "others"))
        parts["votes"] = {name: votes[name] for name in order}
        parts |= {name: tensor for name, tensor in found.items() if not name.startswith(_VOTE)}
        return from_json(cls, parts, "verdict")

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically, with the JSON values in its header.

        Raises:
            OSError: If the file cannot be written.
        """
        write_tensors(path, self.tensors(), {"kind": "verdict", "version": _VERSION, **self.meta()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            TypeError: If `path` is no path.
            ValueError: If it is no verdict file of this version, a value is invalid, or the file was damaged or changed
                since it was written. The message names file, field and value.
        """
        return read_object(path, "verdict", cls.from_saved, version=_VERSION)


_VERSION = 1
"""Format of a verdict file."""

_OPTIONAL = ("posterior", "judged", "sample_digests", "groups", "found_by", "removed_by_hand", "kept_by_hand")
_TENSORS = ("scores", "p_values", "keep", "labels", "suggested_labels", "thresholds", *_OPTIONAL)
"""Fields that are saved as tensors, if they are not `None`."""

_VALUES = ("calibration", "false_positive_rate", "scorer", "fingerprint", "posterior_threshold", "made_with")
"""Fields that are saved as JSON values as they are."""

_VOTE = "votes."
"""Prefix of the names of the tensors in `votes`."""


def _copied(mask: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if mask is None else mask.clone()


def _or_none(mask: Tensor) -> Tensor | None:
    return mask if bool(mask.any()) else None
