"""Images of samples: poison next to its bases, and removed samples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from lightning_poison.checks import describe, expected, positive_int
from lightning_poison.data.class_names import class_names_of
from lightning_poison.data.labels import read_sample, spec_of
from lightning_poison.data.sample_spec import SampleSpec
from lightning_poison.manifest.matching import raw_image
from lightning_poison.randomness import seeded_rng
from lightning_poison.report.style import (
    CLEAN_COLOR,
    DARK_GRAY,
    LIGHT_GRAY,
    POISON_COLOR,
    as_vector,
    figure_text,
    new_figure,
    without_tex,
)
from lightning_poison.sanitization.verdict import Verdict

_IMAGE_SIZE = 1.15
"""Width and height of an image, in inches."""

_TEXT_HEIGHT = 0.62
"""Height of the text around an image of `plot_caught`, in inches."""


def plot_poison_beside_base(
    inputs: Tensor,
    bases: Tensor,
    targets: Tensor | None = None,
    captions: Sequence[str] | None = None,
    *,
    count: int = 8,
) -> Figure:
    """Plot bases, poison, their difference and targets, with one column per sample.

    Unchanged pixels of the difference are gray; changes are magnified by the factor in the row label.

    Args:
        inputs: Poison images `(P, C, H, W)` or `(P, H, W)`: uint8, or floating point in [0, 1].
        bases: Images from which the poison was made, like `inputs`.
        targets: Test images to be misclassified, like `inputs`. Default: no targets.
        captions: Caption above each column. Default: none.
        count: Maximum number of columns. Default: 8.

    Raises:
        ValueError: If shapes disagree, there is no sample, or images are not in [0, 1].

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
    figure = new_figure(_IMAGE_SIZE * columns + 0.8, _IMAGE_SIZE * len(rows) + 0.3)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, images) in zip(grid, rows, strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for axes, image in zip(line, images, strict=True):
            _show(axes, image)
    if captions is not None:
        for axes, caption in zip(grid[0], captions, strict=False):
            axes.set_title(figure_text(caption, limit=24), fontsize=8)
    return without_tex(figure)


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
    """Plot the removed samples in order of suspicion, with label, suggested label and p-value.

    If no sample was removed, the most suspicious samples are shown, and the title states this. Images are shown before
    the transform of the data set if accessible, else with their values rescaled to [0, 1].

    Args:
        dataset: Map-style data set of the verdict.
        verdict: Verdict on this data set.
        sample: Location of the input in a sample. Default: detected.
        is_poison: Ground truth, bool `(N,)`, shown as frames and captions. Default: unknown.
        class_names: Names of the classes. Default: those that the data set lists in `classes`, or their numbers.
        count: Maximum number of samples. Default: 24.
        columns: Number of samples per row. Default: 8.

    Raises:
        ValueError: If lengths disagree, or samples are not images.
        UnreadableSampleError: If a sample cannot be read.

    Example:
        >>> from lightning_poison.testing.tiny_images import TinyImages
        >>> from lightning_poison.sanitization.evidence import Evidence
        >>> p_values, labels = torch.tensor([0.8, 0.001, 0.6]).double(), torch.tensor([0, 1, 2])
        >>> suggested, thresholds = torch.tensor([0, 2, 2]), torch.full((3,), 4.6).double()
        >>> verdict = Verdict(
        ...     -p_values.log(), p_values, p_values > 0.01, labels, suggested, thresholds,
        ...     Evidence(True, 1 / 3, 0.05, 0.8, confidence=0.95, natural_error_rate=0.003),
        ...     calibration="trusted", false_positive_rate=0.01, scorer="likelihood", fingerprint="5f0c",
        ... )
        >>> figure = plot_caught(TinyImages(3), verdict, class_names=["cat", "dog", "frog"])
        >>> print(figure.get_suptitle(), *[axes.get_title() for axes in figure.axes], sep=chr(10))
        1 of 3 samples removed, most suspicious first
        labeled dog
        looks like frog
        p = 0.001
    """
    if len(dataset) != len(verdict):
        raise ValueError(expected("dataset", f"the {len(verdict)} samples of the verdict", str(len(dataset))))
    truth = None if is_poison is None else as_vector("is_poison", is_poison, length=len(verdict))
    indices = verdict.removed
    title = f"{len(indices):,} of {len(verdict):,} samples removed, most suspicious first"
    if not len(indices):
        indices = verdict.ranking
        title = f"none of {len(verdict):,} samples removed; the most suspicious ones"
    chosen = indices[: positive_int("count", count)].tolist()
    spec = sample or spec_of(dataset)
    names = class_names_of(dataset, sample=sample) if class_names is None else class_names
    width = min(positive_int("columns", columns), len(chosen))
    height = -(-len(chosen) // width)
    figure = new_figure((_IMAGE_SIZE + 0.15) * max(width, 4), (_IMAGE_SIZE + _TEXT_HEIGHT) * height + 0.35, spacing=0.1)
    figure.suptitle(title, fontsize=10, color=DARK_GRAY)
    grid = figure.subplots(height, width, squeeze=False).flatten()
    for axes in grid[len(chosen) :]:
        axes.set_visible(False)
    for axes, index in zip(grid, chosen, strict=False):
        _show(axes, _image_of(dataset, index, spec))
        axes.set_title(_caption(verdict, index, names), fontsize=7, color=DARK_GRAY)
        if truth is not None:
            _mark(axes, poison=bool(truth[index]))
    return without_tex(figure)


def _caption(verdict: Verdict, index: int, names: Sequence[str] | None) -> str:
    label, suggested = int(verdict.labels[index]), int(verdict.suggested_labels[index])
    suggestion = f"looks like {_class(suggested, names)}\n" if suggested >= 0 else ""
    return f"labeled {_class(label, names)}\n{suggestion}p = {float(verdict.p_values[index]):.2g}"


def _class(number: int, names: Sequence[str] | None) -> str:
    return figure_text(names[number], limit=14) if names is not None and 0 <= number < len(names) else str(number)


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
        spine.set(color=LIGHT_GRAY, linewidth=0.5)


def _magnification(difference: np.ndarray) -> float:
    """Return the largest power of two that keeps magnified differences in the range around gray."""
    largest = float(np.abs(difference).max())
    return 1.0 if largest == 0 else float(2.0 ** np.floor(np.log2(0.5 / largest)))


def _pixels(name: str, images: Tensor) -> np.ndarray:
    """Return images as `(N, H, W)` or `(N, H, W, 3)`, floating point in [0, 1]."""
    values = _image_values(name, images)
    scaled: np.ndarray = values / 255 if images.dtype == torch.uint8 else values
    if not (scaled.min() >= -1e-3 and scaled.max() <= 1 + 1e-3):
        hint = "Undo the normalization with `PixelRange(mean=..., std=...).to_raw(images)`."
        received = f"values from {scaled.min():.3g} to {scaled.max():.3g}"
        raise ValueError(expected(name, "uint8, or floating point in [0, 1]", received, hint))
    clipped: np.ndarray = np.clip(scaled, 0, 1)
    return clipped


def _image_of(dataset: Any, index: int, spec: SampleSpec) -> np.ndarray:
    raw = raw_image(dataset, index)
    if raw is not None:
        return np.asarray(_pixels("dataset", raw[None])[0])
    with seeded_rng(0):
        value = spec.inputs_in(read_sample(dataset, index))
    image = _image_values("dataset", torch.as_tensor(np.asarray(value))[None])[0]
    low, high = float(image.min()), float(image.max())
    return np.asarray((image - low) / (high - low if high > low else 1))


def _image_values(name: str, images: Tensor) -> np.ndarray:
    """Return images as float64 `(N, H, W)` or `(N, H, W, 3)` with unchanged values."""
    values: np.ndarray = images.detach().cpu().double().numpy()
    if values.ndim == 4 and values.shape[1] in (1, 3, 4):
        values = values[:, 0] if values.shape[1] == 1 else values[:, :3].transpose(0, 2, 3, 1)
    elif values.ndim != 3:
        values = values[:0]
    if values.size:
        return values
    raise ValueError(expected(name, "images (H, W) or (C, H, W) with 1, 3 or 4 channels", describe(images)))
