"""The HTML report in a real browser: Chromium, driven by playwright; accessibility by axe-core.

Screenshots are written to the folder of the environment variable `REPORT_SCREENSHOTS`, or to `artifacts/`.
"""

import importlib.util
import json
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from playwright.sync_api import expect, sync_playwright
from torch.utils.data import DataLoader, Dataset

from lightning_poison import SanitizedDataModule
from lightning_poison.evaluation import Cell, ScoreSummary
from lightning_poison.manifest import Manifest, read_manifest
from lightning_poison.report import page_neighbors, write_evaluation_report, write_report
from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.finding import Finding
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.statistics.contamination import SuspectPair
from lightning_poison.statistics.group_effects import SuspectGroup

pytestmark = pytest.mark.slow

CHROMIUM = next(
    (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
)
ARTIFACTS = Path(os.environ.get("REPORT_SCREENSHOTS", Path(__file__).parents[2] / "artifacts"))
MARKUP = "<img src=x onerror=alert(1)>"
CLASSES = ["a \"quoted\" & 'single' class", "</script><script>alert(2)</script>", "x" * 10_000_000, "frog"]
SIZE = 240
MISLABELED, TRIGGERED = torch.arange(0, 96, 6), torch.arange(96, 144, 6)


class Shapes(Dataset):
    """Images of a square whose place depends on the class, with noise; some with a trigger in the corner."""

    def __init__(self, size=SIZE):
        generator = torch.Generator().manual_seed(0)
        truth = torch.arange(size) % 4
        self.labels = truth.clone()
        self.labels[MISLABELED] = (truth[MISLABELED] + 1) % 4
        self.labels[TRIGGERED] = 3
        self.looks_like = torch.where(torch.isin(torch.arange(size), TRIGGERED), 3, truth)
        self.images = torch.randint(0, 60, (size, 3, 24, 24), dtype=torch.uint8, generator=generator)
        for index in range(size):
            row, column = divmod(index % 4, 2)
            if index in TRIGGERED:
                self.images[index, :, 20:, 20:] = 255
            self.images[index, index % 3, 3 + 10 * row : 11 + 10 * row, 3 + 10 * column : 11 + 10 * column] = 220

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.images[index].float() / 255, int(self.labels[index])


def verdict_of(data):
    """A union of two scorers that removes 24 samples: 16 by their labels, 8 as a group."""
    size = len(data)
    posterior = torch.linspace(0.0, 0.3, size).double()
    removed = torch.cat([MISLABELED, TRIGGERED])
    posterior[removed] = torch.linspace(0.999, 0.6, len(removed)).double()
    found_by, groups = torch.full((size,), -1), torch.full((size,), -1)
    found_by[MISLABELED], found_by[TRIGGERED], groups[TRIGGERED] = 0, 1, 0
    values = {"confidence": 0.95, "natural_error_rate": 0.003}
    pair = SuspectPair(1, 0, 8, 7.2, 4.0, 9.0, 1e-9)
    group = SuspectGroup(3, 8, 9.5, 0.9, 0.0, True)
    parts = (
        Evidence(True, 0.067, 0.04, 0.1, **values, pairs=(pair,), power=0.9),
        Evidence(True, 0.033, 0.02, 0.06, **values, kind="groups", groups=(group,)),
    )
    return Verdict(
        posterior * 10 + 0.123456789,
        (1 - posterior * 0.9999).clamp_min(1e-6),
        posterior < 0.5,
        data.labels,
        data.looks_like,
        torch.full((4,), torch.inf).double(),
        Evidence(True, 0.1, 0.06, 0.16, **values, kind="several kinds", pairs=(pair,), groups=(group,), power=0.9),
        "members",
        0.01,
        scorer="recommended",
        fingerprint="5f0c" * 8,
        posterior=posterior,
        posterior_threshold=0.5,
        groups=groups,
        found_by=found_by,
        findings=(Finding("confidence", 16, parts[0]), Finding("network-groups", 8, parts[1])),
        notes=(MARKUP,),
    )


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Return the path of a report with hostile texts, its verdict and its data set."""
    folder, data = tmp_path_factory.mktemp("report"), Shapes()
    verdict = verdict_of(data)
    names = [f"images/{index:03d}.png" for index in range(SIZE)]
    names[0], names[6] = f"images/{MARKUP}", "y" * 10_000_000
    write_report(
        folder / "report.html", verdict, data, class_names=CLASSES, sample_names=names, title=f"Scan of {MARKUP}"
    )
    return folder / "report.html", verdict, data


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def open_page(browser, report):
    """Return a function that opens the report, and check that nothing goes wrong meanwhile."""
    contexts, problems = [], []

    def open_it(path=report[0], **settings):
        context = browser.new_context(accept_downloads=True, **settings)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text) if message.type in ("error", "warning") else 0)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on(
            "request",
            lambda each: None if each.url.startswith(("file:", "data:", "blob:")) else problems.append(each.url),
        )
        page.goto(path.as_uri())
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert problems == []


def ids(page):
    return [int(each) for each in page.eval_on_selector_all(
        "#removed-table tbody tr:not([hidden])", "rows => rows.map(row => row.dataset.id)"
    )]  # fmt: skip


def show(page, text):
    expect(page.locator("#shown-count")).to_have_text(f"{text} rows shown")


def downloaded(page, button, path):
    with page.expect_download() as waiting:
        page.click(button)
    waiting.value.save_as(path)
    return waiting.value.suggested_filename


def test_numbers_are_those_of_the_manifest(open_page, report):
    _, verdict, data = report
    page = open_page()
    rows = Manifest.from_verdict(verdict, data).rows
    shown = page.eval_on_selector_all(
        "#removed-table tbody tr",
        """rows => rows.map(row => [row.dataset.id, ...["score", "p", "posterior"].map(
            name => row.querySelector("." + name).dataset.value)].map(Number))""",
    )
    assert [tuple(each) for each in shown] == [(row.sample_id, row.score, row.p_value, row.posterior) for row in rows]
    facts = {name: page.inner_text(f"#fact-{name}") for name in ("samples", "removed", "share")}
    assert facts == {"samples": str(SIZE), "removed": str(len(rows)), "share": "10.00 %"}
    by_class = page.eval_on_selector_all(
        "#classes-table tbody tr", "rows => rows.map(row => +row.cells[2].textContent)"
    )
    assert by_class == [sum(row.label == label for row in rows) for label in range(4)]


def test_hostile_texts_stay_text(open_page):
    page = open_page()
    assert page.inner_text("h1") == f"Scan of {MARKUP}"
    assert MARKUP in page.text_content("#removed-table tbody tr:first-child .name")
    assert page.eval_on_selector_all("img", "images => images.every(each => each.src.startsWith('data:image/png'))")
    assert page.locator("script").count() == 2
    assert page.locator("#suspects-table tbody tr").count() == 24
    assert CLASSES[0] in page.text_content("#classes-table")
    assert "</script><script>alert(2)</script>" in page.text_content("#classes-table")
    assert len(page.text_content("main")) < 200_000


def test_sort_filter_and_search(open_page, report):
    _, verdict, _ = report
    page, removed = open_page(), verdict.removed.tolist()
    table = page.locator("#removed-table")
    assert ids(page) == removed
    table.get_by_role("button", name="p-value").click()
    table.get_by_role("button", name="p-value").click()
    assert ids(page) == sorted(removed, key=lambda index: -verdict.p_values[index])
    assert page.get_attribute("th:has-text('p-value')", "aria-sort") == "descending"
    table.get_by_role("button", name="Rank").click()
    page.select_option("#filter-kind", label="groups")
    show(page, "8 of 24")
    assert ids(page) == [index for index in removed if verdict.found_by[index] == 1]
    page.click("text=Show all rows")
    show(page, "24 of 24")
    page.select_option("#filter-label", value="1")
    show(page, "8 of 24")
    assert {int(verdict.labels[index]) for index in ids(page)} == {1}
    page.select_option("#filter-finder", label="network-groups")
    show(page, "0 of 24")
    page.click("text=Show all rows")
    show(page, "24 of 24")
    page.fill("#filter-text", "012.PNG")
    show(page, "1 of 24")
    assert ids(page) == [12]


def test_samples_are_kept_by_keyboard(open_page, report, tmp_path):
    _, verdict, data = report
    page = open_page()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    box = page.get_by_role("checkbox", name="Keep sample 12", exact=True)
    for _ in range(200):
        page.keyboard.press("Tab")
        if box.evaluate("box => box === document.activeElement"):
            break
    page.keyboard.press("Space")
    assert page.text_content("#kept-count") == "1 marked to keep"
    page.focus("#download-manifest")
    with page.expect_download() as waiting:
        page.keyboard.press("Enter")
    assert waiting.value.suggested_filename == "manifest.csv"
    waiting.value.save_as(tmp_path / "manifest.csv")
    manifest = read_manifest(tmp_path / "manifest.csv")
    assert manifest == Manifest.from_verdict(verdict, data, class_names=CLASSES).with_kept([12])
    assert manifest.kept_by_hand(data).tolist() == [12]
    # A page made with this manifest starts with the tick, which can be taken back.
    write_report(tmp_path / "again.html", verdict, data, manifest=manifest, class_names=CLASSES)
    page = open_page(tmp_path / "again.html")
    assert page.text_content("#kept-count") == "1 marked to keep"
    page.get_by_role("checkbox", name="Keep sample 12", exact=True).uncheck()
    page.get_by_role("checkbox", name="Keep sample 18", exact=True).check()
    downloaded(page, "#download-manifest", tmp_path / "second.csv")
    assert read_manifest(tmp_path / "second.csv").kept_by_hand(data).tolist() == [18]


def test_downloaded_manifest_keeps_the_sample_in_the_next_training(open_page, tmp_path, blobs, centroid_scorer):
    loader = DataLoader(blobs(flipped=60), batch_size=50)
    first = SanitizedDataModule(loader, centroid_scorer(), dirpath=tmp_path / "first")
    before = len(first.train_dataloader().dataset)
    page = open_page(tmp_path / "first" / "report.html")
    index = ids(page)[0]
    page.get_by_role("checkbox", name=f"Keep sample {index}", exact=True).check()
    downloaded(page, "#download-manifest", tmp_path / "edited.csv")
    second = SanitizedDataModule(loader, centroid_scorer(), manifest=tmp_path / "edited.csv", dirpath=tmp_path / "next")
    assert len(second.train_dataloader().dataset) == before + 1
    assert second.verdict.keep[index]
    assert not first.verdict.keep[index]
    page = open_page(tmp_path / "next" / "report.html")
    assert page.text_content("#kept-count") == "1 marked to keep"


def test_sample_that_is_removed_on_a_page_without_removed_ones_is_removed_in_the_next_training(
    open_page, tmp_path, blobs, centroid_scorer
):
    loader = DataLoader(blobs(flipped=0), batch_size=50)
    first = SanitizedDataModule(loader, centroid_scorer(), dirpath=tmp_path / "first")
    before = len(first.train_dataloader().dataset)
    assert first.verdict.keep.all()
    page = open_page(tmp_path / "first" / "report.html")
    assert page.locator("#removed-table").count() == 0
    suspects = first.verdict.ranking[:24].tolist()
    assert page.eval_on_selector_all("#suspects-table tbody tr", "rows => rows.map(row => +row.dataset.id)") == suspects
    page.get_by_role("button", name="p-value").click()
    page.get_by_role("button", name="p-value").click()
    assert page.get_attribute("#suspects-table th:has-text('p-value')", "aria-sort") == "descending"
    box = page.get_by_role("checkbox", name=f"Remove sample {suspects[3]}", exact=True)
    box.focus()
    page.keyboard.press("Space")
    page.get_by_role("checkbox", name=f"Remove sample {suspects[5]}", exact=True).check()
    page.get_by_role("checkbox", name=f"Remove sample {suspects[5]}", exact=True).uncheck()
    assert page.text_content("#marked-count") == "1 marked to remove"
    assert downloaded(page, "#download-marked", tmp_path / "edited.csv") == "manifest.csv"
    assert page.text_content("#said-marked") == ". Downloaded the manifest; 1 marked to remove"
    manifest = read_manifest(tmp_path / "edited.csv")
    assert [(row.sample_id, row.decision) for row in manifest.rows] == [(suspects[3], "removed-by-hand")]
    second = SanitizedDataModule(loader, centroid_scorer(), manifest=tmp_path / "edited.csv", dirpath=tmp_path / "next")
    assert len(second.train_dataloader().dataset) == before - 1
    assert second.verdict.removed.tolist() == [suspects[3]]
    page = open_page(tmp_path / "next" / "report.html")
    assert page.text_content("#marked-count") == "1 marked to remove"
    page.get_by_role("checkbox", name=f"Remove sample {suspects[3]}", exact=True).uncheck()
    downloaded(page, "#download-marked", tmp_path / "undone.csv")
    assert len(read_manifest(tmp_path / "undone.csv")) == 0


def test_removed_and_kept_samples_are_marked_on_one_page(open_page, report, tmp_path):
    _, verdict, data = report
    page = open_page()
    kept = next(index for index in verdict.ranking.tolist() if verdict.keep[index])
    page.get_by_role("checkbox", name="Keep sample 12", exact=True).check()
    page.get_by_role("checkbox", name=f"Remove sample {kept}", exact=True).check()
    downloaded(page, "#download-manifest", tmp_path / "manifest.csv")
    assert page.text_content("#said") == "Downloaded the manifest; 1 marked to keep, 1 marked to remove"
    by_hand = {"kept_by_hand": torch.tensor([12]), "removed_by_hand": torch.tensor([kept])}
    expected = Manifest.from_verdict(verdict, data, class_names=CLASSES, **by_hand)
    assert read_manifest(tmp_path / "manifest.csv") == expected


def test_shown_rows_are_downloaded_and_copied(open_page, report, tmp_path):
    page = open_page(permissions=["clipboard-read", "clipboard-write"])
    page.select_option("#filter-kind", label="groups")
    show(page, "8 of 24")
    assert downloaded(page, "#download-shown", tmp_path / "shown.csv") == "shown-manifest.csv"
    assert [row.sample_id for row in read_manifest(tmp_path / "shown.csv").rows] == ids(page)
    page.click("#copy-list")
    expect(page.locator("#said")).to_have_text("Copied 8 lines")
    copied = page.evaluate("navigator.clipboard.readText()").splitlines()
    assert copied == [f"images/{index:03d}.png" for index in ids(page)]


def test_without_javascript_everything_is_shown(open_page):
    page = open_page(java_script_enabled=False)
    assert page.locator("#removed-table tbody tr").count() == 24
    assert page.locator("#suspects-table tbody tr").count() == 24
    assert not page.locator(".actions").first.is_visible()
    assert not page.locator("#controls").is_visible()
    last = page.locator("#removed-table tbody tr").last
    last.scroll_into_view_if_needed()
    assert last.is_visible()


def axe_script():
    """Return the path of axe-core, which a package of the development dependencies contains."""
    return Path(importlib.util.find_spec("axe_playwright_python").origin).with_name("axe.min.js")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_serious_violation(open_page, scheme):
    page = open_page(color_scheme=scheme, bypass_csp=True)
    show_everything(page)
    page.add_script_tag(path=axe_script())
    found = page.evaluate("axe.run({resultTypes: ['violations']}).then(results => results.violations)")
    serious = [
        (each["id"], each["help"], each["nodes"][0]["html"][:200])
        for each in found
        if each["impact"] in ("serious", "critical")
    ]
    assert serious == []


def show_everything(page):
    """Let the browser lay out and decode all of the page, as if it had been scrolled through."""
    page.evaluate(
        """async () => {
            document.querySelectorAll("section, tr").forEach(each => { each.style.contentVisibility = "visible"; });
            document.querySelectorAll("details").forEach(each => { each.open = each.closest("#origin") === null; });
            const images = [...document.images];
            images.forEach(each => { each.loading = "eager"; });
            await Promise.all(images.map(each => each.decode()));
        }"""
    )


@pytest.mark.parametrize(
    ("name", "scheme", "width"), [("light", "light", 1280), ("dark", "dark", 1280), ("narrow", "light", 400)]
)
def test_no_sideways_scrolling_and_screenshots(open_page, name, scheme, width):
    page = open_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    show_everything(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.images.length") > 100
    assert page.evaluate("[...document.images].every(each => each.naturalWidth === 24)")
    ARTIFACTS.mkdir(exist_ok=True, parents=True)
    page.screenshot(path=ARTIFACTS / f"report-{name}.png", full_page=True)
    back = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (back == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize(
    ("name", "scheme", "width"), [("light", "light", 1280), ("dark", "dark", 1280), ("narrow", "light", 400)]
)
def test_page_of_an_uncertain_verdict(open_page, tmp_path, name, scheme, width):
    data = Shapes()
    verdict = verdict_of(data)
    unsure = replace(verdict.findings[0].evidence, present=False, contamination=0.12, low=0.001, high=0.2, power=0.6)
    groups = replace(verdict.findings[1].evidence, present=False, contamination=0.0, low=0.0, groups=())
    joint = replace(unsure, kind="several kinds")
    findings = (Finding("confidence", 0, unsure), Finding("network-groups", 0, groups))
    nothing = {"keep": torch.ones(SIZE, dtype=torch.bool), "found_by": None, "groups": None, "posterior_threshold": 1.0}
    votes = {"confidence": verdict.p_values, "network-groups": torch.ones(SIZE).double()}
    verdict = replace(verdict, evidence=joint, findings=findings, votes=votes, **nothing)
    write_report(tmp_path / "report.html", verdict, data, class_names=CLASSES, title="Scan of shapes")
    settings = {"color_scheme": scheme, "viewport": {"width": width, "height": 900}, "bypass_csp": True}
    page = open_page(tmp_path / "report.html", **settings)
    words = "No clear evidence of poison, but some labels may be wrong: an estimated 12.00 % of the samples"
    assert page.inner_text(".sentence").startswith(words)
    assert page.locator("#suspects-table tbody tr").count() == 29  # 12 % of the samples
    assert page.locator("#suspects-table input").count() == 29
    assert page.text_content("#suspects-table tbody tr:first-child .finder") == "confidence"
    show_everything(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    ARTIFACTS.mkdir(exist_ok=True, parents=True)
    page.screenshot(path=ARTIFACTS / f"report-uncertain-{name}.png", full_page=True)
    page.add_script_tag(path=axe_script())
    found = page.evaluate("axe.run({resultTypes: ['violations']}).then(results => results.violations)")
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []


def test_large_report_is_interactive_soon_after_it_is_parsed(browser, tmp_path, monkeypatch):
    """50,000 samples of which 2,500 were removed, as images that can neither be compressed nor must be reduced."""
    monkeypatch.setattr(page_neighbors, "MAX_COMPARED", 500)  # saves time; the page has the same size
    size = 50_000
    noise = torch.randint(0, 256, (64, 3, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(size) % 4
    posterior = torch.zeros(size).double()
    posterior[::20] = 0.9

    class Noise(Dataset):
        def __len__(self):
            return size

        def __getitem__(self, index):
            return noise[index % 64], int(labels[index])

    evidence = Evidence(True, 0.05, 0.04, 0.06, 0.95, 0.003)
    suggested, thresholds = (labels + 1) % 4, torch.full((4,), torch.inf).double()
    verdict = Verdict(
        posterior, 1 - posterior * 0.999, posterior < 0.5, labels, suggested, thresholds,
        evidence, "wrong-label null", 0.01, "confidence", "5f0c", posterior=posterior, posterior_threshold=0.5,
    )  # fmt: skip
    write_report(tmp_path / "report.html", verdict, Noise())
    assert 10_000_000 <= (tmp_path / "report.html").stat().st_size <= 15_000_000
    without = re.sub(r"<script.*?</script>", "", (tmp_path / "report.html").read_text("utf-8"), flags=re.DOTALL)
    (tmp_path / "without_scripts.html").write_text(without, "utf-8")
    milliseconds = {}
    for name in ("without_scripts", "report"):
        page = browser.new_page()
        page.goto((tmp_path / f"{name}.html").as_uri(), wait_until="domcontentloaded")
        if name == "report":
            show(page, "2500 of 2500")
        timing = json.loads(page.evaluate("JSON.stringify(performance.getEntriesByType('navigation')[0])"))
        milliseconds[name] = timing["domContentLoadedEventEnd"]
        page.close()
    assert milliseconds["report"] <= 4 * milliseconds["without_scripts"]


@pytest.fixture(scope="module")
def evaluation(tmp_path_factory):
    """Return the path of the report of an evaluation, with a hostile name, a failed cell and all figures."""
    path = tmp_path_factory.mktemp("evaluation") / "evaluation.html"
    scores, poison = [index / 100 for index in range(120)], [index >= 100 for index in range(120)]
    summary = ScoreSummary.of(scores, scores, poison, [not each for each in poison])
    success = {"no defense": 0.9, "random filter": 0.8, "good": 0.1, "fair": 0.4, "bad": 0.85, "perfect filter": 0.0}
    cells = [
        Cell(
            attack, name, name.endswith(("filter", "no defense")), seed, 0.97, min(1.0, share * rate + 0.01 * seed),
            poison_caught=0.5, clean_lost=0.01, removed=20, removed_by_class={"7": 20}, seconds=3.0 + seed,
            peak_memory_mib=900.0, is_adaptive=name == "bad", predictions={"0": {"0": 8, "1": 2}},
            scores=summary if name in ("good", "fair", "bad") else None,
        )
        for attack, share in ((MARKUP, 1.0), ("weak", 0.01))
        for seed in range(3)
        for name, rate in success.items()
    ]  # fmt: skip
    cells += [Cell.failed(MARKUP, "broken", seed, f"RuntimeError: {MARKUP}") for seed in range(3)]
    keys = [
        {"data": {"fingerprint": "digits"}, "attack": cell.attack, "defense": cell.defense, "seed": cell.seed}
        for cell in cells
    ]
    write_evaluation_report(path, list(zip(keys, cells, strict=True)), title=f"Evaluation of {MARKUP}")
    return path


def test_evaluation_is_sorted_by_keyboard(open_page, evaluation):
    page = open_page(evaluation)
    assert page.inner_text("h1") == f"Evaluation of {MARKUP}"
    assert page.locator("img").count() == 0
    table = page.locator("table.values").first
    names = "table => [...table.tBodies[0].rows].map(row => row.cells[0].textContent.trim().split(' (')[0])"
    before = table.evaluate(names)
    button = table.get_by_role("button", name="Attack success")
    for expected_order in ("descending", "ascending"):
        button.focus()
        page.keyboard.press("Enter")
        assert table.locator("th[aria-sort]").get_attribute("aria-sort") == expected_order
    ordered = table.evaluate(names)
    assert ordered[:4] == ["perfect filter", "good", "fair", "random filter"]
    assert ordered[-1].startswith("broken")
    assert sorted(ordered) == sorted(before)
    assert page.text_content("#said") == "Sorted by Attack success, ascending"


def test_evaluation_without_javascript(open_page, evaluation):
    page = open_page(evaluation, java_script_enabled=False)
    assert page.locator(".matrix").first.is_visible()
    assert page.locator("button").count() == 0
    assert page.locator("table.values tbody tr").count() == 13


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 1280), ("light", 400)])
def test_evaluation_is_accessible_and_fits(open_page, evaluation, scheme, width):
    page = open_page(evaluation, color_scheme=scheme, viewport={"width": width, "height": 900}, bypass_csp=True)
    ARTIFACTS.mkdir(exist_ok=True, parents=True)
    page.screenshot(path=ARTIFACTS / f"evaluation-{scheme}-{width}.png", full_page=True)
    show_everything(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.add_script_tag(path=axe_script())
    found = page.evaluate("axe.run({resultTypes: ['violations']}).then(results => results.violations)")
    assert [each["id"] for each in found if each["impact"] in ("serious", "critical")] == []
