import torch

from lightning_poison.manifest.manifest import write_manifest
from lightning_poison.report.in_training import draw_figures, write_page
from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.testing.tiny_images import TinyImages


def verdict_of(removed):
    p_values = torch.full((12,), 0.5).double()
    p_values[:removed] = 0.001
    labels = torch.arange(12) % 3
    return Verdict(
        -p_values.log(), p_values, p_values > 0.01, labels, (labels + 1) % 3, torch.full((3,), 4.6).double(),
        Evidence(bool(removed), 0.1, 0.0, 0.9, 0.95, 0.003), "trusted", 0.01, "likelihood", "5f0c" * 8,
    )  # fmt: skip


def test_page_has_the_manifest_beside_it(tmp_path):
    verdict, data = verdict_of(2), TinyImages(12)
    write_manifest(tmp_path / "manifest.csv", verdict, data, kept_by_hand=torch.tensor([1]))
    options = {"verdict": verdict, "sample": None, "flag_only": False, "title": "Report of mine"}
    write_page(data, path=tmp_path / "report.html", manifest=tmp_path / "manifest.csv", **options)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count(" data-chosen>") == 1
    assert "Report of mine" in page


def test_figures_of_images_and_of_vectors():
    images = draw_figures(TinyImages(12), verdict=verdict_of(2), sample=None, flag_only=False)
    assert images["removed"].get_suptitle() == "2 of 12 samples removed, most suspicious first"
    assert [text.get_text() for text in images["scores"].axes[0].get_legend().get_texts()] == [
        "kept (10)",
        "removed (2)",
        "threshold (4.6)",
    ]
    assert (
        "none of 12"
        in draw_figures(TinyImages(12), verdict=verdict_of(0), sample=None, flag_only=False)["removed"].get_suptitle()
    )
    vectors = [(torch.arange(3.0), 0)] * 12
    assert list(draw_figures(vectors, verdict=verdict_of(2), sample=None, flag_only=True)) == ["scores"]
