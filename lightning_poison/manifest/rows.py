"""Rows of a manifest, and reading and writing them as CSV."""

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_poison.checks import printable
from lightning_poison.errors import ManifestError
from lightning_poison.manifest.cells import (
    COLUMNS,
    REPAIR_HINT,
    VOTE_PREFIX,
    DecisionWord,
    escape_cell,
    format_cell,
    parse_cell,
    unescape_cell,
)
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.serialization import atomic_path


@dataclass(frozen=True)
class ManifestRow:
    """Findings and decision for one suspicious sample.

    Args:
        sample_id: Position in the data set, from 0.
        label: Label of the sample.
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
        path: File of the sample, or empty if the data set has no paths. Untrusted text.
        votes: p-value from each member of a combination, by name.
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
    path: str = ""
    votes: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [f"labeled {_class(self.label, self.label_name)}"]
        if self.suggested_label is not None:
            parts.append(f"looks like {_class(self.suggested_label, self.suggested_name)}")
        parts.append(f"p = {self.p_value:.2g}")
        if self.votes:
            lowest = min(self.votes, key=lambda name: self.votes[name])
            parts.append(f"lowest vote from {printable(lowest, limit=40)}")
        parts.append(self.decision)
        if self.path:
            parts.append(printable(self.path, limit=80))
        return f"sample {self.sample_id}: {', '.join(parts)}"


def row_values(verdict: Verdict, index: int, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the fields of a row that a verdict determines."""
    label, suggested = int(verdict.labels[index]), int(verdict.suggested_labels[index])
    threshold = float(verdict.thresholds[label])
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
        "votes": {name: float(vote[index]) for name, vote in verdict.votes.items()},
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
        ManifestError: If the file cannot be parsed. The message names line, column and value.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"Expected a manifest, but there is no file at {path}.")
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            _check_header(header)
            votes = _vote_names(header)
            rows = [_parse_line(cells, header, votes, reader.line_num) for cells in reader if cells]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ManifestError(
            f"Expected a manifest, comma-separated text in UTF-8, but {path} cannot be read: {error}.\n{REPAIR_HINT}"
        ) from error
    return _unique(rows)


def _check_header(header: list[str]) -> None:
    missing = [name for name in COLUMNS if name not in header]
    unknown = [name for name in header if name not in COLUMNS and not name.startswith(VOTE_PREFIX)]
    if missing or unknown or len(set(header)) != len(header):
        fault = f"no {missing[0]!r}" if missing else f"also {unknown[0]!r}" if unknown else "one of them twice"
        raise ManifestError(
            f"Expected the columns {', '.join(COLUMNS)} in line 1 of the manifest, but got {printable(fault)}.\n"
            "Save the file as comma-separated text with an unchanged first line, without additional columns."
        )


def _vote_names(header: list[str]) -> dict[str, str]:
    """Return the name of each member of a combination, by column."""
    columns = [name for name in header if name.startswith(VOTE_PREFIX)]
    try:
        return {column: unescape_cell(column.removeprefix(VOTE_PREFIX)) for column in columns}
    except (ValueError, OverflowError):
        raise ManifestError(
            f"Expected column names in which a backslash is written `\\\\`, but got {printable(columns)}."
            f"\n{REPAIR_HINT}"
        ) from None


def _parse_line(cells: list[str], header: list[str], votes: Mapping[str, str], line: int) -> ManifestRow:
    if len(cells) != len(header):
        raise ManifestError(
            f"Expected {len(header)} cells in line {line} of the manifest, but got {len(cells)}.\n{REPAIR_HINT}"
        )
    parsed = {name: parse_cell(cell, name, line) for name, cell in zip(header, cells, strict=True)}
    row_votes = {name: parsed.pop(column) for column, name in votes.items()}
    return ManifestRow(**parsed, votes={name: vote for name, vote in row_votes.items() if vote is not None})


def _unique(rows: list[ManifestRow]) -> tuple[ManifestRow, ...]:
    seen: set[int] = set()
    for row in rows:
        if row.sample_id in seen:
            raise ManifestError(
                f"Expected a unique `sample_id` in each row, but got {row.sample_id} twice.\n{REPAIR_HINT}"
            )
        seen.add(row.sample_id)
    return tuple(rows)


def _class(number: int, name: str) -> str:
    return f"{number} ({printable(name, limit=40)})" if name else str(number)


def _name(label: int, class_names: Sequence[str]) -> str:
    return str(class_names[label]) if 0 <= label < len(class_names) else ""
