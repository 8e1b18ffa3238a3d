import json
import subprocess
import sys

import pytest

from lightning_poison import cli
from lightning_poison.evaluation.cells import Cell
from lightning_poison.evaluation.cells_file import CellsFile


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "cells.jsonl"
    rest = {"poison_caught": 0.5, "clean_lost": 0.01, "removed": 20}
    with CellsFile(path) as file:
        for name, rate in {"no defense": 0.9, "random filter": 0.8, "mine": 0.2, "perfect filter": 0.0}.items():
            one = Cell("frog", name, name != "mine", 0, 0.97, rate, **rest)
            file.add({"attack": {"name": "frog"}, "defense": {"name": name}, "seed": 0}, one)
    return path


def test_report_of_a_file_writes_the_page_beside_it(results, capsys):
    assert cli.main(["report", str(results)]) == 0
    assert capsys.readouterr().out == f"{results.with_suffix('.html')}\n"
    assert "75 %" in results.with_suffix(".html").read_text(encoding="utf-8")


def test_half_a_line_of_a_run_in_progress_is_ignored(results):
    with results.open("a") as file:
        file.write('{"key": {')
    assert cli.main(["report", str(results)]) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no finished cell"),
        ("id,label\n", "line 1"),
        ('{"key": {}, "cell": {"attack": 3}}\n', "`attack` of a cell"),
    ],
)
def test_file_of_another_kind_is_named(tmp_path, capsys, content, message):
    (tmp_path / "cells.jsonl").write_text(content)
    assert cli.main(["report", str(tmp_path / "cells.jsonl")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "cells.html").exists()


def test_page_in_place_of_its_results_and_source_are_refused(results, capsys):
    page = results.with_suffix(".html")
    page.write_text("<html>")
    assert cli.main(["report", str(page)]) == 2
    assert cli.main(["report", str(results), "--source", "images"]) == 2
    assert "evaluation.jsonl" in capsys.readouterr().err
    assert page.read_text() == "<html>"


def test_page_is_written_without_torch(results):
    program = (
        "import sys\nfrom pathlib import Path\nfrom lightning_poison.shell.evaluate_page import write_page_of\n"
        "write_page_of(Path(sys.argv[1]))\n"
        "import json\nprint(json.dumps(sorted({'torch', 'numpy', 'matplotlib'} & set(sys.modules))))"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(results)], capture_output=True, text=True, check=True)
    assert json.loads(ended.stdout) == []
