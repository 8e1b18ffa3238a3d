"""The HTML report of a verdict: one file that shows what was found, and lets a reader decide about each sample."""

import base64
import hashlib
import json
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jinja2
import torch
from torch import Tensor

from lightning_poison.checks import describe, expected, instance, printable, safe_text
from lightning_poison.data.sample_spec import SampleSpec, check_sample_spec
from lightning_poison.data.source import readable
from lightning_poison.manifest.manifest import Manifest
from lightning_poison.manifest.matching import file_of
from lightning_poison.report.page_figures import class_rows, finite_thresholds, histogram_of, judged_of
from lightning_poison.report.page_pictures import Picture, Pictures
from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.reasons import finder_of, kind_of, reason_of
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.serialization import atomic_path, check_writable, checked_path

_MAX_ROWS = 2_500
"""Largest number of removed samples on the page. All of them are in the manifest."""

_MAX_KEPT = 24
"""Largest number of kept samples on the page."""

_MAX_DETAILS = 12
"""Largest number of pairs of classes, and of groups, on the page."""

_MEMBERS = 8
"""Largest number of pictures of a pair of classes or of a group."""

_MAX_UNREADABLE = 1_000
"""Largest number of files that could not be read on the page."""

_PICTURE_ROOM = 11_400_000
"""Characters for all pictures together. With 2,500 rows, the page stays below 15 MB."""

_MAX_PICTURE = 20_000
"""Characters for a single picture."""

_MAX_NAME = 1_000
"""Characters of the name of a sample."""

_MAX_SETTINGS = 20_000
"""Characters of the settings."""

_PACKAGES = ("lightning-poison", "lightning", "torch", "torchvision", "scikit-learn", "numpy")
"""Packages whose versions are on the page."""


def write_report(
    path: str | os.PathLike[str],
    verdict: Verdict,
    dataset: Any,
    *,
    class_names: Sequence[str] = (),
    sample_names: Sequence[str] | None = None,
    title: str = "Report on a training set",
    sample: SampleSpec | None = None,
    unreadable: Sequence[tuple[str, str]] = (),
    manifest_name: str = "manifest.csv",
) -> None:
    """Write the report of a verdict as one HTML file, which needs no other file and no network.

    It shows the evidence, counts of each class, pairs of classes and groups, the removed samples, the most suspicious
    kept samples, and the scores. Its reader can sort, filter and search the removed samples, mark those to keep, and
    download the manifest with these decisions, for `Sanitizer(manifest=...)`. Without JavaScript, everything is shown.

    At most 2,500 removed samples are listed; the manifest in the page contains all of them. Images are reduced to at
    most 64 pixels, and further if there are many, so that the file stays below 15 MB. Other inputs are shown by their
    first values.

    Args:
        path: File to write. Its folder is created if necessary.
        verdict: Verdict on N samples.
        dataset: Map-style data set of the verdict, or a loader of it. Samples that are shown are read once more, under
            a fixed random state.
        class_names: Names of the classes. Default: their numbers.
        sample_names: A text for each of the N samples, such as the path of its file. Default: the paths that the data
            set lists, if any.
        title: Title of the page.
        sample: Location of the input in a sample. Default: detected.
        unreadable: Names of files that were left out before, each with the reason. Default: none.
        manifest_name: File name under which the manifest is downloaded.

    Raises:
        TypeError: If an argument is of another type.
        ValueError: If verdict, data set and `sample_names` differ in length.
        UnreadableSampleError: If a removed sample cannot be read.
        OSError: If the file cannot be written. An earlier report stays as it is.

    Example:
        >>> from lightning_poison.testing.tiny_images import TinyImages
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
    data = readable(dataset, "dataset")
    if len(data.dataset) != len(verdict):
        raise ValueError(expected("dataset", f"the {len(verdict)} samples of the verdict", f"{len(data.dataset)}"))
    names = None if sample_names is None else _texts("sample_names", sample_names)
    if names is not None and len(names) != len(verdict):
        raise ValueError(expected("sample_names", f"a text for each of the {len(verdict)} samples", f"{len(names)}"))
    classes = _texts("class_names", class_names)
    left_out = _pairs("unreadable", unreadable)
    instance("title", title, str)
    instance("manifest_name", manifest_name, str)
    check_sample_spec(sample)
    target = _writable(path)
    manifest = Manifest.from_verdict(verdict, data, sample=sample, class_names=classes)
    page = _Page(verdict, data.dataset, classes, names, sample)
    parts = page.parts() | {
        "title": printable(title),
        "manifest_name": printable(manifest_name),
        "data": {"manifest": _csv_of(manifest), "name": printable(manifest_name)},
        "unreadable": left_out[:_MAX_UNREADABLE],
        "unreadable_count": len(left_out),
    }
    content = _render(parts).encode()
    with atomic_path(target) as partial:
        partial.write_bytes(content)


@dataclass(frozen=True)
class _Row:
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


@dataclass(frozen=True)
class _Detail:
    """A pair of classes or a group: its description, the number of its removed samples, and some of them."""

    text: str
    removed: int
    members: list[_Row]


class _Page:
    """Collects what is on the page."""

    def __init__(
        self,
        verdict: Verdict,
        dataset: Any,
        class_names: Sequence[str],
        sample_names: Sequence[str] | None,
        sample: SampleSpec | None,
    ) -> None:
        self.verdict = verdict
        self._dataset, self._classes, self._names = dataset, class_names, sample_names
        judged = judged_of(verdict)
        self._removed = verdict.removed.tolist()
        self._kept = _nearest_kept(verdict, judged)
        shown = min(len(self._removed), _MAX_ROWS) + len(self._kept) + 2 * _MEMBERS * _MAX_DETAILS
        self._pictures = Pictures(
            dataset,
            sample,
            positions=judged.nonzero().flatten() if bool(judged.any()) else None,
            limit=min(_MAX_PICTURE, _PICTURE_ROOM // shown),
        )

    def parts(self) -> dict[str, Any]:
        """Return the variables of the template."""
        verdict, judged = self.verdict, int(judged_of(self.verdict).sum())
        rows = [self._row(index) for index in self._removed[:_MAX_ROWS]]
        kept = [self._row(index) for index in self._kept]
        evidence = _with_details(verdict)
        return {
            "verdict": verdict,
            "sentence": _sentence(str(verdict.evidence)),
            "undecided": [each for each in verdict.findings if each.evidence is None],
            "findings": [_sentence(str(each)) for each in verdict.findings],
            "not_looked_for": verdict.not_looked_for(),
            "notes": [printable(note, limit=400) for note in verdict.notes],
            "scorer": printable(verdict.scorer),
            "samples": len(verdict),
            "judged": judged,
            "removed": len(self._removed),
            "classes": [(self._class(row.label), row) for row in class_rows(verdict)],
            "pairs": [self._pair(pair) for pair in evidence.pairs[:_MAX_DETAILS]],
            "pair_count": len(evidence.pairs),
            "groups": [self._group(number, group) for number, group in enumerate(evidence.groups[:_MAX_DETAILS])],
            "group_count": len(evidence.groups),
            "rows": rows,
            "kept": kept,
            "filters": _filters(rows),
            "has_posterior": verdict.posterior is not None,
            "has_pictures": any(row.picture.source for row in rows[:20] + kept),
            "histogram": histogram_of(verdict),
            "thresholds": finite_thresholds(verdict),
            "settings": _settings_of(verdict),
            "made_with": printable(verdict.made_with, limit=500),
            "fingerprint": printable(verdict.fingerprint, limit=500),
            "versions": [(name, _version_of(name)) for name in _PACKAGES],
        }

    def _row(self, index: int) -> _Row:
        verdict = self.verdict
        label, suggested = int(verdict.labels[index]), int(verdict.suggested_labels[index])
        name = self._names[index] if self._names is not None else file_of(self._dataset, index)
        return _Row(
            index,
            printable(name, limit=_MAX_NAME),
            self._pictures(index),
            label,
            self._class(label),
            self._class(suggested) if suggested >= 0 else "",
            float(verdict.scores[index]),
            float(verdict.p_values[index]),
            None if verdict.posterior is None else float(verdict.posterior[index]),
            reason_of(verdict, index, self._classes),
            kind_of(verdict, index),
            printable(finder_of(verdict, index), limit=80),
        )

    def _class(self, label: int) -> str:
        if label < 0:
            return "no label"
        return printable(self._classes[label], limit=40) if label < len(self._classes) else str(label)

    def _pair(self, pair: Any) -> _Detail:
        labels, suggested = self.verdict.labels, self.verdict.suggested_labels
        text = (
            f"Labeled {self._class(pair.labeled)}, looks like {self._class(pair.predicted)}: about "
            f"{pair.estimate:,.0f} wrong labels ({pair.low:,.0f} to {pair.high:,.0f})"
        )
        return self._detail(text, labels.eq(pair.labeled) & suggested.eq(pair.predicted))

    def _group(self, number: int, group: Any) -> _Detail:
        numbers, members = self.verdict.groups, torch.zeros(len(self.verdict), dtype=torch.bool)
        if numbers is not None and self.verdict.evidence.groups:
            members = numbers.eq(number)
        return self._detail(_sentence(group.describe(self._class(group.label)), end=""), members)

    def _detail(self, text: str, members: Tensor) -> _Detail:
        mask = members.tolist()
        removed = [index for index in self._removed if mask[index]]
        return _Detail(text, len(removed), [self._row(index) for index in removed[:_MEMBERS]])


def _nearest_kept(verdict: Verdict, judged: Tensor) -> list[int]:
    """Return the kept samples that would be removed next: those that are ranked as the most suspicious ones."""
    ranking = verdict.ranking
    chosen: list[int] = ranking[(verdict.keep & judged)[ranking]][:_MAX_KEPT].tolist()
    return chosen


def _with_details(verdict: Verdict) -> Evidence:
    """Return the evidence with pairs of classes and groups: that of all members, or of the first one that has some."""
    members = [each.evidence for each in verdict.findings if each.evidence is not None]
    found = [each for each in (verdict.evidence, *members) if each.pairs or each.groups]
    return found[0] if found else verdict.evidence


def _filters(rows: Iterable[_Row]) -> dict[str, list[Any]]:
    """Return the different values of the columns that can be filtered."""
    classes = sorted({(row.label, row.label_name) for row in rows})
    kinds, finders = sorted({row.kind for row in rows}), sorted({row.finder for row in rows})
    return {"classes": classes, "kinds": kinds, "finders": finders}


def _settings_of(verdict: Verdict) -> str:
    try:
        text = json.dumps(dict(verdict.settings), indent=2, default=str, ensure_ascii=True)
    except (TypeError, ValueError):
        text = repr(dict(verdict.settings))
    return "\n".join(printable(line, limit=500) for line in text[:_MAX_SETTINGS].splitlines())


def _sentence(text: str, *, end: str = ".") -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else end)


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"


def _csv_of(manifest: Manifest) -> str:
    """Return what `Manifest.write` writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "manifest.csv"
        manifest.write(path)
        return path.read_bytes().decode()


def _render(parts: dict[str, Any]) -> str:
    """Render the page. Everything but its own style and script is escaped."""
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": lambda number: f"{number:,}",
        "number": lambda number: f"{number:.4g}",
        "percent": lambda share: f"{100 * share:.2f} %",
        "shown": lambda name: printable(name, limit=80),
    }
    style, script = ((folder / f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    return environment.get_template("page.html.jinja").render(
        **parts,
        style=style,
        script=script,
        style_hash=_hash_of(style),
        script_hash=_hash_of(script),
    )


def _hash_of(text: str) -> str:
    """Return the hash of an inline style or script, for the page's content security policy."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _writable(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file that can be written; checked before anything is read."""
    target = Path(checked_path(path))
    try:
        check_writable(target.parent, (target.name,))
    except OSError as error:
        raise OSError(
            error.errno,
            f"Expected `path` to be a file that can be written, but got an error: {error.strerror}.\n"
            "Choose another file or folder, or change its permissions. The path is",
            str(target),
        ) from error
    return target


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
        found.append((printable(each[0], limit=_MAX_NAME), printable(each[1], limit=400)))
    return found
