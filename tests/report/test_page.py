"""The HTML report: its numbers are those of the verdict, untrusted text stays text, and nothing is loaded."""

import base64
import hashlib
import io
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.datasets import ImageFolder

from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.errors import UnreadableSampleError
from lightning_poison.manifest import Manifest, read_manifest
from lightning_poison.report import page_neighbors, page_suspects, write_report
from lightning_poison.report.page_figures import class_rows, histogram_of
from lightning_poison.report.page_pictures import Pictures, picture_of
from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.finding import Finding
from lightning_poison.sanitization.reasons import finder_of, reason_of
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.statistics.contamination import SuspectPair
from lightning_poison.statistics.group_effects import SuspectGroup
from lightning_poison.testing.tiny_images import TinyImages

VOID = {"meta", "link", "img", "br", "hr", "input", "rect", "line", "polyline"}
MARKUP = "<img src=x onerror=alert(1)>"
BREAKOUT = '</script><script>alert("1")</script>'
NAMES = ["a \"quoted\" & 'single' class", BREAKOUT, "frog"]


class Page(HTMLParser):
    """The elements of a page: (tag, attributes, list of the text inside), and which are inside of which."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.text, self.elements, self._open = text, [], []
        self.feed(text)
        self.close()
        assert self._open == [], "an element is not closed"

    def handle_starttag(self, tag, attrs):
        element = (tag, dict(attrs), [], tuple(self._open))
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), [], tuple(self._open)))

    def handle_endtag(self, tag):
        assert self._open[-1][0] == tag, f"</{tag}> closes <{self._open[-1][0]}> at {self.getpos()}"
        self._open.pop()

    def handle_data(self, data):
        for element in self._open:
            element[2].append(data)

    def all(self, tag, inside=None, **attributes):
        found = [each for each in self.elements if each[0] == tag]
        found = [each for each in found if all(each[1].get(name) == value for name, value in attributes.items())]
        return [each for each in found if inside is None or any(outer is inside for outer in each[3])]

    def by_id(self, name):
        (found,) = [each for each in self.elements if each[1].get("id") == name]
        return found

    def text_of(self, name):
        return " ".join("".join(self.by_id(name)[2]).split())

    def rows(self, table):
        """Return the rows of the body of a table, as (attributes, cells as (tag, attributes, text))."""
        (body,) = self.all("tbody", self.by_id(table))
        cells = {id(row): (row[1], []) for row in self.all("tr", body)}
        for tag, attributes, texts, around in self.elements:
            if tag in ("td", "th") and id(around[-1]) in cells:
                cells[id(around[-1])][1].append((tag, attributes, " ".join("".join(texts).split())))
        return list(cells.values())

    @property
    def data(self):
        return json.loads("".join(self.by_id("data")[2]))


def evidence_of(**parts):
    return Evidence(True, 0.1, 0.05, 0.2, **{"confidence": 0.95, "natural_error_rate": 0.003, **parts})


def verdict_of(size=30, removed=(5, 17, 4), **parts):
    """A verdict without trusted data, with a posterior, that removes samples in this order of suspicion."""
    posterior = torch.linspace(0.0, 0.4, size).double()
    posterior[list(removed)] = torch.linspace(0.99, 0.6, len(removed)).double()
    labels = torch.arange(size) % 3
    values = {
        "scores": posterior * 10 + 0.1234567890123,
        "p_values": 1 - posterior * 0.999,
        "keep": posterior < 0.5,
        "labels": labels,
        "suggested_labels": (labels + 1) % 3,
        "thresholds": torch.full((3,), torch.inf).double(),
        "evidence": evidence_of(),
        "calibration": "wrong-label null",
        "false_positive_rate": 0.01,
        "scorer": "likelihood",
        "fingerprint": "5f0c" * 8,
        "posterior": posterior,
        "posterior_threshold": 0.5,
    }
    if "judged" in parts:
        values["p_values"] = torch.where(parts["judged"], values["p_values"], 1)
    return Verdict(**values | parts)


def report_of(path, verdict, dataset, **parts):
    write_report(path, verdict, dataset, **parts)
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture
def page_of(tmp_path):
    return lambda verdict, dataset, **parts: report_of(tmp_path / "report.html", verdict, dataset, **parts)


def test_rows_have_the_numbers_of_the_verdict(page_of):
    verdict = verdict_of()
    names = [f"images/{index}.png" for index in range(30)]
    page = page_of(verdict, TinyImages(30), class_names=["cat", "dog", "frog"], sample_names=names)
    rows = page.rows("removed-table")
    assert [int(attributes["data-id"]) for attributes, _ in rows] == verdict.removed.tolist() == [5, 17, 4]
    for rank, (index, (_, cells)) in enumerate(zip(verdict.removed.tolist(), rows, strict=True), 1):
        values = [cell[1]["data-value"] for cell in cells if "data-value" in cell[1]]
        assert [float(each) for each in values] == [
            rank,
            float(verdict.scores[index]),
            float(verdict.p_values[index]),
            float(verdict.posterior[index]),
        ]
        texts = [cell[2] for cell in cells]
        assert f"images/{index}.png sample {index}" in texts
        assert reason_of(verdict, index, ["cat", "dog", "frog"]) in texts
        assert texts[-1] == finder_of(verdict, index)
    assert [page.by_id(f"fact-{name}")[1]["data-value"] for name in ("samples", "judged", "removed")] == [
        "30",
        "30",
        "3",
    ]
    assert page.text_of("fact-share") == "10.00 %"
    assert page.text_of("fact-interval") == "5.00 % to 20.00 %"
    assert str(verdict.evidence)[1:] in page.text
    assert page.text_of("fingerprint") == verdict.fingerprint
    classes = [[cell[2] for cell in cells] for _, cells in page.rows("classes-table")]
    assert classes == [
        ["cat", "10", "0", "0.00 %", "none"],
        ["dog", "10", "1", "10.00 %", "likelihood 1"],
        ["frog", "10", "2", "20.00 %", "likelihood 2"],
    ]
    counts = np.array([[int(cell[2]) for cell in cells[2:]] for _, cells in page.rows("histogram-table")])
    assert counts.sum(0).tolist() == [27, 3]


def test_embedded_manifest_is_what_manifest_writes(page_of, tmp_path):
    verdict, dataset = verdict_of(votes={"a;b": torch.full((30,), 0.5).double()}), TinyImages(30)
    page = page_of(verdict, dataset, class_names=NAMES, manifest_name="my manifest.csv")
    manifest = Manifest.from_verdict(verdict, dataset, class_names=NAMES)
    manifest.write(tmp_path / "written.csv")
    text = page.data["manifest"]
    assert text.encode() == (tmp_path / "written.csv").read_bytes()
    (tmp_path / "read.csv").write_text(text, encoding="utf-8", newline="")
    assert read_manifest(tmp_path / "read.csv") == manifest
    assert page.data["name"] == "my manifest.csv"


def test_edit_of_the_script_is_what_with_kept_writes(page_of, tmp_path):
    """The script replaces the text between the first two commas of a line; the same here."""
    verdict, dataset = verdict_of(), TinyImages(30)
    header, *lines = page_of(verdict, dataset, class_names=NAMES).data["manifest"].splitlines()
    edited = [re.sub(r"^(17),[^,]*,", r"\1,kept-by-hand,", line) for line in lines]
    (tmp_path / "edited.csv").write_text("\n".join([header, *edited, ""]), encoding="utf-8", newline="")
    expected = Manifest.from_verdict(verdict, dataset, class_names=NAMES).with_kept([17])
    assert read_manifest(tmp_path / "edited.csv") == expected
    expected.write(tmp_path / "expected.csv")
    assert (tmp_path / "edited.csv").read_bytes() == (tmp_path / "expected.csv").read_bytes()


def test_untrusted_text_stays_text(page_of):
    names = [MARKUP if index % 2 else BREAKOUT for index in range(30)]
    verdict = verdict_of(
        scorer=MARKUP, notes=(BREAKOUT, MARKUP), settings={BREAKOUT: MARKUP}, fingerprint=MARKUP, made_with=BREAKOUT
    )
    page = page_of(
        verdict,
        TinyImages(30),
        class_names=NAMES,
        sample_names=names,
        title=BREAKOUT,
        unreadable=[(MARKUP, BREAKOUT)],
        manifest_name=BREAKOUT,
    )
    scripts = page.all("script")
    assert [each[1].get("type") for each in scripts] == ["application/json", None]
    assert all(each[1]["src"].startswith("data:image/png;base64,") for each in page.all("img"))
    assert not any(name.startswith("on") for each in page.elements for name in each[1])
    assert "".join(page.all("title")[0][2]) == BREAKOUT
    assert [cell[2] for cell in page.rows("unreadable-table")[0][1]] == [MARKUP, BREAKOUT]
    texts = [cell[2] for cell in page.rows("removed-table")[0][1]]
    assert f"{MARKUP} sample 5" in texts
    assert MARKUP in page.text_of("settings")
    assert {"".join(each[2]) for each in page.all("option")} >= {NAMES[1], NAMES[2]}


def test_long_texts_are_cut_and_control_characters_escaped(page_of):
    huge = "x" * 10_000_000
    evil = "\x1b[2J\u202e\udc80\n"
    page = page_of(
        verdict_of(notes=(huge,)),
        TinyImages(30),
        class_names=[huge, evil, "frog"],
        sample_names=[huge, evil, *"x" * 28],
        title=huge,
        unreadable=[(huge, evil)],
    )
    assert len(page.text) < 200_000
    assert not re.search("[\x1b\u202e\udc80]", page.text)


def test_page_loads_and_runs_nothing_of_others(page_of):
    page = page_of(verdict_of(), TinyImages(30))
    assert not re.search("https?:", page.text)
    for tag, attributes, _, _ in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "use")
        assert "style" not in attributes, "the policy of the page forbids it"
        assert attributes.get("href", "#").startswith("#")
        assert attributes.get("src", "data:").startswith("data:")
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    for tag, kind in (("style", "style-src"), ("script", "script-src")):
        inline = "".join(next(each for each in page.all(tag) if "type" not in each[1])[2])
        digest = base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()
        assert f"{kind} 'sha256-{digest}'" in policy[1]["content"]
    assert "default-src 'none'" in policy[1]["content"]
    assert "unsafe" not in policy[1]["content"]


def test_page_can_be_read_without_looking(page_of):
    page = page_of(verdict_of(), TinyImages(30))
    ids = [each[1]["id"] for each in page.elements if "id" in each[1]]
    assert len(set(ids)) == len(ids)
    headings = [int(each[0][1]) for each in page.elements if re.fullmatch("h[1-6]", each[0])]
    assert headings[0] == 1
    assert headings.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(headings))
    assert [each[0] for each in page.elements if each[0] in ("header", "nav", "main", "footer")] == [
        "header",
        "nav",
        "main",
        "footer",
    ]
    for tag, attributes, _, around in page.elements:
        if tag == "img":
            assert attributes["alt"]
        if tag in ("input", "select"):
            labels = [each[1].get("for") for each in around if each[0] == "label"]
            assert attributes.get("aria-label") or attributes["id"] in labels
        if tag == "table":
            assert page.all("caption", next(each for each in page.elements if each[1] is attributes))
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
        for name in ("aria-labelledby",):
            assert all(each in ids for each in attributes.get(name, "").split())
        if attributes.get("href", "#main").startswith("#"):
            assert attributes.get("href", "#main")[1:] in ids
    used = set(re.findall(r'getElementById\("([^"]+)"\)', page.text))
    assert used <= set(ids), "the script uses an element that the page lacks"


def test_pairs_and_groups_show_up_to_eight_members(page_of):
    labels = torch.tensor([0, 1, 2] * 20)
    suggested = torch.where(labels == 0, 2, labels)
    groups = torch.where(labels == 1, 0, -1)
    posterior = torch.where(labels < 2, 0.9, 0.1).double()
    evidence = evidence_of(
        pairs=(SuspectPair(0, 2, 22, 19.6, 12.0, 25.0, 1e-9),),
        groups=(SuspectGroup(1, 20, 9.5, 0.9, 0.0, True), SuspectGroup(2, 12, 6.0, 0.0, 0.1, False)),
        kind="several kinds",
    )
    verdict = verdict_of(
        60,
        (),
        labels=labels,
        suggested_labels=suggested,
        posterior=posterior,
        scores=posterior,
        keep=posterior < 0.5,
        groups=groups,
        evidence=evidence,
    )
    page = page_of(verdict, TinyImages(60), class_names=["cat", "dog", "frog"])
    section = page.by_id("patterns")
    texts = [" ".join("".join(each[2]).split()) for each in page.all("p", section)]
    assert texts == [
        "Labeled cat, looks like frog: about 20 wrong labels (12 to 25). 20 of them were removed; the 8 most "
        "suspicious are shown.",
        "Labeled dog: 20 samples form a separate group (Ashman's D 9.5); their features shift 90 % of any other class "
        "to dog. 20 of them were removed; the 8 most suspicious are shown.",
        "Labeled frog: 12 samples form a separate group (Ashman's D 6.0) without an effect on others. None of them was "
        "removed.",
    ]
    assert len(page.all("img", section)) == 16


def test_union_says_what_each_scorer_found_and_which_could_not_decide(page_of):
    findings = (
        Finding("confidence", 2, evidence_of(power=0.6)),
        Finding("entropy", 1, evidence_of(kind="groups")),
        Finding("slow", 0, None, failure=f"too few samples {MARKUP}"),
    )
    found_by = torch.full((30,), -1)
    found_by[torch.tensor([5, 17, 4])] = torch.tensor([0, 0, 1])
    verdict = verdict_of(
        findings=findings,
        found_by=found_by,
        calibration="members",
        evidence=evidence_of(kind="several kinds", power=0.6),
        notes=("12 samples were too few.",),
    )
    page = page_of(verdict, TinyImages(30))
    texts = ["".join(each[2]) for each in page.all("li", page.by_id("verdict"))]
    for finding in findings:
        assert any(text.startswith(str(finding)[0].upper() + str(finding)[1:]) for text in texts)
    assert "1 of 3 scorers could not decide, so poison that only it finds would not be found." in texts
    assert "Not looked for: individually perturbed inputs." in texts
    assert "12 samples were too few." in texts
    assert page.text_of("fact-power") == "60 %"
    rows = page.rows("removed-table")
    options = {
        name: ["".join(each[2]) for each in page.all("option", page.by_id(f"filter-{name}"))]
        for name in ("label", "kind", "finder")
    }
    assert options == {
        "label": ["All", "class 1", "class 2"],
        "kind": ["All", "groups", "wrong labels"],
        "finder": ["All", "confidence", "entropy"],
    }
    assert [attributes["data-finder"] for attributes, _ in rows] == ["0", "0", "1"]
    assert [attributes["data-kind"] for attributes, _ in rows] == ["1", "1", "0"]


def test_nothing_removed(page_of):
    verdict = verdict_of(removed=(), evidence=Evidence(False, 0.0, 0.0, 0.01, 0.95, 0.003))
    page = page_of(verdict, TinyImages(30))
    assert page.by_id("fact-removed")[1]["data-value"] == "0"
    assert "No sample was removed." in page.text
    assert "No evidence of wrong labels" in page.text
    assert page.data["manifest"].startswith("sample_id,decision,")
    assert page.data["manifest"].count("\n") == 1
    assert len(page.all("img", page.by_id("suspects-table"))) == 24
    assert len(page.all("input", page.by_id("suspects-table"))) == len(page.data["suspects"]) == 24
    assert "No sample was removed. These are the most suspicious of the others." in page.text_of("looks")
    assert "suspected by likelihood" in page.text_of("looks")
    assert not page.all("table", id="removed-table")


def test_nearest_kept_samples_are_next_in_the_ranking(page_of):
    verdict = verdict_of()
    page = page_of(verdict, TinyImages(30))
    shown = [int(attributes["data-id"]) for attributes, _ in page.rows("suspects-table")]
    kept = [index for index in verdict.ranking.tolist() if verdict.keep[index]]
    assert shown == kept[:24]


def test_trusted_data_show_thresholds_and_no_posterior(page_of):
    scores = torch.arange(30).double()
    verdict = verdict_of(
        scores=scores,
        keep=scores <= 26,
        thresholds=torch.full((3,), 26.0).double(),
        posterior=None,
        posterior_threshold=None,
        calibration="trusted",
        evidence=evidence_of(kind="unlike trusted data"),
    )
    page = page_of(verdict, TinyImages(30))
    assert "Decision threshold of the score: 26" in page.text_of("scores")
    assert "osterior" not in page.text_of("removed")
    assert len(page.all("line", **{"class": "threshold"})) == 1
    assert [int(attributes["data-id"]) for attributes, _ in page.rows("removed-table")] == verdict.removed.tolist()


def test_samples_that_are_not_judged_are_neither_counted_nor_read(page_of):
    judged = torch.arange(30) < 20
    dataset = TinyImages(30)

    class Broken(Dataset):
        def __len__(self):
            return 30

        def __getitem__(self, index):
            if index >= 20:
                raise OSError("missing")
            return dataset[index]

    labels = torch.where(judged, torch.arange(30) % 3, -1)
    page = page_of(verdict_of(judged=judged, labels=labels), Broken())
    assert page.by_id("fact-judged")[1]["data-value"] == "20"
    assert page.text_of("fact-share") == "15.00 %"
    assert "cannot be shown" not in page.text
    assert sum(int(cells[1][2]) for _, cells in page.rows("classes-table")) == 20


def test_vectors_and_texts_have_their_first_values(page_of):
    vectors = TensorDataset(torch.arange(300).float().view(30, 10), torch.arange(30) % 3)
    page = page_of(verdict_of(), vectors)
    assert not page.all("img")
    assert page.rows("removed-table")[0][1][2][2] == "50, 51, 52, 53, 54, 55, … (10 values)"
    assert "First values" in page.text_of("removed-table")
    texts = [{"text": f"{MARKUP} {index}", "label": index % 3} for index in range(30)]
    assert Pictures(texts, None, limit=100)(4).text == f"text: {MARKUP} 4; label: 1"
    assert Pictures(texts, SampleSpec("text", "label"), limit=100)(4).text == f"{MARKUP} 4"


@pytest.mark.parametrize(
    ("value", "shape", "first"),
    [
        (torch.full((1, 8, 9), 200, dtype=torch.uint8), (8, 9), 200),
        (torch.full((3, 8, 9), 0.5), (8, 9, 3), 128),
        (np.full((8, 9, 4), 7, dtype=np.uint8), (8, 9, 3), 7),
        (torch.tensor([[-2.0] * 8, [2.0] * 8] * 4), (8, 8), 0),
        (torch.full((3, 8, 8), torch.nan), (8, 8, 3), 0),
        (torch.full((8, 8), 9), (8, 8), 9),
        (torch.ones(8, 8, dtype=torch.bool), (8, 8), 255),
        (torch.full((8, 8), 0.5, dtype=torch.bfloat16), (8, 8), 128),
        (Image.new("P", (9, 8)), (8, 9, 3), 0),
        (Image.new("RGB", (640, 320), "red"), (32, 64, 3), 255),
    ],
    ids=["bytes", "floats", "RGBA", "normalized", "NaN", "integers", "booleans", "bfloat16", "palette", "large"],
)
def test_pictures_of_images(value, shape, first):
    picture = picture_of(value, limit=100_000)
    content = base64.b64decode(picture.source.removeprefix("data:image/png;base64,"))
    pixels = np.asarray(Image.open(io.BytesIO(content)))
    assert pixels.shape == shape
    assert pixels.flatten()[0] == first
    assert (picture.height, picture.width) == shape[:2]


def test_pictures_are_reduced_to_the_limit_and_carry_no_metadata():
    noise = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert picture_of(noise, limit=100_000).width == 64
    small = picture_of(noise, limit=3_600)
    assert len(small.source) <= 3_600
    assert small.width in (16, 24)
    image = Image.new("RGB", (8, 8))
    image.info["icc_profile"] = b"secret" * 100
    assert len(picture_of(image, limit=100_000).source) < 200


def test_a_sample_that_cannot_be_shown_says_why(page_of):
    class Failing(Dataset):
        def __len__(self):
            return 30

        def __getitem__(self, index):
            if index == 29:
                raise OSError(MARKUP)
            return torch.zeros(1, 8, 8), index % 3

    page = page_of(verdict_of(), Failing())
    assert f"raised OSError: {MARKUP}" in page.text_of("suspects")
    markable = [int(each[1]["aria-label"].split()[-1]) for each in page.all("input", page.by_id("suspects-table"))]
    assert len(markable) == 23
    assert 29 not in markable
    with pytest.raises(UnreadableSampleError, match="sample 29"):
        page_of(verdict_of(removed=(29,)), Failing())


def test_names_are_those_of_the_data_set(page_of, tmp_path):
    for index in range(6):
        folder = tmp_path / "images" / f"class {index % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index, 0, 0)).save(folder / f"<b>{index}.png")
    dataset = ImageFolder(tmp_path / "images")
    verdict = verdict_of(6, (2,), labels=torch.tensor(dataset.targets))
    page = page_of(verdict, DataLoader(dataset, batch_size=2))
    assert page.rows("removed-table")[0][1][3][2] == f"{dataset.samples[2][0]} sample 2"
    assert page.rows("removed-table")[0][1][2][1] == {"role": "cell", "class": "picture"}
    assert len(page.all("img", page.by_id("removed-table"))) == 1


def test_files_that_could_not_be_read_are_listed(page_of):
    page = page_of(verdict_of(), TinyImages(30), unreadable=[(f"{index}.png", "truncated") for index in range(1200)])
    assert len(page.rows("unreadable-table")) == 1000
    assert "1,200 files could not be read and were left out; the first 1,000 are listed" in page.text


def test_same_verdict_gives_the_same_file(tmp_path):
    for name in ("a", "b"):
        write_report(tmp_path / name, verdict_of(), TinyImages(30))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_random_samples_are_the_same_each_time_and_global_states_are_unchanged(tmp_path):
    class Random(Dataset):
        def __len__(self):
            return 30

        def __getitem__(self, index):
            return torch.rand(1, 8, 8), index % 3

    for name in ("a", "b"):
        state = torch.get_rng_state()
        write_report(tmp_path / name, verdict_of(), Random())
        assert torch.equal(torch.get_rng_state(), state)
        torch.rand(1)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    pictures = Pictures(Random(), None, limit=10_000)
    alone = pictures(4)
    with pictures.reading_many():
        pictures(5)
        assert torch.equal(pictures.read(4), pictures.read(4))
        assert picture_of(pictures.read(4), limit=10_000) == alone


@pytest.mark.parametrize(
    ("parts", "error", "message"),
    [
        ({"verdict": "verdict"}, TypeError, "`verdict`"),
        ({"dataset": TinyImages(29)}, ValueError, "`dataset` to be the 30 samples of the verdict, but got 29"),
        ({"sample_names": ["a"]}, ValueError, "`sample_names` to be a text for each of the 30 samples, but got 1"),
        ({"sample_names": "abc"}, TypeError, "`sample_names` to be a sequence of texts"),
        ({"class_names": "abc"}, TypeError, "`class_names` to be a sequence of texts"),
        ({"unreadable": ["a.png"]}, TypeError, "`unreadable.0.` to be a pair of a name and a reason"),
        ({"title": 3}, TypeError, "`title`"),
        ({"sample": "image"}, TypeError, "`sample`"),
        ({"manifest": "manifest.csv"}, TypeError, "`manifest`"),
        ({"features": torch.zeros(29, 3)}, ValueError, r"`features` to be a tensor of shape .30, D."),
        ({"notes": "abc"}, TypeError, "`notes` to be a sequence of texts"),
        ({"path": 3}, TypeError, "`path`"),
    ],
)
def test_wrong_arguments(tmp_path, parts, error, message):
    values = {"path": tmp_path / "report.html", "verdict": verdict_of(), "dataset": TinyImages(30)} | parts
    with pytest.raises(error, match=message):
        write_report(**values)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named_before_anything_is_read(tmp_path):
    (tmp_path / "file").write_text("x")

    class Unread(Dataset):
        def __len__(self):
            return 30

        def __getitem__(self, index):
            raise AssertionError

    for target in (tmp_path / "file" / "report.html", tmp_path):
        with pytest.raises(OSError, match=r"(?s)Expected `path` to be a file that can be written.*" + target.name):
            write_report(target, verdict_of(), Unread())
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_a_failing_write_leaves_the_earlier_report(tmp_path, monkeypatch):
    target = tmp_path / "report.html"
    target.write_text("earlier")
    write = Path.write_bytes

    def failing(path, content):
        if b"<!DOCTYPE" not in content:
            return write(path, content)
        write(path, content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", failing)
    with pytest.raises(OSError, match="No space left"):
        write_report(target, verdict_of(), TinyImages(30))
    assert [each.name for each in tmp_path.iterdir()] == ["report.html"]
    assert target.read_text() == "earlier"


def test_a_missing_folder_is_created(tmp_path):
    write_report(tmp_path / "a" / "b" / "report.html", verdict_of(), TinyImages(30))
    assert (tmp_path / "a" / "b" / "report.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("scores", [[1e308, -1e308, 0.0], [1e16, 1e16 + 2, 1e16], [3.0, 3.0, 3.0], [5e-324, 0.0, 0.0]])
def test_histogram_of_extreme_scores(scores):
    verdict = verdict_of(3, (1,), scores=torch.tensor(scores, dtype=torch.float64))
    bins = histogram_of(verdict).bins
    assert (sum(each.kept for each in bins), sum(each.removed for each in bins)) == (2, 1)
    assert all(np.isfinite([each.low, each.high, each.kept_height, each.removed_height]).all() for each in bins)


def test_suspicious_samples_are_beside_their_nearest_kept_ones(page_of):
    labels = torch.arange(30) % 3
    data = [(torch.full((3,), float(index % 3) + index / 1000), 0) for index in range(30)]
    verdict = verdict_of(labels=labels, suggested_labels=(labels + 1) % 3)
    page = page_of(verdict, data, class_names=["cat", "dog", "frog"])
    texts = [" ".join("".join(each[2]).split()) for each in page.all("li", page.by_id("looks"))]
    first = next(text for text in texts if "Sample 5 " in text)
    assert "Labeled frog, looks like cat" in first
    same, suggested = re.search("Nearest kept, labeled frog (.*) Nearest kept, labeled cat (.*)", first).groups()
    shown = [[int(number) for number in re.findall(r"sample (\d+)", each)] for each in (same, suggested)]
    assert shown == [[8, 2, 11, 14], [27, 24, 21, 18]]


def test_suspicious_samples_are_taken_from_each_scorer_in_turn(page_of):
    removed = tuple(range(28))
    findings = (Finding("confidence", 26, evidence_of()), Finding("groups", 2, evidence_of(kind="groups")))
    found_by = torch.full((60,), -1)
    found_by[list(removed)] = 0
    found_by[[26, 27]] = 1  # the least suspicious of all
    verdict = verdict_of(60, removed, findings=findings, found_by=found_by, calibration="members")
    text = page_of(verdict, TinyImages(60)).text_of("looks")
    assert text.count("found by groups") == 2
    assert text.count("found by confidence") == 22


def test_both_sides_of_the_threshold(page_of):
    page = page_of(verdict_of(60, tuple(range(30))), TinyImages(60))
    texts = ["".join(each[2]) for each in page.all("li", page.by_id("last"))]
    last = [int(re.search(r"[Ss]ample (\d+)", text)[1]) for text in texts]
    verdict = verdict_of(60, tuple(range(30)))
    assert last == verdict.removed[-24:].tolist()
    assert all(verdict.keep[int(attributes["data-id"])] for attributes, _ in page.rows("suspects-table"))


def test_copies_are_shown_with_their_decisions(page_of):
    digests = torch.arange(1, 31)
    digests[[5, 8, 20]] = 99
    page = page_of(verdict_of(sample_digests=digests), TinyImages(30))
    text = page.text_of("copies")
    assert "3 samples are copies or nearly so. 1 of them was removed." in text
    marks = ["".join(each[2]) for each in page.all("span", page.by_id("copies")) if "mark" in each[1].get("class", "")]
    assert marks == ["Removed", "Kept", "Kept"]


def test_calibration_states_power_and_expected_clean_samples(page_of):
    page = page_of(verdict_of(evidence=evidence_of(power=0.6)), TinyImages(30))
    assert [[cell[2] for cell in cells] for _, cells in page.rows("promises-table")] == [
        ["likelihood", "wrong labels", "60 %", "10.00 % (5.00 to 20.00 %)", "3"]
    ]
    verdict = verdict_of()
    assert page.text_of("expected-clean") == f"{float((1 - verdict.posterior[~verdict.keep]).sum()):.1f}"
    assert page.rows("calibration-table")[-1][1][1][2] == "100.00 %"
    assert len(page.all("polyline")) == 2


def test_page_without_the_data_set(page_of, tmp_path):
    verdict, dataset = verdict_of(), TinyImages(30)
    manifest = Manifest.from_verdict(verdict, dataset, class_names=NAMES).with_kept([17])
    page = page_of(verdict, None, manifest=manifest, class_names=NAMES, notes=[f"It is gone. {MARKUP}"])
    assert not page.all("img")
    assert f"It is gone. {MARKUP}" in page.text_of("verdict")
    assert "The data set is not available, so samples are not compared." in page.text_of("looks")
    assert [int(attributes["data-id"]) for attributes, _ in page.rows("removed-table")] == [5, 17, 4]
    manifest.write(tmp_path / "written.csv")
    assert page.data["manifest"].encode() == (tmp_path / "written.csv").read_bytes()
    with pytest.raises(
        ValueError, match=r"`dataset` to be a data set, since there is no manifest.*\nPass the manifest"
    ):
        page_of(verdict, None)


def test_samples_kept_by_hand_are_listed_and_marked(page_of):
    verdict, dataset = verdict_of(), TinyImages(30)
    manifest = Manifest.from_verdict(verdict, dataset, kept_by_hand=torch.tensor([17]))
    page = page_of(verdict.with_kept(torch.tensor([17])), dataset, manifest=manifest)
    kept = {attributes["data-id"]: "data-chosen" in attributes for attributes, _ in page.rows("removed-table")}
    assert kept == {"5": False, "17": True, "4": False}
    assert page.by_id("fact-removed")[1]["data-value"] == "2"
    assert "1 sample is kept by hand." in page.text_of("removed")


def test_suspects_have_the_lines_that_the_manifest_would_have(page_of, tmp_path):
    votes = {"a;b": torch.full((30,), 0.5).double()}
    for removed in ((), (5, 17)):
        verdict, dataset = verdict_of(removed=removed, votes=votes), TinyImages(30)
        page = page_of(verdict, dataset, class_names=NAMES)
        chosen = [int(page.rows("suspects-table")[place][0]["data-id"]) for place in (0, 3)]
        lines = [line for line in page.data["suspects"] if int(line.split(",")[0]) in chosen]
        text = page.data["manifest"] + "\n".join([*lines, ""])
        (tmp_path / "edited.csv").write_text(text, encoding="utf-8", newline="")
        expected = Manifest.from_verdict(verdict, dataset, class_names=NAMES, removed_by_hand=torch.tensor(chosen))
        assert read_manifest(tmp_path / "edited.csv") == expected
        assert expected.removed_by_hand(dataset).tolist() == sorted(chosen)


def test_samples_removed_by_hand_are_marked_suspects(page_of, tmp_path):
    verdict, dataset = verdict_of(), TinyImages(30)
    by_hand = {"removed_by_hand": torch.tensor([2]), "kept_by_hand": torch.tensor([17])}
    manifest = Manifest.from_verdict(verdict, dataset, **by_hand)
    edited = verdict.with_kept(torch.tensor([17])).with_removed(torch.tensor([2]))
    for made in (verdict, edited):  # the verdict of a scan, and that of a training with this manifest
        page = page_of(made, dataset, manifest=manifest)
        chosen = [int(each["data-id"]) for each, _ in page.rows("suspects-table") if "data-chosen" in each]
        assert chosen == [2]
        assert 17 not in [int(each["data-id"]) for each, _ in page.rows("suspects-table")]
        assert [int(each["data-id"]) for each, _ in page.rows("removed-table")] == [5, 17, 4]
        assert page.by_id("fact-by-hand")[1]["data-value"] == "1"
        assert ",removed-by-hand," not in page.data["manifest"]
        assert any(line.startswith("2,removed-by-hand,") for line in page.data["suspects"])
    page = page_of(verdict, None, manifest=manifest)
    assert [each[1]["aria-label"] for each in page.all("input", page.by_id("suspects-table"))] == ["Remove sample 2"]


def test_samples_of_a_class_that_is_not_judged_may_be_removed_by_hand(page_of):
    judged = torch.arange(30) % 3 != 2
    verdict = verdict_of(removed=(4, 7), judged=judged).with_removed(torch.tensor([2, 29]))
    assert [tuple(row) for row in class_rows(verdict)] == [
        (0, 10, 0, {}), (1, 10, 2, {"likelihood": 2}), (2, 0, 2, {"by hand": 2}),
    ]  # fmt: skip
    assert str(verdict).startswith("20 samples scored by likelihood; 4 removed")
    page = page_of(verdict, TinyImages(30))
    *_, last = [[cell[2] for cell in cells] for _, cells in page.rows("classes-table")]
    assert last == ["class 2", "0", "2", "not judged", "by hand 2"]


def test_all_removals_by_hand_are_in_the_manifest_of_the_page(page_of, monkeypatch, tmp_path):
    monkeypatch.setattr(page_suspects, "_MAX_MARKED", 3)
    verdict = verdict_of(60).with_removed(torch.arange(20, 60))
    manifest = Manifest.from_verdict(verdict, TinyImages(60))
    page = page_of(verdict, TinyImages(60), manifest=manifest)
    ticked = [attributes["data-id"] for attributes, _ in page.rows("suspects-table") if "data-chosen" in attributes]
    assert len(ticked) == 3
    lines = [line for line in page.data["suspects"] if line.split(",")[0] in ticked]
    (tmp_path / "saved.csv").write_text(page.data["manifest"] + "\n".join([*lines, ""]), "utf-8", newline="")
    saved = read_manifest(tmp_path / "saved.csv").rows
    assert sorted(saved, key=lambda row: row.sample_id) == sorted(manifest.rows, key=lambda row: row.sample_id)


def test_uncertain_verdict_points_to_the_suspects(page_of):
    evidence = Evidence(False, 1.0, 0.1, 1.0, 0.95, 0.003, power=0.6)
    page = page_of(verdict_of(removed=(), evidence=evidence), TinyImages(30))
    assert "No clear evidence of poison, but some labels may be wrong: an estimated" in page.text_of("verdict")
    assert [each[1]["href"] for each in page.all("a", page.by_id("verdict"))] == ["#suspects"]
    assert len(page.rows("suspects-table")) == 30  # as many as are estimated


def test_facts_name_the_scorers_that_decide_and_how(page_of):
    findings = (Finding("confidence", 3, evidence_of()), Finding("groups", 0, None, "no luck"))
    union = verdict_of(findings=findings, found_by=torch.full((30,), -1), calibration="members", scorer="recommended")
    page = page_of(union, TinyImages(30))
    assert page.text_of("fact-scorers") == "confidence, groups"
    assert page.text_of("fact-decided-by") == "each scorer's own rule"
    single = verdict_of(scorer="recommended", settings={"recommended": {"name": "confidence"}})
    page = page_of(single, TinyImages(30))
    assert page.text_of("fact-scorers") == "confidence"
    assert "under other labels" in page.text_of("fact-decided-by")
    assert {cells[4][2] for _, cells in page.rows("classes-table")} == {"none", "confidence 1", "confidence 2"}


def test_flagged_samples_are_not_called_removed(page_of):
    page = page_of(verdict_of(), TinyImages(30), flag_only=True)
    visible = " ".join(text for each in page.all("main") for text in each[2])
    assert "training uses all of them" in visible
    assert "Flagged samples" in visible
    assert not re.search("[Rr]emoved (samples|$)", visible)
    assert page.data["word"] == "flagged"
    assert page.data["manifest"].count(",flagged,") == 3


def test_smallest_p_values_are_readable(page_of):
    p_values = verdict_of().p_values.clone()
    p_values[5] = 4e-308
    page = page_of(verdict_of(p_values=p_values), TinyImages(30))
    cells = {cell[1]["class"]: cell for cell in page.rows("removed-table")[0][1]}
    assert cells["n p"][2] == "< 1e-99"
    assert float(cells["n p"][1]["data-value"]) == 4e-308


@pytest.mark.slow
def test_report_of_50_000_samples_is_at_most_15_megabytes(tmp_path, monkeypatch):
    """Noise is the worst case: it cannot be compressed."""
    monkeypatch.setattr(page_neighbors, "MAX_COMPARED", 500)  # saves time; the page has the same size
    size = 50_000
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (64, 3, 64, 64), dtype=torch.uint8, generator=generator)

    class Noise(Dataset):
        def __len__(self):
            return size

        def __getitem__(self, index):
            return noise[index % 64], index % 10

    removed = torch.randperm(size, generator=generator)[:2_600].tolist()
    labels = torch.arange(size) % 10
    verdict = verdict_of(
        size, removed, labels=labels, suggested_labels=(labels + 1) % 10, thresholds=torch.zeros(10).double()
    )
    names = [f"/home/somebody/images/train/class {index % 10}/{index:08d}.jpeg" for index in range(size)]
    page = report_of(tmp_path / "report.html", verdict, Noise(), sample_names=names)
    assert (tmp_path / "report.html").stat().st_size <= 15_000_000
    assert len(page.rows("removed-table")) == len(page.all("img", page.by_id("removed-table"))) == 2_500
    assert "The 2,500 most suspicious of 2,600 removed samples are listed." in page.text
    assert page.data["manifest"].count("\n") == 2_601


@pytest.mark.parametrize(
    ("kind", "said"), [("groups", "No group was found."), ("wrong labels", "Groups were not looked for.")]
)
def test_page_says_whether_groups_were_looked_for(page_of, kind, said):
    assert said in page_of(verdict_of(evidence=evidence_of(kind=kind)), TinyImages(30)).text
