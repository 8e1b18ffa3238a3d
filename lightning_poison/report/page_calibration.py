"""Calibration in the HTML report: how the p-values of the samples are distributed, and what scorers would find."""

from typing import NamedTuple

import numpy as np

from lightning_poison.checks import printable
from lightning_poison.report.frame import Frame, log_place, lowest_power, powers_of_ten
from lightning_poison.report.page_figures import judged_of
from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.verdict import Verdict

_FRAME = Frame(480, 360, left=62, right=466, top=12, base=316)

_POINTS = 81
"""Number of p-values at which the lines have points."""

_LISTED = (0.0001, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)
"""p-values in the table below the plot."""


class CalibrationRow(NamedTuple):
    """Shares of samples whose p-value is at most `p_value`: of all that were judged, and of those kept."""

    p_value: float
    judged: float
    kept: float


class Calibration(NamedTuple):
    """Plot of the shares of samples with small p-values, on logarithmic axes, with the geometry of its drawing.

    Args:
        rows: Shares at some p-values, for the table.
        judged: Points of the line of all samples that were judged.
        kept: Points of the line of the kept samples.
        diagonal: Ends of the line of p-values that are evenly distributed, as those of clean samples.
        x_ticks: p-values at the horizontal axis, and where they are.
        y_ticks: Shares at the vertical axis, and where they are.
        frame: Size of the drawing, and its axes.
    """

    rows: list[CalibrationRow]
    judged: str
    kept: str
    diagonal: tuple[float, float, float, float]
    x_ticks: list[tuple[str, float]]
    y_ticks: list[tuple[str, float]]
    frame: Frame = _FRAME


class Promise(NamedTuple):
    """What a scorer states: the kind of poison it looks for, the share it would find, its estimate, what it removed."""

    scorer: str
    kind: str
    power: float | None
    estimate: str
    removed: int


def calibration_of(verdict: Verdict) -> Calibration | None:
    """Return the plot of the p-values, or `None` if no sample was judged.

    Example:
        >>> import torch
        >>> p_values = (torch.arange(1000).double() + 1) / 1000
        >>> verdict = Verdict(
        ...     1 - p_values, p_values, p_values > 0.01, torch.zeros(1000).long(), torch.zeros(1000).long(),
        ...     torch.tensor([0.9]).double(), Evidence(False, 0.0, 0.0, 0.1, 0.95, 0.003), "trusted", 0.01,
        ...     scorer="likelihood", fingerprint="5f0c",
        ... )
        >>> [(row.p_value, row.judged, round(row.kept, 3)) for row in calibration_of(verdict).rows][:2]
        [(0.001, 0.001, 0.0), (0.01, 0.01, 0.0)]
    """
    judged = judged_of(verdict).numpy()
    if not judged.any():
        return None
    p_values, keep = verdict.p_values.numpy()[judged], verdict.keep.numpy()[judged]
    groups = [np.sort(p_values), np.sort(p_values[keep])]
    lowest = lowest_power(len(p_values))
    grid = np.logspace(lowest, 0, _POINTS)
    grid[-1] = 1.0
    judged_line, kept_line = (
        " ".join(f"{_x(p, lowest)},{_y(share, lowest)}" for p, share in zip(grid, _shares(group, grid), strict=True))
        for group in groups
    )
    listed = np.array([each for each in _LISTED if each >= 10.0**lowest])
    shares = [_shares(group, listed) for group in groups]
    table = [CalibrationRow(*map(float, row)) for row in zip(listed, *shares, strict=True)]
    powers = powers_of_ten(lowest)
    return Calibration(
        table,
        judged_line,
        kept_line,
        (_x(powers[0], lowest), _y(powers[0], lowest), _x(1.0, lowest), _y(1.0, lowest)),
        [(f"{power:g}", _x(power, lowest)) for power in powers],
        [(f"{100 * power:g} %", _y(power, lowest)) for power in powers],
    )


def expected_clean(verdict: Verdict) -> float | None:
    """Return how many removed samples are clean by their posteriors: the sum of 1 − posterior. `None` without any.

    Samples that only the user removed do not count.

    Example:
        >>> import torch
        >>> posterior = torch.tensor([0.9, 0.8, 0.1]).double()
        >>> verdict = Verdict(
        ...     posterior, 1 - posterior, posterior < 0.5, torch.zeros(3).long(), torch.zeros(3).long(),
        ...     torch.tensor([torch.inf]).double(), Evidence(True, 0.6, 0.1, 0.9, 0.95, 0.003), "wrong-label null",
        ...     0.01, scorer="likelihood", fingerprint="5f0c", posterior=posterior, posterior_threshold=0.5,
        ... )
        >>> round(expected_clean(verdict), 6)
        0.3
    """
    if verdict.posterior is None:
        return None
    return float((1 - verdict.posterior[verdict.removed_by_rule]).sum())


def promises_of(verdict: Verdict) -> list[Promise]:
    """Return what each scorer that could decide states about its power, and what it found."""
    if verdict.findings:
        decided = [(each.scorer, each.evidence, each.removed) for each in verdict.findings if each.evidence]
    else:
        decided = [(verdict.scorer, verdict.evidence, int(verdict.removed_by_rule.sum()))]
    return [
        Promise(printable(scorer, limit=80), evidence.kind, evidence.power, _estimate(evidence), removed)
        for scorer, evidence, removed in decided
    ]


def _estimate(evidence: Evidence) -> str:
    return f"{100 * evidence.contamination:.2f} % ({100 * evidence.low:.2f} to {100 * evidence.high:.2f} %)"


def _shares(ordered: np.ndarray, at: np.ndarray) -> np.ndarray:
    """Return the share of ordered values that are at most as large as each of `at`."""
    return np.asarray(np.searchsorted(ordered, at, side="right") / max(1, len(ordered)))


def _x(p_value: float, lowest: int) -> float:
    return _FRAME.x(log_place(p_value, lowest))


def _y(share: float, lowest: int) -> float:
    return _FRAME.y(log_place(share, lowest))
