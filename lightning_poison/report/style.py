"""What all figures share: colors, text that comes from strangers, and files that are never half written.

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
from lightning_poison.serialization import atomic_path

CLEAN_COLOR, POISON_COLOR, COVER_COLOR = "#0072B2", "#D55E00", "#7A7A7A"
"""Blue, vermilion and gray; the first two of Okabe and Ito's palette, told apart with any color vision."""

INK, FAINT = "#222222", "#9A9A9A"

CURVE_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's palette; a curve after the seventh begins again with another dash."""

CLASS_COLORS = (
    "#3f90da", "#ffa90e", "#bd1f01", "#94a4a2", "#832db6", "#a96b59", "#e76300", "#b9ac70", "#717581", "#92dadd"
)  # fmt: skip
"""The ten colors of Petroff, *Accessible Color Sequences for Data Visualization*, 2021 (arXiv:2107.02270)."""

_FORMATS = ("png", "pdf", "svg", "jpg", "webp")


def new_figure(width: float, height: float, *, spacing: float = 0.02) -> Figure:
    """Return an empty figure of that size in inches; `spacing` between rows is a share of the height of one.

    Example:
        >>> new_figure(6.4, 3.2).get_size_inches().tolist()
        [6.4, 3.2]
    """
    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(hspace=spacing))


def finished(figure: Figure) -> Figure:
    """Return the figure with its text taken literally, whatever the user's settings say about TeX.

    Example:
        >>> figure = new_figure(2, 2)
        >>> title = figure.suptitle("50 %", usetex=True)
        >>> finished(figure) is figure, title.get_usetex()
        (True, False)
    """
    for text in figure.findobj(Text):
        if isinstance(text, Text):
            text.set_usetex(False)
    return figure


def plain_axes(axes: Axes, *, xlabel: str, ylabel: str) -> None:
    r"""Label the axes and take away the frame that carries no scale.

    Example:
        >>> axes = new_figure(2, 2).subplots()
        >>> plain_axes(axes, xlabel="cost in $", ylabel="share")
        >>> print(axes.get_xlabel(), axes.spines["top"].get_visible())
        cost in \$ False
    """
    axes.set_xlabel(shown(xlabel))
    axes.set_ylabel(shown(ylabel))
    axes.spines[["top", "right"]].set_visible(False)


def shown(text: object, *, limit: int = 40) -> str:
    r"""Return untrusted text fit for a figure: bounded, control characters escaped, and no mathematics in it.

    Example:
        >>> print(shown("$x$"), shown("a long name", limit=6))
        \$x\$ a lon…
    """
    return printable(text, limit=limit).replace("$", r"\$")


def save_figure(figure: Figure, path: str | os.PathLike[str], *, dpi: int = 150) -> None:
    """Write a figure, atomically.

    Args:
        figure: any figure of matplotlib's.
        path: its suffix says the format: png, pdf, svg, jpg or webp.
        dpi: dots an inch, where the format has dots.

    Raises:
        ValueError: where the suffix is none of these.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_figure(new_figure(2, 1), f"{folder}/empty.png", dpi=20)
        ...     Path(folder, "empty.png").read_bytes()[1:4]
        b'PNG'
    """
    suffix = one_of("path", Path(path).suffix.lower().removeprefix("."), _FORMATS, hint="End it in one of these.")
    with atomic_path(path) as partial:
        figure.savefig(partial, format=suffix, dpi=dpi)


def vector(name: str, value: Any, *, length: int | None = None) -> Tensor:
    """Return `value` on the CPU and without a gradient if it is a tensor `(N,)`, of that length where it is given.

    Example:
        >>> import torch
        >>> vector("scores", torch.ones(3, requires_grad=True)).requires_grad
        False
        >>> vector("scores", torch.zeros(3, 2), length=3)
        Traceback (most recent call last):
        ValueError: Expected `scores` to be a tensor of shape (3,), but got a float32 tensor of shape (3, 2).
    """
    if not isinstance(value, Tensor) or value.ndim != 1 or (length is not None and len(value) != length):
        what = "a one-dimensional tensor" if length is None else f"a tensor of shape ({length},)"
        raise ValueError(expected(name, what, describe(value)))
    return value.detach().cpu()
