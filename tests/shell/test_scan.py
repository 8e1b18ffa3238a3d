import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from lightning_poison import cli
from lightning_poison.data.sample_digests import SampleDigests
from lightning_poison.errors import InconclusiveError, NothingKeptError
from lightning_poison.manifest.manifest import keep_by_hand, read_manifest
from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.units import FileUnits
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.shell import scan as module
from lightning_poison.shell.apply import copy_kept
from lightning_poison.shell.scan import ScanOptions, run_scan


@pytest.fixture
def folder(tmp_path):
    """Return a folder of 40 images of two classes, one of which cannot be read."""
    for number in range(40):
        path = tmp_path / "images" / ("cat", "dog")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(path)
    (tmp_path / "images" / "cat" / "broken.png").write_bytes(b"")
    return tmp_path / "images"


def verdict_of(dataset, removed, present):
    labels = torch.tensor([int(label) for _, label in dataset])
    scores = torch.arange(len(labels)).double()
    keep = torch.ones(len(labels), dtype=torch.bool)
    keep[:removed] = False
    evidence = Evidence(present, removed / len(labels), 0.0, 1.0, 0.95, 0.003, power=0.9)
    posterior = (~keep).double()
    return Verdict(
        scores,
        1 / (scores + 1),
        keep,
        labels,
        1 - labels,
        torch.full((2,), torch.inf).double(),
        evidence,
        "wrong-label null",
        0.01,
        scorer="confidence",
        fingerprint="5f0c",
        posterior=posterior,
        posterior_threshold=0.5,
    )


@pytest.fixture
def judged(monkeypatch):
    """Let `sanitize` return a verdict with some removed samples at once; return what it is called with."""
    calls = []

    def use(removed=3, present=True, error=None):
        def judge(dataset, scorer, **settings):
            calls.append((dataset, scorer, settings))
            if error is InconclusiveError:
                raise InconclusiveError("Expected a better scorer.")
            if error is NothingKeptError:
                raise NothingKeptError("Expected to remove less.\nCompare them.", verdict_of(dataset, removed, present))
            return verdict_of(dataset, removed, present)

        monkeypatch.setattr(module, "sanitize", judge)
        return calls

    return use


@pytest.mark.parametrize(("present", "status"), [(True, 3), (False, 0)])
def test_writes_results_and_returns_whether_there_is_evidence(folder, tmp_path, judged, capsys, present, status):
    judged(3 if present else 0, present)
    output = tmp_path / "scan"
    assert cli.main(["scan", str(folder), "--output", str(output)]) == status
    assert {path.name for path in output.iterdir()} == {
        "manifest.csv",
        "report.html",
        "summary.json",
        "verdict.safetensors",
    }
    rows = read_manifest(output / "manifest.csv").rows
    assert [Path(row.path).name for row in rows] == (["04.png", "02.png", "00.png"] if present else [])
    assert {row.label_name for row in rows} <= {"cat"}
    assert Verdict.load(output / "verdict.safetensors").evidence.present == present
    shown = capsys.readouterr().out
    assert "40 samples; 1 file left out, such as" in shown
    assert "broken.png" in shown
    assert ("\nEvidence of poison: 3 of 40 samples" in shown) == present
    assert (f": lightning-poison apply {output / 'manifest.csv'} --copy-to FOLDER\n" in shown) == present
    assert ("\nNo evidence of wrong labels." in shown) != present


def test_summary_for_machines(folder, tmp_path, judged, capsys):
    judged(3)
    assert cli.main(["scan", str(folder), "--output", str(tmp_path / "scan"), "--json"]) == 3
    shown = json.loads(capsys.readouterr().out)
    assert shown == json.loads((tmp_path / "scan" / "summary.json").read_text())
    assert (shown["conclusion"], shown["headline"]) == ("evidence", "evidence of poison")
    assert (shown["samples"], shown["removed"], len(shown["unreadable"]), shown["evidence"]) == (40, 3, 1, True)
    assert shown["classes"] == [
        {"name": "cat", "samples": 20, "removed": 3},
        {"name": "dog", "samples": 20, "removed": 0},
    ]
    assert shown["output"]["report"] == str(tmp_path / "scan" / "report.html")


def test_terminal_page_and_summary_say_the_same_of_an_uncertain_verdict(folder, tmp_path, monkeypatch, capsys):
    def judge(dataset, scorer, **settings):
        evidence = Evidence(False, 0.0457, 0.001, 0.08, 0.95, 0.003, power=0.6)
        return replace(verdict_of(dataset, 0, False), evidence=evidence)

    monkeypatch.setattr(module, "sanitize", judge)
    words = "o clear evidence of poison, but some labels may be wrong"
    assert cli.main(["scan", str(folder), "--output", str(tmp_path / "scan")]) == 0
    assert f"\nN{words}.\n" in capsys.readouterr().out
    page = (tmp_path / "scan" / "report.html").read_text()
    assert f'<p class="sentence">N{words}: an estimated 4.57 % of the labels' in page
    assert "o evidence of" not in page
    summary = json.loads((tmp_path / "scan" / "summary.json").read_text())
    assert (summary["conclusion"], summary["headline"]) == ("uncertain", f"n{words}")
    assert f"\nn{words}: an est" in str(Verdict.load(tmp_path / "scan" / "verdict.safetensors"))


def test_another_output_reuses_the_cache_that_is_named(folder, tmp_path, judged, capsys):
    calls, first = judged(), tmp_path / "first"
    units = FileUnits(first / "cache" / f"{1:032x}", SampleDigests(1))
    units.save("fold-0", {"scores": torch.zeros(3)}, {})
    cli.main(["scan", str(folder), "--output", str(first)])
    hint = f"To reuse stored work in a scan with another --output: --cache {first / 'cache'}\n"
    assert capsys.readouterr().out.endswith(hint)
    cli.main(["scan", str(folder), "--output", str(tmp_path / "second"), "--cache", str(first / "cache")])
    shown = capsys.readouterr().out
    assert f"Work of an earlier run in {first / 'cache'} is reused" in shown
    assert hint not in shown
    assert [settings["cache"] for _, _, settings in calls] == [first / "cache"] * 2
    assert not (tmp_path / "second" / "cache").exists()
    cli.main(["scan", str(folder), "--output", str(tmp_path / "third")])
    assert "--cache" not in capsys.readouterr().out  # nothing is stored


def test_what_cannot_be_judged_has_status_2_and_no_results(folder, tmp_path, judged, capsys):
    judged(error=InconclusiveError)
    assert cli.main(["scan", str(folder), "--output", str(tmp_path / "scan")]) == 2
    assert capsys.readouterr().err == "lightning-poison: Expected a better scorer.\n"
    assert not (tmp_path / "scan" / "manifest.csv").exists()


def test_decision_that_removes_too_much_is_written_with_the_reason(folder, tmp_path, judged, capsys):
    judged(30, error=NothingKeptError)
    assert cli.main(["scan", str(folder), "--output", str(tmp_path / "scan")]) == 3
    assert "Expected to remove less. Compare them.\n" in capsys.readouterr().out
    assert len(read_manifest(tmp_path / "scan" / "manifest.csv").rows) == 30


def test_options_reach_the_decision(folder, tmp_path, judged):
    calls = judged()
    arguments = ["--scorer", "confidence", "--scorer=likelihood", "--false-positive-rate", "0.02", "--seed", "7"]
    cli.main(["scan", str(folder), "--output", str(tmp_path / "scan"), "--image-size", "16", *arguments])
    dataset, scorer, settings = calls[0]
    assert list(scorer.members) == ["confidence", "likelihood"]
    assert (settings["false_positive_rate"], settings["seed"], settings["trusted"]) == (0.02, 7, None)
    assert dataset.pixels.shape == (40, 1, 16, 16)


def test_classes_of_trusted_data_have_the_numbers_of_the_data_set(folder, tmp_path, judged):
    calls = judged()
    trusted = tmp_path / "trusted" / "dog"
    trusted.mkdir(parents=True)
    Image.new("L", (50, 50), 9).save(trusted / "0.png")
    run_scan(str(folder), ScanOptions(tmp_path / "scan", trusted=str(tmp_path / "trusted")), write=lambda _: None)
    image, label = calls[0][2]["trusted"][0]
    assert image.shape == (1, 8, 8)
    assert label == 1
    trusted.rename(tmp_path / "trusted" / "bird")
    with pytest.raises(ValueError, match="classes of the data set, cat, dog, but got bird"):
        run_scan(str(folder), ScanOptions(tmp_path / "scan", trusted=str(tmp_path / "trusted")), write=lambda _: None)


@pytest.mark.parametrize("name", ["", "no such scorer", "confidence,nothing"])
def test_unknown_scorers_are_named_before_anything_is_read(tmp_path, name):
    with pytest.raises(ValueError, match=r"one of the presets fast, balanced, thorough[\s\S]*--scorers"):
        run_scan(str(tmp_path), ScanOptions(tmp_path / "scan", scorer=name), write=lambda _: None)


def test_output_that_cannot_be_written_is_named_before_anything_is_read(folder, tmp_path, judged, capsys):
    calls = judged()
    (tmp_path / "scan").write_text("a file")
    assert cli.main(["scan", str(folder), "--output", str(tmp_path / "scan")]) == 2
    assert "scan" in capsys.readouterr().err
    assert not calls


def test_interrupt_says_that_the_same_command_continues(folder, tmp_path, monkeypatch, capsys):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "sanitize", interrupt)
    assert cli.main(["scan", str(folder), "--output", str(tmp_path / "scan")]) == 130
    assert "the same command continues" in capsys.readouterr().err


@pytest.mark.skipif(os.name == "nt", reason="file names are UTF-16")
def test_file_names_of_any_encoding(folder, tmp_path, judged, capsys):
    judged(3)
    name = os.fsencode(folder / "cat") + b"/00\xff\x1b[2J,=1.png"
    (folder / "cat" / "00.png").rename(os.fsdecode(name))
    (folder / "cat" / "broken.png").rename(os.fsdecode(os.fsencode(folder / "cat") + b"/\xfe.png"))
    assert cli.main(["scan", str(folder), "--output", str(tmp_path / "scan")]) == 3
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert len(read_manifest(tmp_path / "scan" / "manifest.csv").rows) == 3
    assert copy_kept(tmp_path / "scan" / "manifest.csv", tmp_path / "clean") == (37, 4)


def test_settings_in_a_configuration_file(folder, tmp_path, judged):
    calls = judged()
    config = tmp_path / "scan.yaml"
    config.write_text(
        f"source: {folder}\noutput: {tmp_path / 'scan'}\nfalse_positive_rate: 0.02\n"
        "scorer:\n- confidence\n- {name: likelihood, margin: 0.5, fit_settings: {epochs: 2}}\n"
    )
    assert cli.main(["scan", "--config", str(config)]) == 3
    scorer, settings = calls[0][1], calls[0][2]
    assert list(scorer.members) == ["confidence", "likelihood"]
    assert scorer.members["likelihood"].settings()["margin"] == 0.5
    assert settings["false_positive_rate"] == 0.02


def test_misspelled_setting_in_a_configuration_file_is_named_with_the_nearest(folder, tmp_path, judged, capsys):
    calls = judged()
    config = tmp_path / "scan.yaml"
    config.write_text(f"source: {folder}\nimage_siez: 32\n")
    assert cli.main(["scan", "--config", str(config)]) == 2
    assert "'image_siez'\nDid you mean image-size?" in capsys.readouterr().err
    config.write_text(f"source: {folder}\nscorer: {{name: likelihood, marign: 0.5}}\n")
    assert cli.main(["scan", "--config", str(config)]) == 2
    assert "but got 'marign'.\nDid you mean margin?" in capsys.readouterr().err
    assert not calls


def test_relative_paths_are_applied_from_another_folder(folder, tmp_path, judged, monkeypatch):
    judged(3)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["scan", "images", "--output", "scan"]) == 3
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert copy_kept(tmp_path / "scan" / "manifest.csv", tmp_path / "clean") == (37, 4)


def test_samples_that_are_no_files_have_the_names_in_the_table(tmp_path, judged):
    judged(2)
    rows = "".join(f"s{number},{number},{number % 2}\n" for number in range(20))
    (tmp_path / "table.csv").write_text(f"id,width,label\n{rows}")
    assert cli.main(["scan", str(tmp_path / "table.csv"), "--output", str(tmp_path / "scan")]) == 3
    assert [row.path for row in read_manifest(tmp_path / "scan" / "manifest.csv").rows] == ["s1", "s0"]


@pytest.mark.slow
def test_finds_wrong_labels_among_image_files(tmp_path, capsys):
    images, labels = load_digits(return_X_y=True)
    wrong = np.arange(0, 1000, 20)
    for number in range(1000):
        label = (labels[number] + 1 + number % 9) % 10 if number in wrong else labels[number]
        path = tmp_path / "digits" / str(label) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((images[number].reshape(8, 8) * 15).astype(np.uint8)).save(path)
    command = ["scan", str(tmp_path / "digits"), "--output", str(tmp_path / "scan"), "--scorer", "fast"]
    assert cli.main(command) == 3
    rows = read_manifest(tmp_path / "scan" / "manifest.csv").rows
    found = {int(Path(row.path).stem) for row in rows}
    assert len(found & set(wrong.tolist())) >= 40
    assert len(found - set(wrong.tolist())) <= 10
    before = (tmp_path / "scan" / "manifest.csv").read_bytes()
    assert "Work of an earlier run" not in capsys.readouterr().out
    assert cli.main(command) == 3
    assert (tmp_path / "scan" / "manifest.csv").read_bytes() == before
    again = capsys.readouterr()
    assert "Work of an earlier run" in again.out
    assert "Fitting" not in again.err


def test_edited_manifest_of_an_earlier_scan_is_renamed(folder, tmp_path, judged, capsys):
    judged(3)
    command, out = ["scan", str(folder), "--output", str(tmp_path / "scan")], tmp_path / "scan"
    assert cli.main(command) == cli.main(command) == 3
    assert not list(out.glob("*.previous-*"))
    edited = keep_by_hand(out / "manifest.csv", [1])
    capsys.readouterr()
    assert cli.main(command) == 3
    line = "manifest.csv had been edited by hand. It was renamed manifest.previous-1.csv; the new one lacks these"
    assert line in capsys.readouterr().out
    assert any(line in note for note in json.loads((out / "summary.json").read_text())["notes"])
    assert read_manifest(out / "manifest.previous-1.csv") == edited
    assert {row.decision for row in read_manifest(out / "manifest.csv").rows} == {"removed"}


def test_cache_that_is_a_file_is_named_before_anything_is_scored(folder, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cache").write_text("mine")
    assert cli.main(["scan", str(folder), "--output", str(tmp_path / "out")]) == 2
    assert "out/cache, which is a file" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cache"]
