"""What the summary, the manifest and the report say about a class that is kept since most of it would be removed."""

import re

import pytest
import torch
from torch.utils.data import TensorDataset

from lightning_poison.manifest import Manifest
from lightning_poison.report import write_report
from lightning_poison.report.page_figures import class_rows, histogram_of
from lightning_poison.sanitization.pipeline import sanitize


@pytest.fixture(scope="module")
def rare():
    """Return data with a class of six samples, five of which carry a wrong label, and their verdict."""
    labels = torch.repeat_interleave(torch.arange(3), torch.tensor([200, 200, 6]))
    truth = labels.clone()
    truth[:4], truth[-5:] = 1, 0
    spread = 0.002 * torch.rand(406, 1, generator=torch.Generator().manual_seed(0))
    pred_probs = (0.94 - spread) * torch.eye(3)[truth] + 0.02 + spread / 3
    dataset = TensorDataset(torch.rand(406, 3), labels)
    return dataset, sanitize(labels=labels, pred_probs=pred_probs)


def test_summary_counts_what_was_judged(rare):
    _, verdict = rare
    assert torch.equal(verdict.judged, verdict.labels != 2)
    lines = verdict.summary().splitlines()
    assert lines[0] == "400 samples scored by pred_probs; 4 removed (1.00 %)"
    assert lines[-1].startswith("5 suspicious samples are kept, since most of class 2 would be removed")


def test_manifest_has_no_row_of_the_class(rare):
    dataset, verdict = rare
    assert [row.label for row in Manifest.from_verdict(verdict, dataset).rows] == [0] * 4


def test_report_counts_the_same_and_lists_the_suspicious_samples(rare, tmp_path):
    dataset, verdict = rare
    write_report(tmp_path / "report.html", verdict, dataset)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert 'id="fact-judged" data-value="400"' in page
    assert [row.label for row in class_rows(verdict)] == [0, 1]
    assert sum(each.kept + each.removed for each in histogram_of(verdict).bins) == 400
    near = page[page.index('<section id="suspects"') :].partition("</section>")[0]
    assert all(re.search(rf"\b{index}\b", near) for index in range(401, 406))
    assert "it is not judged" in re.sub(r"\s+", " ", page)
