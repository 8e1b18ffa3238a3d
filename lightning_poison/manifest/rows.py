"""The rows of a manifest, and the CSV file that they stand in."""

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
    VOTE_PREFIX,
    WAY_OUT,
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
    """What was found out about one suspicious sample, and what became of it.

    Args:
        sample_id: its position in the data set that was judged, from 0.
        label: the label that it carries.
        suggested_label: the label under which it is least suspicious; `None` where the scorer cannot say.
        label_name: the name of the class; empty where it is not known.
        suggested_name: the name of the suggested class; empty where it is not known.
        score: larger is more suspicious.
        p_value: how often a clean sample of the same label scores as high, in [0, 1].
        posterior: the probability that it is poison, in [0, 1]; `None` with trusted data.
        score_threshold: the cut in the score for its class; `None` where the cut is in the posterior.
        posterior_threshold: the cut in the posterior; `None` with trusted data.
        decision: `"removed"`, `"flagged"` (suspicious and trained on), or `"kept-by-hand"`.
        content_hash: digest of its content, from `lightning_poison.manifest.matching.content_hash`.
        fingerprint: the first 16 digits of the verdict's fingerprint.
        path: the file that it comes from; empty where the data set knows none. Not to be trusted.
        votes: p-values by the name of each member of a combination.
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
        own = _class(self.label, self.label_name)
        other = None if self.suggested_label is None else _class(self.suggested_label, self.suggested_name)
        looks = f", looks like {other}" if other is not None else ""
        voted = min(self.votes, key=lambda name: self.votes[name]) if self.votes else None
        accused = f", accused by {printable(voted, limit=40)}" if voted is not None else ""
        where = f", {printable(self.path, limit=80)}" if self.path else ""
        found = f"labeled {own}{looks}, p = {self.p_value:.2g}{accused}"
        return f"sample {self.sample_id}: {found}, {self.decision}{where}"


def findings_on(verdict: Verdict, index: int, class_names: Sequence[str]) -> dict[str, Any]:
    """Return what a verdict says about one sample, as a row holds it."""
    label, suggested = int(verdict.labels[index]), int(verdict.suggested_labels[index])
    cut = float(verdict.thresholds[label])
    return {
        "sample_id": index,
        "label": label,
        "suggested_label": suggested if suggested >= 0 else None,
        "label_name": _name(label, class_names),
        "suggested_name": _name(suggested, class_names),
        "score": float(verdict.scores[index]),
        "p_value": float(verdict.p_values[index]),
        "posterior": float(verdict.posterior[index]) if verdict.posterior is not None else None,
        "score_threshold": cut if math.isfinite(cut) else None,
        "posterior_threshold": verdict.posterior_threshold,
        "fingerprint": verdict.fingerprint[:16],
        "votes": {name: float(vote[index]) for name, vote in verdict.votes.items()},
    }


def write_rows(path: str | os.PathLike[str], rows: Iterable[ManifestRow]) -> None:
    """Write rows as CSV in UTF-8, atomically: a header line, then a line a row."""
    held = list(rows)
    names = list(dict.fromkeys(name for row in held for name in row.votes))
    with atomic_path(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*COLUMNS, *(VOTE_PREFIX + escape_cell(name) for name in names)])
        for row in held:
            cells = [*(getattr(row, name) for name in COLUMNS), *(row.votes.get(name) for name in names)]
            writer.writerow([format_cell(value) for value in cells])


def read_rows(path: str | os.PathLike[str]) -> tuple[ManifestRow, ...]:
    """Read what `write_rows` wrote, and what a person made of it.

    Raises:
        FileNotFoundError: where there is no such file.
        ManifestError: where it cannot be parsed; the message names line, column and value.
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
            f"Expected a manifest, comma-separated text in UTF-8, but {path} cannot be read: {error}.\n{WAY_OUT}"
        ) from error
    return _each_once(rows)


def _check_header(header: list[str]) -> None:
    missing = [name for name in COLUMNS if name not in header]
    unknown = [name for name in header if name not in COLUMNS and not name.startswith(VOTE_PREFIX)]
    if missing or unknown or len(set(header)) != len(header):
        fault = f"no {missing[0]!r}" if missing else f"{unknown[0]!r} as well" if unknown else "one of them twice"
        raise ManifestError(
            f"Expected the columns {', '.join(COLUMNS)} in line 1 of the manifest, but got {printable(fault)}.\n"
            "Save the file as comma-separated text with its first line as it was, and without columns of your own."
        )


def _vote_names(header: list[str]) -> dict[str, str]:
    """Return the name of each member of a combination by its column."""
    columns = [name for name in header if name.startswith(VOTE_PREFIX)]
    try:
        return {column: unescape_cell(column.removeprefix(VOTE_PREFIX)) for column in columns}
    except (ValueError, OverflowError):
        raise ManifestError(
            f"Expected names of columns in which a backslash is written `\\\\`, but got {printable(columns)}."
            f"\n{WAY_OUT}"
        ) from None


def _parse_line(cells: list[str], header: list[str], votes: Mapping[str, str], line: int) -> ManifestRow:
    if len(cells) != len(header):
        raise ManifestError(
            f"Expected {len(header)} cells in line {line} of the manifest, but got {len(cells)}.\n{WAY_OUT}"
        )
    parsed = {name: parse_cell(cell, name, line) for name, cell in zip(header, cells, strict=True)}
    found = {name: parsed.pop(column) for column, name in votes.items()}
    return ManifestRow(**parsed, votes={name: vote for name, vote in found.items() if vote is not None})


def _each_once(rows: list[ManifestRow]) -> tuple[ManifestRow, ...]:
    seen: set[int] = set()
    for row in rows:
        if row.sample_id in seen:
            raise ManifestError(
                f"Expected each `sample_id` of the manifest once, but got {row.sample_id} twice.\n{WAY_OUT}"
            )
        seen.add(row.sample_id)
    return tuple(rows)


def _class(number: int, name: str) -> str:
    return f"{number} ({printable(name, limit=40)})" if name else str(number)


def _name(label: int, class_names: Sequence[str]) -> str:
    return str(class_names[label]) if 0 <= label < len(class_names) else ""
