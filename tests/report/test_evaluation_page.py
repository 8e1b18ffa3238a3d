import json
import re
from dataclasses import replace
from html import unescape

import pytest
from evaluation_records import MARKUP, SHARED, all_records, cell, cells_of, record

from lightning_poison.evaluation.cells import Cell
from lightning_poison.evaluation.feature_map import FeatureMap
from lightning_poison.evaluation.tables import ADVICE
from lightning_poison.report.evaluation_content import setups_of
from lightning_poison.report.evaluation_page import write_evaluation_report


def written(path, records, **options):
    write_evaluation_report(path / "evaluation.html", records, **options)
    return (path / "evaluation.html").read_text(encoding="utf-8")


def matrix_in(page):
    """Return class and text of the entries of the matrix, by row."""
    table = re.search(r'<table class="matrix".*?</table>', page, re.DOTALL)[0]
    rows = re.findall(r"<tr><th scope=\"row\">.*?</tr>", table, re.DOTALL)
    return [
        [
            (color, unescape(re.sub("<.*?>", "", text)))
            for color, text in re.findall(r'<td class="(.*?)">(.*?)</td>', row)
        ]
        for row in rows
    ]


def test_matrix_has_color_and_number_and_names_what_has_none(tmp_path):
    page = written(tmp_path, all_records())
    hostile, weak, adaptive = matrix_in(page)
    assert hostile == [("good-2", "62 % (50 to 75)"), ("heat-none", "failed")]
    assert weak == [("heat-none", "proves nothing"), ("heat-none", "failed")]
    assert adaptive == [("good-2", "62 % (50 to 75)"), ("heat-none", "not evaluated")]
    assert "Proves nothing:" in page
    assert unescape(page).count(f'<p class="advice">{ADVICE}</p>') == 1
    working = written(tmp_path, [record(each) for each in cells_of("works")])
    assert "advice" not in working[working.index("<body>") :]
    assert page.count("RuntimeError: ") == 4


def test_hostile_names_and_reasons_are_text(tmp_path):
    page = written(tmp_path, all_records(), title=MARKUP)
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    assert page.count("<script>") == 1
    for name in ("\x1b[2J", "</style><script>alert(1)</script>", "x" * 100_000):
        page = written(tmp_path, [record(each) for each in cells_of(name)])
        assert "\x1b" not in page
        assert page.count("<script") == 1
        assert len(page) < 100_000


def test_page_loads_nothing_from_elsewhere(tmp_path):
    page = written(tmp_path, all_records())
    assert not re.search(r'(src|href)="(?!#|data:)', page)
    assert "style=" not in page
    assert "default-src 'none'" in page


def test_numbers_are_those_of_the_cells(tmp_path):
    (setup,) = setups_of(all_records())
    part = setup.attacks[0]
    row = next(each for each in part.rows if each.name == "mine")
    assert [value.text for value in row.values] == [
        "90.0 % (90.0 to 90.0)", "27.0 % (18.0 to 36.0)", "50.0 % (50.0 to 50.0)", "10.0 % (10.0 to 10.0)",
        "62 % (50 to 75)", "3 (3 to 3)", "2.5 (2.5 to 2.5)", "512 (512 to 512)",
    ]  # fmt: skip
    assert row.values[1].number == pytest.approx(27)
    assert row.removals == "7: 2, 1: 1"
    assert [each.name for each in part.rows] == ["no defense", "random filter", "mine", "broken", "perfect filter"]
    assert [each.kind for each in part.rows] == ["control", "control", "defense", "defense", "control"]
    page = written(tmp_path, all_records())
    assert f'data-value="{row.values[1].number}">27.0 % <span class="range">(18.0 to 36.0)</span>' in page


def test_sentence_findings_and_settings():
    (setup,) = setups_of(all_records())
    assert setup.sentence == (
        f"3 attacks ({MARKUP}, weak, adaptive) against 2 defenses (mine, broken) with 2 seeds (0, 1), "
        "on digits (800 samples), with the built-in network, 4 epochs."
    )
    assert setup.findings[0].startswith("mine closes 62 % of the gap")
    assert "Attacks that fail without a defense, and so prove nothing: weak." in setup.findings
    assert "4 cells failed; the reasons are below." in setup.findings
    assert ("version", '"0.1.0"') in setup.settings
    assert ("defense mine", '{"name": "mine"}') in setup.settings


def test_poison_is_shown_beside_its_base(tmp_path):
    cells = cells_of(MARKUP)
    cells[0] = replace(cells[0], pictures=(("iVBORw0KGgoA", "iVBORw0KGgoB"),))
    page = written(tmp_path, [record(each) for each in cells])
    assert re.findall(r'<img src="data:image/png;base64,(\w+)" alt="(\w+ 1 of &lt;img)', page) == [
        ("iVBORw0KGgoA", "Base 1 of &lt;img"),
        ("iVBORw0KGgoB", "Poison 1 of &lt;img"),
    ]


def test_map_of_features(tmp_path):
    features = FeatureMap((0.0, 0.5, 1.0), (0.0, 0.5, 1.0), ("0", MARKUP, "1"), ("attacked", "poison", "clean"))
    records = [
        record(replace(each, features=features if each.defense == "no defense" else None)) for each in cells_of("frog")
    ]
    page = written(tmp_path, records)
    figure = page[page.index("t-SNE of the features of a model") :]
    assert figure.count("<circle") == 1
    assert page.count("<title>poison, label") == page.count("<title>attacked, true label 0") == 1
    assert "<img src=x" not in page
    assert "t-SNE" not in written(tmp_path, [record(each) for each in cells_of("frog")])


def test_adaptive_attackers():
    (setup,) = setups_of(all_records())
    (row,) = setup.adaptive
    assert (row.attack, row.defense) == ("adaptive", "mine")
    assert [value.text.split(" (")[0] for value in row.values] == ["90.0 %", "50.0 %", "13.5 %"]


def test_other_data_are_shown_apart_and_other_settings_are_told_apart():
    other = SHARED | {"data": {"fingerprint": "5f0c"}}
    records = [record(each) for each in cells_of("flip")]
    records += [record(each, other) for each in cells_of("flip", seeds=(0,))]
    assert [len(setup.attacks) for setup in setups_of(records)] == [1, 1]
    records = [record(each) for each in cells_of("flip")]
    records += [record(each, folds=5) for each in cells_of("flip") if not each.is_control]
    (setup,) = setups_of(records)
    assert setup.defenses == ["mine", "mine #2"]


def test_records_without_scores_and_predictions_have_tables_only(tmp_path):
    cells = [replace(each, scores=None, predictions=None) for each in cells_of("flip")]
    page = written(tmp_path, [record(Cell.from_json(json.loads(json.dumps(each.to_json())))) for each in cells])
    assert "<svg" not in page
    assert "62 % (50 to 75)" in page


def test_everything_failed_or_nothing_there(tmp_path):
    failed = [record(Cell.failed("flip", name, 0, "boo")) for name in ("no defense", "mine", "perfect filter")]
    page = written(tmp_path, failed)
    assert matrix_in(page) == [[("heat-none", "failed")]]
    assert "It is not known whether" in page
    assert "no finished cell" in written(tmp_path, [])
    assert '<table class="matrix"' not in written(tmp_path, [record(cell("flip", "no defense", 0.5))])


def test_key_of_another_form_is_shown(tmp_path):
    page = written(tmp_path, [({"data": [1], "model": MARKUP}, each) for each in cells_of("flip")])
    assert "unnamed data" in page
    assert "<img" not in page


def test_earlier_page_is_kept_if_the_folder_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        write_evaluation_report(tmp_path / "file" / "evaluation.html", [])
