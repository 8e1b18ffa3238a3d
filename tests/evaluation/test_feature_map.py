import json

import pytest

from lightning_poison.evaluation.feature_map import MAX_POINTS, FeatureMap, scaled

MAP = FeatureMap((0.0, 1.0, 0.25), (0.5, 0.0, 1.0), ("3", "0", "a name"), ("clean", "poison", "attacked"))


def test_round_trip_with_three_digits():
    assert FeatureMap.from_json(json.loads(json.dumps(MAP.to_json()))) == MAP
    assert FeatureMap((1 / 3,), (2 / 3,), ("0",), ("clean",)).to_json()["xs"] == [0.333]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"xs": [0.0, 1.0]}, "lists of one length"),
        ({"xs": None}, "lists `xs`"),
        ({"ys": [0.0, 1.5, 0.0]}, "numbers in"),
        ({"ys": [0.0, float("nan"), 0.0]}, "numbers in"),
        ({"ys": [0.0, "1", True]}, "numbers in"),
        ({"kinds": ["clean", "poison", "\x1b[2J"]}, "`kinds`"),
        ({"labels": ["0", "1", "x" * 41]}, "`labels`"),
        ({"labels": ["0", "1", 2]}, "`labels`"),
    ],
)
def test_damaged_values_are_named(changes, message):
    with pytest.raises(ValueError, match=message) as raised:
        FeatureMap.from_json(MAP.to_json() | changes)
    assert "\x1b" not in str(raised.value)


def test_other_values_and_too_many_points_are_refused():
    with pytest.raises(ValueError, match="JSON object"):
        FeatureMap.from_json([1])
    many = {"xs": [0.0], "ys": [0.0], "labels": ["0"], "kinds": ["clean"]}
    with pytest.raises(ValueError, match="up to 1,000"):
        FeatureMap.from_json({key: value * (MAX_POINTS + 1) for key, value in many.items()})


def test_equal_coordinates_are_in_the_middle():
    assert scaled([2.0, 2.0]) == (0.5, 0.5)
