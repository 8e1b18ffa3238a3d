"""The rules of `benchmarks/papers.py`, and how it shows and resumes measurements."""

import argparse
import importlib
import json
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NUMBERS = ("000", "001", "002", "003", "004")


@pytest.fixture(scope="module", autouse=True)
def benchmarks_on_path():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        yield


@pytest.fixture
def claims():
    return importlib.import_module("paper_claims.claims")


@pytest.fixture
def page():
    return importlib.import_module("paper_claims.page")


@pytest.fixture
def papers():
    return importlib.import_module("papers")


@pytest.fixture
def paper(claims):
    """A paper with one claim: at most .1 by one measurement, or by another one."""
    small = claims.Measurement("small", lambda _root, seed, **_: {"share": 0.2 + seed})
    large = claims.Measurement("large", lambda _root, _seed, **_: {}, full={"images": 100}, quick=None)
    rows = {
        "small": claims.Row("with few images", small, ("share",), paper="5 %", recorded="7 %"),
        "large": claims.Row("with many images", large, ("all", "share"), form=".3f"),
    }
    claim = claims.Claim(
        "Few are wrong",
        "Table 1",
        rows,
        lambda of: claims.judge(of["small"] <= 0.1, {"images are many": of["large"] <= 0.1}),
        "benchmarks.md#table",
        "Few: at most 10 %.",
    )
    return claims.Paper("009", "Someone, 2020.", "Ours is smaller.", (claim,), "More: [here](more.md).")


@pytest.mark.parametrize(
    ("as_stated", "conditions", "unless", "expected"),
    [
        (True, {"a": True}, {"c": False}, "holds"),
        (False, {"a": False, "b": True}, {}, "holds if b"),
        (False, {"a": True, "b": True}, {}, "holds if a"),
        (False, {"a": False}, None, "does not hold"),
        (False, None, None, "does not hold"),
        (True, {"a": True}, {"c": False, "d": True}, "not decided: d"),
    ],
)
def test_judge(claims, as_stated, conditions, unless, expected):
    assert str(claims.judge(as_stated, conditions, unless=unless)) == expected


def test_verdict_is_that_of_the_medians(claims, paper):
    (claim,) = paper.claims
    many = [{"all": {"share": 0.3}}]
    assert str(claim.verdict({"small": [{"share": 0.05}, {"share": 0.09}, {"share": 0.9}], "large": many})) == "holds"
    assert str(claim.verdict({"small": [{"share": 0.05}, {"share": 0.5}, {"share": 0.9}], "large": many})) == (
        "does not hold"
    )
    many = [{"all": {"share": 0.1}}]
    assert str(claim.verdict({"small": [{"share": 0.5}], "large": many})) == "holds if images are many"


def test_a_missing_number_decides_nothing(claims, paper):
    (claim,) = paper.claims
    assert claim.verdict({"small": [{"share": 0.05}]}).word == claims.UNDECIDED


def test_quick_and_full_runs_share_no_key(claims):
    run = claims.Measurement("a", dict, full={"images": 10, "epochs": 2}, quick={"images": 3})
    assert run.sizes(quick=True) == {"images": 3, "epochs": 2}
    assert run.sizes(quick=False) == {"images": 10, "epochs": 2}
    same = claims.Measurement("b", dict, full={"images": 10})
    assert same.key(quick=True, seed=0) != same.key(quick=False, seed=0)
    assert claims.Measurement("c", dict, quick=None).sizes(quick=True) is None


def test_table_of_a_claim(page, paper):
    found = {"small": [{"share": 0.05}, {"share": 0.07}], "large": [{"all": {"share": 0.1}}]}
    lines = page.paper_lines(paper, found)
    assert "| | paper | ours | [recorded, full size](benchmarks.md#table) |" in lines
    assert "| with few images | 5 % | 6.0 (5.0 to 7.0) % | 7 % |" in lines
    assert "| with many images | | 0.100 | |" in lines
    assert "**holds**. Few: at most 10 %." in lines
    assert lines[-2] == "More: [here](more.md)."


def test_page_says_what_was_run(page, paper):
    quick = {"small": [{"share": 0.5, "date": "2026-01-02", "cpu_s": 3.2}]}
    text = page.page([paper], quick, page.Run.of(quick, quick=True, seeds=1))
    assert "This run: quick sizes, one seed, 2026-01-02, 3 CPU s in all." in text
    assert "It is a quick run" in text
    assert "| 009 | Few are wrong | not decided: not measured in this run |" in text
    assert "| with many images | | not measured | |" in text
    assert "--quick --data-root DIR" in text

    dates = [{"share": 0.5, "date": f"2026-01-0{day}", "cpu_s": 2} for day in (3, 1, 2)]
    full = {"small": dates, "large": [{"all": {"share": 0.1}, "date": "2026-01-01", "cpu_s": 1}] * 3}
    text = page.page([paper], full, page.Run.of(full, quick=False, seeds=3))
    assert "full sizes, 3 seeds, medians with ranges, 2026-01-01 to 2026-01-03, 9 CPU s in all." in text
    assert "quick" not in text.replace("--quick", "")
    assert "holds if: 1." in text


def test_stored_measurements_are_not_repeated(papers, paper, tmp_path, monkeypatch):
    results = papers.Results(tmp_path / "results.jsonl")
    (small, _) = paper.measurements
    for seed in range(2):
        results.store(small.key(quick=True, seed=seed), small.run(None, seed))
    monkeypatch.setattr(papers, "ProcessPoolExecutor", None)
    args = argparse.Namespace(quick=True, seeds=2, data_root=None, jobs=1, measured_only=False)
    again = papers.Results(tmp_path / "results.jsonl")
    assert papers.measure_all([paper], again, args) == {"small": [{"share": 0.2}, {"share": 1.2}]}


def test_a_failed_measurement_is_not_stored(papers, capsys):
    results, failed, done = papers.Results(None), papers.Future(), papers.Future()
    failed.set_exception(ValueError("no such folder"))
    done.set_result({"share": 1.0})
    assert not papers.stored(results, {"a": 1}, failed)
    assert papers.stored(results, {"b": 1}, done)
    assert results.find({"a": 1}) is None
    assert results.find({"b": 1}) == {"share": 1.0}
    assert "no such folder" in capsys.readouterr().out


@pytest.mark.parametrize("number", NUMBERS)
def test_claims_of_a_paper(claims, papers, number):
    paper = papers.PAPERS[number]
    assert 2 <= len(paper.claims) <= 6
    for claim in paper.claims:
        for value in (0.0, 0.5, 1.0):
            verdict = claim.rule(dict.fromkeys(claim.rows, value))
            assert verdict.word in claims.WORDS
            assert bool(verdict.reason) == (verdict.word in (claims.HOLDS_IF, claims.UNDECIDED))


def test_measurements_are_found_again(papers):
    measurements = [each for paper in papers.PAPERS.values() for each in paper.measurements]
    by_name = {each.name: each for each in measurements}
    assert len(by_name) == len(measurements)
    keys = [each.key(quick=quick, seed=0) for each in measurements for quick in (True, False)]
    assert json.loads(json.dumps(keys)) == keys, "a key that changes in the results file is never found again"
    assert all(each.name.startswith(number) for number in NUMBERS for each in papers.PAPERS[number].measurements)


AP = {f"{kind}, clean": 0.97 for kind in ("naive", "FGSM", "PGD")}
FROGS = {"FGSM, 1": 0.0, "PGD, 1": 0.0, "FGSM, 5": 0.1, "PGD, 5": 0.1}


@pytest.mark.parametrize(
    ("number", "rule", "medians", "expected"),
    [
        ("000", "zeros", {"gan, worst": 0.96, "default, worst": 0.5}, "holds"),
        ("000", "zeros", {"gan, worst": 0.5, "default, worst": 0.99}, "holds if the discriminator learns"),
        ("000", "fours", {"gan, 1": 0.3, "gan, 9": 0.4}, "holds"),
        ("000", "fours", {"gan, 1": 0.95, "gan, 9": 0.4}, "holds if only the nines"),
        ("000", "fours", {"gan, 1": 0.3, "gan, 9": 0.95}, "does not hold"),
        ("000", "calibrated", {"gan, .2": 0.9, "gan, .3": 1, "default, .2": 1, "default, .3": 1}, "holds if ε is"),
        ("000", "calibrated", {"gan, .2": 0.9, "gan, .3": 0.9, "default, .2": 1, "default, .3": 0.9}, "does not hold"),
        ("001", "likelihood_separates", {"collide": 0.3, "auroc": 1, "1 %": 1, "5 %": 1}, "not decided"),
        ("001", "likelihood_separates", {"collide": 0.9, "auroc": 1, "1 %": 0.5, "5 %": 1}, "holds if 5 %"),
        ("001", "mixture_is_needed", {"lgm": 0.99, "twin": 0.99, "lgm, linf": 0.9, "twin, linf": 0.8}, "holds if"),
        ("001", "harder_to_craft", {"lgm": 2, "twin": 1, "lgm, accuracy": 0.5, "twin, accuracy": 0.6}, "holds if"),
        ("001", "harder_to_craft", {"lgm": 1, "twin": 2, "lgm, accuracy": 0.5, "twin, accuracy": 0.6}, "does not hold"),
        ("002", "generator_has_no_effect",
         {"none": 0.98, "paper": 0.88, "none, others": 0.98, "paper, others": 0.98}, "holds if a shield"),
        ("002", "generator_has_no_effect",
         {"none": 0.98, "paper": 0.1, "none, others": 0.98, "paper, others": 0.98}, "does not hold"),
        ("002", "generator_has_no_effect",
         {"none": 0.98, "paper": 0.3, "none, others": 0.98, "paper, others": 0.3}, "holds"),
        ("003", "clean_label", {"plain, success": 0.2, "adversarial": 0.9}, "not decided: the attack fails"),
        ("003", "clean_label", {"plain, success": 0.9, "adversarial": 0.9}, "holds"),
        ("003", "clean_label", {"plain, success": 0.9, "adversarial": 0.1}, "does not hold"),
        ("004", "poisoned_digits",
         AP | {"naive, AP 7": 0.96, "FGSM, AP 7": 0.96, "PGD, AP 7": 0.96,
               "naive, AP 25": 0.4, "FGSM, AP 25": 0.93, "PGD, AP 25": 0.95}, "holds if ε is 25/255"),
        ("004", "frogs", FROGS | {"naive, 1": 0.25, "naive, 5": 0.85}, "holds if each target has five frogs"),
        ("004", "frogs", FROGS | {"naive, 1": 0.1, "naive, 5": 0.1}, "not decided: the frogs fail"),
    ],
)  # fmt: skip
def test_rules(number, rule, medians, expected):
    module = importlib.import_module(f"paper_claims.paper_{number}")
    verdict = str(getattr(module, rule)(medians))
    assert verdict == expected if expected in ("holds", "does not hold") else verdict.startswith(expected)
