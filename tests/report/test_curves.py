"""Tests of the figures: contents, escaping of untrusted text, and no changes of global state."""

import random

import matplotlib as mpl
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch.utils.data import TensorDataset

from lightning_poison.errors import UnreadableSampleError
from lightning_poison.report.curves import plot_features, plot_likelihood_histogram, plot_roc, plot_scores
from lightning_poison.report.samples import plot_caught, plot_poison_beside_base
from lightning_poison.report.style import save_figure
from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.testing.tiny_images import TinyImages

HOSTILE = r"$\undefined$ \$ ^_%" + "\x1b[31m"
"""Text that raises an error if it is drawn in math mode."""


def drawn(figure):
    """Draw a figure and return its non-empty text."""
    FigureCanvasAgg(figure).draw()
    return [text.get_text() for text in figure.findobj(Text) if text.get_text()]


def digits(count=200):
    data = load_digits()
    return torch.tensor(data.images[:count]).float()[:, None] / 16, torch.tensor(data.target[:count])


def scores_with_poison(count=300, poison=20):
    is_poison = torch.arange(count) >= count - poison
    return torch.randn(count, generator=torch.Generator().manual_seed(0)) + 3 * is_poison, is_poison


def verdict_of(labels, removed):
    count = len(labels)
    keep = torch.ones(count, dtype=torch.bool)
    keep[removed] = False
    return Verdict(
        scores=torch.arange(count).double(),
        p_values=1 / (torch.arange(count).double() + 1),
        keep=keep,
        labels=labels,
        suggested_labels=(labels + 1) % 10,
        thresholds=torch.full((10,), -1.0).double(),
        evidence=Evidence(True, 0.1, 0.05, 0.2, 0.95, 0.003),
        calibration="trusted",
        false_positive_rate=0.01,
        scorer="likelihood",
        fingerprint="0",
    )


def figures():
    scores, is_poison = scores_with_poison()
    inputs, labels = digits(30)
    names = [HOSTILE] * 10
    verdict = verdict_of(labels, [3, 4])
    return {
        "histogram": lambda: plot_likelihood_histogram(scores, is_poison, threshold=2.0, score_name=HOSTILE),
        "roc": lambda: plot_roc({HOSTILE: (scores, is_poison), "_random": (-scores, is_poison)}),
        "pca": lambda: plot_features(inputs.flatten(1), labels, labels == 3, class_names=names),
        "tsne": lambda: plot_features(inputs.flatten(1), labels, method="tsne", class_names=names),
        "beside": lambda: plot_poison_beside_base(inputs[:3], inputs[3:6], inputs[6:9], [HOSTILE] * 3),
        "caught": lambda: plot_caught(
            TensorDataset(inputs, labels), verdict, is_poison=labels == 3, class_names=names
        ),
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", figures())
def test_untrusted_text_is_escaped(name):
    with mpl.rc_context({"text.usetex": True}):
        figure = figures()[name]()
        texts = [text for text in figure.findobj(Text) if "undefined" in text.get_text()]
    assert texts
    assert not any(text.get_usetex() for text in texts)
    assert not any("\x1b" in text for text in drawn(figure))


@pytest.mark.slow
@pytest.mark.parametrize("name", figures())
def test_global_state_is_unchanged(name):
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    settings = dict(mpl.rcParams)
    figure = figures()[name]()
    assert figure.canvas.manager is None
    assert dict(mpl.rcParams) == settings
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state[1])  # noqa: NPY002
    assert random.getstate() == python_state


def test_histogram_counts_every_sample():
    scores, is_poison = scores_with_poison()
    axes = plot_likelihood_histogram(scores, is_poison, threshold=2.5).axes[0]
    assert sum(bar.get_height() for bar in axes.containers[0]) == 280
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["clean (280)", "poison (20)", "threshold (2.5)"]
    assert axes.lines[0].get_xdata() == [2.5, 2.5]
    alone = plot_likelihood_histogram(scores).axes[0]
    assert sum(bar.get_height() for bar in alone.containers[0]) == 300
    assert [text.get_text() for text in alone.get_legend().get_texts()] == ["samples (300)"]


@pytest.mark.parametrize("thresholds", [[4.0, 4.0], [4.0, 5.0], [torch.inf, torch.inf]])
def test_scores_of_kept_and_removed_samples_that_were_judged(thresholds):
    scores = torch.tensor([0.1, 0.2, 9.0, 7.0, 0.0]).double()
    judged, labels = torch.arange(5) < 4, torch.tensor([0, 1, 0, 1, 0])
    parts = {"posterior": None, "posterior_threshold": None}
    if thresholds[0] == torch.inf:
        parts = {"posterior": (scores > 5).double(), "posterior_threshold": 0.5}
    verdict = Verdict(
        scores, torch.full((5,), 0.5).double(), scores <= 5, labels, labels, torch.tensor(thresholds).double(),
        Evidence(True, 0.4, 0.1, 0.8, 0.95, 0.003), "trusted", 0.01, HOSTILE, "5f0c", judged=judged, **parts,
    )  # fmt: skip
    axes = plot_scores(verdict).axes[0]
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    assert legend[:2] == ["kept (2)", "removed (2)"]
    last = {4.0: "threshold (4)", 5.0: "thresholds (4 to 5)"}.get(thresholds[1])
    assert legend[2:] == ([last] if last else [])


def test_roc_contains_known_points():
    scores = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 2.5, 4.5])
    is_poison = torch.arange(7) >= 5
    figure = plot_roc({"a": (scores, is_poison)}, log_scale=False, false_positive_rate=None)
    curve = figure.axes[0].lines[0]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["0.6000  a"]
    points = set(zip(curve.get_xdata().round(6).tolist(), curve.get_ydata().tolist(), strict=True))
    assert {(0.2, 0.0), (0.2, 0.5), (0.6, 0.5), (0.6, 1.0), (1.0, 1.0)} <= points


def test_roc_legend_shows_auroc():
    scores, is_poison = scores_with_poison()
    figure = plot_roc({"_x": (scores, is_poison), "b": (-scores, is_poison)})
    auroc = roc_auc_score(is_poison, scores)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [f"{auroc:.4f}  _x", f"{1 - auroc:.4f}  b"]


def test_two_features_are_not_reduced():
    features = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0], [6.0, 7.0]])
    labels = torch.tensor([0, 0, 1, 1])
    axes = plot_features(features, labels, torch.tensor([False, False, False, True]), class_names=["cat", "dog"]).axes[
        0
    ]
    clouds = [cloud.get_offsets().tolist() for cloud in axes.collections if len(cloud.get_offsets())]
    assert clouds == [[[0, 1], [2, 3]], [[4, 5]], [[6, 7]]]
    assert [text.get_text() for text in axes.texts] == ["cat", "dog"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("first feature", "second feature")


@pytest.mark.slow
def test_reduction_is_deterministic():
    inputs, labels = digits(60)
    for method in ("pca", "tsne"):
        first, again = (plot_features(inputs.flatten(1), labels, method=method).axes[0] for _ in range(2))
        for one, two in zip(first.collections, again.collections, strict=True):
            assert np.array_equal(one.get_offsets(), two.get_offsets())


def test_difference_is_magnified_by_factor_in_label():
    bases = torch.full((2, 1, 4, 4), 0.5)
    inputs = bases.clone()
    inputs[0, 0, 1, 2] += 0.1
    inputs[1, 0, 0, 0] -= 0.05
    figure = plot_poison_beside_base(inputs, bases)
    assert figure.axes[4].get_ylabel() == "difference\n\u00d7 4"
    first, second = (np.asarray(figure.axes[4 + column].images[0].get_array()) for column in range(2))
    assert first[1, 2] == pytest.approx(0.9)
    assert second[0, 0] == pytest.approx(0.3)
    assert first[0, 0] == second[3, 3] == 0.5


@pytest.mark.slow
def test_poison_beside_base_accepts_bytes_and_limits_count():
    images = torch.randint(0, 256, (12, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    figure = plot_poison_beside_base(images, images, images, count=5)
    assert len(figure.axes) == 20
    picture = np.asarray(figure.axes[15].images[0].get_array())
    assert np.allclose(picture, images[0].permute(1, 2, 0) / 255)


def test_caught_shows_most_suspicious_removed_samples():
    inputs, labels = digits(30)
    figure = plot_caught(TensorDataset(inputs, labels), verdict_of(labels, [3, 20, 7]), count=2)
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title().splitlines()[0] for axes in shown] == [f"labeled {int(labels[i])}" for i in (20, 7)]
    assert shown[1].get_title() == "labeled 7\nlooks like 8\np = 0.12"
    assert np.allclose(shown[0].images[0].get_array(), inputs[20, 0])
    assert "3 of 30 samples removed, most suspicious first" in drawn(figure)


def test_caught_labels_poison_and_clean_samples():
    inputs, labels = digits(30)
    dataset, truth = TensorDataset(inputs, labels), torch.arange(30) == 20
    figure = plot_caught(dataset, verdict_of(labels, [3, 20]), is_poison=truth)
    assert [axes.get_xlabel() for axes in figure.axes if axes.get_visible()] == ["poison", "clean"]


def test_caught_title_if_no_sample_is_removed():
    inputs, labels = digits(30)
    figure = plot_caught(TensorDataset(inputs, labels), verdict_of(labels, []), count=3)
    assert "none of 30 samples removed; the most suspicious ones" in drawn(figure)
    assert len(figure.axes) == 3


def test_caught_shows_raw_or_rescaled_images():
    dataset = TinyImages(12)
    inputs, labels = torch.stack([dataset[index][0] for index in range(12)]), dataset.targets
    raw = plot_caught(dataset, verdict_of(labels, [5]))
    assert np.allclose(raw.axes[0].images[0].get_array(), dataset.data[5, 0] / 255)
    stretched = plot_caught(TensorDataset(5 * inputs - 2, labels), verdict_of(labels, [5]))
    picture = np.asarray(stretched.axes[0].images[0].get_array())
    assert (picture.min(), picture.max()) == (0, 1)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_save_figure_by_suffix(tmp_path, suffix):
    path = tmp_path / "new" / f"figure.{suffix}"
    save_figure(plot_likelihood_histogram(*scores_with_poison()), path, dpi=50)
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"%PDF-", b"<?xml")
    assert list(path.parent.iterdir()) == [path]
    if suffix == "png":
        with Image.open(path) as image:
            assert image.size == (320, 180)


def test_failed_save_keeps_old_file(tmp_path):
    figure = plot_likelihood_histogram(*scores_with_poison())
    save_figure(figure, tmp_path / "a.png", dpi=30)
    before = (tmp_path / "a.png").read_bytes()
    figure.suptitle(r"$\undefined$")
    with pytest.raises(ValueError, match="undefined"):
        save_figure(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1
    with pytest.raises(ValueError, match=r"one of 'png', .*but got bmp"):
        save_figure(figure, tmp_path / "a.bmp")


class Broken(TensorDataset):
    def __getitem__(self, index):
        if index == 3:
            raise OSError("truncated")
        return super().__getitem__(index)


def test_error_names_invalid_argument():
    scores, is_poison = scores_with_poison()
    inputs, labels = digits(30)
    verdict = verdict_of(labels, [3])
    with pytest.raises(ValueError, match=r"`scores` to be finite numbers, at least one, but got NaN"):
        plot_likelihood_histogram(torch.tensor([1.0, torch.nan]))
    with pytest.raises(ValueError, match=r"`scores` to be finite numbers, at least one, but got none"):
        plot_likelihood_histogram(torch.zeros(0))
    with pytest.raises(ValueError, match=r"`is_poison` to be a tensor of shape \(300,\)"):
        plot_likelihood_histogram(scores, is_poison[:5])
    with pytest.raises(ValueError, match="`is_poison` to be a boolean mask"):
        plot_likelihood_histogram(scores, is_poison.long())
    with pytest.raises(ValueError, match="at least one scorer"):
        plot_roc({})
    with pytest.raises(ValueError, match="from poison and clean samples, but got 0 poison of 300 samples"):
        plot_roc({"a": (scores, is_poison & False)})
    with pytest.raises(ValueError, match=r"`scores\['a'\]` to be finite"):
        plot_roc({"a": (scores / 0, is_poison)})
    with pytest.raises(ValueError, match=r"`features` to be \(N, D\)"):
        plot_features(torch.zeros(5, 1), torch.zeros(5).long())
    with pytest.raises(ValueError, match="`method` to be one of 'pca', 'tsne', but got umap"):
        plot_features(torch.zeros(5, 3), torch.zeros(5).long(), method="umap")
    with pytest.raises(ValueError, match=r"`bases` to be of shape \(30, 1, 8, 8\), as `inputs`"):
        plot_poison_beside_base(inputs, inputs[:4])
    with pytest.raises(ValueError, match=r"values from -1 to 1.*\nUndo the normalization"):
        plot_poison_beside_base(2 * inputs - 1, inputs)
    with pytest.raises(ValueError, match="`inputs` to be images"):
        plot_poison_beside_base(inputs[:0], inputs[:0])
    with pytest.raises(ValueError, match="`dataset` to be images"):
        plot_caught(TensorDataset(inputs.flatten(1), labels), verdict)
    with pytest.raises(ValueError, match="`dataset` to be the 30 samples of the verdict, but got 29"):
        plot_caught(TensorDataset(inputs[1:], labels[1:]), verdict)
    with pytest.raises(UnreadableSampleError, match=r"sample 3 .* truncated"):
        plot_caught(Broken(inputs, labels), verdict)
