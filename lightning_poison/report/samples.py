"""Pictures of samples: poison beside what it was made from, and what was caught."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lightning_poison.checks import describe, expected, positive_int
from lightning_poison.data.labels import read_sample, spec_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.manifest.matching import raw_image
from lightning_poison.randomness import seeded_rng
from lightning_poison.report.style import CLEAN_COLOR, FAINT, INK, POISON_COLOR, finished, new_figure, shown, vector
from lightning_poison.sanitization.verdict import Verdict

_SIZE = 1.15
"""Width and height of a picture, in inches."""

_TEXT = 0.62
"""Height of the text around a picture of `plot_caught`, in inches."""


def plot_poison_beside_base(
    inputs: Tensor,
    bases: Tensor,
    targets: Tensor | None = None,
    captions: Sequence[str] | None = None,
    *,
    count: int = 8,
) -> Figure:
    """Draw poison under the images that it was made from, their difference, and the targets; a column a sample.

    The difference is gray where nothing was changed, and magnified by the factor beside it.

    Args:
        inputs: the poison, `(P, C, H, W)` or `(P, H, W)`: uint8, or floating point in [0, 1].
        bases: the images that it was made from, likewise.
        targets: the test images that it is to have misread, `(P, ...)`; none are drawn where they are not given.
        captions: a line above each column.
        count: how many columns to draw at most.

    Raises:
        ValueError: where shapes disagree, there is no sample, or images are not in [0, 1].

    Example:
        >>> bases = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> len(plot_poison_beside_base((bases + 0.1).clamp(0, 1), bases).axes)
        9
    """
    for name, images in (("bases", bases), ("targets", targets)):
        if images is not None and images.shape != inputs.shape:
            raise ValueError(expected(name, f"of shape {tuple(inputs.shape)}, as `inputs`", describe(images)))
    columns = min(positive_int("count", count), len(inputs))
    poison, originals = _pixels("inputs", inputs[:columns]), _pixels("bases", bases[:columns])
    factor = _magnification(poison - originals)
    difference = (0.5 + factor * (poison - originals)).clip(0, 1)
    magnified = f"difference\n\N{MULTIPLICATION SIGN} {factor:g}"
    rows = [("base", originals), ("poison", poison), (magnified, difference)]
    if targets is not None:
        rows.append(("target", _pixels("targets", targets[:columns])))
    figure = new_figure(_SIZE * columns + 0.8, _SIZE * len(rows) + 0.3)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, images) in zip(grid, rows, strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axes, image in zip(line, images, strict=True):
            _show(axes, image)
    if captions is not None:
        for axes, caption in zip(grid[0], captions, strict=False):
            axes.set_title(shown(caption, limit=24), fontsize=8)
    return finished(figure)


def plot_caught(
    dataset: Any,
    verdict: Verdict,
    *,
    sample: SampleSpec | None = None,
    is_poison: Tensor | None = None,
    class_names: Sequence[str] | None = None,
    count: int = 24,
    columns: int = 8,
) -> Figure:
    """Draw the samples that were kept out, the most suspicious first, with label, suggested label and p-value.

    Where nothing was kept out, the most suspicious samples are drawn, and the figure says so. Images are drawn as they
    are before the data set's transform where that can be reached, else with their own range stretched to [0, 1].

    Args:
        dataset: the map-style data set that was judged.
        verdict: what was found out about it.
        sample: where the input stands in a sample; found by itself where it is `None`.
        is_poison: bool `(N,)`, the ground truth where it is known: poison gets a frame, and a clean sample says so.
        class_names: the names of the classes; numbers where they are not given.
        count: how many samples to draw at most.
        columns: how many stand in a line.

    Raises:
        ValueError: where lengths disagree, or samples are no images.
        UnreadableSampleError: where a sample cannot be read.

    Example:
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> from lightning_poison.sanitization.verdict import Evidence
        >>> p_values, labels = torch.tensor([0.8, 0.001, 0.6]), torch.tensor([0, 1, 2])
        >>> verdict = Verdict(
        ...     -p_values.log(), p_values, p_values > 0.01, labels, torch.tensor([0, 2, 2]), torch.full((3,), 4.6),
        ...     Evidence(True, 1 / 3, 0.05, 0.8, confidence=0.95, natural_error_rate=0.003),
        ...     calibration="trusted", false_positive_rate=0.01, scorer="likelihood", fingerprint="5f0c",
        ... )
        >>> figure = plot_caught(TinyImages(3), verdict, class_names=["cat", "dog", "frog"])
        >>> print(figure.get_suptitle(), *[axes.get_title() for axes in figure.axes], sep=chr(10))
        1 of 3 samples kept out, most suspicious first
        labeled dog
        looks like frog
        p = 0.001
    """
    if len(dataset) != len(verdict):
        raise ValueError(expected("dataset", f"the {len(verdict)} samples that were judged", str(len(dataset))))
    truth = None if is_poison is None else vector("is_poison", is_poison, length=len(verdict))
    caught = verdict.removed
    title = f"{len(caught):,} of {len(verdict):,} samples kept out, most suspicious first"
    if not len(caught):
        caught = verdict.ranking
        title = f"none of {len(verdict):,} samples kept out; the most suspicious ones"
    chosen = caught[: positive_int("count", count)].tolist()
    spec = sample or spec_of(dataset)
    width = min(positive_int("columns", columns), len(chosen))
    height = -(-len(chosen) // width)
    figure = new_figure((_SIZE + 0.15) * max(width, 4), (_SIZE + _TEXT) * height + 0.35, spacing=0.1)
    figure.suptitle(title, fontsize=10, color=INK)
    grid = figure.subplots(height, width, squeeze=False).flatten()
    for axes in grid[len(chosen) :]:
        axes.set_visible(False)
    for axes, index in zip(grid, chosen, strict=False):
        _show(axes, _picture_of(dataset, index, spec))
        axes.set_title(_caption(verdict, index, class_names), fontsize=7, color=INK)
        if truth is not None:
            _mark(axes, poison=bool(truth[index]))
    return finished(figure)


def _caption(verdict: Verdict, index: int, names: Sequence[str] | None) -> str:
    label, suggested = int(verdict.labels[index]), int(verdict.suggested_labels[index])
    seen = f"looks like {_class(suggested, names)}\n" if suggested >= 0 else ""
    return f"labeled {_class(label, names)}\n{seen}p = {float(verdict.p_values[index]):.2g}"


def _class(number: int, names: Sequence[str] | None) -> str:
    return shown(names[number], limit=14) if names is not None and number < len(names) else str(number)


def _mark(axes: Axes, *, poison: bool) -> None:
    color = POISON_COLOR if poison else CLEAN_COLOR
    for spine in axes.spines.values():
        spine.set(visible=True, color=color, linewidth=2.5)
    axes.set_xlabel("poison" if poison else "clean", fontsize=7, color=color, labelpad=2)


def _show(axes: Axes, image: np.ndarray) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set(color=FAINT, linewidth=0.5)


def _magnification(difference: np.ndarray) -> float:
    """Return the largest power of two by which no difference leaves the range from black over gray to white."""
    largest = float(np.abs(difference).max())
    return 1.0 if largest == 0 else float(2.0 ** np.floor(np.log2(0.5 / largest)))


def _pixels(name: str, images: Tensor) -> np.ndarray:
    """Return images as `(N, H, W)` or `(N, H, W, 3)`, floating point in [0, 1]."""
    values = _drawable(name, images)
    scaled: np.ndarray = values / 255 if images.dtype == torch.uint8 else values
    if not (scaled.min() >= -1e-3 and scaled.max() <= 1 + 1e-3):
        hint = "Undo the normalization of samples with `PixelRange(mean=..., std=...).to_raw(images)`."
        came = f"values from {scaled.min():.3g} to {scaled.max():.3g}"
        raise ValueError(expected(name, "uint8, or floating point in [0, 1]", came, hint))
    clipped: np.ndarray = np.clip(scaled, 0, 1)
    return clipped


def _picture_of(dataset: Any, index: int, spec: SampleSpec) -> np.ndarray:
    raw = raw_image(dataset, index)
    if raw is not None:
        return np.asarray(_pixels("dataset", raw[None])[0])
    with seeded_rng(0):
        value = spec.inputs_in(read_sample(dataset, index))
    image = _drawable("dataset", torch.as_tensor(np.asarray(value))[None])[0]
    low, high = float(image.min()), float(image.max())
    return np.asarray((image - low) / (high - low if high > low else 1))


def _drawable(name: str, images: Tensor) -> np.ndarray:
    """Return images as float64 `(N, H, W)` or `(N, H, W, 3)`, their values as they are."""
    values: np.ndarray = images.detach().cpu().double().numpy()
    if values.ndim == 4 and values.shape[1] in (1, 3, 4):
        values = values[:, 0] if values.shape[1] == 1 else values[:, :3].transpose(0, 2, 3, 1)
    elif values.ndim != 3:
        values = values[:0]
    if values.size:
        return values
    raise ValueError(expected(name, "images (H, W) or (C, H, W) of 1, 3 or 4 channels", describe(images)))
