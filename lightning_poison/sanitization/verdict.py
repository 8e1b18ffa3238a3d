"""`Verdict`: what was found out about a data set, and what is kept of it."""

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
    """Is there poison at all?

    Args:
        present: whether the lower end of the interval lies above the natural error rate; or, where the data were judged
            group by group, whether a group is taken for poison.
        contamination: the estimated share of the data set that is poison, in [0, 1].
        low: the lower end of its interval.
        high: its upper end.
        confidence: how often such an interval covers the truth.
        natural_error_rate: the share of odd samples that a curated data set has itself.
        pairs: the pairs of classes that stand out, most poison first.
        groups: the groups of samples that stand apart from their class, largest first.

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
        """Return it as JSON can hold it; what `from_meta` takes."""
        pairs, groups = ([dict(vars(each)) for each in several] for several in (self.pairs, self.groups))
        return {**vars(self), "pairs": pairs, "groups": groups}

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any]) -> Self:
        """Build it from what `meta` returned."""
        pairs = tuple(SuspectPair(**pair) for pair in meta["pairs"])
        groups = tuple(SuspectGroup(**group) for group in meta.get("groups", ()))
        return cls(**{**meta, "pairs": pairs, "groups": groups})


Calibration = Literal["trusted", "wrong-label null", "group tests"]


@dataclass(frozen=True, eq=False)
class Verdict:
    """Scores, p-values and the decision for every sample of a data set of N samples and C classes.

    Args:
        scores: float64 `(N,)`, larger is more suspicious.
        p_values: float64 `(N,)` in (0, 1], how often a clean sample of the same label scores as high.
        keep: bool `(N,)`, `True` stays.
        labels: int64 `(N,)`, the labels that the samples carry.
        suggested_labels: int64 `(N,)`, the label under which the sample is least suspicious; −1 where the scorer
            cannot say.
        thresholds: float64 `(C,)`, the cut in the score of each class; infinite where the cut is in the posterior.
        evidence: whether there is poison at all, with its figure.
        calibration: where the cut comes from.
        false_positive_rate: the share of clean samples that the user is willing to lose, in (0, 1).
        scorer: the scorer's name.
        settings: the settings under which the decision was made, as JSON can hold them.
        fingerprint: what the decision is good for: this data set under these settings.
        posterior: float64 `(N,)`, the probability that a sample is poison; `None` with trusted data.
        posterior_threshold: the cut in the posterior; `None` with trusted data.
        votes: float64 `(N,)` p-values by the name of each member of a combination, in (0, 1]. Of members whose
            p-values are both too small for a number, the first counts as the one that accuses most.

    Raises:
        ValueError: where `keep` is no boolean mask, or `p_values`, `keep`, `labels`, `suggested_labels` or `posterior`
            has another shape than `scores`.

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
        3 samples scored by likelihood; 1 kept out (33.33 %)
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
        """The positions of the samples that are kept out, int64, most suspicious first."""
        return self.ranking[~self.keep[self.ranking]]

    @property
    def ranking(self) -> Tensor:
        """The positions of all samples, int64 `(N,)`, most suspicious first; equal posteriors by their p-values."""
        return torch.from_numpy(np.lexsort((self.p_values.numpy(), -self.suspicion.numpy())))

    @property
    def accusers(self) -> dict[str, int]:
        """How many of the samples that are kept out each member of a combination accused most, most first."""
        if not self.votes:
            return {}
        removed = torch.stack(list(self.votes.values()))[:, ~self.keep]
        counts = torch.bincount(removed.argmin(0), minlength=len(self.votes)).tolist()
        named = zip(self.votes, counts, strict=True)
        return dict(sorted(((name, count) for name, count in named if count), key=lambda pair: -pair[1]))

    @property
    def suspicion(self) -> Tensor:
        """What the samples are ranked by, float64 `(N,)`: the posterior, or 1 − p-value where there is none."""
        return self.posterior if self.posterior is not None else 1 - self.p_values

    def with_kept(self, indices: Tensor) -> Self:
        """Return the verdict with some samples kept after all."""
        keep = self.keep.clone()
        keep[indices] = True
        return self._replace(keep=keep)

    def agrees_with(self, other: "Verdict") -> bool:
        """Tell whether another verdict is about the same data under the same settings, and keeps the same samples."""
        return self.fingerprint == other.fingerprint and torch.equal(self.keep, other.keep)

    def _replace(self, **parts: Any) -> Self:
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return type(self)(**{**values, **parts})

    def __str__(self) -> str:
        return self.summary()

    def summary(self, *, class_names: "list[str] | None" = None, rows: int = 5, flag_only: bool = False) -> str:
        """Return a few lines for a person.

        Args:
            class_names: the names of the classes; numbers where they are not given.
            rows: how many pairs of classes, and how many groups, to list at most.
            flag_only: whether what is suspicious was trained on nevertheless.
        """
        out = int((~self.keep).sum())
        lines = [
            f"{len(self):,} samples scored by {printable(self.scorer)}; {out:,} "
            f"{'flagged and left in' if flag_only else 'kept out'} ({100 * out / len(self):.2f} %)",
            str(self.evidence),
            f"calibrated on {_CALIBRATIONS[self.calibration]}, stated false-positive rate "
            f"{100 * self.false_positive_rate:g} %",
        ]
        if accusers := self.accusers:
            listed = ", ".join(f"{printable(name)} {count:,}" for name, count in accusers.items())
            lines.append(f"accused most by {listed}")
        for pair in self.evidence.pairs[:rows]:
            names = [_class_name(index, class_names) for index in (pair.labeled, pair.read_as)]
            lines.append(
                f"  labeled {names[0]}, looks like {names[1]}: about {pair.estimate:.0f} samples "
                f"({pair.low:.0f} to {pair.high:.0f})"
            )
        if (hidden := len(self.evidence.pairs) - rows) > 0:
            lines.append(f"  and {hidden} more pairs of classes")
        groups = self.evidence.groups
        lines += [f"  {each.described(_class_name(each.label, class_names))}" for each in groups[:rows]]
        if (hidden := len(groups) - rows) > 0:
            lines.append(f"  and {hidden} more groups")
        return "\n".join(lines)

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors, by name; what `from_saved` takes."""
        names = ("scores", "p_values", "keep", "labels", "suggested_labels", "thresholds", "posterior")
        found = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        return found | {f"votes.{name}": vote for name, vote in self.votes.items()}

    def meta(self) -> dict[str, Any]:
        """Return the rest, as JSON can hold it; what `from_saved` takes."""
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
        """Write one safetensors file with the JSON in its header, atomically; no pickle."""
        write_tensors(path, self.tensors(), {"kind": "verdict", "version": 1, **self.meta()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a file that `save` wrote.

        Raises:
            FileNotFoundError: where there is no such file.
            ValueError: where it holds something else.
        """
        tensors, meta = read_tensors(path, "verdict")
        try:
            return cls.from_saved(meta, tensors)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"Expected a complete verdict file, but parts of {path} do not fit: {printable(error)}."
            ) from error


_CALIBRATIONS: dict[str, str] = {
    "trusted": "held-out trusted data",
    "wrong-label null": "the data's own wrong-label null (no trusted data)",
    "group tests": "what groups that stand apart do to other samples (no trusted data)",
}


def _class_name(index: int, names: "list[str] | None") -> str:
    return printable(names[index], limit=40) if names is not None and index < len(names) else str(index)
