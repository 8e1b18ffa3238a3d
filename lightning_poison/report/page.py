"""The HTML report of a verdict: one file that shows what was found, and lets a reader decide about each sample."""

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_poison.checks import describe, expected, instance, printable, safe_text
from lightning_poison.data.class_names import class_names_of
from lightning_poison.data.sample_spec import SampleSpec, check_sample_spec
from lightning_poison.data.source import Readable, readable
from lightning_poison.manifest.manifest import Manifest
from lightning_poison.manifest.rows import ManifestRow
from lightning_poison.report.page_content import MAX_NAME, PageContent
from lightning_poison.report.page_suspects import suspect_rows
from lightning_poison.report.templates import package_versions, render, writable
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.serialization import atomic_path

_MAX_UNREADABLE = 1_000
"""Largest number of files that could not be read on the page."""

_MAX_SETTINGS = 20_000
"""Characters of the settings."""

_WORDS = ("removed", "flagged")
"""Decision on a sample that is not kept by hand: that of `flag_only` as 0 or 1."""


def write_report(
    path: str | os.PathLike[str],
    verdict: Verdict,
    dataset: Any,
    *,
    class_names: Sequence[str] | None = None,
    sample_names: Sequence[str] | None = None,
    title: str = "Report on a training set",
    sample: SampleSpec | None = None,
    unreadable: Sequence[tuple[str, str]] = (),
    manifest_name: str = "manifest.csv",
    manifest: Manifest | None = None,
    flag_only: bool = False,
    features: Tensor | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Write the report of a verdict as one HTML file, which needs no other file and no network.

    It shows the evidence, counts of each class, pairs of classes and groups, the most suspicious samples beside the
    kept samples that are nearest to them, copies, all removed samples, those near the threshold, the scores, and how
    the p-values are distributed. Its reader can sort, filter and search the removed samples, mark those to keep, mark
    suspects to remove that were kept, and download the manifest with these decisions, for `Sanitizer(manifest=...)`.
    Without JavaScript, everything is shown.

    At most 2,500 removed samples are listed; the manifest in the page contains all of them. Of the others, as many of
    the most suspicious are listed as are estimated to be poison, but from 24 to 250. Images are reduced to at
    most 64 pixels, and further if there are many, so that the file stays below 15 MB. Other inputs are shown by their
    first values. The nearest samples are found by their pixels, reduced to 16 × 16, or by their standardized values.
    To find them, up to 10,000 kept samples are read, drawn at random if there are more.

    Args:
        path: File to write. Its folder is created if necessary.
        verdict: Verdict on N samples.
        dataset: Map-style data set of the verdict, or a loader of it. Samples that are shown or compared are read once
            more, under a fixed random state. `None` if it is not available: the page is written without pictures.
        class_names: Names of the classes. Default: those that the data set lists in `classes`, or their numbers.
        sample_names: A text for each of the N samples, such as the path of its file. Default: the paths that the data
            set lists, if any.
        title: Title of the page.
        sample: Location of the input in a sample. Default: detected.
        unreadable: Names of files that were left out before, each with the reason. Default: none.
        manifest_name: File name under which the manifest is downloaded.
        manifest: Manifest of the verdict, which may have been edited: samples kept by hand in it are marked. Default:
            made from the verdict. Required if `dataset` is `None`.
        flag_only: Whether samples that the verdict removes stay in the training set. Default: `False`.
        features: Features by which samples are compared in place of their pixels or values, finite `(N, D)`.
        notes: Further sentences about the verdict. Default: none.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If verdict, data set, `sample_names` and `features` differ in length, or there is neither a data set
            nor a manifest.
        UnreadableSampleError: If a removed sample cannot be read.
        OSError: If the file cannot be written. An earlier report stays as it is.

    Example:
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> import torch
        >>> from lightning_poison.sanitization.evidence import Evidence
        >>> scores, p_values = torch.tensor([0.2, 9.1, 0.4]).double(), torch.tensor([0.8, 0.001, 0.6]).double()
        >>> evidence, thresholds = Evidence(True, 0.3, 0.1, 0.8, 0.95, 0.003), torch.full((3,), 4.0).double()
        >>> verdict = Verdict(
        ...     scores, p_values, scores <= 4, torch.tensor([0, 1, 2]), torch.tensor([0, 2, 2]), thresholds, evidence,
        ...     "trusted", 0.01, scorer="likelihood", fingerprint="5f0c",
        ... )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(f"{folder}/report.html", verdict, TinyImages(3), class_names=["cat", "dog", "frog"])
        ...     page = Path(f"{folder}/report.html").read_text(encoding="utf-8")
        >>> "labeled dog, looks like frog" in page, "https:" in page
        (True, False)
    """
    instance("verdict", verdict, Verdict)
    data = _checked_data(dataset, manifest, len(verdict))
    names = None if sample_names is None else _texts("sample_names", sample_names)
    if names is not None and len(names) != len(verdict):
        raise ValueError(expected("sample_names", f"a text for each of the {len(verdict)} samples", f"{len(names)}"))
    left_out = _pairs("unreadable", unreadable)
    instance("title", title, str)
    instance("manifest_name", manifest_name, str)
    check_sample_spec(sample)
    if class_names is None:
        class_names = () if data is None else class_names_of(data.dataset, sample=sample)
    classes = _texts("class_names", class_names)
    target = writable(path)
    options: dict[str, Any] = {"sample": sample, "class_names": classes}
    rows = Manifest.from_verdict(verdict, data, flag_only=flag_only, **options) if manifest is None else manifest
    source = None if data is None else data.dataset
    content = PageContent(verdict, source, classes, names, sample, rows, features)
    suspects = suspect_rows(verdict, rows, data, content.suspects, **options)
    parts = {
        **content.parts(),
        **_marking(rows, suspects, printable(manifest_name), flag_only=bool(flag_only)),
        "title": printable(title),
        "notes": [printable(note, limit=400) for note in (*verdict.notes, *_texts("notes", notes))],
        "unreadable": left_out[:_MAX_UNREADABLE],
        "unreadable_count": len(left_out),
        "settings": _settings_of(verdict),
        "made_with": printable(verdict.made_with, limit=500),
        "fingerprint": printable(verdict.fingerprint, limit=500),
        "versions": package_versions(),
    }
    page = render("page", ["page"], parts).encode()
    with atomic_path(target) as partial:
        partial.write_bytes(page)


def _checked_data(dataset: Any, manifest: Manifest | None, length: int) -> Readable | None:
    """Return the data set of a verdict on `length` samples; `None` if there is a manifest and no data set."""
    if manifest is not None:
        instance("manifest", manifest, Manifest)
    if dataset is None:
        if manifest is not None:
            return None
        hint = "Pass the manifest of the verdict: `manifest=read_manifest(path)`."
        raise ValueError(expected("dataset", "a data set, since there is no manifest", "None", hint))
    data = readable(dataset, "dataset")
    if len(data.dataset) != length:
        raise ValueError(expected("dataset", f"the {length} samples of the verdict", f"{len(data.dataset)}"))
    return data


def _marking(manifest: Manifest, suspects: Sequence[ManifestRow], name: str, *, flag_only: bool) -> dict[str, Any]:
    """Return what the reader can mark, and what the script needs to make the edited manifest of it."""
    lines, more = _csv_of(manifest, suspects)
    return {
        "manifest_name": name,
        "data": {"manifest": lines, "suspects": more, "name": name, "word": _WORDS[flag_only]},
        "markable": {row.sample_id for row in suspects},
        "marked": {row.sample_id for row in manifest.rows if row.decision == "removed-by-hand"},
        "flag_only": flag_only,
    }


def _settings_of(verdict: Verdict) -> str:
    try:
        text = json.dumps(dict(verdict.settings), indent=2, default=str, ensure_ascii=True)
    except (TypeError, ValueError):
        text = repr(dict(verdict.settings))
    return "\n".join(printable(line, limit=500) for line in text[:_MAX_SETTINGS].splitlines())


def _csv_of(manifest: Manifest, suspects: Sequence[ManifestRow]) -> tuple[str, list[str]]:
    """Return what `Manifest.write` writes, without the rows of suspects, and the lines of the suspects."""
    listed = {row.sample_id for row in suspects}
    rows = [row for row in manifest.rows if row.decision != "removed-by-hand" or row.sample_id not in listed]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.csv"
        Manifest((*rows, *suspects)).write(path)
        lines = path.read_bytes().decode().split("\n")[:-1]  # cells contain no line breaks
    return "\n".join([*lines[: len(rows) + 1], ""]), lines[len(rows) + 1 :]


def _texts(name: str, values: Any) -> list[str]:
    if isinstance(values, str) or not isinstance(values, Sequence):
        raise TypeError(expected(name, "a sequence of texts", describe(values)))
    return [safe_text(each) for each in values]


def _pairs(name: str, values: Any) -> list[tuple[str, str]]:
    """Return names and reasons, printable."""
    found = []
    for number, each in enumerate(values):
        if not isinstance(each, list | tuple) or len(each) != 2:
            raise TypeError(expected(f"{name}[{number}]", "a pair of a name and a reason", describe(each)))
        found.append((printable(each[0], limit=MAX_NAME), printable(each[1], limit=400)))
    return found
