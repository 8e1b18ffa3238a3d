"""The `scan` command: judge a data set on disk, print a summary, and write manifest, verdict and report."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_poison.checks import expected, printable
from lightning_poison.data.labels import UNLABELED
from lightning_poison.errors import NothingKeptError
from lightning_poison.manifest.manifest import Manifest, set_aside
from lightning_poison.report.page import write_report
from lightning_poison.runtime import LocalRuntime, section
from lightning_poison.sanitization.cache_folder import has_entries
from lightning_poison.sanitization.pipeline import sanitize
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.serialization import atomic_path, check_writable
from lightning_poison.shell.brief import brief_lines
from lightning_poison.shell.hub_datasets import is_hub_source
from lightning_poison.shell.output import Write
from lightning_poison.shell.scorer_options import ScorerOption, scorer_from_option
from lightning_poison.shell.sources import OpenedSource, open_named_source
from lightning_poison.shell.whole_run import WholeRun, clock

NO_EVIDENCE, EVIDENCE = 0, 3
"""Exit statuses of a scan that has decided. Errors, and scans that cannot decide, have 2."""

MANIFEST, VERDICT, REPORT, SUMMARY = "manifest.csv", "verdict.safetensors", "report.html", "summary.json"

_READING = 0.03
"""Share of the time that reading is expected to take."""


@dataclass(frozen=True)
class ScanOptions:
    """How to scan.

    Args:
        output: Folder for the results.
        cache: Folder for finished work and features, which other scans may share. Default: `cache` in `output`.
        trusted: Known-clean data, in any form of a source.
        scorer: See `scorer_from_option`. Default: `"balanced"`.
        backbone: See `scorer_from_option`.
        label: See `open_named_source`.
        path: See `open_named_source`.
        ids: See `open_named_source`.
        image_size: See `open_named_source`.
        false_positive_rate: Share of clean samples that may be removed, in (0, 1). Default: 0.01.
        remove_without_evidence: See `sanitize`. Default: `False`.
        device: Where to compute. Default: `"cpu"`.
        num_workers: Number of processes that read samples of a data set of the user. Default: 0.
        seed: Seed of all randomness. Default: 0.
    """

    output: Path
    cache: Path | None = None
    trusted: str | None = None
    scorer: ScorerOption = "balanced"
    backbone: str | None = None
    label: str | None = None
    path: str | None = None
    ids: str | None = None
    image_size: int | None = None
    false_positive_rate: float = 0.01
    remove_without_evidence: bool = False
    device: str = "cpu"
    num_workers: int = 0
    seed: int = 0

    @property
    def cache_folder(self) -> Path:
        """The folder for finished work and features."""
        return self.output / "cache" if self.cache is None else self.cache

    @property
    def reading(self) -> dict[str, Any]:
        """The options of `open_named_source` by name."""
        return {name: getattr(self, name) for name in ("label", "path", "ids", "image_size")}


def run_scan(source: str, options: ScanOptions, *, write: Write, as_json: bool = False) -> int:
    """Scan a data set and write the results.

    Nothing is changed but the folder of the results. A scan that was interrupted continues where it stopped if it is
    started again with the same data and options.

    Args:
        source: See `open_named_source`.
        options: How to scan.
        write: Called with each line of output.
        as_json: Whether to write the summary as one JSON object instead.

    Returns:
        The exit status: 0 without evidence of poison, 3 with evidence.

    Raises:
        ValueError: If the source cannot be read, or an option is invalid.
        OSError: If the folder of the results cannot be written.
        InconclusiveError: If the data cannot be judged.
    """
    begin = time.monotonic()
    scorer = scorer_from_option(options.scorer, options.backbone)
    runtime = WholeRun(options.device, num_workers=options.num_workers)
    check_writable(options.output, (MANIFEST, VERDICT, REPORT, SUMMARY))
    with runtime.shown():
        with section(0, _READING):
            data = open_named_source(source, **options.reading, runtime=runtime, store=options.cache_folder / "pixels")
        trusted = None if options.trusted is None else _trusted(options.trusted, data, options.reading)
        if not as_json:
            with runtime.aside():
                _print_start(source, data, options, write)
        with section(_READING, 1):
            verdict, refusal = _judge(data, trusted, scorer, runtime, options)
    notes = _write_results(source, data, verdict, options.output)
    summary = summary_of(source, data, verdict, options, refusal, notes)
    with atomic_path(options.output / SUMMARY) as partial:
        partial.write_text(json.dumps(summary, indent=2), encoding="utf-8")
    if as_json:
        write(json.dumps(summary))
    else:
        for line in [*([refusal] if refusal else []), *brief_lines(verdict, data.classes), *data.notes, *notes]:
            write(printable(line, limit=1000))
        write(f"{clock(time.monotonic() - begin)}; look at {printable(options.output / REPORT)}")
        _print_next_steps(source, verdict, options, write)
    return EVIDENCE if verdict.evidence.present else NO_EVIDENCE


def _print_start(source: str, data: OpenedSource, options: ScanOptions, write: Write) -> None:
    write(f"{printable(source)}: {len(data.dataset):,} samples{_left_out(data)}")
    cache = options.cache_folder
    if cache.is_dir() and any(cache.iterdir()):
        write(f"Work of an earlier run in {printable(cache)} is reused if data and settings are the same.")


def _print_next_steps(source: str, verdict: Verdict, options: ScanOptions, write: Write) -> None:
    if not bool(verdict.keep.all()) and Path(source).is_dir() and not is_hub_source(source):
        command = f"lightning-poison apply {printable(options.output / MANIFEST)} --copy-to FOLDER"
        write(f"To copy the folder without these samples: {command}")
    if options.cache is None and has_entries(options.cache_folder):
        write(f"To reuse stored work in a scan with another --output: --cache {printable(options.cache_folder)}")


def summary_of(
    source: str,
    data: OpenedSource,
    verdict: Verdict,
    options: ScanOptions,
    refusal: str = "",
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the summary of a scan as JSON values.

    Args:
        source: What was scanned.
        data: The data set.
        verdict: The decision.
        options: How it was scanned.
        refusal: Why the decision would not be carried out by a training, or empty.
        notes: What else the user should know about the files. Default: nothing.
    """
    evidence = verdict.evidence
    return {
        "source": source,
        "evidence": evidence.present,
        "conclusion": verdict.conclusion,
        "headline": verdict.headline,
        "kind": evidence.kind,
        "estimate": evidence.contamination,
        "low": evidence.low,
        "high": evidence.high,
        "confidence": evidence.confidence,
        "power": evidence.power,
        "planted": evidence.planted,
        "not_looked_for": verdict.not_looked_for(),
        "easily_missed": verdict.easily_missed(),
        "samples": len(verdict),
        "removed": int((~verdict.keep).sum()),
        "unreadable": [{"name": each.name, "reason": printable(each.reason)} for each in data.unreadable],
        "classes": _by_class(data, verdict),
        "findings": [printable(str(each), limit=1000) for each in verdict.findings],
        "notes": [*(printable(note, limit=1000) for note in (*verdict.notes, *data.notes)), *notes],
        "refusal": refusal,
        "fingerprint": verdict.fingerprint,
        "output": {name: str(options.output / file) for name, file in _FILES.items()},
        "reading": {
            **options.reading,
            "folder": str(Path.cwd()),
            "classes": [printable(name) for name in data.classes],
        },
    }


_FILES = {"manifest": MANIFEST, "verdict": VERDICT, "report": REPORT}


def _judge(
    data: OpenedSource, trusted: Any, scorer: Any, runtime: LocalRuntime, options: ScanOptions
) -> tuple[Verdict, str]:
    """Return the decision, and why a training would refuse to carry it out."""
    try:
        verdict = sanitize(
            data.dataset,
            scorer,
            trusted=trusted,
            false_positive_rate=options.false_positive_rate,
            remove_without_evidence=options.remove_without_evidence,
            seed=options.seed,
            runtime=runtime,
            cache=options.cache_folder,
        )
    except NothingKeptError as error:
        if error.verdict is None:
            raise
        return error.verdict, printable(" ".join(str(error).split()), limit=1000)
    return verdict, ""


def _write_results(source: str, data: OpenedSource, verdict: Verdict, output: Path) -> list[str]:
    """Write verdict, manifest and report; return a note if an edited manifest of an earlier scan was renamed."""
    names = list(data.classes) or None
    verdict.save(output / VERDICT)
    manifest = Manifest.from_verdict(verdict, data.dataset, class_names=names)
    renamed = set_aside(output / MANIFEST, manifest)
    manifest.write(output / MANIFEST)
    samples = getattr(data.dataset, "samples", None)
    write_report(
        output / REPORT,
        verdict,
        data.dataset,
        class_names=tuple(data.classes),
        sample_names=[path for path, _ in samples] if samples else None,
        title=f"Scan of {printable(source)}",
        unreadable=[(each.name, each.reason) for each in data.unreadable],
        manifest_name=MANIFEST,
    )
    if renamed is None:
        return []
    return [f"{MANIFEST} had been edited by hand. It was renamed {renamed.name}; the new one lacks these decisions."]


def _trusted(source: str, data: OpenedSource, reading: dict[str, Any]) -> Any:
    """Return the trusted data, with images of the size and classes of the numbers of the data set."""
    pixels = getattr(data.dataset, "pixels", None)
    if pixels is not None and pixels.shape[2] == pixels.shape[3]:
        reading = reading | {"image_size": int(pixels.shape[2])}
    trusted = open_named_source(source, **reading)
    missing = sorted(set(trusted.classes) - set(data.classes))
    if missing:
        there = printable(", ".join(data.classes), limit=300)
        raise ValueError(expected("the trusted data", f"classes of the data set, {there}", printable(missing[0])))
    if not data.classes:
        return trusted.dataset
    number = {name: position for position, name in enumerate(data.classes)}
    return _Renumbered(trusted.dataset, [number[name] for name in trusted.classes])


class _Renumbered:
    """A data set whose labels are those of another one."""

    def __init__(self, dataset: Any, numbers: list[int]) -> None:
        self.dataset, self.numbers = dataset, numbers

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        inputs, label = self.dataset[index]
        return inputs, self.numbers[int(label)] if label >= 0 else UNLABELED


def _left_out(data: OpenedSource) -> str:
    if not data.unreadable:
        return ""
    first = data.unreadable[0]
    files = "1 file" if len(data.unreadable) == 1 else f"{len(data.unreadable):,} files"
    more = f"{files} left out, such as {printable(first.name)} ({printable(first.reason)})"
    return f"; {more}"


def _by_class(data: OpenedSource, verdict: Verdict) -> list[dict[str, Any]]:
    labels, removed = verdict.labels, ~verdict.keep
    size = max(int(labels.max()) + 1, len(data.classes))
    total = torch.bincount(labels[labels >= 0], minlength=size).tolist()
    out = torch.bincount(labels[removed & (labels >= 0)], minlength=size).tolist()
    names = [*map(str, data.classes), *map(str, range(len(data.classes), size))]
    return [
        {"name": printable(name), "samples": count, "removed": gone}
        for name, count, gone in zip(names, total, out, strict=True)
        if count
    ]
