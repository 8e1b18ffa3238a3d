"""What all figures share: colours, text that comes from strangers, and files that are never half written.

Figures are made without `pyplot`, so that no window is opened, no backend chosen and no figure kept alive.
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
from lightning_poison.saving import atomic_path

CLEAN_COLOUR, POISON_COLOUR, COVER_COLOUR = "#0072B2", "#D55E00", "#7A7A7A"
"""Blue, vermilion and grey; the first two of Okabe and Ito's palette, told apart with any colour vision."""

INK, FAINT = "#222222", "#9A9A9A"

CURVE_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette; a curve after the seventh begins again with another dash."""

CLASS_COLOURS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"
)  # fmt: skip
"""The ten colours of Petroff, *Accessible Color Sequences for Data Visualization*, 2021 (arXiv:2107.02270)."""

_FORMATS = ("png", "pdf", "svg", "jpg", "webp")


def new_figure(width: float, height: float, *, spacing: float = 0.02) -> Figure:
    """Return an empty figure of that size in inches; `spacing` between rows is a share of the height of one."""
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(hspace=spacing))


def finished(figure: Figure) -> Figure:
    """Return the figure with its text taken literally, whatever the user's settings say about TeX."""
    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_usetex(False)
    return figure


def plain_axes(axes: Axes, *, xlabel: str, ylabel: str) -> None:
    """Label the axes and take away the frame that carries no scale."""
    axes.set_xlabel(shown(xlabel))
    axes.set_ylabel(shown(ylabel))
    axes.spines[["top", "right"]].set_visible(False)


def shown(text: object, *, limit: int = 40) -> str:
    """Return untrusted text fit for a figure: bounded, control characters escaped, and no mathematics in it."""
    return printable(text, limit=limit).replace("$", r"\$")


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 150) -> None:
    """Write a figure, atomically.

    Args:
        figure: any figure of matplotlib's.
        path: its suffix says the format: png, pdf, svg, jpg or webp.
        dpi: dots an inch, where the format has dots.

    Raises:
        ValueError: where the suffix is none of these.
    """
    suffix = one_of("path", Path(path).suffix.lower().removeprefix("."), _FORMATS, hint="End it in one of these.")
    with atomic_path(path) as partial:
        figure.savefig(partial, format=suffix, dpi=dpi)


def vector(name: str, value: Any, *, length: int | None = None) -> Tensor:
    """Return `value` on the CPU and without a gradient if it is a tensor `(N,)`, of that length where it is given."""
    if not isinstance(value, Tensor) or value.ndim != 1 or (length is not None and len(value) != length):
        what = "a one-dimensional tensor" if length is None else f"a tensor of shape ({length},)"
        raise ValueError(expected(name, what, describe(value)))
    return value.detach().cpu()
