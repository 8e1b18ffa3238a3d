"""`lightning-poison report`: pages made anew, with pictures if the data set is there and unchanged."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from lightning_poison import cli
from lightning_poison.manifest.manifest import keep_by_hand, read_manifest, write_manifest
from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.shell import scan as module
from lightning_poison.shell.scan import ScanOptions, run_scan
from lightning_poison.testing.tiny_images import TinyImages


def verdict_of(dataset, removed=3, digests=None):
    labels = torch.tensor(dataset.targets)
    keep = torch.arange(len(labels)) >= removed
    posterior = (~keep).double()
    return Verdict(
        posterior, 1 - posterior * 0.9, keep, labels, 1 - labels, torch.full((2,), torch.inf).double(),
        Evidence(True, 0.1, 0.05, 0.2, 0.95, 0.003), "wrong-label null", 0.01, "confidence", "5f0c" * 8,
        posterior=posterior, posterior_threshold=0.5, sample_digests=digests,
    )  # fmt: skip


@pytest.fixture
def scanned(tmp_path, monkeypatch):
    """Return the output folder of a scan of 40 images, one more of which cannot be read."""
    for number in range(40):
        path = tmp_path / "images" / ("cat", "dog")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 6 * number).save(path)
    (tmp_path / "images" / "cat" / "broken.png").write_bytes(b"")

    def judge(dataset, *_, **__):
        from lightning_poison.data.labeled_data import digest_all, read_labeled
        from lightning_poison.data.source import open_source
        from lightning_poison.runtime import LocalRuntime

        data = read_labeled(open_source(dataset, sample=None), runtime=LocalRuntime(quiet=True), name="images")
        digest_all(data, LocalRuntime(quiet=True))
        return verdict_of(dataset, digests=data.sample_digests)

    monkeypatch.setattr(module, "sanitize", judge)
    monkeypatch.chdir(tmp_path)
    run_scan("images", ScanOptions(tmp_path / "scan", image_size=16), write=lambda _: None)
    return tmp_path / "scan"


def page(folder):
    return (folder / "report.html").read_text(encoding="utf-8")


def pictures(folder):
    return page(folder).count('src="data:image/png')


def manifest_in(folder):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page(folder))[1])[
        "manifest"
    ]


def test_page_is_the_same_again(scanned, capsys, monkeypatch):
    before = page(scanned)
    (scanned / "report.html").unlink()
    monkeypatch.chdir("/")  # the source was given as a relative path
    assert cli.main(["report", str(scanned)]) == 0
    assert page(scanned).replace(f"{scanned.parent}/images", "images") == before
    assert capsys.readouterr().out == f"{scanned / 'report.html'}\n"
    assert "broken.png" in before
    assert "looks like dog" in before


def test_edits_of_the_manifest_are_kept(scanned):
    keep_by_hand(scanned / "manifest.csv", [1])
    cli.main(["report", str(scanned)])
    assert "\n1,kept-by-hand," in manifest_in(scanned)
    assert page(scanned).count(" data-chosen>") == 1


@pytest.mark.parametrize("change", ["content", "kept content", "label", "fewer", "gone"])
def test_changed_data_give_a_page_without_pictures_that_says_so(scanned, capsys, change):
    images, before = scanned.parent / "images", page(scanned)
    if change == "gone":
        images.rename(scanned.parent / "elsewhere")
    elif change == "label":
        (images / "cat" / "00.png").rename(images / "dog" / "00.png")
    elif change == "fewer":
        (images / "cat" / "38.png").unlink()
    else:
        name = images / "cat" / ("00.png" if change == "content" else "38.png")
        Image.new("L", (8, 8), 255).save(name)
    assert cli.main(["report", str(scanned)]) == 0
    assert pictures(scanned) == 0
    said = "images no longer exists" if change == "gone" else "the data set has changed"
    assert said in capsys.readouterr().out
    assert said[1:] in page(scanned)
    assert "labeled cat, looks like dog" in page(scanned)
    assert (scanned / "report.previous-1.html").read_text(encoding="utf-8") == before
    if change == "gone":
        assert cli.main(["report", str(scanned), "--source", str(scanned.parent / "elsewhere")]) == 0
        assert pictures(scanned) > 0


def test_several_runs(scanned, capsys):
    shutil.copytree(scanned, scanned.parent / "other")
    assert cli.main(["report", str(scanned), str(scanned.parent / "other")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert pictures(scanned.parent / "other") == pictures(scanned) > 0
    assert cli.main(["report", str(scanned), str(scanned.parent / "other"), "--source", "images"]) == 2
    assert "`source` to be used with one run, but got 2 runs" in capsys.readouterr().err


def test_a_function_of_a_summary_is_never_called_unless_it_is_named(scanned, capsys, monkeypatch):
    (scanned.parent / "loads_data.py").write_text(
        "from pathlib import Path\n"
        "from lightning_poison.shell.sources import open_named_source\n"
        "def load():\n"
        "    Path('called').touch()\n"
        "    return open_named_source('images', image_size=16).dataset\n"
    )
    monkeypatch.syspath_prepend(scanned.parent)
    summary = json.loads((scanned / "summary.json").read_text())
    (scanned / "summary.json").write_text(json.dumps(summary | {"source": "loads_data:load"}))
    assert cli.main(["report", str(scanned)]) == 0
    assert "name it: --source loads_data:load" in capsys.readouterr().out
    assert not (scanned.parent / "called").exists()
    assert cli.main(["report", str(scanned), "--source", "loads_data:load"]) == 0
    assert (scanned.parent / "called").exists()
    assert pictures(scanned) > 0


@pytest.mark.parametrize(
    "summary",
    ["", "[]", "{}", '{"source": 3}', '{"source": "images", "reading": 3, "unreadable": [3, {}], "classes": 3}'],
)
def test_damaged_summaries(scanned, summary):
    (scanned / "summary.json").write_text(summary)
    assert cli.main(["report", str(scanned)]) == 0
    assert len(manifest_in(scanned).splitlines()) == 4


def test_hostile_summaries_stay_text(scanned):
    markup = "<img src=x onerror=alert(1)>"
    summary = {
        "source": markup,
        "reading": {"classes": [markup, 3]},
        "unreadable": [{"name": markup, "reason": markup}],
    }
    (scanned / "summary.json").write_text(json.dumps(summary))
    assert cli.main(["report", str(scanned)]) == 0
    assert markup not in page(scanned)
    assert "&lt;img src=x" in page(scanned)


def test_manifest_may_be_converted_to_parquet(scanned, capsys):
    manifest = read_manifest(scanned / "manifest.csv")
    manifest.with_kept([manifest.rows[0].sample_id]).write(scanned / "manifest.parquet")
    assert cli.main(["report", str(scanned)]) == 2
    assert "one manifest, but got manifest.csv and manifest.parquet.\nDelete one." in capsys.readouterr().err
    (scanned / "manifest.csv").unlink()
    assert cli.main(["report", str(scanned)]) == 0
    assert "kept-by-hand" in page(scanned)


def test_folders_of_the_callback(tmp_path, capsys):
    data = TinyImages(30)
    data.targets = [index % 2 for index in range(30)]
    for name in ("0-a", "1-b"):
        folder = tmp_path / "sanitizer_reports" / "sanitizer" / name
        folder.mkdir(parents=True)
        verdict_of(data).save(folder / "verdict.safetensors")
        write_manifest(folder / "manifest.csv", verdict_of(data), data, flag_only=name == "0-a")
    (tmp_path / "sanitizer_reports" / "cache").mkdir()
    verdict_of(data).save(tmp_path / "sanitizer_reports" / "cache" / "verdict.safetensors")
    assert cli.main(["report", str(tmp_path / "sanitizer_reports")]) == 0
    assert [Path(line.split(":")[0]).parent.name for line in capsys.readouterr().out.splitlines()] == ["0-a", "1-b"]
    assert "flagged only" in page(tmp_path / "sanitizer_reports" / "sanitizer" / "0-a")
    assert "flagged only" not in page(tmp_path / "sanitizer_reports" / "sanitizer" / "1-b")


@pytest.mark.parametrize("what", ["folder", "verdict", "manifest", "other manifest", "damaged verdict"])
def test_what_is_missing_or_of_another_run_is_named(scanned, capsys, what):
    if what == "folder":
        scanned = scanned / "nothing"
    elif what == "verdict":
        (scanned / "verdict.safetensors").unlink()
    elif what == "manifest":
        (scanned / "manifest.csv").unlink()
    elif what == "other manifest":
        text = (scanned / "manifest.csv").read_text()
        (scanned / "manifest.csv").write_text(text.replace("5f0c5f0c5f0c5f0c", "0000000000000000"))
    else:
        (scanned / "verdict.safetensors").write_bytes(b"damaged")
    assert cli.main(["report", str(scanned)]) == 2
    said = capsys.readouterr().err
    expected = {
        "folder": "no folder",
        "verdict": "a folder with verdict",
        "other manifest": "another data set or decision",
    }
    assert expected.get(what, "manifest.csv" if what == "manifest" else "verdict.safetensors") in said
    assert "Traceback" not in said


def test_a_page_that_cannot_be_written_is_named(scanned, capsys):
    (scanned / "report.html").unlink()
    (scanned / "report.html").mkdir()
    (scanned / "report.html" / "file").touch()
    assert cli.main(["report", str(scanned)]) == 2
    assert "report.html" in capsys.readouterr().err
