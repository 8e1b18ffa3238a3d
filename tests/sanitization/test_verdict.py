import pytest
import torch

from lightning_poison.sanitization.verdict import Evidence, Verdict
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
        "thresholds": torch.tensor([1.5, torch.inf]).double(),
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
    shared = torch.rand(4).double()
    verdict(scores=shared, p_values=shared).save(tmp_path / "v")
    assert torch.equal(Verdict.load(tmp_path / "v").p_values, shared)


def test_refuses_other_files(tmp_path):
    write_tensors(tmp_path / "v", {}, {"kind": "poison"})
    with pytest.raises(ValueError, match=r"kind 'verdict', but .* is of kind 'poison'"):
        Verdict.load(tmp_path / "v")
    write_tensors(tmp_path / "v", {}, {"kind": "verdict"})
    with pytest.raises(ValueError, match="Expected a complete verdict file"):
        Verdict.load(tmp_path / "v")
    write_tensors(tmp_path / "v", verdict().tensors(), {"kind": "verdict", **verdict().meta(), "odd\x1b[2J": 1})
    with pytest.raises(ValueError, match=r"has invalid parts: .*odd\\x1b\[2J"):
        Verdict.load(tmp_path / "v")
    with pytest.raises(FileNotFoundError):
        Verdict.load(tmp_path / "none")


def test_ranking_by_posterior_then_p_value():
    posterior, p_values = torch.tensor([0.2, 0.9, 0.9, 0.1]).double(), torch.tensor([0.5, 0.3, 1e-9, 0.6]).double()
    ranked = verdict(posterior=posterior, p_values=p_values, posterior_threshold=0.5)
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


def test_summary():
    lines = verdict(scorer="odd\x1b[0m").summary(class_names=["a"] * 9 + ["nine\n"], rows=1).splitlines()
    assert lines[0] == "4 samples scored by odd\\x1b[0m; 2 removed (50.00 %)"
    assert lines[1].startswith("evidence of poison: an estimated 50.00 % of the samples (25.00 to 75.00 %, 95 % int")
    assert lines[2] == "calibrated on held-out trusted data, stated false-positive rate 1 %"
    assert lines[3] == "  labeled a, looks like nine\\n: about 25 samples (20 to 31)"
    assert lines[4] == "  and 1 more pairs of classes"
    assert "labeled 4, looks like 9" in str(verdict())
    assert "more pairs" not in str(verdict())
    assert str(Evidence(False, 0.0, 0.0, 0.001, 0.95, 0.003)).startswith("no evidence of poison")


@pytest.mark.parametrize("name", ["p_values", "keep", "labels", "suggested_labels", "posterior"])
def test_refuses_other_lengths(name):
    with pytest.raises(ValueError, match=rf"`{name}` to be of shape \(4,\), as `scores`"):
        verdict(**{name: torch.zeros(3)})


def test_refuses_keep_that_is_not_boolean():
    with pytest.raises(ValueError, match="`keep` to be a boolean mask, but got a float32"):
        verdict(keep=torch.zeros(4))


def test_accusers_of_removed_samples():
    votes = {
        "quiet": torch.tensor([0.5, 0.5, 0.5, 0.5]).double(),
        "a\x1b": torch.tensor([0.9, 0.01, 0.02, 0.9]).double(),
    }
    found = verdict(keep=torch.tensor([False, False, False, True]), votes=votes)
    assert found.accusers == {"a\x1b": 2, "quiet": 1}
    assert "\nsmallest p-value by a\\x1b 2, quiet 1" in str(found)
    assert verdict().accusers == {}


def test_groups_are_saved_and_summarized(tmp_path):
    groups = (SuspectGroup(0, 40, 12.3, 0.9, 0.1, True), SuspectGroup(1, 9, 7.0, 0.0, 0.2, False))
    old = verdict(evidence=Evidence(True, 0.5, 0.25, 0.75, 0.95, 0.003, groups=groups), calibration="group tests")
    old.save(tmp_path / "v")
    new = Verdict.load(tmp_path / "v")
    assert new.evidence.groups == groups
    summary = new.summary(class_names=["cat", "dog"])
    assert "labeled cat: 40 samples form a separate group" in summary
    assert "labeled dog: 9 samples form a separate group (Ashman's D 7.0) without an effect" in summary
    assert "more groups" not in summary
    shortened = new.summary(class_names=["cat", "dog"], rows=1)
    assert "dog" not in shortened
    assert shortened.endswith("\n  and 1 more groups")
