"""Plots of scores and features: histograms, ROC curves, and features in two dimensions.

Each function returns a `matplotlib.figure.Figure`; `save_figure` writes it to a file.
"""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, StrMethodFormatter
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import roc_auc_score, roc_curve
from torch import Tensor

from lightning_poison.checks import describe, expected, fraction, one_of, positive_int, printable
from lightning_poison.report.page_figures import judged_of
from lightning_poison.report.style import (
    CLASS_COLORS,
    CLEAN_COLOR,
    CURVE_COLORS,
    DARK_GRAY,
    LIGHT_GRAY,
    POISON_COLOR,
    as_vector,
    figure_text,
    label_axes,
    new_figure,
    without_tex,
)
from lightning_poison.sanitization.verdict import Verdict


def plot_likelihood_histogram(
    scores: Tensor,
    is_poison: Tensor | None = None,
    *,
    threshold: float | None = None,
    bins: int = 60,
    score_name: str = "negative log-likelihood",
) -> Figure:
    """Plot histograms of the scores of clean samples and of poison, with logarithmic counts.

    Args:
        scores: Finite suspicion scores, floating point `(N,)`; larger is more suspicious.
        is_poison: Ground truth, bool `(N,)`. Default: unknown, one histogram of all samples.
        threshold: Score threshold, drawn as a line. Optional.
        bins: Number of bins. Default: 60.
        score_name: Label of the score axis.

    Raises:
        ValueError: If shapes disagree, or a score is not finite.

    Example:
        >>> scores = torch.cat([torch.randn(500, generator=torch.Generator().manual_seed(0)), torch.tensor([6.0, 7.0])])
        >>> figure = plot_likelihood_histogram(scores, torch.arange(502) >= 500, threshold=3.0)
        >>> figure.axes[0].get_xlabel()
        'negative log-likelihood'
    """
    values = _finite("scores", as_vector("scores", scores)).double().numpy()
    poison = _mask(is_poison, len(values))
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    edges = np.histogram_bin_edges(values, positive_int("bins", bins))
    label = f"{'samples' if is_poison is None else 'clean'} ({int((~poison).sum()):,})"
    axes.hist(values[~poison], bins=edges.tolist(), color=CLEAN_COLOR, alpha=0.6, label=label)
    if is_poison is not None:
        label = f"poison ({int(poison.sum()):,})"
        fill = to_rgba(POISON_COLOR, 0.45)
        axes.hist(values[poison], bins=edges.tolist(), histtype="stepfilled", fc=fill, ec=POISON_COLOR, label=label)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    if threshold is not None:
        axes.axvline(threshold, color=DARK_GRAY, linewidth=1, linestyle="--", label=f"threshold ({threshold:.4g})")
    label_axes(axes, xlabel=score_name, ylabel="samples")
    axes.legend(frameon=False)
    return without_tex(figure)


def plot_scores(verdict: Verdict, *, bins: int = 60) -> Figure:
    """Plot the scores of kept and removed samples with the decision thresholds, with logarithmic counts.

    Samples that were not judged are left out. If classes have different thresholds, their range is shown.

    Args:
        verdict: Verdict on N samples.
        bins: Number of bins. Default: 60.

    Example:
        >>> from lightning_poison.sanitization.evidence import Evidence
        >>> scores, evidence = torch.tensor([0.2, 9.1, 0.4]).double(), Evidence(True, 0.3, 0.1, 0.8, 0.95, 0.003)
        >>> verdict = Verdict(
        ...     scores, torch.full((3,), 0.5).double(), scores <= 4, torch.arange(3), torch.zeros(3).long(),
        ...     torch.full((3,), 4.0).double(), evidence, "trusted", 0.01, scorer="likelihood", fingerprint="5f0c",
        ... )
        >>> [text.get_text() for text in plot_scores(verdict).axes[0].get_legend().get_texts()]
        ['kept (2)', 'removed (1)', 'threshold (4)']
    """
    judged = judged_of(verdict)
    kept, removed = (verdict.scores[judged & mask].numpy() for mask in (verdict.keep, ~verdict.keep))
    figure = new_figure(6.4, 3.6)
    axes = figure.subplots()
    edges = np.histogram_bin_edges(np.concatenate([kept, removed]), positive_int("bins", bins)).tolist()
    axes.hist(kept, bins=edges, color=CLEAN_COLOR, alpha=0.6, label=f"kept ({len(kept):,})")
    fill, label = to_rgba(POISON_COLOR, 0.45), f"removed ({len(removed):,})"
    axes.hist(removed, bins=edges, histtype="stepfilled", fc=fill, ec=POISON_COLOR, label=label)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.7)
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    thresholds = verdict.thresholds[verdict.thresholds.isfinite()]
    if len(thresholds):
        low, high = float(thresholds.min()), float(thresholds.max())
        label = f"threshold ({low:.4g})" if low == high else f"thresholds ({low:.4g} to {high:.4g})"
        axes.axvspan(low, high, color=DARK_GRAY, linewidth=1, linestyle="--", alpha=0.5, label=label)
    label_axes(axes, xlabel=f"score of {printable(verdict.scorer, limit=30)}", ylabel="samples")
    axes.legend(frameon=False)
    return without_tex(figure)


def plot_roc(
    scores: Mapping[str, tuple[Tensor, Tensor]], *, false_positive_rate: float | None = 0.01, log_scale: bool = True
) -> Figure:
    """Plot the ROC curve of each scorer, with poison as the positive class.

    Args:
        scores: Suspicion scores `(N,)`, larger is more suspicious, and ground truth, bool `(N,)`, by scorer name.
        false_positive_rate: Accepted false-positive rate, drawn as a line. Default: 0.01. `None` draws no line.
        log_scale: Whether the axis of the false-positive rate is logarithmic, which shows low rates. Default: `True`.

    Raises:
        ValueError: If there is no curve, shapes disagree, or a curve has no poison or no clean samples.

    Example:
        >>> scores, poison = torch.tensor([0.1, 0.4, 0.3, 0.9]), torch.tensor([False, False, True, True])
        >>> figure = plot_roc({"likelihood": (scores, poison)})
        >>> figure.legends[0].get_texts()[0].get_text()
        '0.7500  likelihood'
    """
    if not scores:
        raise ValueError("Expected the scores of at least one scorer, but got none.")
    figure = new_figure(5.2, 4.2)
    axes = figure.subplots()
    styles = cycle([(color, dash) for dash in ("-", "--", ":") for color in CURVE_COLORS])
    smallest = min(
        _draw_curve(axes, name, *pair, style=style) for (name, pair), style in zip(scores.items(), styles, strict=False)
    )
    chance = np.geomspace(smallest, 1, 200)
    axes.plot(chance, chance, color=LIGHT_GRAY, linewidth=1, linestyle=":", zorder=0)
    if false_positive_rate is not None:
        axes.axvline(fraction("false_positive_rate", false_positive_rate), color=LIGHT_GRAY, linewidth=1, zorder=0)
    if log_scale:
        axes.set_xscale("log")
        axes.set_xlim(smallest, 1)
    axes.set_ylim(0, 1.02)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    label_axes(axes, xlabel="clean samples lost (false-positive rate)", ylabel="poison caught (true-positive rate)")
    legend = figure.legend(*axes.get_legend_handles_labels(), title="AUROC", frameon=False, loc="outside upper left")
    legend.set_alignment("left")
    return without_tex(figure)


def plot_features(
    features: Tensor,
    labels: Tensor,
    is_poison: Tensor | None = None,
    *,
    method: Literal["pca", "tsne"] = "pca",
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> Figure:
    """Plot features in two dimensions, with a color for each class and crosses for poison.

    Args:
        features: Finite features `(N, D)`. If D is larger than 2, they are reduced by `method`.
        labels: Labels of the samples, int64 `(N,)`.
        is_poison: Ground truth, bool `(N,)`. Default: unknown.
        method: `"pca"`, the first two principal components, or `"tsne"` (van der Maaten and Hinton, *Visualizing Data
            using t-SNE*, JMLR 2008), which preserves neighbors but not distances. Default: `"pca"`.
        class_names: Names of the classes. Default: numbers.
        seed: Seed of the reduction. Default: 0.

    Raises:
        ValueError: If shapes disagree, a feature is not finite, D is 1, or there are fewer than three samples.

    Example:
        >>> features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
        >>> plot_features(features, torch.arange(30) % 3).axes[0].get_xlabel()
        'first principal component'
    """
    one_of("method", method, ("pca", "tsne"))
    if features.ndim != 2 or features.shape[1] < 2 or len(features) < 3:
        raise ValueError(expected("features", "(N, D) with N of 3 or more and D of 2 or more", describe(features)))
    classes = as_vector("labels", labels, length=len(features)).numpy()
    poison = _mask(is_poison, len(classes))
    values = _finite("features", features.detach().cpu()).double().numpy()
    points, names = _reduce(values, method, seed)
    figure = new_figure(5.6, 5.0)
    axes = figure.subplots()
    for number, color in zip(np.unique(classes), cycle(CLASS_COLORS), strict=False):
        clean_points, poison_points = points[(classes == number) & ~poison], points[(classes == number) & poison]
        axes.scatter(clean_points[:, 0], clean_points[:, 1], s=9, color=color, alpha=0.7, linewidths=0)
        axes.scatter(poison_points[:, 0], poison_points[:, 1], **_CROSS, color=color)
        if len(clean_points):
            _annotate_class(axes, np.median(clean_points, axis=0), int(number), class_names)
    if is_poison is not None:
        label = f"poison ({int(poison.sum()):,}), in the color of its label"
        axes.scatter([], [], **_CROSS, color="white", label=label)
        figure.legend(frameon=False, loc="outside upper left")
    label_axes(axes, xlabel=names[0], ylabel=names[1])
    axes.set_aspect("equal", adjustable="datalim")
    if values.shape[1] > 2 and method == "tsne":
        axes.set(xticks=[], yticks=[])
    return without_tex(figure)


_EXACT_TSNE = 300
"""Number of samples below which the exact gradient of t-SNE is as fast as the Barnes-Hut approximation."""

_CROSS: dict[str, Any] = {"s": 46, "marker": "X", "edgecolors": DARK_GRAY, "linewidths": 1.0, "zorder": 3}


def _draw_curve(axes: Axes, name: str, scores: Tensor, is_poison: Tensor, *, style: tuple[str, str]) -> float:
    """Draw one ROC curve, and return the lower limit of its false-positive rate on a logarithmic axis."""
    argument = f"scores[{printable(name, limit=40)!r}]"
    values = _finite(argument, as_vector(argument, scores)).double().numpy()
    poison = _mask(is_poison, len(values))
    if poison.all() or not poison.any():
        received = f"{int(poison.sum())} poison of {len(poison)} samples"
        raise ValueError(expected(argument, "from poison and clean samples", received))
    false_positives, true_positives, _ = roc_curve(poison, values)
    smallest = 0.5 / int((~poison).sum())
    auroc = roc_auc_score(poison, values)
    label = f"{auroc:.4f}  {figure_text(name)}"
    xs = np.concatenate([[0], np.maximum(false_positives, smallest)])
    ys = np.concatenate([[0], true_positives])
    axes.plot(xs, ys, color=style[0], linestyle=style[1], linewidth=1.8, drawstyle="steps-post", label=label)
    return smallest


def _reduce(values: np.ndarray, method: str, seed: int) -> tuple[np.ndarray, tuple[str, str]]:
    if values.shape[1] == 2:
        return values, ("first feature", "second feature")
    if method == "pca":
        reduced = PCA(2, random_state=seed).fit_transform(values)
        return reduced, ("first principal component", "second principal component")
    gradient = "exact" if len(values) < _EXACT_TSNE else "barnes_hut"
    reduction = TSNE(2, perplexity=min(30.0, (len(values) - 1) / 3), method=gradient, random_state=seed)
    return reduction.fit_transform(values), ("t-SNE 1", "t-SNE 2")


def _annotate_class(axes: Axes, center: np.ndarray, number: int, names: Sequence[str] | None) -> None:
    name = figure_text(names[number], limit=20) if names is not None and number < len(names) else str(number)
    outline = [withStroke(linewidth=3, foreground="white")]
    style: dict[str, Any] = {"ha": "center", "va": "center", "weight": "bold", "color": DARK_GRAY, "zorder": 4}
    axes.annotate(name, (center[0], center[1]), path_effects=outline, **style)


def _mask(is_poison: Tensor | None, length: int) -> np.ndarray:
    if is_poison is None:
        return np.zeros(length, dtype=bool)
    mask = as_vector("is_poison", is_poison, length=length)
    if mask.dtype != torch.bool:
        raise ValueError(expected("is_poison", "a boolean mask", describe(mask)))
    return mask.numpy()


def _finite(name: str, values: Tensor) -> Tensor:
    if not len(values) or not values.isfinite().all():
        received = "NaN or infinite values" if len(values) else "none"
        raise ValueError(expected(name, "finite numbers, at least one", received))
    return values
