"""Evidence: invalid values are refused when it is made and when it is read."""

import pytest

from lightning_poison.sanitization.evidence import Evidence, headline_of
from lightning_poison.statistics.contamination import SuspectPair
from lightning_poison.statistics.group_effects import SuspectGroup

NAN, INF = float("nan"), float("inf")
GOOD = {
    "present": True,
    "contamination": 0.1,
    "low": 0.05,
    "high": 0.2,
    "confidence": 0.95,
    "natural_error_rate": 0.003,
    "pairs": (SuspectPair(4, 9, 30, 25.4, 20.0, 31.0, 1e-12),),
    "groups": (SuspectGroup(0, 40, 12.3, 0.9, 0.1, True),),
}
INVALID = [
    ({"power": 0.5, "planted": 0}, r"`planted` to be a number in \(0, 1\), but got 0"),
    ({"present": 1}, "`present` to be True or False, but got 1"),
    ({"contamination": NAN}, r"`contamination` to be a number in \[0, 1\], but got nan"),
    ({"contamination": "0.1"}, r"`contamination` to be a number in \[0, 1\], but got '0.1'"),
    ({"contamination": 0.3}, "`contamination` to be between `low` and `high`, 0.05 and 0.2, but got 0.3"),
    ({"low": 0.15}, "`contamination` to be between `low` and `high`, 0.15 and 0.2"),
    ({"high": INF}, r"`high` to be a number in \[0, 1\], but got inf"),
    ({"confidence": 1}, r"`confidence` to be a number in \(0, 1\), but got 1"),
    ({"natural_error_rate": None}, r"`natural_error_rate` to be a number in \[0, 1\], but got None"),
]


@pytest.mark.parametrize(("parts", "message"), INVALID)
def test_invalid_values_are_refused_when_made_and_read(parts, message):
    with pytest.raises(ValueError, match=message):
        Evidence(**{**GOOD, **parts})
    with pytest.raises(ValueError, match=message):
        Evidence.from_meta({**Evidence(**GOOD).meta(), **parts})


def test_estimates_may_be_outside_their_interval_by_rounding():
    assert Evidence(**{**GOOD, "contamination": 0.0, "low": 1e-18}).low == 1e-18


@pytest.mark.parametrize(
    ("name", "parts", "message"),
    [
        ("pairs", {"labeled": -1}, r"`pairs\[0\].labeled` to be an integer of at least 0, but got -1"),
        ("pairs", {"count": 1.5}, r"`pairs\[0\].count` to be an integer"),
        ("pairs", {"estimate": NAN}, r"`pairs\[0\].estimate` to be a finite number of at least 0, but got nan"),
        ("pairs", {"p_value": 2}, r"`pairs\[0\].p_value` to be a number in \[0, 1\], but got 2"),
        ("pairs", {"odd": 2}, r"`pairs\[0\]` to be an object with the fields labeled, .* but got one with `odd`"),
        ("groups", {"separation": -1}, r"`groups\[0\].separation` to be a finite number of at least 0"),
        ("groups", {"transfer": 7}, r"`groups\[0\].transfer` to be a number in \[0, 1\], but got 7"),
        ("groups", {"is_poison": "yes"}, r"`groups\[0\].is_poison` to be True or False, but got 'yes'"),
    ],
)
def test_invalid_pairs_and_groups_are_refused(name, parts, message):
    meta = Evidence(**GOOD).meta()
    meta[name][0] |= parts
    with pytest.raises(ValueError, match=message):
        Evidence.from_meta(meta)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": 5}, "`pairs` to be a `list`, but got the int 5"),
        ({"pairs": [5]}, r"`pairs\[0\]` to be a JSON object, but got 5"),
        ({"odd": 5}, "`evidence` to be an object with the fields present, .* but got one with `odd`"),
    ],
)
def test_other_structures_are_refused(change, message):
    with pytest.raises((ValueError, TypeError), match=message):
        Evidence.from_meta({**Evidence(**GOOD).meta(), **change})


def test_missing_and_no_values_are_refused():
    meta = Evidence(**GOOD).meta()
    del meta["low"]
    with pytest.raises(ValueError, match="but got one without `low`"):
        Evidence.from_meta(meta)
    with pytest.raises(TypeError, match="`evidence` to be a `Mapping`, but got None"):
        Evidence.from_meta(None)


@pytest.mark.parametrize(
    ("present", "about", "low", "kind", "power", "conclusion"),
    [
        (True, 0.05, 0.01, "wrong labels", 0.6, "evidence"),
        (True, 0.05, 0.01, "wrong labels", 0.1, "evidence"),
        (False, 0.05, 0.001, "wrong labels", 0.6, "uncertain"),
        (False, 0.05, 0.001, "wrong labels", None, "uncertain"),
        (False, 0.05, 0.0, "wrong labels", 0.6, "no evidence"),
        (False, 0.002, 0.001, "wrong labels", 0.6, "no evidence"),  # the natural error rate is 0.3 %
        (False, 0.05, 0.001, "wrong labels", 0.19, "hardly detectable"),
        (False, 0.05, 0.001, "wrong labels", 0.2, "uncertain"),
        (False, 0.05, 0.001, "unlike trusted data", None, "no evidence"),
        (False, 0.05, 0.001, "several kinds", 0.6, "no evidence"),
    ],
)
def test_conclusion(present, about, low, kind, power, conclusion):
    evidence = Evidence(present, about, low, 0.1, 0.95, 0.003, kind=kind, power=power)
    assert evidence.conclusion == conclusion
    assert str(evidence) == f"{headline_of(conclusion, kind)}: {evidence.estimate}"


def test_power_names_the_share_of_wrong_labels_that_it_is_stated_for():
    assert str(Evidence(**GOOD, power=0.6)).endswith("; of 5 % random wrong labels, 60 % would be removed")
    assert str(Evidence(**GOOD, power=0.6, planted=0.154)).endswith(
        "; of 15 % random wrong labels, 60 % would be removed"
    )
