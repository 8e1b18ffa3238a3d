"""The `report` command: write the pages of scans, or of trainings, anew."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_poison.checks import describe_error, expected, printable
from lightning_poison.data.labeled_data import digest_all, read_labeled
from lightning_poison.data.source import open_source
from lightning_poison.errors import UnreadableSampleError, UnsupportedDataError
from lightning_poison.manifest.manifest import Manifest, read_manifest, renamed_to_previous
from lightning_poison.report.page import write_report
from lightning_poison.runtime import LocalRuntime
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.shell.evaluate_page import write_page_of
from lightning_poison.shell.scan import MANIFEST, REPORT, SUMMARY, VERDICT
from lightning_poison.shell.sources import OpenedSource, open_named_source

_READING = {"label": str, "path": str, "ids": str, "image_size": int}
"""What a summary states about how its source was read, and of which type it is if not `None`."""

_FEWER = "so the page has no pictures"


@dataclass(frozen=True)
class _Run:
    """What is known about a run beside its verdict and manifest.

    Args:
        source: What was scanned, or `None`.
        place: The folder in which the scan was started.
        reading: How the source was read.
        classes: Name of each class; empty if unknown.
        unreadable: Names of files that were left out, with the reasons.
    """

    source: str | None = None
    place: Path = Path()
    reading: dict[str, Any] | None = None
    classes: Sequence[str] = ()
    unreadable: Sequence[tuple[str, str]] = ()


def write_reports(runs: Sequence[Path], *, source: str | None = None, write: Callable[[str], None]) -> None:
    """Write the page of each run anew, beside its verdict, with the decisions of its manifest, which may be edited.

    A run that is a file is the file of results of an evaluation; its page is written beside it.

    Pictures are shown if the data set can be read again and is the one that was judged. Otherwise, the page says why it
    has none, and an earlier page is kept as `report.previous-1.html`.

    Args:
        runs: Folders with the results of a scan, or with the files of the callback for one or several loaders; or files
            of results of evaluations.
        source: The data set, in any form of `scan`. Default: as written in `summary.json`. A function is only called
            if it is named here, since a summary may come from somebody else.
        write: Called with a line for each page.

    Raises:
        ValueError: If there is no verdict in a folder, `source` is used with several runs or with an evaluation, or a
            run cannot be read.
        ManifestError: If a manifest cannot be read, or is of another verdict.
        OSError: If a page cannot be written.
    """
    evaluations = [run for run in runs if run.is_file()]
    found = [folder for run in runs if run not in evaluations for folder in _folders(run)]
    if source is not None and evaluations:
        raise ValueError(expected("source", "left out for an evaluation", printable(source)))
    if source is not None and len(found) != 1:
        raise ValueError(expected("source", "used with one run", f"{len(found)} runs"))
    for results in evaluations:
        write(printable(write_page_of(results)))
    for folder in found:
        reason = _write_one(folder, source)
        write(f"{printable(folder / REPORT)}{f': {printable(reason, limit=1000)}' if reason else ''}")


def _write_one(folder: Path, source: str | None) -> str:
    """Write the page of a run, and return why it has no pictures, or an empty text."""
    verdict, (manifest, name), run = Verdict.load(folder / VERDICT), _manifest_of(folder), _run_of(folder)
    if any(row.sample_id >= len(verdict) or row.fingerprint != verdict.fingerprint[:16] for row in manifest.rows):
        hint = "Use the manifest that was written with the verdict."
        raise ValueError(expected(name, "of the verdict beside it", "that of another data set or decision", hint))
    data, reason = _read_again(run, source)
    if data is not None and (difference := _difference(data.dataset, verdict)):
        data, reason = None, f"the data set has changed ({difference}), {_FEWER}"
    if data is None and (folder / REPORT).exists():
        renamed_to_previous(folder / REPORT)  # it may have pictures
    title = source or run.source
    samples = None if data is None else getattr(data.dataset, "samples", None)
    write_report(
        folder / REPORT,
        verdict,
        None if data is None else data.dataset,
        class_names=tuple(data.classes if data is not None else run.classes),
        sample_names=[path for path, _ in samples] if samples else None,
        title=f"Scan of {printable(title)}" if title else "Report on a training set",
        unreadable=run.unreadable if data is None else [(each.name, each.reason) for each in data.unreadable],
        manifest_name=MANIFEST,
        manifest=manifest,
        flag_only=any(row.decision == "flagged" for row in manifest.rows),
        notes=[reason[:1].upper() + reason[1:] + "."] if reason else (),
    )
    return reason


def _folders(run: Path) -> list[Path]:
    """Return the folders at or below a run that contain a verdict."""
    found = sorted({file.parent for file in run.rglob(VERDICT) if "cache" not in file.relative_to(run).parts[:-1]})
    if not found:
        came = "none" if run.is_dir() else "no folder"
        hint = "Give the output folder of a scan, or a folder in `sanitizer_reports/`."
        raise ValueError(expected(printable(run), f"a folder with {VERDICT}", came, hint))
    return [run] if run in found else found


def _manifest_of(folder: Path) -> tuple[Manifest, str]:
    """Return the manifest in a folder, which may have been converted to Parquet, and its name."""
    names = [name for name in (MANIFEST, str(Path(MANIFEST).with_suffix(".parquet"))) if (folder / name).exists()]
    if len(names) > 1:
        raise ValueError(expected(printable(folder), "a folder with one manifest", " and ".join(names), "Delete one."))
    name = names[0] if names else MANIFEST
    return read_manifest(folder / name), name


def _run_of(folder: Path) -> _Run:
    """Return what `summary.json` says, as far as it is valid; it is untrusted."""
    try:
        summary: Any = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return _Run()
    if not isinstance(summary, dict) or not isinstance(summary.get("source"), str):
        return _Run()
    given = summary.get("reading")
    given = given if isinstance(given, dict) else {}
    reading = {name: given.get(name) for name, kind in _READING.items() if isinstance(given.get(name), kind)}
    left_out = [each for each in _list_in(summary, "unreadable") if isinstance(each, dict)]
    return _Run(
        summary["source"],
        Path(str(given.get("folder") or ".")),
        reading,
        [str(name) for name in _list_in(given, "classes")],
        [(str(each.get("name")), str(each.get("reason"))) for each in left_out],
    )


def _list_in(value: dict[str, Any], name: str) -> list[Any]:
    found = value.get(name)
    return found if isinstance(found, list) else []


def _read_again(run: _Run, source: str | None) -> tuple[OpenedSource | None, str]:
    """Return the data set of a run, or why it is not read."""
    if source is not None:
        return open_named_source(source, **(run.reading or {})), ""
    if run.source is None:
        return None, f"the summary does not say where the data set is, {_FEWER}; pass --source SOURCE"
    place = run.place / run.source
    if not place.exists():
        if ":" in run.source:
            return None, f"the data set is what a function returns, {_FEWER}; name it: --source {run.source}"
        return None, f"{run.source} no longer exists, {_FEWER}; if it was moved, pass --source SOURCE"
    try:
        return open_named_source(os.fspath(place), **(run.reading or {})), ""
    except (OSError, ValueError) as error:
        return None, f"the data set cannot be read ({describe_error(error)}), {_FEWER}"


def _difference(dataset: Any, verdict: Verdict) -> str:
    """Return in what a data set differs from the one that was judged, or an empty text."""
    if len(dataset) != len(verdict):
        return f"{len(dataset):,} samples instead of {len(verdict):,}"
    positions = torch.arange(len(verdict)) if verdict.judged is None else verdict.judged.nonzero().flatten()
    runtime = LocalRuntime(quiet=True)
    try:
        seed = verdict.settings.get("seed")
        options: dict[str, Any] = {"positions": positions, "seed": seed if isinstance(seed, int) else 0}
        source = open_source(dataset, sample=None, **options)
        data = read_labeled(source, positions=positions, runtime=runtime, name="samples")
        digest_all(data, runtime)
    except (UnreadableSampleError, UnsupportedDataError, TypeError, ValueError) as error:
        return describe_error(error, limit=300)
    labels, digests = verdict.labels[positions], verdict.sample_digests
    differs = data.labels != labels
    if bool(differs.any()):
        return f"the label of {int(differs.sum()):,} samples"
    if digests is not None and data.repeats:
        differs = data.sample_digests != digests[positions]
        if bool(differs.any()):
            return f"the content of {int(differs.sum()):,} samples"
    return ""
