"""`Frame`: the size of a drawing, where its axes are, and where shares are on them. Needs no torch."""

import math
from typing import NamedTuple


class Frame(NamedTuple):
    """Size of a drawing, and the ends of its axes, in units of the drawing. Places are rounded to hundredths.

    Args:
        width: Width of the drawing.
        height: Height of the drawing.
        left: Where the vertical axis is.
        right: Where the horizontal axis ends.
        top: Where the vertical axis ends.
        base: Where the horizontal axis is; y grows downward.

    Example:
        >>> frame = Frame(100, 60, left=10, right=90, top=10, base=50)
        >>> frame.x(0.5), frame.y(0.25), frame.bar(0.25)
        (50.0, 40.0, 10.0)
    """

    width: int
    height: int
    left: int
    right: int
    top: int
    base: int

    def x(self, share: float, *, digits: int = 2) -> float:
        """Return where a share of the horizontal axis is, from its left end; shares beyond [0, 1] are clamped."""
        return round(float(self.left + (self.right - self.left) * min(1.0, max(0.0, share))), digits)

    def y(self, share: float, *, digits: int = 2) -> float:
        """Return where a share of the vertical axis is, from its base; shares beyond [0, 1] are clamped."""
        return round(float(self.base - (self.base - self.top) * min(1.0, max(0.0, share))), digits)

    def bar(self, share: float) -> float:
        """Return the height of a bar that reaches a share of the vertical axis."""
        return round(float((self.base - self.top) * share), 2)


def lowest_power(count: int) -> int:
    """Return the power of ten at which a logarithmic axis of shares of `count` samples starts, in [-4, -1].

    Example:
        >>> lowest_power(5), lowest_power(500), lowest_power(10**9)
        (-1, -3, -4)
    """
    return -min(4, max(1, math.ceil(math.log10(count))))


def log_place(value: float, lowest: int) -> float:
    """Return the place of a value on a logarithmic axis from 10 ** `lowest` to 1, in [0, 1]; values beyond are clamped.

    Example:
        >>> log_place(0.01, -4), log_place(0.0, -4), log_place(1.0, -4)
        (0.5, 0.0, 1.0)
    """
    return 1 - math.log10(min(1.0, max(value, 10.0**lowest))) / lowest


def powers_of_ten(lowest: int) -> list[float]:
    """Return the ticks of such an axis.

    Example:
        >>> powers_of_ten(-2)
        [0.01, 0.1, 1.0]
    """
    return [10.0**power for power in range(lowest, 1)]
