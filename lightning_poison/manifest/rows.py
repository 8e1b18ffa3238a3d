"""Rows of a manifest, and reading and writing them as CSV."""

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_poison.checks import expected, printable
from lightning_poison.data.text_cells import escape_cell, unescape_cell
from lightning_poison.errors import ManifestError
from lightning_poison.manifest.cells import (
    COLUMNS,
    MAX_TEXT,
    REPAIR_HINT,
    VOTE_PREFIX,
    DecisionWord,
    check_value,
    format_cell,
    parse_cell,
    shortened_text,
)
from lightning_poison.sanitization.reasons import finder_of, reason_of
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.serialization import atomic_path, checked_path


@dataclass(frozen=True)
class ManifestRow:
    """Findings and decision for one suspicious sample.

    Args:
        sample_id: Position in the data set, from 0.
        label: Label of the sample; −1 without a label.
        suggested_label: Label under which the sample is least suspicious, or `None` if the scorer suggests none.
        label_name: Name of the class, or empty if unknown.
        suggested_name: Name of the suggested class, or empty if unknown.
        score: Suspicion score; larger is more suspicious.
        p_value: Share of clean samples with the same label that score at least as high, in [0, 1].
        posterior: Probability that the sample is poison, in [0, 1]; `None` with trusted data.
        score_threshold: Score threshold of its class; `None` if the threshold applies to the posterior.
        posterior_threshold: Posterior threshold; `None` with trusted data.
        decision: `"removed"`, `"flagged"` (suspicious, but kept in the training set), or `"kept-by-hand"`.
        content_hash: Digest of the content, from `lightning_poison.manifest.matching.content_hash`.
        fingerprint: First 16 digits of the verdict's fingerprint.
        reason: Why the sample is suspicious, in words. Contains class names, which are untrusted.
        found_by: Name of the scorer that removed the sample.
        path: File of the sample, or empty if the data set has no paths. Untrusted text.
        votes: p-value from each member of a combination, by name.

    Texts have at most 4,096 characters.

    Raises:
        ValueError: If a value is of another type or out of its range.
    """

    sample_id: int
    label: int
    suggested_label: int | None
    label_name: str
    suggested_name: str
    score: float
    p_value: float
    posterior: float | None
    score_threshold: float | None
    posterior_threshold: float | None
    decision: DecisionWord
    content_hash: str
    fingerprint: str
    reason: str = ""
    found_by: str = ""
    path: str = ""
    votes: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in COLUMNS:
            check_value(name, getattr(self, name))
        for name, vote in self.votes.items():
            if not isinstance(name, str) or len(name) > MAX_TEXT or vote is None:
                raise ValueError(expected("votes", "p-values by names", f"{vote!r} by {printable(repr(name))}"))
            check_value(VOTE_PREFIX + name, vote)

    def __str__(self) -> str:
        parts = [f"labeled {_class(self.label, self.label_name)}"]
        if self.suggested_label is not None:
            parts.append(f"looks like {_class(self.suggested_label, self.suggested_name)}")
        parts.append(f"p = {self.p_value:.2g}")
        if self.found_by in self.votes:
            parts.append(f"found by {printable(self.found_by, limit=40)}")
        elif self.votes:
            lowest = min(self.votes, key=lambda name: self.votes[name])
            parts.append(f"lowest vote from {printable(lowest, limit=40)}")
        parts.append(self.decision)
        if self.path:
            parts.append(printable(self.path, limit=80))
        return f"sample {self.sample_id}: {', '.join(parts)}"


def row_values(verdict: Verdict, index: int, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a row that a verdict determines."""
    label, suggested = int(verdict.labels[index]), int(verdict.suggested_labels[index])
    threshold = float(verdict.thresholds[label]) if 0 <= label < len(verdict.thresholds) else math.inf
    return {
        "sample_id": index,
        "label": label,
        "suggested_label": suggested if suggested >= 0 else None,
        "label_name": _name(label, class_names),
        "suggested_name": _name(suggested, class_names),
        "score": float(verdict.scores[index]),
        "p_value": float(verdict.p_values[index]),
        "posterior": float(verdict.posterior[index]) if verdict.posterior is not None else None,
        "score_threshold": threshold if math.isfinite(threshold) else None,
        "posterior_threshold": verdict.posterior_threshold,
        "fingerprint": verdict.fingerprint[:16],
        "reason": shortened_text(reason_of(verdict, index, class_names)),
        "found_by": shortened_text(finder_of(verdict, index)),
        "votes": {shortened_text(name): float(vote[index]) for name, vote in verdict.votes.items()},
    }


def write_rows(path: str | os.PathLike[str], rows: Iterable[ManifestRow]) -> None:
    """Write rows as CSV in UTF-8 with a header line, atomically."""
    rows = list(rows)
    names = list(dict.fromkeys(name for row in rows for name in row.votes))
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, *(VOTE_PREFIX + escape_cell(name) for name in names)])
        for row in rows:
            cells = [*(getattr(row, name) for name in COLUMNS), *(row.votes.get(name) for name in names)]
            writer.writerow([format_cell(value) for value in cells])


def read_rows(path: str | os.PathLike[str]) -> tuple[ManifestRow, ...]:
    """Read a file written by `write_rows` and possibly edited since.

    Raises:
        FileNotFoundError: If the file does not exist.
        ManifestError: If the file cannot be parsed. The message names file, line, column and value.
    """
    shown = printable(os.fspath(checked_path(path)), limit=500)
    if not Path(path).is_file():
        raise FileNotFoundError(f"Expected a manifest, but there is no file at {shown}.")
    line = 0
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            line = reader.line_num
            _check_header(header, shown)
            votes = _vote_names(header, shown)
            rows = []
            for cells in reader:
                line = reader.line_num
                if cells:
                    rows.append(_parse_line(cells, header, votes, f"line {line} of the manifest {shown}"))
    except csv.Error as error:
        raise ManifestError(
            f"Expected a manifest, comma-separated text in UTF-8, but {shown} cannot be read after line {line}: "
            f"{error}.\n{REPAIR_HINT}"
        ) from error
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"Expected a manifest, comma-separated text in UTF-8, but {shown} has another encoding: {error}.\n"
            "Save it as comma-separated text in UTF-8, or delete it so that the next run writes a new one."
        ) from error
    return _unique(rows, shown)


def _check_header(header: list[str], shown: str) -> None:
    missing = [name for name in COLUMNS if name not in header]
    unknown = [name for name in header if name not in COLUMNS and not name.startswith(VOTE_PREFIX)]
    if missing or unknown or len(set(header)) != len(header):
        fault = f"no {missing[0]!r}" if missing else f"also {unknown[0]!r}" if unknown else "one of them twice"
        raise ManifestError(
            f"Expected the columns {', '.join(COLUMNS)} in line 1 of the manifest {shown}, but got "
            f"{printable(fault)}.\n"
            "Save the file as comma-separated text with an unchanged first line, without additional columns."
        )


def _vote_names(header: list[str], shown: str) -> dict[str, str]:
    """Return the name of each member of a combination, by column."""
    columns = [name for name in header if name.startswith(VOTE_PREFIX)]
    try:
        names = {column: unescape_cell(column.removeprefix(VOTE_PREFIX)) for column in columns}
    except (ValueError, OverflowError):
        names = {}
    if len(set(names.values())) != len(columns) or any(len(name) > MAX_TEXT for name in names.values()):
        raise ManifestError(
            f"Expected different column names of at most {MAX_TEXT:,} characters, in which a backslash is written "
            f"`\\\\`, in line 1 of the manifest {shown}, but got {printable(columns)}.\n{REPAIR_HINT}"
        )
    return names


def _parse_line(cells: list[str], header: list[str], votes: Mapping[str, str], where: str) -> ManifestRow:
    if len(cells) != len(header):
        raise ManifestError(f"Expected {len(header)} cells in {where}, but got {len(cells)}.\n{REPAIR_HINT}")
    parsed = {name: parse_cell(cell, name, where) for name, cell in zip(header, cells, strict=True)}
    row_votes = {name: parsed.pop(column) for column, name in votes.items()}
    return ManifestRow(**parsed, votes={name: vote for name, vote in row_votes.items() if vote is not None})


def _unique(rows: list[ManifestRow], shown: str) -> tuple[ManifestRow, ...]:
    seen: set[int] = set()
    for row in rows:
        if row.sample_id in seen:
            raise ManifestError(
                f"Expected a unique `sample_id` in each row, but got {row.sample_id} twice in the manifest {shown}.\n"
                f"{REPAIR_HINT}"
            )
        seen.add(row.sample_id)
    return tuple(rows)


def _class(number: int, name: str) -> str:
    return f"{number} ({printable(name, limit=40)})" if name else str(number)


def _name(label: int, class_names: Sequence[str]) -> str:
    return shortened_text(str(class_names[label])) if 0 <= label < len(class_names) else ""
