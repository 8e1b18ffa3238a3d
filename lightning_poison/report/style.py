"""Shared style of all figures: colors, escaping of untrusted text, and atomic file writes.

Figures are created without `pyplot`: no window is opened, no backend is selected, and no figure is kept in memory.
"""

import os
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.text import Text
from torch import Tensor

from lightning_poison.checks import describe, expected, one_of, printable
from lightning_poison.serialization import atomic_path

CLEAN_COLOR, POISON_COLOR = "#0072B2", "#D55E00"
"""Blue and vermilion from the palette of Okabe and Ito, distinguishable with any color vision."""

DARK_GRAY, LIGHT_GRAY = "#222222", "#9A9A9A"

CURVE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Palette of Okabe and Ito. Further curves repeat it with another line style."""

CLASS_COLORS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"
)  # fmt: skip
"""Ten colors of Petroff, *Accessible Color Sequences for Data Visualization*, 2021 (arXiv:2107.02270)."""

_FORMATS = ("png", "pdf", "svg", "jpg", "webp")


def new_figure(width: float, height: float, *, spacing: float = 0.02) -> Figure:
    """Return an empty figure of the given size in inches, with `spacing` between rows as a share of their height.

    Example:
        >>> new_figure(6.4, 3.2).get_size_inches().tolist()
        [6.4, 3.2]
    """
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(hspace=spacing))


def without_tex(figure: Figure) -> Figure:
    """Disable TeX for all text of a figure, regardless of the user's settings, and return the figure.

    Example:
        >>> figure = new_figure(2, 2)
        >>> title = figure.suptitle("50 %", usetex=True)
        >>> without_tex(figure) is figure, title.get_usetex()
        (True, False)
    """
    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_usetex(False)
    return figure


def label_axes(axes: Axes, *, xlabel: str, ylabel: str) -> None:
    r"""Label the axes and hide the top and right spines.

    Example:
        >>> axes = new_figure(2, 2).subplots()
        >>> label_axes(axes, xlabel="cost in $", ylabel="share")
        >>> print(axes.get_xlabel(), axes.spines["top"].get_visible())
        cost in \$ False
    """
    axes.set_xlabel(figure_text(xlabel))
    axes.set_ylabel(figure_text(ylabel))
    axes.spines[["top", "right"]].set_visible(False)


def figure_text(text: object, *, limit: int = 40) -> str:
    r"""Escape control characters and math mode in untrusted text and limit its length, for figures.

    Example:
        >>> print(figure_text("$x$"), figure_text("a long name", limit=6))
        \$x\$ a lon…
    """
    return printable(text, limit=limit).replace("$", r"\$")


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 150) -> None:
    """Write a figure to a file, atomically.

    Args:
        figure: Matplotlib figure.
        path: File with the suffix png, pdf, svg, jpg or webp, which determines the format.
        dpi: Dots per inch of raster formats. Default: 150.

    Raises:
        ValueError: If the suffix is not one of these.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_figure(new_figure(2, 1), f"{folder}/empty.png", dpi=20)
        ...     Path(folder, "empty.png").read_bytes()[1:4]
        b'PNG'
    """
    suffix = one_of("path", Path(path).suffix.lower().removeprefix("."), _FORMATS, hint="Use one of these suffixes.")
    with atomic_path(path) as partial:
        figure.savefig(partial, format=suffix, dpi=dpi)


def as_vector(name: str, value: Any, *, length: int | None = None) -> Tensor:
    """Return `value` on the CPU, detached, if it is a tensor `(N,)`, of the given length if there is one.

    Example:
        >>> import torch
        >>> as_vector("scores", torch.ones(3, requires_grad=True)).requires_grad
        False
        >>> as_vector("scores", torch.zeros(3, 2), length=3)
        Traceback (most recent call last):
        ValueError: Expected `scores` to be a tensor of shape (3,), but got a float32 tensor of shape (3, 2).
    """
    if not isinstance(value, Tensor) or value.ndim != 1 or (length is not None and len(value) != length):
        what = "a one-dimensional tensor" if length is None else f"a tensor of shape ({length},)"
        raise ValueError(expected(name, what, describe(value)))
    return value.detach().cpu()
