import pytest
import torch

from lightning_poison.sanitization import Evidence, Finding, Verdict, reason_of
from lightning_poison.sanitization.reasons import finder_of, kind_of
from lightning_poison.statistics.group_effects import SuspectGroup

GROUP = SuspectGroup(1, 40, 9.0, 0.9, 0.1, True)


def verdict(**parts):
    evidence = Evidence(True, 0.5, 0.1, 0.8, confidence=0.95, natural_error_rate=0.003, groups=(GROUP,))
    given = {
        "scores": torch.tensor([9.0, 9.0, 9.0, 0.0]).double(),
        "p_values": torch.tensor([0.01, 0.01, 0.01, 0.9]).double(),
        "keep": torch.tensor([False, False, False, True]),
        "labels": torch.tensor([0, 1, 1, 0]),
        "suggested_labels": torch.tensor([1, 1, -1, 0]),
        "thresholds": torch.full((2,), 4.0).double(),
        "evidence": evidence,
        "calibration": "trusted",
        "false_positive_rate": 0.01,
        "scorer": "union",
        "fingerprint": "f",
    }
    return Verdict(**{**given, **parts})


def union(**parts):
    unlike = Evidence(True, 0.2, 0.1, 0.3, 0.95, 0.003, kind="unlike trusted data")
    findings = (Finding("labels", 1, verdict().evidence), Finding("features", 2, unlike))
    return verdict(findings=findings, found_by=torch.tensor([0, 1, 1, -1]), **parts)


def test_reason_names_label_and_suggestion():
    assert reason_of(verdict(), 0) == "labeled 0, looks like 1"
    assert reason_of(verdict(), 0, ["a\x1b", "b"]) == "labeled a\\x1b, looks like b"


def test_reason_without_another_suggestion():
    assert reason_of(verdict(), 1) == "labeled 1, unusual under this label"
    assert reason_of(union(), 2) == "labeled 1, unlike the trusted samples of this class"


def test_reason_names_the_group():
    found = verdict(groups=torch.tensor([-1, 0, -1, -1]))
    assert reason_of(found, 1, ["a", "b"]) == "one of 40 samples labeled b with a common feature"
    assert reason_of(found, 0) == "labeled 0, looks like 1"


def test_finder_and_kind():
    assert [finder_of(union(), index) for index in range(3)] == ["labels", "features", "features"]
    assert [kind_of(union(), index) for index in range(2)] == ["wrong labels", "unlike trusted data"]
    assert finder_of(verdict(), 0) == "union"


def test_sample_that_no_member_removed_is_suspected_by_the_one_with_the_smallest_p_value():
    p_values = {"labels": [0.9, 0.9, 0.9, 0.5], "features": [0.9, 0.9, 0.9, 0.2], "other": [0.1, 0.1, 0.1, 0.1]}
    found = union(votes={name: torch.tensor(each).double() for name, each in p_values.items()})
    assert [finder_of(found, index) for index in range(4)] == ["labels", "features", "features", "features"]
    assert kind_of(found, 3) == "unlike trusted data"
    equal = union(votes={"labels": torch.ones(4).double(), "features": torch.ones(4).double()})
    assert finder_of(equal, 3) == "labels"


def test_recommended_scorer_has_its_own_name():
    assert finder_of(verdict(scorer="recommended", settings={"recommended": {"name": "confidence"}}), 0) == "confidence"


@pytest.mark.parametrize("index", [-1, 4])
def test_refuses_missing_samples(index):
    with pytest.raises(ValueError, match="index"):
        reason_of(verdict(), index)


@pytest.mark.parametrize("name", ["groups", "found_by"])
def test_verdict_refuses_numbers_out_of_range(name):
    for value in (1 + (name == "found_by"), -2):
        with pytest.raises(ValueError, match=name):
            union(**{name: torch.tensor([0, 0, 0, value])}) if name == "groups" else verdict(
                findings=union().findings, found_by=torch.tensor([0, 0, 0, value])
            )
