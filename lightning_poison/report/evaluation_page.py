"""The HTML report of an evaluation: one file with the matrix, a table and figures for each attack. Needs no torch."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_poison.checks import printable
from lightning_poison.evaluation.cells import Cell
from lightning_poison.report.evaluation_content import setups_of
from lightning_poison.report.templates import package_versions, render, writable
from lightning_poison.serialization import atomic_path


def write_evaluation_report(
    path: str | os.PathLike[str],
    records: Sequence[tuple[Mapping[str, Any], Cell]],
    *,
    title: str = "Report on an evaluation",
) -> None:
    """Write the report of an evaluation as one HTML file, which needs no other file and no network.

    It shows which share of the gap between a random and a perfect filter each defense closes against each attack, and
    for each attack a table of all figures, ROC curves, histograms of the scores and predictions, as far as the cells
    have them. Cells of other data, another model or another version are shown apart. Without JavaScript, everything is
    shown; with it, tables are sorted.

    Args:
        path: File to write. Its folder is created if necessary.
        records: Keys and cells, as `read_cells` returns them.
        title: Title of the page.

    Raises:
        OSError: If the file cannot be written. An earlier report stays as it is.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> rest = {"poison_caught": 0.5, "clean_lost": 0.01, "removed": 20}
        >>> names, success = ("no defense", "random filter", "likelihood", "perfect filter"), (0.9, 0.8, 0.2, 0.0)
        >>> records = [
        ...     ({"seed": 0}, Cell("frog", name, name != "likelihood", 0, 0.97, rate, **rest))
        ...     for name, rate in zip(names, success, strict=True)
        ... ]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_evaluation_report(f"{folder}/evaluation.html", records)
        ...     page = Path(f"{folder}/evaluation.html").read_text(encoding="utf-8")
        >>> "likelihood closes 75 % of the gap" in page, "https:" in page
        (True, False)
    """
    target = writable(path)
    parts = {
        "title": printable(title, limit=400),
        "setups": setups_of(records),
        "count": len(records),
        "versions": package_versions(),
    }
    content = render("evaluation", ["page", "evaluation"], parts).encode()
    with atomic_path(target) as partial:
        partial.write_bytes(content)
