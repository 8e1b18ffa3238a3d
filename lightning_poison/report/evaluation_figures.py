"""Figures of the report of an evaluation: ROC curves, histograms of scores, and predictions. Needs no torch."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from lightning_poison.checks import printable
from lightning_poison.evaluation.cells import CONTROLS, NO_DEFENSE, PERFECT_FILTER, Cell
from lightning_poison.evaluation.feature_map import KINDS
from lightning_poison.evaluation.score_summary import BINS, FALSE_POSITIVE_RATES, ScoreSummary
from lightning_poison.report.frame import Frame, log_place, lowest_power, powers_of_ten

MAX_NAME = 80
"""Characters of a name."""

_CURVES = 7
"""Number of colors of curves; further ones repeat them with other dashes."""

_DASHES = 3

_LISTED_PLACE = min(range(len(FALSE_POSITIVE_RATES)), key=lambda place: abs(FALSE_POSITIVE_RATES[place] - 0.01))
"""Place of the false-positive rate of 1 %, of which the true-positive rate is listed."""


_ROC = Frame(480, 360, 62, 466, 12, 316)

_HISTOGRAM = Frame(420, 200, 52, 408, 12, 160)

_STACK = Frame(420, 0, 62, 408, 8, 0)

_MAP = Frame(480, 480, 12, 468, 12, 468)

_STEP = 20
"""Height of a stack with the space below it."""


class Curve(NamedTuple):
    """The ROC curve of a defense: points, style, median AUROC, and true-positive rate at 1 % false positives."""

    name: str
    points: str
    color: int
    dash: int
    auroc: float
    caught: float
    decision: tuple[float, float]


class Roc(NamedTuple):
    """ROC curves of all defenses against an attack, on a logarithmic axis of false positives."""

    curves: list[Curve]
    chance: str
    x_ticks: list[tuple[str, float]]
    y_ticks: list[tuple[str, float]]
    seeds: int
    frame: Frame = _ROC


class Bin(NamedTuple):
    """A bin: its range, its counts, and the geometry of its two bars."""

    low: float
    high: float
    clean: int
    poison: int
    x: float
    width: float
    clean_height: float
    poison_height: float


class Histogram(NamedTuple):
    """Histogram of the scores of a defense, of clean samples and poison."""

    name: str
    seed: int
    clean: int
    poison: int
    bins: list[Bin]
    count_ticks: list[tuple[int, float]]
    score_ticks: list[tuple[float, float]]
    frame: Frame = _HISTOGRAM


class Part(NamedTuple):
    """A part of a stack: predicted label, number of items, share, and geometry."""

    label: str
    items: int
    share: float
    color: int
    x: float
    width: float


class Stack(NamedTuple):
    """Predictions of the items of one true label."""

    label: str
    total: int
    y: int
    parts: list[Part]


class Stacks(NamedTuple):
    """Predictions of the evaluation set of an attack by true label, after a training with a defense or control."""

    name: str
    stacks: list[Stack]
    labels: list[tuple[str, int]]
    frame: Frame


class Point(NamedTuple):
    """A sample in the map of features: its kind, its label, the color of the label, and its place."""

    kind: str
    label: str
    color: int
    x: float
    y: float


class Map(NamedTuple):
    """Features of samples in the plane, of a model that was trained on the poison.

    Args:
        points: Clean samples first, so that poison and attacked items are drawn above them.
        labels: Labels and their colors.
        counts: For each kind and label the number of points.
        seed: Seed of the model.
    """

    points: list[Point]
    labels: list[tuple[str, int]]
    counts: list[tuple[str, str, int]]
    seed: int
    frame: Frame = _MAP


def map_of(cells: Sequence[Cell]) -> Map | None:
    """Return the map of features without a defense, of the first seed that has one; `None` if there is none.

    Example:
        >>> from lightning_poison.evaluation.feature_map import FeatureMap
        >>> features = FeatureMap((0.0, 1.0), (0.0, 1.0), ("3", "0"), ("poison", "clean"))
        >>> rest = {"poison_caught": 0.0, "clean_lost": 0.0, "removed": 0}
        >>> found = map_of([Cell("frog", "no defense", True, 0, 0.97, 0.9, **rest, features=features)])
        >>> [(point.kind, point.label, point.x, point.y) for point in found.points]
        [('clean', '0', 468.0, 12.0), ('poison', '3', 12.0, 468.0)]
    """
    cell = next((cell for cell in cells if cell.features is not None and cell.error is None), None)
    if cell is None or cell.features is None:
        return None
    features = cell.features
    labels = sorted(set(features.labels), key=_label_order)
    colors = {label: number % 10 for number, label in enumerate(labels)}
    points = [
        Point(
            kind,
            _short(label),
            colors[label],
            _MAP.x(x, digits=1),
            _MAP.y(y, digits=1),
        )
        for x, y, label, kind in zip(features.xs, features.ys, features.labels, features.kinds, strict=True)
    ]
    points.sort(key=lambda point: KINDS.index(point.kind))
    pairs = list(zip(features.kinds, features.labels, strict=True))
    counts = [
        (kind, _short(label), count) for kind in KINDS for label in labels if (count := pairs.count((kind, label)))
    ]
    return Map(points, [(_short(label), colors[label]) for label in labels], counts, cell.seed)


def roc_of(cells: Sequence[Cell]) -> Roc | None:
    """Return the ROC curves of the defenses against an attack, medians over the seeds; `None` if no scores are known.

    Example:
        >>> summary = ScoreSummary.of([0.1, 0.9], [0.1, 0.9], [False, True], [True, False])
        >>> rest = {"poison_caught": 1.0, "clean_lost": 0.0, "removed": 1}
        >>> roc = roc_of([Cell("frog", "likelihood", False, 0, 0.97, 0.1, **rest, scores=summary)])
        >>> [(curve.name, curve.auroc, curve.caught) for curve in roc.curves]
        [('likelihood', 1.0, 1.0)]
    """
    scored = [cell for cell in cells if cell.scores is not None and cell.error is None]
    if not scored:
        return None
    lowest = lowest_power(max(sum(cell.scores.clean) for cell in scored if cell.scores is not None))
    by_defense: dict[str, list[Cell]] = {}
    for cell in scored:
        by_defense.setdefault(cell.defense, []).append(cell)
    return Roc(
        [_curve(number, name, cells, lowest) for number, (name, cells) in enumerate(by_defense.items())],
        " ".join(f"{_log_x(rate, lowest)},{_ROC.y(rate)}" for rate in _rates_from(lowest).values()),
        [(f"{100 * power:g} %", _log_x(power, lowest)) for power in powers_of_ten(lowest)],
        [(f"{tick} %", _ROC.y(tick / 100)) for tick in (0, 25, 50, 75, 100)],
        len({cell.seed for cell in scored}),
    )


def _curve(number: int, name: str, cells: Sequence[Cell], lowest: int) -> Curve:
    """Return the curve of a defense, by the medians over its cells, on an axis that starts at 10 ** `lowest`."""
    summaries = [cell.scores for cell in cells if cell.scores is not None]
    caught = {place: median(each.true_positive_rates[place] for each in summaries) for place in _rates_from(lowest)}
    points = " ".join(f"{_log_x(rate, lowest)},{_ROC.y(caught[place])}" for place, rate in _rates_from(lowest).items())
    lost, found = median(cell.clean_lost for cell in cells), median(cell.poison_caught for cell in cells)
    return Curve(
        printable(name, limit=MAX_NAME),
        points,
        number % _CURVES,
        number // _CURVES % _DASHES,
        median(each.auroc for each in summaries),
        median(each.true_positive_rates[_LISTED_PLACE] for each in summaries),
        (_log_x(lost, lowest), _ROC.y(found)),
    )


def _rates_from(lowest: int) -> dict[int, float]:
    """Return the stored false-positive rates of at least 10 ** `lowest`, by their place in a curve."""
    return {place: rate for place, rate in enumerate(FALSE_POSITIVE_RATES) if rate > 10**lowest * 0.999}


def histograms_of(cells: Sequence[Cell]) -> list[Histogram]:
    """Return the histogram of each defense whose scores are known, of its first seed."""
    found: dict[str, Histogram] = {}
    for cell in cells:
        if cell.scores is not None and cell.error is None and cell.defense not in found:
            found[cell.defense] = _histogram(cell, cell.scores)
    return list(found.values())


def stacks_of(cells: Sequence[Cell]) -> list[Stacks]:
    """Return the predictions without a defense, with each defense and with the perfect filter, summed over the seeds.

    Example:
        >>> rest = {"poison_caught": 0.0, "clean_lost": 0.0, "removed": 0}
        >>> cell = Cell("frog", "no defense", True, 0, 0.97, 0.2, **rest, predictions={"6": {"0": 2, "6": 8}})
        >>> [(part.label, part.share) for part in stacks_of([cell])[0].stacks[0].parts]
        [('0', 0.2), ('6', 0.8)]
    """
    known = [cell for cell in cells if cell.predictions and cell.error is None]
    names = [name for name in dict.fromkeys(cell.defense for cell in known) if name not in CONTROLS]
    labels = sorted(
        {label for cell in known for counts in (cell.predictions or {}).values() for label in counts}, key=_label_order
    )
    colors = {label: number % 10 for number, label in enumerate(labels)}
    result = []
    for name in (NO_DEFENSE, *names, PERFECT_FILTER):
        sums: dict[str, dict[str, int]] = {}
        for cell in known:
            for true, counts in (cell.predictions or {}).items() if cell.defense == name else ():
                of_label = sums.setdefault(true, {})
                for label, count in counts.items():
                    of_label[label] = of_label.get(label, 0) + count
        if sums:
            result.append(_stacks(name, sums, colors))
    return result


def _stacks(name: str, sums: Mapping[str, Mapping[str, int]], colors: Mapping[str, int]) -> Stacks:
    stacks = []
    for number, true in enumerate(sorted(sums, key=_label_order)):
        total, done, parts = sum(sums[true].values()), 0, []
        for label in sorted(sums[true], key=_label_order):
            count = sums[true][label]
            if not count:
                continue
            x = _STACK.x(done / total)
            done += count
            end = _STACK.x(done / total)
            parts.append(Part(_short(label), count, count / total, colors[label], x, round(end - x, 2)))
        stacks.append(Stack(_short(true), total, _STACK.top + _STEP * number, parts))
    base = _STACK.top + _STEP * len(stacks)
    shown = [(_short(label), color) for label, color in colors.items() if any(label in each for each in sums.values())]
    frame = _STACK._replace(height=base + 22, base=base)
    return Stacks(printable(name, limit=MAX_NAME), stacks, shown, frame)


def _histogram(cell: Cell, scores: ScoreSummary) -> Histogram:
    scale = math.log1p(max(*scores.clean, *scores.poison))
    width = round((_HISTOGRAM.right - _HISTOGRAM.left) / BINS / 2 - 0.4, 2)
    edges = [scores.low * (1 - place / BINS) + scores.high * place / BINS for place in range(BINS + 1)]
    bins = [
        Bin(
            edges[place],
            edges[place + 1],
            clean,
            poison,
            _HISTOGRAM.x(place / BINS),
            width,
            _HISTOGRAM.bar(math.log1p(clean) / scale),
            _HISTOGRAM.bar(math.log1p(poison) / scale),
        )
        for place, (clean, poison) in enumerate(zip(scores.clean, scores.poison, strict=True))
    ]
    powers = [0, *(10**power for power in range(16) if math.log1p(10**power) <= scale)]
    return Histogram(
        printable(cell.defense, limit=MAX_NAME),
        cell.seed,
        sum(scores.clean),
        sum(scores.poison),
        bins,
        [(count, _HISTOGRAM.y(math.log1p(count) / scale)) for count in powers],
        [(edges[place], _HISTOGRAM.x(place / BINS)) for place in (0, BINS // 2, BINS)],
    )


def _log_x(rate: float, lowest: int) -> float:
    return _ROC.x(log_place(rate, lowest))


def _label_order(label: str) -> tuple[int, int, str]:
    return (0, int(label), "") if label.isascii() and label.isdigit() and len(label) < 20 else (1, 0, label)


def _short(label: str) -> str:
    return printable(label, limit=12)
