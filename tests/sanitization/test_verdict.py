import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_poison.sanitization.evidence import Evidence
from lightning_poison.sanitization.finding import Finding
from lightning_poison.sanitization.verdict import Verdict
from lightning_poison.serialization import write_tensors
from lightning_poison.statistics.contamination import SuspectPair
from lightning_poison.statistics.group_effects import SuspectGroup

PAIRS = (SuspectPair(4, 9, 30, 25.4, 20.0, 31.0, 1e-12), SuspectPair(9, 4, 10, 5.0, 1.0, 9.0, 1e-3))


def verdict(**parts):
    given = {
        "scores": torch.tensor([0.1, 5.0, 2 / 3, 7.0]).double(),
        "p_values": torch.tensor([0.5, 1e-30, 0.3, 1e-40]).double(),
        "keep": torch.tensor([True, False, True, False]),
        "labels": torch.tensor([0, 1, 0, 1]),
        "suggested_labels": torch.tensor([0, 0, 0, -1]),
        "thresholds": torch.tensor([1.5, 4.0]).double(),
        "evidence": Evidence(True, 0.5, 0.25, 0.75, 0.95, 0.003, PAIRS),
        "calibration": "trusted",
        "false_positive_rate": 0.01,
        "scorer": "likelihood",
        "fingerprint": "ab" * 32,
    }
    return Verdict(**{**given, **parts})


FULL = {
    "posterior": torch.tensor([0.0, 0.9, 0.1, 0.99]).double(),
    "posterior_threshold": 0.1 + 0.2,
    "votes": {"a.b": torch.rand(4).double(), "c": torch.rand(4).double()},
    "settings": {"scorer": {"name": "x", "margin": 1.0}, "folds": 3, "trusted": None},
    "calibration": "wrong-label null",
}


@pytest.mark.parametrize("parts", [{}, FULL], ids=["plain", "full"])
def test_save_and_load_keep_every_bit(tmp_path, parts):
    old = verdict(**parts)
    old.save(tmp_path / "v")
    new = Verdict.load(tmp_path / "v")
    assert new.tensors().keys() == old.tensors().keys()
    for name, tensor in old.tensors().items():
        assert new.tensors()[name].dtype == tensor.dtype
        assert torch.equal(new.tensors()[name], tensor)
    assert new.meta() == old.meta()
    assert new.evidence == old.evidence
    assert isinstance(new.evidence.pairs[0], SuspectPair)
    assert str(new) == str(old)
    assert (new.posterior is None) == (old.posterior is None)


def test_saves_shared_tensors(tmp_path):
    shared = torch.tensor([0.1, 0.9, 0.2, 0.8]).double()
    verdict(scores=shared, p_values=shared, thresholds=torch.full((2,), 0.5).double()).save(tmp_path / "v")
    assert torch.equal(Verdict.load(tmp_path / "v").p_values, shared)


def test_refuses_other_files(tmp_path):
    write_tensors(tmp_path / "v", {}, {"kind": "poison"})
    with pytest.raises(ValueError, match=r"kind 'verdict', but .* is of kind 'poison'"):
        Verdict.load(tmp_path / "v")
    for version in (None, 2, "1", True, [1]):
        write_tensors(tmp_path / "v", verdict().tensors(), {"kind": "verdict", **verdict().meta(), "version": version})
        with pytest.raises(ValueError, match=r"`version` 1 of the verdict format, but .*v has"):
            Verdict.load(tmp_path / "v")
    write_tensors(tmp_path / "v", {}, {"kind": "verdict", "version": 1})
    with pytest.raises(ValueError, match=r"a valid verdict file, but .*v has an invalid part. Expected `evidence`"):
        Verdict.load(tmp_path / "v")
    header = {"kind": "verdict", "version": 1, **verdict().meta(), "odd\x1b[2J": 1}
    write_tensors(tmp_path / "v", verdict().tensors(), header)
    with pytest.raises(ValueError, match=r"has an invalid part. .* but got one with `odd\\x1b\[2J`"):
        Verdict.load(tmp_path / "v")
    with pytest.raises(FileNotFoundError):
        Verdict.load(tmp_path / "none")


def test_ranking_by_posterior_then_p_value():
    posterior, p_values = torch.tensor([0.2, 0.9, 0.9, 0.1]).double(), torch.tensor([0.5, 0.3, 1e-9, 0.6]).double()
    keep = torch.tensor([True, False, False, True])
    ranked = verdict(posterior=posterior, p_values=p_values, posterior_threshold=0.5, keep=keep)
    assert ranked.ranking.tolist() == [2, 1, 0, 3]
    assert verdict(p_values=torch.tensor([1e-30, 0.5, 1e-40, 0.5]).double()).ranking.tolist() == [2, 0, 1, 3]


def test_removed_is_most_suspicious_first():
    assert verdict().removed.tolist() == [3, 1]
    assert verdict(p_values=torch.tensor([0.5, 1e-40, 0.3, 1e-30]).double()).removed.tolist() == [1, 3]


def test_suspicion_is_posterior_if_present():
    assert torch.equal(verdict(**FULL).suspicion, FULL["posterior"])
    assert torch.equal(verdict().suspicion, 1 - verdict().p_values)


def test_with_kept():
    old = verdict()
    new = old.with_kept(torch.tensor([3]))
    assert new.keep.tolist() == [True, False, True, True]
    assert old.keep.tolist() == [True, False, True, False]
    assert new.meta() == old.meta()


def test_what_is_kept_by_hand_is_marked(tmp_path):
    new = verdict(**FULL).with_kept(torch.tensor([2, 3]))
    assert new.kept_by_hand.tolist() == [False, False, True, True]  # the verdict itself keeps one of them
    assert "\nkept by hand: 2\n" in str(new)
    new.save(tmp_path / "v")
    assert torch.equal(Verdict.load(tmp_path / "v").kept_by_hand, new.kept_by_hand)
    assert new.with_removed(torch.tensor([2])).kept_by_hand.tolist() == [False, False, False, True]
    assert new.with_removed(torch.tensor([2, 3])).kept_by_hand is None
    with pytest.raises(ValueError, match="`kept_by_hand` to be False for a sample that is removed"):
        verdict(kept_by_hand=torch.tensor([False, True, False, False]))


def test_with_removed(tmp_path):
    old = verdict(**FULL)
    new = old.with_removed(torch.tensor([0, 3]))
    assert new.keep.tolist() == [False, False, True, False]
    assert new.removed_by_hand.tolist() == [True, False, False, False]  # the verdict itself removes the last
    assert "\nremoved by hand: 1\n" in str(new)
    assert "\nremoved by hand, still trained on: 1\n" in new.summary(flag_only=True)
    assert new.removed_by_rule.tolist() == old.removed_by_rule.tolist() == (~old.keep).tolist()
    new.save(tmp_path / "v")
    assert torch.equal(Verdict.load(tmp_path / "v").removed_by_hand, new.removed_by_hand)
    again = new.with_kept(torch.tensor([0]))
    assert again.keep.tolist() == old.keep.tolist()
    assert again.removed_by_hand is None
    assert old.with_removed(torch.tensor([3])).removed_by_hand is None
    assert old.with_removed(torch.tensor([0])).with_removed(torch.tensor([2])).removed_by_hand.tolist() == [
        True, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize("parts", [{}, FULL], ids=["by score", "by posterior"])
def test_samples_that_are_no_longer_kept_by_hand_are_removed_by_the_rule(parts):
    old = verdict(**parts)
    new = old.with_kept(torch.tensor([2, 3])).with_removed(torch.tensor([2, 3]))
    assert new.keep.tolist() == [True, False, False, False]
    assert new.removed_by_hand.tolist() == [False, False, True, False]  # the rule keeps it
    again = old.with_kept(torch.tensor([3])).with_removed(torch.tensor([3]))
    assert again.removed_by_hand is again.kept_by_hand is None
    assert str(again) == str(old)


def test_suspicious_samples_that_no_member_removed_are_removed_by_hand_alone():
    keep, found_by = torch.tensor([True, False, True, True]), torch.tensor([-1, 0, -1, -1])
    old = verdict(keep=keep, findings=(Finding("a", 1, verdict().evidence),), found_by=found_by)
    new = old.with_kept(torch.tensor([1, 3])).with_removed(torch.tensor([1, 3]))
    assert new.removed_by_hand.tolist() == [False, False, False, True]


def test_suspicious_samples_that_are_not_judged_are_removed_by_hand_alone():
    old = verdict(judged=torch.tensor([True, True, True, False]), keep=torch.tensor([True, False, True, True]))
    new = old.with_kept(torch.tensor([3])).with_removed(torch.tensor([3]))
    assert new.removed_by_hand.tolist() == [False, False, False, True]


def test_samples_that_are_not_judged_may_be_removed_by_hand():
    judged = torch.tensor([False, True, True, True])
    assert not verdict(judged=judged).with_removed(torch.tensor([0])).keep[0]


def test_refuses_a_sample_that_is_kept_and_removed_by_hand():
    with pytest.raises(ValueError, match="`removed_by_hand` to be False for a sample that is kept"):
        verdict(removed_by_hand=torch.tensor([True, False, False, False]))


def test_scorers_are_those_that_decide():
    assert verdict().scorers == ("likelihood",)
    assert verdict(scorer="recommended", settings={"recommended": {"name": "confidence"}}).scorers == ("confidence",)
    assert verdict(scorer="recommended", settings={"recommended": 5}).scorers == ("recommended",)
    chosen = verdict(scorer="recommended", settings={"recommended": {"name": "confidence"}})
    assert str(chosen).startswith("4 samples scored by confidence; ")
    assert verdict(findings=(Finding("a", 0, None, "x"), Finding("b", 0, None, "y"))).scorers == ("a", "b")


def test_summary():
    lines = verdict(scorer="odd\x1b[0m").summary(class_names=["a"] * 9 + ["nine\n"], rows=1).splitlines()
    assert not any(line.startswith("easily missed") for line in lines)  # backdoors were not looked for
    assert lines[0] == "4 samples scored by odd\\x1b[0m; 2 removed (50.00 %)"
    assert lines[1].startswith("evidence of poison: an estimated 50.00 % of the labels are wrong (25.00 to 75")
    how = "decided by comparison with trusted samples that were scored in the same way"
    assert lines[2] == f"{how}; stated false-positive rate 1 %"
    assert lines[3] == "  labeled a, looks like nine\\n: about 25 samples (20 to 31)"
    assert lines[4] == "  and 1 more pairs of classes"
    assert "labeled 4, looks like 9" in str(verdict())
    assert "more pairs" not in str(verdict())
    assert str(Evidence(False, 0.0, 0.0, 0.001, 0.95, 0.003)).startswith("no evidence of wrong labels: an estimated")


def test_union_is_uncertain_if_a_member_is():
    unsure = Evidence(False, 0.05, 0.001, 0.1, 0.95, 0.003, power=0.6)
    joint = Evidence(False, 0.05, 0.001, 0.1, 0.95, 0.003, kind="several kinds", power=0.6)
    groups = Evidence(False, 0.0, 0.0, 0.1, 0.95, 0.003, kind="groups")
    union = {"evidence": joint, "findings": (Finding("a", 0, unsure), Finding("b", 0, None, "bad luck"))}
    assert verdict(**union).headline == "no clear evidence of poison, but some labels may be wrong"
    assert f"\n{verdict(**union).headline}: an estimated 5.00 % of the samples (0.10" in str(verdict(**union))
    sure = union | {"evidence": replace(joint, present=True)}
    assert verdict(**sure).headline == "evidence of poison"
    other = union | {"findings": (Finding("b", 0, groups),)}
    assert verdict(**other).headline == "no evidence of poison"


@pytest.mark.parametrize("name", ["p_values", "keep", "labels", "suggested_labels", "posterior"])
def test_refuses_other_lengths(name):
    with pytest.raises(ValueError, match=rf"`{name}` to be of shape \(4,\), as `scores`"):
        verdict(**{name: torch.zeros(3)})


def test_refuses_keep_that_is_not_boolean():
    with pytest.raises(ValueError, match="`keep` to be a boolean mask, but got a float32"):
        verdict(keep=torch.zeros(4))


NAN, INF = float("nan"), float("inf")
INVALID = [
    ({"scores": torch.tensor([0.1, NAN, 0.2, 7.0]).double()}, "`scores` to be finite, but got nan at position 1"),
    ({"scores": torch.tensor([0.1, 5.0, INF, 7.0]).double()}, "`scores` to be finite, but got inf at position 2"),
    ({"scores": torch.zeros(4)}, "`scores` to be float64, but got a float32 tensor"),
    ({"scores": torch.zeros(4, 1).double()}, "`scores` to be one-dimensional and not empty"),
    ({"scores": torch.zeros(0).double()}, "`scores` to be one-dimensional and not empty"),
    (
        {"p_values": torch.tensor([0.5, 0.0, 0.3, 1.0]).double()},
        r"`p_values` to be in \(0, 1\], but got 0.0",
    ),
    (
        {"p_values": torch.tensor([0.5, 0.5, NAN, 1.0]).double()},
        r"`p_values` to be in \(0, 1\], but got nan",
    ),
    ({"labels": torch.tensor([0, 1, -2, 1])}, "`labels` to be at least -1, but got -2 at position 2"),
    ({"labels": torch.tensor([0, 1, 2, 1])}, "`thresholds` to be one for each class up to 2, the largest label"),
    ({"labels": torch.zeros(4)}, "`labels` to be int64, but got a float32"),
    ({"suggested_labels": torch.tensor([0, 1, -2, 1])}, "`suggested_labels` to be at least -1, but got -2"),
    (
        {"thresholds": torch.tensor([1.0, NAN]).double()},
        "`thresholds` to be finite or infinity, but got nan",
    ),
    ({"thresholds": torch.zeros(2, 2).double()}, "`thresholds` to be one-dimensional"),
    (
        {"posterior": torch.tensor([0.0, 1.5, 0, 0]).double()},
        r"`posterior` to be in \[0, 1\], but got 1.5",
    ),
    ({"posterior": torch.ones(4).double()}, "`posterior_threshold` to be a number, since there is a `posterior`"),
    ({"posterior_threshold": 0.5}, "`posterior_threshold` to be `None`, as `posterior`, but got 0.5"),
    ({"posterior": torch.ones(4).double(), "posterior_threshold": NAN}, r"`posterior_threshold` to be a number in \[0"),
    ({"votes": {"a": torch.ones(3).double()}}, r"`votes.a` to be of shape \(4,\)"),
    ({"votes": {"a": torch.zeros(4).double()}}, r"`votes.a` to be in \(0, 1\], but got 0.0"),
    ({"votes": [1]}, "`votes` to be a `Mapping`"),
    (
        {"keep": torch.tensor([True, True, False, True])},
        "`keep` to be True for a sample with no score above .* 2",
    ),
    ({"labels": torch.tensor([0, -1, 0, 1])}, "`keep` to be True for a sample with no score above .* position 1"),
    ({"calibration": "magic"}, "`calibration` to be one of 'trusted'"),
    ({"calibration": ["trusted"]}, "`calibration` to be one of 'trusted'"),
    ({"false_positive_rate": 1}, r"`false_positive_rate` to be a number in \(0, 1\), but got 1"),
    ({"false_positive_rate": NAN}, r"`false_positive_rate` to be a number in \(0, 1\), but got nan"),
    ({"scorer": 5}, "`scorer` to be a `str`, but got the int 5"),
    ({"fingerprint": None}, "`fingerprint` to be a `str`"),
    ({"settings": []}, "`settings` to be a `Mapping`"),
    ({"evidence": {}}, "`evidence` to be a `Evidence`"),
    ({"judged": torch.tensor([True, True, True, False])}, "`keep` to be True for a sample that is not judged"),
    ({"judged": torch.ones(3) > 0}, r"`judged` to be of shape \(4,\)"),
    ({"sample_digests": torch.zeros(4)}, "`sample_digests` to be int64"),
    ({"notes": [5]}, "`notes` to be strings"),
    ({"made_with": 5}, "`made_with` to be a `str`"),
]


@pytest.mark.parametrize(("parts", "message"), INVALID, ids=[next(iter(parts)) for parts, _ in INVALID])
def test_invalid_parts_are_refused_when_made_and_in_files(tmp_path, parts, message):
    with pytest.raises((ValueError, TypeError), match=message):
        verdict(**parts)
    if parts == {"votes": [1]}:
        return  # the votes of a file are tensors
    tensors, meta = verdict().tensors(), verdict().meta()
    for name, value in parts.items():
        if name == "votes":
            tensors |= {f"votes.{member}": vote for member, vote in value.items()}
            meta["votes"] = list(value)
        else:
            (tensors if isinstance(value, torch.Tensor) else meta)[name] = value
    write_tensors(tmp_path / "v", tensors, {"kind": "verdict", "version": 1, **meta})
    with pytest.raises(ValueError, match=r"a valid verdict file, but .*v has an invalid part\. Expected `") as caught:
        Verdict.load(tmp_path / "v")
    assert parts == {"evidence": {}} or re.search(message, str(caught.value))


def test_samples_kept_by_hand_may_be_above_the_threshold():
    assert verdict(keep=torch.ones(4) > 0).keep.all()


def test_numbers_of_numpy_are_stored_as_numbers_of_python(tmp_path):
    evidence = Evidence(np.bool_(1), np.float32(0.5), 0, 1, np.float64(0.95), np.float32(0))
    verdict(false_positive_rate=np.float32(0.25), evidence=evidence).save(tmp_path / "v")
    loaded = Verdict.load(tmp_path / "v")
    assert loaded.false_positive_rate == 0.25
    assert loaded.evidence == evidence


def test_removed_samples_by_scorer():
    votes = {
        "quiet": torch.tensor([0.5, 0.5, 0.5, 0.5]).double(),
        "a\x1b": torch.tensor([0.9, 0.01, 0.02, 0.9]).double(),
    }
    thresholds = torch.zeros(2).double()
    found = verdict(keep=torch.tensor([False, False, False, True]), thresholds=thresholds, votes=votes)
    assert found.removed_by_scorer == {"a\x1b": 2, "quiet": 1}
    assert "\nsmallest p-value by a\\x1b 2, quiet 1" in str(found)
    assert verdict().removed_by_scorer == {verdict().scorer: int((~verdict().keep).sum())}
    assert verdict(keep=torch.ones(4, dtype=torch.bool)).removed_by_scorer == {}
    by_hand = verdict(keep=torch.tensor([True, False, True, True]), thresholds=thresholds, votes=votes)
    assert by_hand.with_removed(torch.tensor([0, 2])).removed_by_scorer == {"a\x1b": 1}


def test_groups_are_saved_and_summarized(tmp_path):
    groups = (SuspectGroup(0, 40, 12.3, 0.9, 0.1, True), SuspectGroup(1, 9, 7.0, 0.0, 0.2, False))
    old = verdict(
        evidence=Evidence(True, 0.5, 0.25, 0.75, 0.95, 0.003, kind="groups", groups=groups), calibration="group tests"
    )
    old.save(tmp_path / "v")
    new = Verdict.load(tmp_path / "v")
    assert new.evidence.groups == groups
    summary = new.summary(class_names=["cat", "dog"])
    assert "labeled cat: 40 samples form a separate group" in summary
    assert "labeled dog: 9 samples form a separate group (Ashman's D 7.0) without an effect" in summary
    assert "more groups" not in summary
    assert summary.splitlines()[-1].startswith("easily missed: backdoors that look natural")
    shortened = new.summary(class_names=["cat", "dog"], rows=1)
    assert "dog" not in shortened
    assert "\n  and 1 more groups\n" in shortened


def test_nothing_judged():
    nothing = verdict(keep=torch.ones(4) > 0, judged=torch.zeros(4) > 0)
    assert len(nothing.removed) == 0
    assert "0 samples scored" in str(nothing)


def test_order_of_votes_survives_a_file(tmp_path):
    votes = {name: torch.full((4,), 0.5).double() for name in ("z", "a", "m")}
    verdict(votes=votes).save(tmp_path / "verdict")
    assert list(Verdict.load(tmp_path / "verdict").votes) == ["z", "a", "m"]
    meta, tensors = verdict(votes=votes).meta(), verdict(votes=votes).tensors()
    del meta["votes"]  # as files of earlier versions
    assert list(Verdict.from_saved(meta, tensors).votes) == ["a", "m", "z"]
    with pytest.raises(ValueError, match="`votes` to be the names a, m, z"):
        Verdict.from_saved(meta | {"votes": ["a", "b", "z"]}, tensors)
