"""`Verdict`: scores, evidence and the decision about every sample of a data set."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from lightning_poison.checks import describe, expected, printable
from lightning_poison.serialization import read_tensors, write_tensors
from lightning_poison.statistics.contamination import SuspectPair
from lightning_poison.statistics.group_effects import SuspectGroup


@dataclass(frozen=True)
class Evidence:
    """Whether there is poison, and how much.

    Args:
        present: Whether the lower end of the interval is above the natural error rate, or, if the data were judged by
            groups, whether a group is poison.
        contamination: Estimated share of the data set that is poison, in [0, 1].
        low: Lower end of the interval around it.
        high: Upper end of the interval.
        confidence: Nominal coverage of the interval.
        natural_error_rate: Share of wrong labels that does not count as evidence.
        pairs: Pairs of classes with many wrong labels, most first.
        groups: Groups of samples that are separated from their class, largest first.

    Example:
        >>> print(Evidence(True, 0.021, 0.015, 0.03, confidence=0.95, natural_error_rate=0.003))
        evidence of poison: an estimated 2.10 % of the samples (1.50 to 3.00 %, 95 % interval;
        natural error rate 0.30 %)
    """

    present: bool
    contamination: float
    low: float
    high: float
    confidence: float
    natural_error_rate: float
    pairs: tuple[SuspectPair, ...] = ()
    groups: tuple[SuspectGroup, ...] = ()

    def __str__(self) -> str:
        found = "evidence of poison" if self.present else "no evidence of poison"
        interval = f"{100 * self.low:.2f} to {100 * self.high:.2f} %, {100 * self.confidence:.0f} % interval"
        natural = f"natural error rate {100 * self.natural_error_rate:.2f} %"
        return f"{found}: an estimated {100 * self.contamination:.2f} % of the samples ({interval}; {natural})"

    def meta(self) -> dict[str, Any]:
        """Return the evidence as JSON values, for `from_meta`."""
        pairs, groups = ([dict(vars(each)) for each in several] for several in (self.pairs, self.groups))
        return {**vars(self), "pairs": pairs, "groups": groups}

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Self:
        """Build the evidence from what `meta` returned."""
        pairs = tuple(SuspectPair(**pair) for pair in meta["pairs"])
        groups = tuple(SuspectGroup(**group) for group in meta.get("groups", ()))
        return cls(**{**meta, "pairs": pairs, "groups": groups})


Calibration = Literal["trusted", "wrong-label null", "group tests"]


@dataclass(frozen=True, eq=False)
class Verdict:
    """Scores, p-values and the decision for every sample of a data set of N samples and C classes.

    Args:
        scores: Suspicion scores, float64 `(N,)`, larger is more suspicious.
        p_values: Share of clean samples of the same label with a score as high, float64 `(N,)` in (0, 1].
        keep: Boolean mask `(N,)`; `True` stays.
        labels: Labels of the samples, int64 `(N,)`.
        suggested_labels: Label under which a sample is least suspicious, int64 `(N,)`; −1 if unknown.
        thresholds: Decision threshold of each class, float64 `(C,)`; infinite if the decision is by the posterior.
        evidence: Whether there is poison, and how much.
        calibration: What the thresholds are calibrated on.
        false_positive_rate: Accepted share of clean samples removed, in (0, 1).
        scorer: Name of the scorer.
        settings: Settings of the decision, as JSON values.
        fingerprint: Fingerprint of the data set and the settings.
        posterior: Probability that a sample is poison, float64 `(N,)`; `None` with trusted data.
        posterior_threshold: Decision threshold of the posterior; `None` with trusted data.
        votes: p-values in (0, 1], float64 `(N,)`, by the name of each member of a combination. If the p-values of
            several members underflow, the first of them counts as the smallest.

    Raises:
        ValueError: If `keep` is not a boolean mask, or `p_values`, `keep`, `labels`, `suggested_labels` or `posterior`
            differs from `scores` in shape.

    Example:
        >>> scores = torch.tensor([0.2, 9.1, 0.4])
        >>> p_values, labels, suggested = torch.tensor([0.8, 0.001, 0.6]), torch.arange(3), torch.tensor([0, 2, 2])
        >>> evidence = Evidence(True, 1 / 3, 0.05, 0.8, confidence=0.95, natural_error_rate=0.003)
        >>> verdict = Verdict(
        ...     scores, p_values, scores <= 4, labels, suggested, torch.full((3,), 4.0), evidence,
        ...     calibration="trusted", false_positive_rate=0.01, scorer="likelihood", fingerprint="5f0c",
        ... )
        >>> verdict.removed, len(verdict.with_kept(torch.tensor([1])).removed)
        (tensor([1]), 0)
        >>> print(verdict)
        3 samples scored by likelihood; 1 removed (33.33 %)
        evidence of poison: an estimated 33.33 % of the samples (5.00 to 80.00 %, 95 % interval;
        natural error rate 0.30 %)
        calibrated on held-out trusted data, stated false-positive rate 1 %
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

    def __post_init__(self) -> None:
        for name in ("p_values", "keep", "labels", "suggested_labels", "posterior"):
            value = getattr(self, name)
            if value is not None and value.shape != self.scores.shape:
                raise ValueError(expected(name, f"of shape {tuple(self.scores.shape)}, as `scores`", describe(value)))
        if self.keep.dtype != torch.bool:
            raise ValueError(expected("keep", "a boolean mask", describe(self.keep)))

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def removed(self) -> Tensor:
        """Positions of the removed samples, int64, most suspicious first."""
        return self.ranking[~self.keep[self.ranking]]

    @property
    def ranking(self) -> Tensor:
        """Positions of all samples, int64 `(N,)`, most suspicious first; equal posteriors by their p-values."""
        return torch.from_numpy(np.lexsort((self.p_values.numpy(), -self.suspicion.numpy())))

    @property
    def accusers(self) -> dict[str, int]:
        """Number of removed samples to which each member of a combination gave the smallest p-value, most first."""
        if not self.votes:
            return {}
        removed = torch.stack(list(self.votes.values()))[:, ~self.keep]
        counts = torch.bincount(removed.argmin(0), minlength=len(self.votes)).tolist()
        named = zip(self.votes, counts, strict=True)
        return dict(sorted(((name, count) for name, count in named if count), key=lambda pair: -pair[1]))

    @property
    def suspicion(self) -> Tensor:
        """What samples are ranked by, float64 `(N,)`: the posterior, or 1 − p-value without one."""
        return self.posterior if self.posterior is not None else 1 - self.p_values

    def with_kept(self, indices: Tensor) -> Self:
        """Return a copy of the verdict that keeps the samples at `indices` too."""
        keep = self.keep.clone()
        keep[indices] = True
        return self._replace(keep=keep)

    def agrees_with(self, other: "Verdict") -> bool:
        """Whether another verdict has the same data and settings and keeps the same samples."""
        return self.fingerprint == other.fingerprint and torch.equal(self.keep, other.keep)

    def _replace(self, **parts: Any) -> Self:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return type(self)(**{**values, **parts})

    def __str__(self) -> str:
        return self.summary()

    def summary(self, *, class_names: "list[str] | None" = None, rows: int = 5, flag_only: bool = False) -> str:
        """Return a summary of a few lines.

        Args:
            class_names: Names of the classes. Default: their numbers.
            rows: Largest number of pairs of classes, and of groups, to list. Default: 5.
            flag_only: Whether suspicious samples are flagged and not removed. Default: `False`.
        """
        out = int((~self.keep).sum())
        lines = [
            f"{len(self):,} samples scored by {printable(self.scorer)}; {out:,} "
            f"{'flagged, not removed' if flag_only else 'removed'} ({100 * out / len(self):.2f} %)",
            str(self.evidence),
            f"calibrated on {_CALIBRATIONS[self.calibration]}, stated false-positive rate "
            f"{100 * self.false_positive_rate:g} %",
        ]
        if accusers := self.accusers:
            listed = ", ".join(f"{printable(name)} {count:,}" for name, count in accusers.items())
            lines.append(f"smallest p-value by {listed}")
        for pair in self.evidence.pairs[:rows]:
            names = [_class_name(index, class_names) for index in (pair.labeled, pair.predicted)]
            lines.append(
                f"  labeled {names[0]}, looks like {names[1]}: about {pair.estimate:.0f} samples "
                f"({pair.low:.0f} to {pair.high:.0f})"
            )
        if (hidden := len(self.evidence.pairs) - rows) > 0:
            lines.append(f"  and {hidden} more pairs of classes")
        groups = self.evidence.groups
        lines += [f"  {each.describe(_class_name(each.label, class_names))}" for each in groups[:rows]]
        if (hidden := len(groups) - rows) > 0:
            lines.append(f"  and {hidden} more groups")
        return "\n".join(lines)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, for `from_saved`."""
        names = ("scores", "p_values", "keep", "labels", "suggested_labels", "thresholds", "posterior")
        found = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return found | {f"votes.{name}": vote for name, vote in self.votes.items()}

    def meta(self) -> dict[str, Any]:
        """Return everything but the tensors as JSON values, for `from_saved`."""
        names = ("calibration", "false_positive_rate", "scorer", "fingerprint", "posterior_threshold")
        return {
            **{name: getattr(self, name) for name in names},
            "settings": dict(self.settings),
            "evidence": self.evidence.meta(),
        }

    @classmethod
    def from_saved(cls, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Self:
        """Build a verdict from what `meta` and `tensors` returned."""
        votes = {name.removeprefix("votes."): vote for name, vote in tensors.items() if name.startswith("votes.")}
        parts: dict[str, Any] = {name: tensor for name, tensor in tensors.items() if not name.startswith("votes.")}
        rest = {name: value for name, value in meta.items() if name not in ("evidence", "kind", "version")}
        return cls(**parts, **rest, evidence=Evidence.from_meta(meta["evidence"]), votes=votes)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, atomically, with the JSON values in its header."""
        write_tensors(path, self.tensors(), {"kind": "verdict", "version": 1, **self.meta()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is not a verdict file.
        """
        tensors, meta = read_tensors(path, "verdict")
        try:
            return cls.from_saved(meta, tensors)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Expected a complete verdict file, but {path} has invalid parts: {printable(error)}."
            ) from error


_CALIBRATIONS: dict[str, str] = {
    "trusted": "held-out trusted data",
    "wrong-label null": "the wrong-label null of the data (no trusted data)",
    "group tests": "the effects of separated groups (no trusted data)",
}


def _class_name(index: int, names: "list[str] | None") -> str:
    return printable(names[index], limit=40) if names is not None and index < len(names) else str(index)
