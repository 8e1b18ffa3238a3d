"""What is on the HTML report of a verdict: samples with their pictures, neighbors, pairs of classes, and groups."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

import torch
from torch import Tensor

from lightning_poison.checks import printable
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.manifest.manifest import Manifest
from lightning_poison.manifest.matching import file_of
from lightning_poison.report.page_calibration import calibration_of, expected_clean, promises_of
from lightning_poison.report.page_figures import class_rows, finite_thresholds, histogram_of, judged_of
from lightning_poison.report.page_neighbors import CopyGroup, Neighbors
from lightning_poison.report.page_pictures import Picture, Pictures
from lightning_poison.report.page_suspects import suspects_of
from lightning_poison.sanitization.coverage import DECIDED_BY, POWER_UNKNOWN
from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.reasons import finder_of, kind_of, reason_of
from lightning_poison.sanitization.verdict import Verdict

_MAX_ROWS = 2_500
"""Largest number of removed samples on the page. All of them are in the manifest."""

_MAX_LAST = 24
"""Largest number of removed samples near the threshold."""

_MAX_LOOKS = 24
"""Largest number of samples beside their neighbors."""

_MAX_DETAILS = 12
"""Largest number of pairs of classes, of groups, and of groups of copies."""

_MEMBERS = 8
"""Largest number of pictures of a pair of classes, of a group, or of the neighbors of a sample."""

_PICTURE_ROOM = 11_000_000
"""Characters for all pictures together. With 2,500 rows, the page stays below 15 MB."""

_MAX_PICTURE = 20_000
"""Characters for a single picture."""

_MAX_SHORT = 80
"""Characters of the name of a sample below its picture."""

MAX_NAME = 1_000
"""Characters of the name of a sample."""


@dataclass(frozen=True)
class Row:
    """A sample on the page."""

    index: int
    name: str
    picture: Picture
    label: int
    label_name: str
    suggested_name: str
    score: float
    p_value: float
    posterior: float | None
    reason: str
    kind: str
    finder: str
    kept: bool
    by_hand: bool

    @property
    def short_name(self) -> str:
        """The name, of a path only the file and its folder."""
        parts = self.name.rsplit("/", 2)
        short = self.name if len(parts) < 3 else "/".join(["…", *parts[1:]])
        return short if len(short) <= _MAX_SHORT else f"{short[:_MAX_SHORT]}…"


@dataclass(frozen=True)
class Detail:
    """A pair of classes or a group: its description, the number of its samples that count, and some of them."""

    text: str
    removed: int
    members: list[Row]


@dataclass(frozen=True)
class Look:
    """A removed sample beside the nearest kept samples of its label and of the suggested one."""

    row: Row
    same: list[Row]
    suggested: list[Row]


class PageContent:
    """Collects what is on the page.

    Args:
        verdict: Verdict on N samples.
        dataset: Map-style data set of the verdict, or `None` if it is not available.
        class_names: Names of the classes.
        sample_names: A text for each sample. Default: the paths that the data set lists.
        sample: Location of the input in a sample. Default: detected.
        manifest: The manifest of the verdict.
        features: Features by which samples are compared, `(N, D)`. Default: their pixels or values.
    """

    def __init__(
        self,
        verdict: Verdict,
        dataset: Any,
        class_names: Sequence[str],
        sample_names: Sequence[str] | None,
        sample: SampleSpec | None,
        manifest: Manifest,
        features: Tensor | None,
    ) -> None:
        self.verdict = verdict
        self._dataset, self._classes, self._names = dataset, class_names, sample_names
        self._paths = {row.sample_id: row.path for row in manifest.rows}
        self._by_hand = {row.sample_id for row in manifest.rows if row.decision == "kept-by-hand"}
        self._marked = {row.sample_id for row in manifest.rows if row.decision == "removed-by-hand"}
        ranking, keep = verdict.ranking.tolist(), verdict.keep.tolist()
        self._removed = [index for index in ranking if not keep[index] and index not in self._marked]
        out = {*self._removed, *self._by_hand}
        self._listed = [index for index in ranking if index in out][:_MAX_ROWS]
        self.suspects = suspects_of(verdict, manifest)
        """Positions of the samples that were not removed and are listed, most suspicious first."""
        self._last = self._removed[-_MAX_LAST:]
        self._pictures = None if dataset is None else self._new_pictures(sample)
        asked = [*self._removed[:_MAX_ROWS], *self.suspects]
        with self._reading_many():
            self._neighbors = Neighbors(verdict, self._pictures, asked=asked, features=features)

    def _new_pictures(self, sample: SampleSpec | None) -> Pictures:
        """Return pictures that are small enough for as many as the page may show."""
        judged = judged_of(self.verdict)
        positions = judged.nonzero().flatten() if bool(judged.any()) else None
        beside_neighbors, in_details = _MAX_LOOKS * (_MEMBERS + 1), 3 * _MEMBERS * _MAX_DETAILS
        shown = len(self._listed) + len(self.suspects) + _MAX_LAST + beside_neighbors + in_details
        return Pictures(self._dataset, sample, positions=positions, limit=min(_MAX_PICTURE, _PICTURE_ROOM // shown))

    def _reading_many(self) -> AbstractContextManager[None]:
        return nullcontext() if self._pictures is None else self._pictures.reading_many()

    def parts(self) -> dict[str, Any]:
        """Return the variables of the template."""
        with self._reading_many():
            return self._parts()

    def _parts(self) -> dict[str, Any]:
        verdict, judged = self.verdict, int(judged_of(self.verdict).sum())
        rows = [self._row(index) for index in self._listed]
        suspects, last = ([self._row(index) for index in several] for several in (self.suspects, self._last))
        evidence, copies = _with_details(verdict), self._neighbors.copies()
        return {
            "verdict": verdict,
            "sentence": sentence(verdict.statement),
            "undecided": [each for each in verdict.findings if each.evidence is None],
            "findings": [sentence(str(each)) for each in verdict.findings],
            "power_unknown": sentence(POWER_UNKNOWN),
            "not_looked_for": verdict.not_looked_for(),
            "easily_missed": verdict.easily_missed(),
            "scorers": [printable(each, limit=80) for each in verdict.scorers],
            "decided_by": DECIDED_BY[verdict.calibration],
            "samples": len(verdict),
            "judged": judged,
            "removed": len(self._removed),
            "by_hand": len(self._by_hand),
            "removed_by_hand": len(self._marked),
            "classes": [(self._class(row.label), row) for row in class_rows(verdict)],
            "pairs": [self._pair(pair) for pair in evidence.pairs[:_MAX_DETAILS]],
            "pair_count": len(evidence.pairs),
            "groups": self._groups(evidence)[:_MAX_DETAILS],
            "group_count": len(evidence.groups),
            "looks": self._looks(),
            "comparison": self._neighbors.method,
            "copies": [self._copies(group) for group in copies[:_MAX_DETAILS]],
            "copy_count": len(copies),
            "rows": rows,
            "suspects": suspects,
            "last": last,
            "filters": _filters(rows),
            "has_posterior": verdict.posterior is not None,
            "has_pictures": any(row.picture.source for row in rows[:20] + suspects[:20]),
            "histogram": histogram_of(verdict),
            "thresholds": finite_thresholds(verdict),
            "calibration": calibration_of(verdict),
            "expected_clean": expected_clean(verdict),
            "promises": promises_of(verdict),
        }

    def _row(self, index: int) -> Row:
        verdict = self.verdict
        label, suggested = int(verdict.labels[index]), int(verdict.suggested_labels[index])
        return Row(
            index,
            printable(self._name(index), limit=MAX_NAME),
            Picture("", 0, 0, "") if self._pictures is None else self._pictures(index),
            label,
            self._class(label),
            self._class(suggested) if suggested >= 0 else "",
            float(verdict.scores[index]),
            float(verdict.p_values[index]),
            None if verdict.posterior is None else float(verdict.posterior[index]),
            reason_of(verdict, index, self._classes),
            kind_of(verdict, index),
            printable(finder_of(verdict, index), limit=80),
            bool(verdict.keep[index]),
            index in self._by_hand,
        )

    def _name(self, index: int) -> str:
        if self._names is not None:
            return self._names[index]
        return self._paths.get(index, "") if self._dataset is None else file_of(self._dataset, index)

    def _class(self, label: int) -> str:
        if label < 0:
            return "no label"
        return printable(self._classes[label], limit=40) if label < len(self._classes) else str(label)

    def _looks(self) -> list[Look]:
        """Return the most suspicious samples of each scorer in turn, beside their nearest kept samples.

        If none was removed, these are the first of those that were not.
        """
        if self._neighbors.is_empty:
            return []
        candidates = self._removed or self.suspects
        by_finder: dict[str, list[int]] = {}
        for index in candidates:
            by_finder.setdefault(finder_of(self.verdict, index), []).append(index)
        turns = chain.from_iterable(zip_longest(*by_finder.values()))
        chosen = [index for index in turns if index is not None][:_MAX_LOOKS]
        order = {index: rank for rank, index in enumerate(candidates)}
        looks = []
        for index in sorted(chosen, key=lambda index: order[index]):
            label, suggested = int(self.verdict.labels[index]), int(self.verdict.suggested_labels[index])
            same = self._neighbors.nearest(index, label=label)
            other = self._neighbors.nearest(index, label=suggested) if suggested != label else []
            looks.append(Look(self._row(index), *([self._row(each) for each in near] for near in (same, other))))
        return looks

    def _pair(self, pair: Any) -> Detail:
        labels, suggested = self.verdict.labels, self.verdict.suggested_labels
        text = (
            f"Labeled {self._class(pair.labeled)}, looks like {self._class(pair.predicted)}: about "
            f"{pair.estimate:,.0f} wrong labels ({pair.low:,.0f} to {pair.high:,.0f})"
        )
        return self._detail(text, labels.eq(pair.labeled) & suggested.eq(pair.predicted))

    def _groups(self, evidence: Evidence) -> list[Detail]:
        """Return the groups, those first of which most samples were removed."""
        groups = [self._group(number, group) for number, group in enumerate(evidence.groups)]
        return sorted(groups, key=lambda each: -each.removed)

    def _group(self, number: int, group: Any) -> Detail:
        numbers, members = self.verdict.groups, torch.zeros(len(self.verdict), dtype=torch.bool)
        if numbers is not None and self.verdict.evidence.groups:
            members = numbers.eq(number)
        return self._detail(sentence(group.describe(self._class(group.label)), end=""), members)

    def _detail(self, text: str, members: Tensor) -> Detail:
        mask = members.tolist()
        removed = [index for index in self._removed if mask[index]]
        return Detail(text, len(removed), [self._row(index) for index in removed[:_MEMBERS]])

    def _copies(self, group: CopyGroup) -> Detail:
        """Describe a group of copies; removed samples and different labels are shown first."""
        labels, keep = self.verdict.labels[group.members].tolist(), self.verdict.keep[group.members].tolist()
        seen: set[int] = set()
        order = []
        for member, label, is_kept in sorted(zip(group.members, labels, keep, strict=True), key=lambda each: each[2]):
            order.append((label in seen, is_kept, member))
            seen.add(label)
        several = f", with {group.labels:,} different labels" if group.labels > 1 else ""
        shown = [self._row(member) for _, _, member in sorted(order)[:_MEMBERS]]
        return Detail(f"{len(group.members):,} samples are copies or nearly so{several}", keep.count(False), shown)


def sentence(text: str, *, end: str = ".") -> str:
    """Return a text that starts with a capital letter and ends with a period.

    Example:
        >>> sentence("no evidence of poison")
        'No evidence of poison.'
    """
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else end)


def _with_details(verdict: Verdict) -> Evidence:
    """Return the evidence with pairs of classes and groups: that of all members, or of the first one that has some."""
    members = [each.evidence for each in verdict.findings if each.evidence is not None]
    found = [each for each in (verdict.evidence, *members) if each.pairs or each.groups]
    return found[0] if found else verdict.evidence


def _filters(rows: Iterable[Row]) -> dict[str, list[Any]]:
    """Return the different values of the columns that can be filtered."""
    classes = sorted({(row.label, row.label_name) for row in rows})
    kinds, finders = sorted({row.kind for row in rows}), sorted({row.finder for row in rows})
    return {"classes": classes, "kinds": kinds, "finders": finders}
