"""Plots of scores and features: histogram, ROC, and features in two dimensions.

Each returns a `matplotlib.figure.Figure`; `lightning_poison.report.style.save_figure` writes it. Pictures of samples
stand in `lightning_poison.report.samples`.
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
from lightning_poison.report.style import (
    CLASS_COLORS,
    CLEAN_COLOR,
    CURVE_COLORS,
    FAINT,
    INK,
    POISON_COLOR,
    finished,
    new_figure,
    plain_axes,
    shown,
    vector,
)


def plot_likelihood_histogram(
    scores: Tensor,
    is_poison: Tensor | None = None,
    *,
    threshold: float | None = None,
    bins: int = 60,
    score_name: str = "negative log-likelihood",
) -> Figure:
    """Draw how the scores of clean samples and of poison are distributed, on a logarithmic count.

    Args:
        scores: finite, floating point `(N,)`, larger is more suspicious.
        is_poison: bool `(N,)`, the ground truth where it is known.
        threshold: a cut in the score, drawn as a line.
        bins: how many bars the range is cut into.
        score_name: what the scores are.

    Raises:
        ValueError: where shapes disagree, or a score is not finite.

    Example:
        >>> scores = torch.cat([torch.randn(500, generator=torch.Generator().manual_seed(0)), torch.tensor([6.0, 7.0])])
        >>> figure = plot_likelihood_histogram(scores, torch.arange(502) >= 500, threshold=3.0)
        >>> figure.axes[0].get_xlabel()
        'negative log-likelihood'
    """
    values = _finite("scores", vector("scores", scores)).double().numpy()
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
        axes.axvline(threshold, color=INK, linewidth=1, linestyle="--", label=f"threshold ({threshold:.4g})")
    plain_axes(axes, xlabel=score_name, ylabel="samples")
    axes.legend(frameon=False)
    return finished(figure)


def plot_roc(
    scores: Mapping[str, tuple[Tensor, Tensor]], *, false_positive_rate: float | None = 0.01, log_scale: bool = True
) -> Figure:
    """Draw the share of the poison above each cut over the share of the clean samples, a curve a scorer.

    Args:
        scores: for each name the scores `(N,)`, larger is more suspicious, and bool `(N,)`, which samples are poison.
        false_positive_rate: the rate that the user accepts, drawn as a line; `None` for no line.
        log_scale: whether the false-positive rate is drawn on a logarithmic axis, where low rates can be seen.

    Raises:
        ValueError: where there is no curve, shapes disagree, or a curve has no poison or no clean samples.

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
    axes.plot(chance, chance, color=FAINT, linewidth=1, linestyle=":", zorder=0)
    if false_positive_rate is not None:
        axes.axvline(fraction("false_positive_rate", false_positive_rate), color=FAINT, linewidth=1, zorder=0)
    if log_scale:
        axes.set_xscale("log")
        axes.set_xlim(smallest, 1)
    axes.set_ylim(0, 1.02)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    plain_axes(axes, xlabel="clean samples lost (false-positive rate)", ylabel="poison caught (true-positive rate)")
    legend = figure.legend(*axes.get_legend_handles_labels(), title="AUROC", frameon=False, loc="outside upper left")
    legend.set_alignment("left")
    return finished(figure)


def plot_features(
    features: Tensor,
    labels: Tensor,
    is_poison: Tensor | None = None,
    *,
    method: Literal["pca", "tsne"] = "pca",
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> Figure:
    """Draw features in two dimensions, a color a class, with poison as crosses.

    Args:
        features: finite, `(N, D)`; drawn as they are where D is 2, else reduced by `method`.
        labels: int64 `(N,)`, the labels that the samples carry.
        is_poison: bool `(N,)`, the ground truth where it is known.
        method: `"pca"`, the first two principal components, or `"tsne"` (van der Maaten and Hinton, *Visualizing Data
            using t-SNE*, JMLR 2008), which shows neighbors and no distances.
        class_names: the names of the classes; numbers where they are not given.
        seed: seeds the reduction.

    Raises:
        ValueError: where shapes disagree, a feature is not finite, D is 1, or there are fewer than three samples.

    Example:
        >>> features = torch.randn(30, 5, generator=torch.Generator().manual_seed(0))
        >>> plot_features(features, torch.arange(30) % 3).axes[0].get_xlabel()
        'first principal component'
    """
    one_of("method", method, ("pca", "tsne"))
    if features.ndim != 2 or features.shape[1] < 2 or len(features) < 3:
        raise ValueError(expected("features", "(N, D) with N of 3 or more and D of 2 or more", describe(features)))
    own = vector("labels", labels, length=len(features)).numpy()
    poison = _mask(is_poison, len(own))
    values = _finite("features", features.detach().cpu()).double().numpy()
    points, names = _in_two_dimensions(values, method, seed)
    figure = new_figure(5.6, 5.0)
    axes = figure.subplots()
    for number, color in zip(np.unique(own), cycle(CLASS_COLORS), strict=False):
        chosen, crossed = points[(own == number) & ~poison], points[(own == number) & poison]
        axes.scatter(chosen[:, 0], chosen[:, 1], s=9, color=color, alpha=0.7, linewidths=0)
        axes.scatter(crossed[:, 0], crossed[:, 1], **_CROSS, color=color)
        if len(chosen):
            _name_class(axes, np.median(chosen, axis=0), int(number), class_names)
    if is_poison is not None:
        label = f"poison ({int(poison.sum()):,}), in the color of its label"
        axes.scatter([], [], **_CROSS, color="white", label=label)
        figure.legend(frameon=False, loc="outside upper left")
    plain_axes(axes, xlabel=names[0], ylabel=names[1])
    axes.set_aspect("equal", adjustable="datalim")
    if values.shape[1] > 2 and method == "tsne":
        axes.set(xticks=[], yticks=[])
    return finished(figure)


_FEW = 300
"""Samples below which the exact gradient of t-SNE costs no more than the tree of Barnes and Hut and its threads."""

_CROSS: dict[str, Any] = {"s": 46, "marker": "X", "edgecolors": INK, "linewidths": 1.0, "zorder": 3}


def _draw_curve(axes: Axes, name: str, scores: Tensor, is_poison: Tensor, *, style: tuple[str, str]) -> float:
    """Draw one ROC curve; return the false-positive rate at which it begins to be worth drawing."""
    argument = f"scores[{printable(name, limit=40)!r}]"
    values = _finite(argument, vector(argument, scores)).double().numpy()
    poison = _mask(is_poison, len(values))
    if poison.all() or not poison.any():
        came = f"{int(poison.sum())} poison of {len(poison)} samples"
        raise ValueError(expected(argument, "of poison and of clean samples", came))
    false_positives, true_positives, _ = roc_curve(poison, values)
    smallest = 0.5 / int((~poison).sum())
    auroc = roc_auc_score(poison, values)
    label = f"{auroc:.4f}  {shown(name)}"
    xs = np.concatenate([[0], np.maximum(false_positives, smallest)])
    ys = np.concatenate([[0], true_positives])
    axes.plot(xs, ys, color=style[0], linestyle=style[1], linewidth=1.8, drawstyle="steps-post", label=label)
    return smallest


def _in_two_dimensions(values: np.ndarray, method: str, seed: int) -> tuple[np.ndarray, tuple[str, str]]:
    if values.shape[1] == 2:
        return values, ("first feature", "second feature")
    if method == "pca":
        reduced = PCA(2, random_state=seed).fit_transform(values)
        return reduced, ("first principal component", "second principal component")
    gradient = "exact" if len(values) < _FEW else "barnes_hut"
    reduction = TSNE(2, perplexity=min(30.0, (len(values) - 1) / 3), method=gradient, random_state=seed)
    return reduction.fit_transform(values), ("t-SNE 1", "t-SNE 2")


def _name_class(axes: Axes, place: np.ndarray, number: int, names: Sequence[str] | None) -> None:
    name = shown(names[number], limit=20) if names is not None and number < len(names) else str(number)
    halo = [withStroke(linewidth=3, foreground="white")]
    axes.annotate(
        name, (place[0], place[1]), ha="center", va="center", weight="bold", color=INK, zorder=4, path_effects=halo
    )


def _mask(is_poison: Tensor | None, length: int) -> np.ndarray:
    if is_poison is None:
        return np.zeros(length, dtype=bool)
    mask = vector("is_poison", is_poison, length=length)
    if mask.dtype != torch.bool:
        raise ValueError(expected("is_poison", "a boolean mask", describe(mask)))
    return mask.numpy()


def _finite(name: str, values: Tensor) -> Tensor:
    if not len(values) or not values.isfinite().all():
        came = "NaN or infinite values" if len(values) else "none"
        raise ValueError(expected(name, "finite numbers, at least one", came))
    return values
