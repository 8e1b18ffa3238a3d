import json
import subprocess
import sys
import time

import pytest

from lightning_poison import cli
from lightning_poison.evaluation.cells_file import read_cells

QUICK = ["--data", "digits", "--max-samples", "800", "--epochs", "8", "--seeds", "1", "--workers", "1"]
FLIPS = ["--attack", "label-flip=0.2", "--adaptive", "false"]
FIT = "settings: {fit_settings: {epochs: 4, min_steps: 60, batch_size: 32, shift: 0}}"
DEFENSE = ["--defense", f"{{name: quick, scorer: confidence, {FIT}}}"]


def evaluate(folder, *more):
    return cli.main(["evaluate", *QUICK, "--results", str(folder / "cells.jsonl"), *more])


@pytest.fixture(scope="module")
def first_run(tmp_path_factory):
    """The folder of a finished evaluation of one attack and one defense, and its exit status."""
    folder = tmp_path_factory.mktemp("evaluation")
    return folder, evaluate(folder, *FLIPS, *DEFENSE)


@pytest.mark.slow
def test_all_rows_are_stored(first_run):
    folder, status = first_run
    assert status == 0
    cells = {cell.defense: cell for _, cell in read_cells(folder / "cells.jsonl")}
    assert list(cells) == ["no defense", "perfect filter", "random filter", "quick"]
    assert cells["no defense"].attack_success_rate > 0.1 > cells["perfect filter"].attack_success_rate
    assert cells["quick"].gap_closed > 0.2
    assert cells["random filter"].removed == cells["quick"].removed == sum(cells["quick"].removed_by_class.values())
    key, _ = read_cells(folder / "cells.jsonl")[-1]
    assert key["data"]["fingerprint"] == "digits"
    assert key["model"]["epochs"] == 8
    assert key["attack"]["poison_fraction"] == 0.2
    assert key["defense"]["scorer"] == "confidence"
    assert (key["seed"], key["version"]) == (0, "0.1.0")


@pytest.mark.slow
def test_scores_and_predictions_are_stored_and_on_the_page(first_run):
    folder, _ = first_run
    cells = {cell.defense: cell for _, cell in read_cells(folder / "cells.jsonl")}
    scores = cells["quick"].scores
    assert (sum(scores.clean), sum(scores.poison)) == (320, 80)
    assert scores.auroc > 0.7
    assert [name for name, cell in cells.items() if cell.scores is None] == list(cells)[:3]
    counts = cells["no defense"].predictions
    assert sum(sum(each.values()) for each in counts.values()) == 160
    page = (folder / "cells.html").read_text(encoding="utf-8")
    assert page.count('<polyline class="curve') == 1
    assert f"{scores.auroc:.4f}" in page


@pytest.mark.slow
def test_run_that_adds_nothing_prints_the_same_without_torch(first_run):
    folder, _ = first_run
    program = (
        "import sys\nfrom lightning_poison.cli import main\nstatus = main(sys.argv[1:])\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\nsys.exit(status)"
    )
    results = ["--results", str(folder / "cells.jsonl")]
    command = [sys.executable, "-c", program, "evaluate", *QUICK, *results, *FLIPS, *DEFENSE]
    begin = time.monotonic()
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert time.monotonic() - begin < 10
    for row in ("no defense (control)", "random filter (control)", "quick", "perfect filter (control)", "gap closed"):
        assert row in ended.stdout
    assert ended.stderr.startswith("All 4 cells are in ")


@pytest.mark.slow
def test_json_and_failed_defense(first_run, capsys):
    """The stored cells are used, and a defense that refuses is a failed cell."""
    folder, _ = first_run
    before = (folder / "cells.jsonl").read_text()
    refusing = f"{{name: refusing, scorer: confidence, max_removed: 0.01, {FIT}}}"
    more = [*FLIPS, *DEFENSE, "--defense", refusing, "--json"]
    assert evaluate(folder, *more) == 2
    shown = capsys.readouterr()
    cells = json.loads(shown.out)["cells"]
    assert [cell["defense"] for cell in cells if cell["error"]] == ["refusing"]
    assert [line for line in shown.err.splitlines() if line.startswith("failed: label-flip, refusing, seed 0: ")]
    assert "--retry-failed" in shown.err
    assert (folder / "cells.jsonl").read_text().startswith(before)
    size = (folder / "cells.jsonl").stat().st_size
    assert evaluate(folder, *more) == 2
    assert (folder / "cells.jsonl").stat().st_size == size


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--attack", "badnet", "--defense", "fast"], "Did you mean `badnets`?"),
        (["--attack", "badnets", "--defense", "likelyhood"], "likelyhood"),
        (["--attack", "{name: badnets, settings: {class: 3}}", "--defense", "fast"], "target_class"),
        (["--attack", "{name: badnets, budgt: 3}", "--defense", "fast"], "Did you mean `budget`?"),
        (["--attack", "badnets", "--defense", "{name: likelihood, settings: {magin: 1}}"], "magin"),
    ],
)
def test_wrong_name_or_setting_is_an_error_before_anything_is_computed(tmp_path, capsys, more, message):
    assert evaluate(tmp_path, *more) == 2
    assert message in capsys.readouterr().err
    file = tmp_path / "cells.jsonl"
    assert not file.exists() or not file.read_text()


def test_results_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert evaluate(tmp_path / "file", "--attack", "badnets", "--defense", "fast") == 2
    assert "file" in capsys.readouterr().err


def test_missing_mnist(tmp_path, capsys):
    assert evaluate(tmp_path, "--data", "mnist", "--attack", "badnets", "--defense", "fast") == 2
    assert "MNIST/raw" in capsys.readouterr().err


def test_interrupt_says_that_the_same_command_continues(tmp_path, capsys, monkeypatch):
    from lightning_poison.shell import evaluate as module

    def interrupt(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "key_of_data", interrupt)
    assert evaluate(tmp_path, "--attack", "badnets", "--defense", "fast") == 130
    assert "the same command continues" in capsys.readouterr().err
