import json
import math
from dataclasses import replace

import pytest

from lightning_poison.evaluation.cells import Cell, attack_works, gap_closed, gaps_by_seed
from lightning_poison.evaluation.score_summary import ScoreSummary


def cell(defense, success, *, control=False, seed=0, removed=3):
    return Cell("a", defense, control, seed, 0.9, success, 0.5, 0.1, removed)


def test_gap_closed():
    controls = [cell("random filter", 0.8, control=True), cell("perfect filter", 0.0, control=True)]
    assert gap_closed([*controls, cell("mine", 0.2)], "mine") == pytest.approx(0.75)
    assert gap_closed([cell("random filter", 0.0), cell("perfect filter", 0.0), cell("mine", 0.0)], "mine") is None


def test_gap_is_relative_to_the_random_filter_of_the_same_size_and_seed():
    cells = [
        cell("random filter", 0.8, removed=3),
        cell("random filter", 0.4, removed=9),
        cell("random filter", 0.1, removed=3, seed=1),
        cell("perfect filter", 0.0),
        cell("mine", 0.2, removed=9),
    ]
    assert gap_closed(cells, "mine") == pytest.approx(0.5)
    assert gap_closed([each for each in cells if each.removed != 9 or each.defense == "mine"], "mine") is None


def test_gap_over_seeds_is_the_median_of_those_with_a_gap():
    cells = []
    for seed, random, mine in ((0, 0.5, 0.4), (1, 0.1, 0.0), (2, 0.8, 0.0), (3, 0.0, 0.0)):
        cells += [cell("random filter", random, seed=seed), cell("perfect filter", 0.0, seed=seed)]
        cells += [cell("mine", mine, seed=seed)]
    assert gaps_by_seed(cells, "mine") == pytest.approx([0.2, 1.0, 1.0])
    assert gap_closed(cells, "mine") == 1.0


def test_failed_cells_have_no_part_in_gap_and_success():
    cells = [cell("no defense", 0.9), Cell.failed("a", "no defense", 1, "reason")]
    assert attack_works(cells)
    assert not attack_works(cells[1:])
    assert gap_closed([*cells, Cell.failed("a", "mine", 0, "reason")], "mine") is None


def test_json_has_no_nan_and_is_read_again():
    failed = Cell.failed("a", "no defense", 4, "reason")
    values = failed.to_json()
    assert not any(isinstance(value, float) and math.isnan(value) for value in values.values())
    again = Cell.from_json(values | {"of_a_later_version": 1})
    assert again.is_control
    assert math.isnan(again.clean_accuracy)
    assert (again.seed, again.error) == (4, "reason")


def test_record_of_an_earlier_version_has_no_scores_and_predictions():
    values = cell("mine", 0.5).to_json()
    del values["scores"], values["predictions"], values["pictures"], values["features"]
    again = Cell.from_json(values)
    assert (again.scores, again.predictions, again.pictures, again.features) == (None, None, (), None)


def test_scores_and_predictions_are_read_again():
    summary = ScoreSummary.of([0.1, 0.9], [0.1, 0.9], [False, True], [True, False])
    one = replace(cell("mine", 0.5), scores=summary, predictions={"0": {"1": 3}})
    again = Cell.from_json(json.loads(json.dumps(one.to_json())))
    assert (again.scores, again.predictions) == (summary, {"0": {"1": 3}})


@pytest.mark.parametrize("pair", ["iVBORw0KGgo", ["iVBORw0KGgo"], ["iVBORw0KGgo", '"><img src=x>'], ["a", "b"], [1, 2]])
def test_pictures_that_are_no_png_are_refused(pair):
    assert Cell.from_json(cell("mine", 0.5).to_json() | {"pictures": [["iVBORw0KGgo", "iVBORw0KGgo="]]}).pictures
    with pytest.raises(ValueError, match="`pictures` of a cell"):
        Cell.from_json(cell("mine", 0.5).to_json() | {"pictures": [pair]})


@pytest.mark.parametrize("changes", [{"predictions": {"0": {"1": "<b>"}}}, {"removed_by_class": {"0": -1}}])
def test_counts_that_are_no_numbers_are_named(changes):
    with pytest.raises(ValueError, match="numbers by label"):
        Cell.from_json(cell("mine", 0.5).to_json() | changes)


@pytest.mark.parametrize("changes", [{"seed": "1"}, {"clean_accuracy": "high"}, {"attack": None}, {"error": 3}])
def test_value_of_another_type_is_named(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=f"`{name}` of a cell"):
        Cell.from_json(cell("mine", 0.5).to_json() | changes)
