"""The page of the results of an evaluation. Needs no torch."""

from pathlib import Path

from lightning_poison.checks import expected, printable
from lightning_poison.evaluation.cells_file import read_cells
from lightning_poison.report.evaluation_page import write_evaluation_report


def write_page_of(results: Path) -> Path:
    """Write the page of all cells in a file beside it, `NAME.html` for `NAME.jsonl`, and return its path.

    Raises:
        OSError: If the file cannot be read, or the page cannot be written.
        ValueError: If it is no file of cells, or has none.
    """
    page = results.with_suffix(".html")
    if page == results:
        raise ValueError(expected(printable(results), "a file of results, such as evaluation.jsonl", "a page"))
    records = read_cells(results)
    if not records:
        raise ValueError(expected(printable(results), "a file with results of an evaluation", "no finished cell"))
    write_evaluation_report(page, records, title=f"Evaluation in {printable(results.name)}")
    return page
