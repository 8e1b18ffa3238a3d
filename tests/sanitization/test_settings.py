import dataclasses
import json

import numpy as np
import pytest

from lightning_poison.sanitization.settings import DecisionSettings


def test_fingerprint_excludes_limit_on_removal():
    one, other = DecisionSettings(max_removed=0.3), DecisionSettings(max_removed=1)
    assert one.fingerprinted() == other.fingerprinted()
    assert one.fingerprinted() != DecisionSettings(folds=4).fingerprinted()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"false_positive_rate": 1}, r"`false_positive_rate` to be a number in \(0, 1\), but got 1"),
        ({"natural_error_rate": -0.1}, "`natural_error_rate`"),
        ({"max_removed": 0}, r"`max_removed`[\s\S]*Use 1 for no limit"),
        ({"seed": -1}, "`seed`"),
        ({"seed": 2**70}, r"`seed` to be an integer below 2\*\*63"),
        ({"folds": 1}, "`folds` to be an integer of at least 2, but got 1"),
        ({"folds": True}, "`folds` to be an integer of at least 2, but got True"),
        ({"max_removed": True}, "`max_removed` to be a number"),
        ({"remove_without_evidence": "no"}, "`remove_without_evidence` to be True or False, but got 'no'"),
    ],
)
def test_refuses_values_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        DecisionSettings(**arguments)


def test_numpy_numbers_are_stored_as_python_numbers():
    settings = DecisionSettings(
        false_positive_rate=np.float64(0.02),
        folds=np.int64(4),
        natural_error_rate=np.float32(0.5),
        remove_without_evidence=np.True_,
        max_removed=np.int8(1),
        seed=np.uint8(3),
    )
    values = {name: value for name, value in dataclasses.asdict(settings).items() if name != "groups"}
    assert values == {
        "false_positive_rate": 0.02,
        "folds": 4,
        "natural_error_rate": 0.5,
        "remove_without_evidence": True,
        "max_removed": 1.0,
        "seed": 3,
    }
    assert json.loads(json.dumps(values)) == values


def test_groups_are_no_part_of_the_fingerprinted_settings():
    assert DecisionSettings(groups=[1, 2]).fingerprinted() == DecisionSettings().fingerprinted()


@pytest.mark.parametrize("groups", ["patient", 3, {"a": 1}, np.zeros((2, 2))])
def test_refuses_groups_that_are_no_list(groups):
    with pytest.raises(TypeError, match=r"Expected `groups` to be a list or a function, but got .*\nWrite `groups="):
        DecisionSettings(groups=groups)
