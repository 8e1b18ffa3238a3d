from dataclasses import replace

import pytest
from evaluation_records import MARKUP, cells_of

from lightning_poison.report.evaluation_figures import histograms_of, roc_of, stacks_of


def points(curve):
    return [tuple(map(float, point.split(","))) for point in curve.points.split()]


def test_roc_has_a_curve_for_each_defense_within_its_frame():
    cells = [*cells_of("flip"), *(each for each in cells_of("flip", defense=MARKUP) if not each.is_control)]
    roc = roc_of(cells)
    assert [curve.name for curve in roc.curves] == ["mine", MARKUP]
    assert len({(curve.color, curve.dash) for curve in roc.curves}) == 2
    for curve in roc.curves:
        places = points(curve)
        assert places == sorted(places, key=lambda point: (point[0], -point[1]))
        assert all(roc.frame.left <= x <= roc.frame.right for x, _ in places)
        assert all(roc.frame.top <= y <= roc.frame.base for _, y in places)
        assert places[-1] == (roc.frame.right, roc.frame.top)
    assert roc.seeds == 2


def test_roc_is_the_median_of_the_seeds():
    cells = cells_of("flip", seeds=(0, 1, 2))
    summaries = [each.scores for each in cells if each.scores is not None]
    (curve,) = roc_of(cells).curves
    assert curve.auroc == sorted(each.auroc for each in summaries)[1]
    assert curve.caught == sorted(each.true_positive_rates[20] for each in summaries)[1]


def test_histogram_is_that_of_the_first_seed():
    cells = cells_of("flip")
    (histogram,) = histograms_of(cells)
    assert (histogram.seed, histogram.clean, histogram.poison) == (0, 200, 20)
    assert [each.clean for each in histogram.bins] == list(cells[3].scores.clean)
    tallest = max(each.clean_height for each in histogram.bins)
    assert tallest == pytest.approx(histogram.frame.base - histogram.frame.top)


def test_stacks_fill_the_width_and_sum_over_the_seeds():
    found = stacks_of(cells_of("flip"))
    assert [each.name for each in found] == ["no defense", "mine"]
    first = found[0].stacks[0]
    assert (first.label, first.total) == ("0", 16)
    assert [(part.label, part.items, part.share) for part in first.parts] == [("0", 12, 0.75), ("1", 4, 0.25)]
    assert sum(part.width for part in first.parts) == pytest.approx(found[0].frame.right - found[0].frame.left)


def test_nothing_is_drawn_of_cells_without_scores_or_with_an_error():
    bare = [replace(each, scores=None, predictions=None) for each in cells_of("flip")]
    failed = [replace(each, error="boo") for each in cells_of("flip")]
    for cells in (bare, failed, []):
        assert (roc_of(cells), histograms_of(cells), stacks_of(cells)) == (None, [], [])
