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
        ({"folds": 1}, "`folds` to be an integer of at least 2, but got 1"),
    ],
)
def test_refuses_values_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        DecisionSettings(**arguments)
