import pytest

from lightning_poison.sanitization import Evidence, Finding


def evidence(**parts):
    return Evidence(True, 0.02, 0.01, 0.03, confidence=0.95, natural_error_rate=0.003, **parts)


def test_says_what_was_removed_or_why_not():
    assert str(Finding("confidence", 1200, evidence())).startswith(
        "confidence removed 1,200: evidence of poison: an est"
    )
    assert str(Finding("groups", 0, None, "too\x1b few")) == "groups could not decide: too\\x1b few"


@pytest.mark.parametrize("finding", [Finding("a", 3, evidence(power=0.5)), Finding("b", 0, None, "why")])
def test_is_rebuilt_from_json_values(finding):
    assert Finding.from_meta(finding.meta()) == finding


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("a", 0, None), ValueError, "failure"),
        (("a", -1, evidence()), ValueError, "removed"),
        ((1, 0, evidence()), TypeError, "scorer"),
        (("a", 0, "much"), TypeError, "evidence"),
    ],
)
def test_refuses_invalid_values(arguments, error, message):
    with pytest.raises(error, match=message):
        Finding(*arguments)


def test_refuses_unknown_values():
    with pytest.raises(ValueError, match="finding"):
        Finding.from_meta({**Finding("b", 0, None, "why").meta(), "more": 1})
